#!/usr/bin/env python3
"""The PyTorch rival on a CPU: seconds of a whole GPT-2 optimizer step, eager and torch.compile.

The work is that of `deepwell bench step`: FP32, forward, backward, clipping of the global gradient
norm, AdamW (PyTorch's fused kernel), gradients cleared; random tokens, vocabulary padded to 50304,
fused attention, no dropout. Both modes train copies of the same weights, alternately, so that a
change of the machine's load meets both. Needs torch only.

usage: pytorch_cpu.py [--batch 4] [--sequence 64] [--threads N] [--steps 12] [--warmup 3]
                      [--modes eager,compile] [--json FILE]
"""
import argparse
import copy
import json
import os
import platform
import time

import torch

from pytorch_gpt2 import GPT2

SHAPES = {"124m": (12, 12, 768), "355m": (24, 16, 1024)}  # layers, heads, width
CONTEXT, VOCABULARY, PADDED_VOCABULARY = 1024, 50257, 50304


class Run:
    """One mode's model, optimizer and the seconds of its steps."""

    def __init__(self, mode, model):
        self.mode = mode
        self.model = model
        self.forward = torch.compile(model) if mode == "compile" else model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95),
                                           weight_decay=0.1, fused=True)
        self.seconds = []
        self.loss = None

    def step(self, batch):
        begin = time.perf_counter()
        loss = self.forward(batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss = loss.item()
        self.seconds.append(time.perf_counter() - begin)


def quantile(values, fraction):
    """By linear interpolation between order statistics."""
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def cpu_name():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            names = [line.split(":", 1)[1].strip() for line in info if "model name" in line]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor()


def report(run, options):
    seconds = run.seconds[options.warmup:]
    median = quantile(seconds, 0.5)
    return {
        "rival": "pytorch", "mode": run.mode, "model": options.model, "dtype": "fp32",
        "batch": options.batch, "sequence": options.sequence, "threads": options.threads,
        "steps": len(seconds), "median_s": median, "p10_s": quantile(seconds, 0.1),
        "p90_s": quantile(seconds, 0.9), "tokens_per_s": options.batch * options.sequence / median,
        "first_step_s": run.seconds[0], "last_loss": run.loss, "torch": torch.__version__,
        "python": platform.python_version(), "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(), "load_average": os.getloadavg()[0],
    }


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="124m")
    parser.add_argument("--batch", type=int, default=4, help="sequences a step")
    parser.add_argument("--sequence", type=int, default=64, help="tokens a sequence")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int, default=12, help="timed steps, at least 10")
    parser.add_argument("--warmup", type=int, default=3, help="steps before timing starts")
    parser.add_argument("--modes", default="eager,compile")
    parser.add_argument("--json", help="append one JSON line a mode to this file")
    options = parser.parse_args()
    options.modes = options.modes.split(",")
    if options.steps < 10 or options.warmup < 1 or not 1 <= options.sequence <= CONTEXT:
        parser.error(f"expected --steps >= 10, --warmup >= 1 and --sequence in 1..{CONTEXT}")
    if set(options.modes) - {"eager", "compile"}:
        parser.error(f"expected --modes of eager and compile, found {','.join(options.modes)}")
    return options


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = GPT2(*SHAPES[options.model], PADDED_VOCABULARY, CONTEXT)
    runs = [Run(mode, copy.deepcopy(model)) for mode in options.modes]
    del model
    batches = torch.randint(0, VOCABULARY, (options.steps + options.warmup, options.batch,
                                            options.sequence + 1))
    for batch in batches:
        for run in runs:
            run.step(batch)
    for run in runs:
        row = report(run, options)
        print(f"pytorch {row['torch']} {run.mode:8} {options.model} B={options.batch} "
              f"T={options.sequence} fp32 {options.threads} threads: "
              f"median {row['median_s']:.4f} s/step "
              f"(p10 {row['p10_s']:.4f}, p90 {row['p90_s']:.4f}; {row['steps']} steps), "
              f"{row['tokens_per_s']:.1f} tokens/s, load {row['load_average']:.2f}", flush=True)
        if options.json:
            with open(options.json, "a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")


main()
