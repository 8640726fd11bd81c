#!/usr/bin/env python3
"""Curves of one or more runs from their metrics.jsonl: PNGs, one HTML page, TensorBoard events.

Reads runs and changes nothing in them. docs/formats.md has the records. Draws what `bench numerics`
wrote, too (numerics.py). Called by `./deepwell plot`.
"""
import argparse
import base64
import html
import io
import json
import os
import re
import statistics
import sys

import numerics

# Panel: title, unit, [(record, field, how it is drawn)], logarithmic.
LINE, POINTS = "line", "points"
PANELS = [
    ("loss", "nats a token", [("step", "loss", LINE), ("validation", "loss", POINTS)], False),
    ("validation", "bits a byte", [("validation", "bits_per_byte", POINTS)], False),
    ("multiple choice", "share of right answers", [("choices", "accuracy_norm", POINTS)], False),
    ("learning rate", "", [("step", "learning_rate", LINE)], False),
    ("gradient norm", "before clipping", [("step", "gradient_norm", LINE)], True),
    ("throughput", "tokens a second", [("step", "tokens_per_s", LINE)], False),
    ("MFU", "share of the peak", [("step", "mfu", LINE)], False),
    ("loss scale", "", [("step", "loss_scale", LINE)], True),
    ("exposed communication", "ms a step", [("step", "comm_exposed_ms", LINE)], False),
    ("GPU power", "W", [("step", "gpu_power_w", LINE)], False),
    ("GPU clock", "MHz", [("step", "gpu_clock_mhz", LINE)], False),
    ("saving", "ms that training waited", [("checkpoint", "stall_ms", POINTS)], False),
]


NOISY = {"loss", "gradient_norm", "tokens_per_s", "mfu", "comm_exposed_ms", "gpu_power_w",
         "gpu_clock_mhz"}  # smoothed


CONFIG, DATA, IO = 2, 3, 5  # docs/exit_codes.md


def fail(code, message):
    sys.stderr.write(f"deepwell: {message}\n")
    sys.exit(code)


class Run:
    """The records of one run, and the axes that they can be drawn over."""

    def __init__(self, path):
        self.path = path
        self.file = os.path.join(path, "metrics.jsonl") if os.path.isdir(path) else path
        self.records = read_records(self.file)
        self.details = {}
        for record in self.records:
            if record["record"] == "run" and isinstance(record.get("details"), dict):
                self.details = record["details"]  # the newest process's
        self.configuration = self.details.get("configuration") or {}
        tokens = hours = 0.0
        self.places = {0: {"steps": 0, "tokens": 0.0, "hours": 0.0}}
        for record in self.records:
            if record["record"] != "step":
                continue
            tokens += number(record, "tokens") or 0.0
            hours += (number(record, "step_ms") or 0.0) / 3.6e6
            step = record["step"]
            self.places[step] = {"steps": step, "tokens": tokens, "hours": hours}
        if len(self.places) == 1:
            fail(DATA, f"{self.file} holds no steps: expected what `deepwell train` writes")

    def curve(self, kind, field, axis):
        """x and y of the records that have a finite number there."""
        points = []
        for record in self.records:
            if record["record"] != kind or record["step"] not in self.places:
                continue
            value = number(record, field)
            if value is not None:
                points.append((self.places[record["step"]][axis], value))
        points.sort(key=lambda point: point[0])  # a background save's record stands behind others
        return [x for x, _ in points], [y for _, y in points]


def number(record, field):
    value = record.get(field)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def read_records(path):
    """The lines that are whole; a run that is under way may be writing the last one."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError):
            fail(DATA, f"{path} is no run: expected a run's folder or its metrics.jsonl, found no text")
        fail(IO, f"cannot read {path}: {error.strerror}; expected a run's folder or its metrics.jsonl")
    records = []
    for place, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not (isinstance(record, dict) and isinstance(record.get("record"), str)
                and isinstance(record.get("step"), int)):
            fail(DATA, f"{path} is no run: expected a run's folder or its metrics.jsonl, found in line "
                       f"{place} no record of a run: {line[:40]!r}")
        records.append(record)
    return records


def label_paths(paths):
    """Names as short as they can be told apart."""
    names = [os.path.normpath(path) for path in paths]
    parts = [name.split(os.sep) for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        short = [os.sep.join(part[-length:]) for part in parts]
        if len(set(short)) == len(short):
            return short
    return [f"{name} ({place})" for place, name in enumerate(names, 1)]


def smooth(values, window):
    """The mean over the last `window` values."""
    if window <= 1:
        return values
    out, total = [], 0.0
    for place, value in enumerate(values):
        total += value - (values[place - window] if place >= window else 0.0)
        out.append(total / min(place + 1, window))
    return out


def draw(axes, panel, runs, labels, options):
    """True if a run had anything to draw."""
    title, unit, series, logarithmic = panel
    drawn = False
    for place, run in enumerate(runs):
        color = f"C{place % 10}"
        for kind, field, how in series:
            x, y = run.curve(kind, field, options.x)
            if not y or (field == "loss_scale" and set(y) == {1.0}):  # 1: no scaling
                continue
            first = not drawn or not any(t.get_label() == labels[place] for t in axes.lines)
            label = labels[place] if first else None
            if how == LINE:
                window = options.smooth if field in NOISY else 1
                if window > 1:
                    axes.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
                axes.plot(x, smooth(y, window), color=color, linewidth=1.2, label=label)
            else:
                axes.plot(x, y, color=color, marker="o", markersize=3, linewidth=0.8,
                          linestyle="--" if len(series) > 1 else "-", label=label)
            drawn = True
    axes.set_title(title + (" (validation dashed)" if len(series) > 1 else ""), fontsize=10)
    axes.set_xlabel(options.x)
    axes.set_ylabel(unit)
    if logarithmic and drawn:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if drawn and len(runs) > 1:
        axes.legend(fontsize=8)
    return drawn


def draw_report_panel(axes, panel, reports, labels, options):
    _, title, how = panel
    drawn = how(axes, reports, labels, lambda values: smooth(values, options.smooth))
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if drawn and axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)
    return drawn


def draw_all(panels, draw, runs, labels, options):
    """(title, PNG bytes) of every panel that has data; all of them in one picture too."""
    # Here, so that a Python without it can look at the inputs (--check).
    import matplotlib
    matplotlib.use("Agg")  # no window
    from matplotlib import pyplot as plt

    pictures = []
    for panel in panels:
        figure, axes = plt.subplots(figsize=(6.4, 4), dpi=options.dpi, layout="constrained")
        if draw(axes, panel, runs, labels, options):
            data = io.BytesIO()
            figure.savefig(data, format="png", metadata={"Software": None})
            pictures.append((panel, data.getvalue()))
        plt.close(figure)
    rows = (len(pictures) + 1) // 2
    figure, grid = plt.subplots(rows, 2, figsize=(12.8, 4 * rows), dpi=options.dpi, squeeze=False,
                                layout="constrained")
    for place, axes in enumerate(grid.flat):
        if place < len(pictures):
            draw(axes, pictures[place][0], runs, labels, options)
        else:
            axes.remove()
    overview = io.BytesIO()
    figure.savefig(overview, format="png", metadata={"Software": None})
    plt.close(figure)
    return [(panel[0], data) for panel, data in pictures], overview.getvalue()


def summary(run):
    """What a table says of a run: label and text."""
    _, losses = run.curve("step", "loss", "steps")
    _, validation = run.curve("validation", "loss", "steps")
    _, rates = run.curve("step", "tokens_per_s", "steps")
    last = run.places[max(run.places)]
    return [
        ("steps", f"{last['steps']:,}"),
        ("tokens", f"{last['tokens']:,.0f}"),
        ("hours of steps", f"{last['hours']:.3f}"),
        ("last loss", f"{losses[-1]:.4f}" if losses else "-"),
        ("best validation loss", f"{min(validation):.4f}" if validation else "-"),
        ("tokens a second, median", f"{statistics.median(rates):,.0f}" if rates else "-"),
        ("device", str(run.details.get("device", "-"))),
        ("version", str(run.details.get("deepwell_version", "-"))),
    ]


def table(head, rows):
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n"
                   for row in rows)
    return f"<table><tr>{cells}</tr>\n{body}</table>\n"


def configuration_table(runs, labels):
    """Of several runs the keys that differ, of one run all, under a heading."""
    differ = "What differs in the configuration" if len(runs) > 1 else "Configuration"
    keys = sorted({key for run in runs for key in run.configuration})
    rows = []
    for key in keys:
        values = [str(run.configuration.get(key, "-")) for run in runs]
        if len(runs) == 1 or len(set(values)) > 1:
            rows.append([key, *values])
    keys_table = table(["key", *labels], rows) if rows else "<p>All keys are equal.</p>\n"
    return f"<h2>{differ}</h2>\n{keys_table}"


STYLE = """body { font: 14px sans-serif; margin: 2em; max-width: 1400px }
table { border-collapse: collapse; margin: 1em 0 } td, th { border: 1px solid #ccc;
padding: 2px 8px; text-align: left } .p { display: flex; flex-wrap: wrap; gap: 12px }
img { max-width: 100% }"""


def page(summaries, labels, pictures, rest):
    rows = [[summaries[0][line][0], *(each[line][1] for each in summaries)]
            for line in range(len(summaries[0]))]
    images = "".join(
        f'<img alt="{html.escape(title)}" src="data:image/png;base64,'
        f'{base64.b64encode(data).decode()}">\n' for title, data in pictures)
    return (f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>'
            f'{html.escape(", ".join(labels))}</title><style>{STYLE}</style>\n'
            f'<h1>{html.escape(", ".join(labels))}</h1>\n{table(["", *labels], rows)}'
            f'<div class="p">\n{images}</div>\n{rest}</html>\n')


def export_tensorboard(runs, labels, folder):
    """One event file a run: every number of every record, by its step."""
    from tensorboardX import SummaryWriter

    for run, label in zip(runs, labels):
        writer = SummaryWriter(os.path.join(folder, re.sub(r"[^\w.-]+", "_", label)),
                               write_to_disk=True)
        for record in run.records:
            for field in record:
                value = number(record, field) if field != "step" else None
                if value is not None:
                    writer.add_scalar(f"{record['record']}/{field}", value, record["step"])
        writer.close()


def write(path, data):
    """Whole or not at all."""
    with open(path + ".tmp", "wb") as file:
        file.write(data)
    os.replace(path + ".tmp", path)


def parse():
    parser = argparse.ArgumentParser(prog="deepwell plot", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN",
                        help="a run's folder, or a metrics.jsonl; or .json files that `bench numerics"
                             " --out` wrote: losses of both recipes, their gap, errors")
    parser.add_argument("--out", default="plots", metavar="FOLDER",
                        help="where the files go (default: plots)")
    parser.add_argument("--x", choices=("steps", "tokens", "hours"), default="steps",
                        help="what curves are drawn over")
    parser.add_argument("--smooth", type=int, default=1, metavar="N",
                        help="lines as means of the last N values, with the values behind them")
    parser.add_argument("--dpi", type=int, default=100)
    parser.add_argument("--check", action="store_true",
                        help="only look whether the runs can be read; draw nothing")
    parser.add_argument("--tensorboard", metavar="FOLDER", help="also write TensorBoard's events")
    return parser.parse_args()


def read_report(path):
    try:
        return numerics.read(path)
    except OSError as error:
        fail(IO, f"cannot read {path}: {error.strerror}; expected what `bench numerics --out` wrote")
    except ValueError as error:
        fail(DATA, f"{path}: expected what `deepwell bench numerics --out` writes: {error}")


def write_all(options, pictures, overview, text):
    os.makedirs(options.out, exist_ok=True)
    for title, data in pictures:
        write(os.path.join(options.out, title.replace(" ", "_") + ".png"), data)
    write(os.path.join(options.out, "overview.png"), overview)
    write(os.path.join(options.out, "index.html"), text.encode())


def say(options, pictures, what, count):
    print(f"{pictures} of {count} {what}{'s' if count > 1 else ''}: "
          f"{os.path.join(options.out, 'index.html')}, overview.png and one PNG each")


def plot_runs(options):
    runs = [Run(path) for path in options.runs]
    if options.check:
        return
    labels = label_paths(options.runs)
    pictures, overview = draw_all(PANELS, draw, runs, labels, options)
    text = page([summary(run) for run in runs], labels, pictures, configuration_table(runs, labels))
    write_all(options, pictures, overview, text)
    say(options, f"{len(pictures)} curves", "run", len(runs))
    if options.tensorboard:
        export_tensorboard(runs, labels, options.tensorboard)
        print(f"events for TensorBoard: {options.tensorboard}")


def plot_reports(options):
    if options.x != "steps" or options.tensorboard:
        fail(CONFIG, "--x and --tensorboard are for runs: leave them out with files of bench numerics")
    reports = [read_report(path) for path in options.runs]
    if options.check:
        return
    labels = label_paths([path[:-len(".json")] for path in options.runs])
    pictures, overview = draw_all(numerics.PANELS, draw_report_panel, reports, labels, options)
    text = page([numerics.summary(report) for report in reports], labels, pictures, "")
    write_all(options, pictures, overview, text)
    say(options, f"{len(pictures)} pictures", "report", len(reports))


def main():
    options = parse()
    if options.smooth < 1 or not 20 <= options.dpi <= 1000:
        fail(CONFIG, "expected --smooth of at least 1 and --dpi from 20 to 1000")
    reports = [path.endswith(".json") for path in options.runs]
    if any(reports) and not all(reports):
        fail(CONFIG, "expected runs, or .json files of bench numerics, not both at once")
    if any(reports):
        plot_reports(options)
    else:
        plot_runs(options)


if __name__ == "__main__":
    try:
        main()
    except OSError as failure:
        fail(IO, f"cannot write {failure.filename or 'the output'}: {failure.strerror}")
