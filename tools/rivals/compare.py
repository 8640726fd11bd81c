#!/usr/bin/env python3
"""deepwell beside PyTorch on one machine: `deepwell bench step` and pytorch_step.py in turns.

Each round runs both once, every second one in the other order, on the same shape and the same token
shard, so that a machine that changes its speed changes it for both. Prints every run, then the medians
over the rounds and their ratio. Every command is printed as it was run.

usage: compare.py --deepwell PATH --data SHARD --model 124m --batch 64 [--micro-batch M] [--rounds 3]
                  [--mode default,reduce-overhead] [--json FILE]
"""
import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys

import pytorch_step

SPEED = re.compile(r"^speed\s+([0-9]+) tokens/s", re.MULTILINE)
STEP = re.compile(r"^step\s+median ([0-9.]+) ms", re.MULTILINE)
POWER = re.compile(r"^power\s+(.*)$", re.MULTILINE)


class Failure(Exception):
    """A run that ended badly, or whose output is not what was expected."""


def parse_deepwell(text):
    """Tokens a second of the output of `deepwell bench step`, with what stands beside it."""
    speed, step, power = SPEED.search(text), STEP.search(text), POWER.search(text)
    if not speed or not step or float(speed.group(1)) <= 0:
        raise Failure("no line \"speed N tokens/s\" and \"step median N ms\" in deepwell's output")
    return {"rival": "deepwell", "tokens_per_s": float(speed.group(1)),
            "median_ms": float(step.group(1)), "power": power.group(1) if power else "n/a"}


def parse_pytorch(text):
    """The last line of pytorch_step.py's output that is a JSON object of it."""
    for line in reversed(text.splitlines()):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict) or row.get("rival") != "pytorch":
            continue
        if row.get("tokens_per_s", 0) > 0 and row.get("median_ms", 0) > 0:
            return row
    raise Failure("no line of JSON in the output of pytorch_step.py")


def deepwell_command(options):
    shape = {"model.layers": options.layers, "model.heads": options.heads,
             "model.width": options.width, "model.context": options.sequence,
             "model.vocabulary": options.vocabulary, "train.batch": options.batch,
             "train.micro_batch": options.micro_batch, "train.sequence_length": options.sequence,
             "data.train": options.data or "", "precision.recipe": options.dtype}
    command = [options.deepwell, "bench", "step", f"--device={options.device}"]
    command += [f"--{key}={value}" for key, value in shape.items()]
    return command + [f"--steps={options.steps}", f"--warmup={options.warmup}"]


def pytorch_command(options, mode):
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pytorch_step.py")
    command = [options.python, script, "--layers", options.layers, "--heads", options.heads,
               "--width", options.width, "--vocabulary", options.vocabulary, "--batch",
               options.batch, "--micro-batch", options.micro_batch, "--sequence", options.sequence,
               "--mode", mode, "--dtype", options.dtype, "--steps", options.steps, "--warmup",
               options.warmup, "--device", options.device]
    return [str(part) for part in command + (["--data", options.data] if options.data else [])]


def run(command, parse):
    print(f"$ {shlex.join(command)}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"exit code {done.returncode}: {shlex.join(command)}")
    row = parse(done.stdout)
    print(f"  {row['tokens_per_s']:,.0f} tokens/s, {row['median_ms']:.2f} ms a step", flush=True)
    return row


def summary(rates):
    """Lines with each contestant's median and range, and deepwell's ratio to the best rival."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    lines = [f"{name:28} {medians[name]:12,.0f} tokens/s, median of {len(values)} "
             f"({min(values):,.0f} to {max(values):,.0f})" for name, values in rates.items()]
    best = max((name for name in rates if name != "deepwell"), key=medians.get)
    ratio = medians["deepwell"] / medians[best]
    return lines + [f"deepwell / {best}: {ratio:.3f}"], ratio


def parse_options(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deepwell", required=True, help="the built program")
    parser.add_argument("--python", default=sys.executable, help="one that has PyTorch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", default="default", help="of torch.compile; several with commas")
    parser.add_argument("--json", help="append a line of JSON for every run to this file")
    options, rest = parser.parse_known_args(arguments)
    if options.rounds < 1:
        parser.error("expected --rounds of at least 1")
    modes = options.mode.split(",")
    for mode in modes:  # everything else is pytorch_step.py's, and is checked as there
        shape = pytorch_step.parse(rest + ["--mode", mode])
    for name, value in vars(shape).items():
        if name != "mode":
            setattr(options, name, value)
    options.modes = modes
    return options


def main():
    options = parse_options()
    rates = {"deepwell": []}
    try:
        for turn in range(options.rounds):
            runs = [("deepwell", deepwell_command(options), parse_deepwell)]
            runs += [(f"PyTorch, {mode}", pytorch_command(options, mode), parse_pytorch)
                     for mode in options.modes]
            for name, command, parse in runs if turn % 2 == 0 else reversed(runs):
                row = run(command, parse)
                rates.setdefault(name, []).append(row["tokens_per_s"])
                if options.json:
                    with open(options.json, "a", encoding="utf-8") as out:
                        out.write(json.dumps({"command": command, **row}) + "\n")
    except Failure as failure:
        print(f"compare.py: {failure}", file=sys.stderr)
        return 1
    print("\n".join(summary(rates)[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
