"""What `deepwell bench numerics --out FILE` wrote, read and drawn: losses of a recipe and of what it is
measured against, the gap between them, and errors by tensor and by role. Called by plot.py.

docs/precision.md says what the numbers are. read() raises ValueError where the file is not as written.
"""
import json
import math
import statistics


def number_of(value, what):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"expected a finite number as {what}, found {json.dumps(value)[:40]}")
    return float(value)


def text_of(value, what):
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected text as {what}, found {json.dumps(value)[:40]}")
    return value


def curves_of(data, name):
    """Losses by seed and step, all of one length."""
    curves = data.get(name, [])
    if not isinstance(curves, list) or not all(isinstance(curve, list) for curve in curves):
        raise ValueError(f"expected lists of losses as {name}")
    curves = [[number_of(loss, f"a loss of {name}") for loss in curve] for curve in curves]
    if curves and (not curves[0] or len({len(curve) for curve in curves}) != 1):
        raise ValueError(f"expected curves of one length in {name}")
    return curves


class Report:
    def __init__(self, path, data):
        if not isinstance(data, dict):
            raise ValueError("expected an object")
        self.path = path
        self.precision = text_of(data.get("precision"), "precision")
        self.against = text_of(data.get("against"), "against")
        gradients = data.get("gradients")
        if not isinstance(gradients, dict) or "all" not in gradients:
            raise ValueError("expected gradients with an entry all")
        self.gradients = {role: number_of(error, f"gradients.{role}")
                          for role, error in gradients.items()}
        tensors = data.get("tensors", [])
        if not isinstance(tensors, list) or not all(isinstance(t, dict) for t in tensors):
            raise ValueError("expected a list of objects as tensors")
        self.tensors = [(text_of(tensor.get("tensor"), "a tensor's name"),
                         number_of(tensor.get("relative_error"), "a tensor's relative_error"))
                        for tensor in tensors]
        self.losses = curves_of(data, "losses")
        self.losses_against = curves_of(data, "losses_against")
        if [len(c) for c in self.losses] != [len(c) for c in self.losses_against]:
            raise ValueError("expected as many losses as losses_against")
        self.loss_gap = number_of(data.get("loss_gap"), "loss_gap") if self.losses else None
        has_noise = "seed_noise" in data
        self.seed_noise = number_of(data["seed_noise"], "seed_noise") if has_noise else None

    def kinds(self):
        """Errors of the tensors of one kind, over the blocks: {"mlp.fc.input": [...]}, in order."""
        kinds = {}
        for name, error in self.tensors:
            parts = name.split(".", 2)
            kind = parts[2] if parts[0] == "block" and len(parts) == 3 else name
            kinds.setdefault(kind, []).append(error)
        return kinds

    def gaps(self):
        """loss - the other's, by seed and step."""
        return [[a - b for a, b in zip(mine, other)]
                for mine, other in zip(self.losses, self.losses_against)]


def read(path):
    with open(path, encoding="utf-8") as file:
        try:
            return Report(path, json.load(file))
        except (RecursionError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__} {error}") from error


def mean_curve(curves):
    return [statistics.fmean(values) for values in zip(*curves)]


def draw_curves(axes, curves, smooth, label, **style):
    for seed, curve in enumerate(curves):
        axes.plot(range(1, len(curve) + 1), smooth(curve), label=label if seed == 0 else None, **style)


def draw_losses(axes, reports, labels, smooth):
    """A line a seed; dashed, behind all: what they are measured against, once where it is the same."""
    drawn = False
    others = []
    for place, report in enumerate(reports):
        if not report.losses:
            continue
        if report.losses_against not in others:
            others.append(report.losses_against)
            draw_curves(axes, report.losses_against, smooth, report.against, color="black",
                        linestyle="--", linewidth=1.8, alpha=0.6)
        draw_curves(axes, report.losses, smooth, labels[place], color=f"C{place % 10}", linewidth=0.9)
        drawn = True
    axes.set_xlabel("steps")
    axes.set_ylabel("nats a token")
    return drawn


def draw_gap(axes, reports, labels, smooth):
    """Thin: a seed; thick: the mean over seeds; band: the noise of the other's seeds at the end."""
    drawn = False
    for place, report in enumerate(reports):
        gaps = report.gaps()
        color = f"C{place % 10}"
        if not gaps:
            continue
        steps = range(1, len(gaps[0]) + 1)
        if len(gaps) > 1:
            for gap in gaps:
                axes.plot(steps, smooth(gap), color=color, alpha=0.35, linewidth=0.7)
        axes.plot(steps, smooth(mean_curve(gaps)), color=color, linewidth=1.5, label=labels[place])
        if report.seed_noise is not None:
            axes.axhspan(-report.seed_noise, report.seed_noise, color=color, alpha=0.08)
        drawn = True
    if drawn:
        axes.axhline(0.0, color="black", linewidth=0.8)
    axes.set_xlabel("steps")
    axes.set_ylabel("nats a token")
    return drawn


def draw_bars(axes, groups, labels):
    """groups: of each report {name: [errors]}; a bar is their mean, a line from least to most."""
    names = list(dict.fromkeys(name for group in groups for name in group))
    height = 0.8 / len(groups)
    for place, group in enumerate(groups):
        if not group:
            continue
        rows = [(row, group[name]) for row, name in enumerate(names) if name in group]
        means = [statistics.fmean(errors) for _, errors in rows]
        spread = [[mean - min(errors) for mean, (_, errors) in zip(means, rows)],
                  [max(errors) - mean for mean, (_, errors) in zip(means, rows)]]
        axes.barh([row + (place + 0.5) * height - 0.4 for row, _ in rows], means, height,
                  color=f"C{place % 10}", label=labels[place], xerr=spread, error_kw={"linewidth": 0.8})
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("relative error")
    return bool(names)


def draw_tensors(axes, reports, labels, smooth):
    return draw_bars(axes, [report.kinds() for report in reports], labels)


def draw_gradients(axes, reports, labels, smooth):
    return draw_bars(axes, [{role: [error] for role, error in report.gradients.items()}
                            for report in reports], labels)


PANELS = [
    ("loss", "loss (dashed: what it is measured against)", draw_losses),
    ("loss gap", "loss less the other's (band: noise of its seeds)", draw_gap),
    ("quantisation errors", "error of quantising, mean and range over the blocks", draw_tensors),
    ("gradient errors", "error of the first step's gradients", draw_gradients),
]


def summary(report):
    """What a table says of a report: label and text."""
    return [
        ("precision", report.precision),
        ("against", report.against),
        ("steps", str(len(report.losses[0])) if report.losses else "-"),
        ("seeds", str(len(report.losses)) if report.losses else "-"),
        ("loss gap, mean of the last tenth", f"{report.loss_gap:+.4f}" if report.losses else "-"),
        ("standard deviation over the other's seeds",
         f"{report.seed_noise:.4f}" if report.seed_noise is not None else "-"),
        ("gradient error", f"{report.gradients['all']:.4f}"),
    ]
