#!/usr/bin/env python3
"""The validation loss of a checkpoint as Hugging Face transformers computes it.

For comparison with `deepwell eval`. Loads the folder with AutoModelForCausalLM.from_pretrained, so
it also proves that a checkpoint is what `from_pretrained` expects. Sequence j of a shard is tokens
[j T, j T + T]: T inputs, T targets. The model runs in FP32; losses are taken from the logits and
summed in FP64. Needs torch, transformers and numpy.

usage: check_transformers.py CHECKPOINT SHARD [--sequences N] [--sequence-length T] [--expect LOSS]
With --expect, exits with 1 if the loss lies further than --tolerance from it.
"""
import argparse
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a folder is loaded; nothing is looked for elsewhere

import numpy as np
import torch
import torch.nn.functional as F
import transformers

HEADER_INTS = 256
TOKEN_TYPES = {(20240520, 1): np.dtype("<u2"), (20240801, 7): np.dtype("<u4")}  # (magic, version)


def read_shard(path):
    """The tokens of one shard, memory-mapped."""
    header = np.fromfile(path, dtype="<i4", count=HEADER_INTS)
    if len(header) < HEADER_INTS:
        sys.exit(f"{path}: expected a header of {HEADER_INTS} int32, found {len(header)}")
    dtype = TOKEN_TYPES.get((int(header[0]), int(header[1])))
    if dtype is None:
        sys.exit(f"{path}: expected magic and version {sorted(TOKEN_TYPES)}, "
                 f"found ({header[0]}, {header[1]})")
    expected, found = 4 * HEADER_INTS + int(header[2]) * dtype.itemsize, os.path.getsize(path)
    if found != expected:
        sys.exit(f"{path}: expected {expected} bytes for {header[2]} tokens, found {found}")
    return np.memmap(path, dtype=dtype, mode="r", offset=4 * HEADER_INTS)


def load_model(folder):
    """Every tensor of the model must be in the file, and nothing else."""
    transformers.utils.logging.disable_progress_bar()
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    # The head is the token embedding: tied, so it need not be in the file.
    problems = {kind: sorted(map(str, names)) for kind, names in report.items()
                if names and set(map(str, names)) != {"lm_head.weight"}}
    if problems:
        sys.exit(f"{folder}: from_pretrained reports {problems}")
    return model.eval()


@torch.no_grad()
def mean_loss(model, tokens, sequences, length, batch):
    total = 0.0
    for first in range(0, sequences, batch):
        rows = range(first, min(first + batch, sequences))
        windows = np.stack([tokens[j * length : j * length + length + 1] for j in rows])
        block = torch.from_numpy(windows.astype(np.int64))
        logits = model(block[:, :-1], use_cache=False).logits
        total += F.cross_entropy(logits.flatten(0, 1).double(), block[:, 1:].flatten(),
                                 reduction="sum").item()
    return total / (sequences * length)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a folder with config.json and model.safetensors")
    parser.add_argument("shard")
    parser.add_argument("--sequences", type=int, default=0, help="the first N (0: all)")
    parser.add_argument("--sequence-length", type=int, default=0, help="0: the model's context")
    parser.add_argument("--batch", type=int, default=8, help="sequences at a time")
    parser.add_argument("--expect", type=float, help="the loss that deepwell eval printed")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    return parser.parse_args()


def main():
    options = parse()
    model = load_model(options.checkpoint)
    tokens = read_shard(options.shard)
    context = model.config.n_positions
    length = options.sequence_length or context
    if not 1 <= length <= context:
        sys.exit(f"--sequence-length {length}: expected 1 to {context}, the model's context")
    available = (len(tokens) - 1) // length
    sequences = min(options.sequences or available, available)
    if sequences < 1:
        sys.exit(f"{options.shard}: {len(tokens)} tokens hold no sequence of {length}")
    loss = mean_loss(model, tokens, sequences, length, options.batch)
    print(json.dumps({"loss": round(loss, 9), "sequences": sequences, "sequence_length": length,
                      "parameters": model.num_parameters(), "torch": torch.__version__,
                      "transformers": transformers.__version__}))
    if options.expect is not None:
        off = abs(loss - options.expect)
        print(f"expected {options.expect:.7f} within {options.tolerance:g}, found {loss:.7f}: "
              f"off by {off:.2g}")
        sys.exit(0 if off <= options.tolerance else 1)


main()
