#!/usr/bin/env python3
"""What Hugging Face transformers computes with a model, held against deepwell.

  loss MODEL SHARD             the validation loss, to compare with `deepwell eval`
  logits MODEL SHARD LOGITS    the largest difference to what `deepwell eval --logits` wrote
  round DEEPWELL FOLDER        the whole way: transformers makes a GPT-2 with random weights; it is
                               converted (one file, shards, BF16, llm.c), trained on, loaded
                               again, and the logits are compared before and after

Models are loaded with AutoModelForCausalLM.from_pretrained, so this also proves that a checkpoint
is what `from_pretrained` expects. Sequence j of a shard is tokens [j T, j T + T]: T inputs, T targets.
The model runs in FP32; losses are taken from the logits and summed in FP64. Exits with 1 where a
difference is larger than --tolerance. Needs torch, transformers, safetensors and numpy.
"""
import argparse
import json
import os
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a folder is loaded; nothing is looked for elsewhere

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.numpy import load_file

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


def sequence_count(model, tokens, options):
    """Length of a sequence and how many there are to look at."""
    context = model.config.n_positions
    length = options.sequence_length or context
    if not 1 <= length <= context:
        sys.exit(f"--sequence-length {length}: expected 1 to {context}, the model's context")
    available = (len(tokens) - 1) // length
    sequences = min(options.sequences or available, available)
    if sequences < 1:
        sys.exit(f"{options.shard}: {len(tokens)} tokens hold no sequence of {length}")
    return length, sequences


def check_loss(options):
    model = load_model(options.model)
    tokens = read_shard(options.shard)
    length, sequences = sequence_count(model, tokens, options)
    loss = mean_loss(model, tokens, sequences, length, options.batch)
    print(json.dumps({"loss": round(loss, 9), "sequences": sequences, "sequence_length": length,
                      "parameters": model.num_parameters(), "torch": torch.__version__,
                      "transformers": transformers.__version__}))
    if options.expect is None:
        return True
    off = abs(loss - options.expect)
    print(f"expected {options.expect:.7f} within {options.tolerance:g}, found {loss:.7f}: "
          f"off by {off:.2g}")
    return off <= options.tolerance


@torch.no_grad()
def logits_off(folder, shard, logits_file):
    """The largest difference, and the largest logit that it is to be seen against."""
    model = load_model(folder)
    ours = torch.from_numpy(load_file(logits_file)["logits"])
    sequences, length, vocabulary = ours.shape
    tokens = torch.from_numpy(read_shard(shard)[: sequences * length].astype(np.int64))
    theirs = model(tokens.view(sequences, length), use_cache=False).logits
    if theirs.shape[-1] != vocabulary:
        sys.exit(f"{logits_file}: expected {theirs.shape[-1]} tokens, found {vocabulary}")
    return (ours - theirs).abs().max().item(), theirs.abs().max().item()


def check_logits(options):
    off, largest = logits_off(options.model, options.shard, options.logits)
    print(f"logits of {options.model}: at most {off:.2g} apart, of at most {largest:.3g}")
    return off <= options.tolerance


def make_model(folder):
    """A small GPT-2 whose every parameter, biases and norms too, is random; saved in three ways."""
    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=256, n_positions=32, n_embd=48, n_layer=3, n_head=4,
                                     bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(f"{folder}/one")
    model.save_pretrained(f"{folder}/sharded", max_shard_size="50KB")
    model.transformer.save_pretrained(f"{folder}/no_prefix")
    model.to(torch.bfloat16).save_pretrained(f"{folder}/bf16")
    write_llmc(model.float().state_dict(), config, f"{folder}/llmc.bin")
    return config


def write_llmc(state, config, path):
    """The same weights as a model file of llm.c, version 5 (BF16), with a padded vocabulary."""
    padded = config.vocab_size + 64
    header = np.zeros(256, dtype="<i4")
    header[:8] = [20240326, 5, config.n_positions, config.vocab_size, config.n_layer, config.n_head,
                  config.n_embd, padded]
    embedding = F.pad(state["transformer.wte.weight"], (0, 0, 0, padded - config.vocab_size))
    tensors = [embedding, state["transformer.wpe.weight"]]
    for name in ("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias",
                 "attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias",
                 "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"):
        for layer in range(config.n_layer):
            tensor = state[f"transformer.h.{layer}.{name}"]
            tensors.append(tensor.T if tensor.ndim == 2 else tensor)  # Conv1D is [in, out]
    tensors += [state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]]
    with open(path, "wb") as file:
        file.write(header.tobytes())
        for tensor in tensors:
            file.write(tensor.contiguous().to(torch.bfloat16).view(torch.int16).numpy().tobytes())


def check_round(options):
    """Every model in both directions; the training run starts from the first."""
    deepwell, folder = os.path.abspath(options.deepwell), options.folder
    os.makedirs(folder)  # a new one
    transformers.utils.logging.disable_progress_bar()
    config = make_model(folder)

    def run(*arguments):
        subprocess.run([deepwell, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)

    with open(f"{folder}/text.txt", "wb") as text:
        text.write(bytes(np.random.default_rng(1).integers(1, 256, 40000, dtype=np.uint8)))
    run("data", "prepare", "--out", f"{folder}/data", f"{folder}/text.txt")
    shard = f"{folder}/data/validation.bin"
    fine = True

    def compare(model, what):
        nonlocal fine
        logits = f"{folder}/{what}.logits.safetensors"
        run("eval", model, "--data", shard, "--logits", logits, "--precision.recipe", "fp32",
            "--sequences", 4, "--device", "cpu")
        off, largest = logits_off(model, shard, logits)
        fine = fine and off <= options.tolerance
        print(f"{what:20} at most {off:.2g} apart, of at most {largest:.3g}")

    for name in ("one", "sharded", "no_prefix", "bf16"):
        if name != "no_prefix":  # it has no head for from_pretrained to report on
            compare(f"{folder}/{name}", name)
        run("convert", f"{folder}/{name}", f"{folder}/{name}_converted")
        compare(f"{folder}/{name}_converted", f"{name}_converted")
    run("convert", f"{folder}/llmc.bin", f"{folder}/llmc_converted")
    compare(f"{folder}/llmc_converted", "llmc_converted")
    run("train", "--init", f"{folder}/one", "--train.out", f"{folder}/run", "--data.train",
        f"{folder}/data/train.bin", "--data.validation", "", "--model.layers", config.n_layer,
        "--model.heads", config.n_head, "--model.width", config.n_embd, "--model.context",
        config.n_positions, "--model.vocabulary", config.vocab_size, "--train.steps", 20,
        "--train.batch", 4, "--train.micro_batch", 4, "--precision.recipe", "fp32",
        "--optimizer.warmup_steps", 0, "--device", "cpu")
    compare(f"{folder}/run/step_00000020", "trained")
    run("convert", f"{folder}/run", f"{folder}/exported", "--to", "bf16")
    compare(f"{folder}/exported", "exported_bf16")
    before = load_file(f"{folder}/one/model.safetensors")
    after = load_file(f"{folder}/run/step_00000020/model.safetensors")
    moved = max(float(np.abs(before[name] - after[name]).max()) for name in after)
    print(f"training moved a weight by up to {moved:.3g}")
    return fine and moved > 0


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(required=True)
    loss = kinds.add_parser("loss")
    loss.add_argument("model", help="a folder with config.json and model.safetensors")
    loss.add_argument("shard")
    loss.add_argument("--sequences", type=int, default=0, help="the first N (0: all)")
    loss.add_argument("--sequence-length", type=int, default=0, help="0: the model's context")
    loss.add_argument("--batch", type=int, default=8, help="sequences at a time")
    loss.add_argument("--expect", type=float, help="the loss that deepwell eval printed")
    loss.set_defaults(check=check_loss)
    logits = kinds.add_parser("logits")
    logits.add_argument("model")
    logits.add_argument("shard")
    logits.add_argument("logits", help="what deepwell eval --logits wrote")
    logits.set_defaults(check=check_logits)
    whole = kinds.add_parser("round")
    whole.add_argument("deepwell", help="the binary")
    whole.add_argument("folder", help="a new one, for everything that is made")
    whole.set_defaults(check=check_round)
    for kind in (loss, logits, whole):
        kind.add_argument("--tolerance", type=float, default=1e-5)
    return parser.parse_args()


def main():
    options = parse()
    sys.exit(0 if options.check(options) else 1)


main()
