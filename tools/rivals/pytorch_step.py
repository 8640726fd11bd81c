#!/usr/bin/env python3
"""The PyTorch rival on a GPU: whole GPT-2 optimizer steps as a careful PyTorch user would write them.

The work is that of `deepwell bench step`: FP32 master weights, BF16 autocast (or FP32), fused causal
attention, GELU, tied head over the padded vocabulary, torch.compile, clipping of the global gradient
norm, fused AdamW, gradients cleared; gradients accumulated over micro-batches. Tokens come from a
shard in deepwell's format (docs/formats.md), or are random without --data. Step times are taken with
CUDA events around each whole step, and the median is printed as one JSON line.

usage: pytorch_step.py [--model 124m | --layers L --heads H --width C] --batch B [--micro-batch M]
                       [--sequence 1024] [--data SHARD] [--mode default|reduce-overhead|eager]
                       [--dtype bf16|fp32] [--steps 20] [--warmup 5] [--device cuda]
"""
import argparse
import contextlib
import json
import platform
import statistics
import sys
import time

SHAPES = {"124m": (12, 12, 768), "355m": (24, 16, 1024), "774m": (36, 20, 1280),
          "1558m": (48, 25, 1600)}  # layers, heads, width
HEADER_WORDS = 256
MAGICS = {20240520: (1, "<u2"), 20240801: (7, "<u4")}  # magic: version, type of a token


def padded(vocabulary):
    """As deepwell pads it in memory: to a multiple of 128."""
    return -(-vocabulary // 128) * 128


def read_shard(path, vocabulary):
    """The tokens of a shard, after its header was held against the file."""
    import numpy
    header = numpy.fromfile(path, dtype="<i4", count=HEADER_WORDS)
    if len(header) < HEADER_WORDS or int(header[0]) not in MAGICS:
        raise SystemExit(f"{path}: not a token shard (docs/formats.md)")
    version, dtype = MAGICS[int(header[0])]
    if int(header[1]) != version:
        raise SystemExit(f"{path}: expected version {version}, found {int(header[1])}")
    tokens = numpy.fromfile(path, dtype=dtype, offset=4 * HEADER_WORDS)
    if len(tokens) != int(header[2]):
        raise SystemExit(f"{path}: the header promises {int(header[2])} tokens, found {len(tokens)}")
    if len(tokens) == 0 or int(tokens.max()) >= vocabulary:
        raise SystemExit(f"{path}: expected tokens below {vocabulary}")
    return tokens.astype("int64")


def make_model(torch, options):
    from pytorch_gpt2 import GPT2  # needs torch, which the parsing of options does not
    torch.manual_seed(1)
    return GPT2(options.layers, options.heads, options.width, padded(options.vocabulary),
                options.sequence).to(options.device)


class Batches:
    """Micro-batches on the device, copied ahead; the sequences of the shard one behind the other."""

    def __init__(self, torch, options):
        needed = options.micro_batch * options.sequence
        if options.data:
            tokens = torch.from_numpy(read_shard(options.data, options.vocabulary))
        else:
            tokens = torch.randint(0, options.vocabulary, (64 * needed + 1,))
        if len(tokens) <= needed:
            raise SystemExit(f"{options.data}: {len(tokens)} tokens, a micro-batch needs {needed + 1}")
        self.tokens, self.needed, self.options, self.at = tokens, needed, options, 0
        if options.device == "cuda":
            self.tokens = tokens.pin_memory()

    def next(self):
        if self.at + self.needed + 1 > len(self.tokens):
            self.at = 0
        window = self.tokens[self.at:self.at + self.needed + 1]
        self.at += self.needed
        window = window.to(self.options.device, non_blocking=True)
        shape = (self.options.micro_batch, self.options.sequence)
        return window[:-1].view(shape), window[1:].view(shape)


def make_step(torch, model, options):
    parameters = list(model.parameters())
    decayed = [p for p in parameters if p.dim() == 2]
    others = [p for p in parameters if p.dim() != 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1},
                                   {"params": others, "weight_decay": 0.0}],
                                  lr=1e-4, betas=(0.9, 0.95), fused=True)
    compiled = {"eager": lambda: model, "default": lambda: torch.compile(model)}.get(
        options.mode, lambda: torch.compile(model, mode=options.mode))()
    micro_batches = options.batch // options.micro_batch
    batches = Batches(torch, options)

    def step():
        total = 0.0
        for _ in range(micro_batches):
            inputs, targets = batches.next()
            precision = (torch.autocast(options.device, torch.bfloat16) if options.dtype == "bf16"
                         else contextlib.nullcontext())
            with precision:
                loss = compiled(inputs, targets)
            (loss / micro_batches).backward()
            total = total + loss.detach().clone()  # reduce-overhead reuses the loss's memory
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total / micro_batches

    return step


def time_steps(torch, step, options):
    """Seconds of each timed step, seconds of the warm-up, the last loss."""
    begin = time.perf_counter()
    for _ in range(options.warmup):
        loss = step()
    if options.device != "cuda":
        warmup = time.perf_counter() - begin
        seconds = []
        for _ in range(options.steps):
            begin = time.perf_counter()
            loss = step()
            seconds.append(time.perf_counter() - begin)
        return seconds, warmup, float(loss)
    torch.cuda.synchronize()
    warmup = time.perf_counter() - begin
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(options.steps + 1)]
    marks[0].record()
    for mark in marks[1:]:
        loss = step()
        mark.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) * 1e-3 for a, b in zip(marks, marks[1:])], warmup, float(loss)


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES)
    for name in ("layers", "heads", "width"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--batch", type=int, required=True, help="sequences a step")
    parser.add_argument("--micro-batch", type=int, help="sequences at a time (default: --batch)")
    parser.add_argument("--sequence", type=int, default=1024, help="tokens a sequence")
    parser.add_argument("--data", help="a token shard; without it tokens are random")
    parser.add_argument("--mode", choices=("default", "reduce-overhead", "eager"), default="default")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--warmup", type=int, default=5, help="steps before, with the compilation")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args(arguments)
    shape = (options.layers, options.heads, options.width)
    if options.model and shape == (None, None, None):
        options.layers, options.heads, options.width = SHAPES[options.model]
    elif options.model or None in shape:
        parser.error("expected --model, or all of --layers, --heads and --width")
    options.micro_batch = options.micro_batch or options.batch
    counts = (options.layers, options.heads, options.width, options.vocabulary, options.batch,
              options.micro_batch, options.sequence, options.steps, options.warmup)
    if min(counts) < 1:
        parser.error("expected counts of at least 1")
    if options.batch % options.micro_batch or options.width % options.heads:
        parser.error("expected --micro-batch to divide --batch, and --heads to divide --width")
    return options


def main():
    options = parse()
    import torch
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU that PyTorch can use (--device cpu runs without)")
    torch.set_float32_matmul_precision("high" if options.dtype == "bf16" else "highest")
    step = make_step(torch, make_model(torch, options), options)
    seconds, warmup, loss = time_steps(torch, step, options)
    median = statistics.median(seconds)
    on_gpu = options.device == "cuda"
    print(json.dumps({
        "rival": "pytorch", "mode": options.mode, "dtype": options.dtype, "layers": options.layers,
        "heads": options.heads, "width": options.width, "batch": options.batch,
        "micro_batch": options.micro_batch, "sequence": options.sequence,
        "data": options.data or "random", "steps": len(seconds), "median_ms": median * 1e3,
        "tokens_per_s": options.batch * options.sequence / median, "warmup_s": warmup, "loss": loss,
        "memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu",
        "torch": torch.__version__,
    }), flush=True)


if __name__ == "__main__":
    sys.exit(main())
