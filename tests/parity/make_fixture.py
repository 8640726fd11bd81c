#!/usr/bin/env python3
"""Writes gpt2_fixture.safetensors: Hugging Face's GPT-2 and PyTorch's AdamW on a tiny model.

Who uses it: gpt2_parity_test.c, which never needs Python. Run this only to make the file anew
(README.md).

The oracle is more precise than what it judges: weights are drawn in FP32 and everything after that
is computed in FP64, with every constant (learning rates, betas, epsilon ...) first rounded to FP32,
because that is the number the engine is given. Results are rounded to FP32 once, when stored.

Besides values the file holds `spread:` entries: how far results move when the FP64 model is
disturbed at random by as much as a precision is allowed to disturb it. Tolerances are derived from
them.
"""
import argparse
import copy
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.numpy import save

SEED = 20240817
VOCABULARY, CONTEXT, LAYERS, HEADS, WIDTH = 61, 24, 3, 4, 32
BATCHES, ROWS, TOKENS = 2, 3, 17
STEPS, WARMUP_STEPS, PEAK_RATE = 10, 4, 2e-3
BETA1, BETA2, EPSILON, WEIGHT_DECAY, CLIP_NORM = 0.9, 0.95, 1e-8, 0.1, 1.0
TWINS = 16  # disturbed copies from which a spread is taken
UNIT_ROUNDOFF = {"bf16": 2.0**-8, "fp16": 2.0**-11}  # half the spacing of numbers at 1
# Largest error of a gradient, in units of 2^-23 times the largest gradient of its tensor, that
# gpt2_parity_test.c lets FP32 make; the optimizer's spread is taken with errors of this size.
GRADIENT_ERROR_UNITS = 64.0


def fp32(number):
    """The number as a C float holds it."""
    return float(np.float32(number))


def draw_weights(model, random):
    """Random values for every parameter, norms and biases too: no term of a gradient is zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.from_numpy(random.standard_normal(tuple(parameter.shape)))
            if name.endswith(("wte.weight", "wpe.weight")):
                value = 0.15 * noise
            elif parameter.dim() == 2:
                # Conv1D stores (in, out). Larger queries and keys make attention pick, not average.
                value = (1.5 if "c_attn" in name else 1.0) * noise / math.sqrt(parameter.shape[0])
            elif ".ln_" in name and name.endswith("weight"):
                value = 0.55 + 0.2 * noise
            else:
                value = 0.15 * noise
            parameter.copy_(value.float())


def make_model(random):
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager",
        bos_token_id=0, eos_token_id=0, use_cache=False)
    model = transformers.GPT2LMHeadModel(config)
    draw_weights(model, random)
    return model.double().train()


def mean_loss(model, batch):
    """Mean over all tokens, in nats. The model's own loss rounds the logits to FP32: not used."""
    logits = model(batch[:, :-1]).logits
    assert logits.dtype == torch.float64
    return F.cross_entropy(logits.reshape(-1, VOCABULARY), batch[:, 1:].reshape(-1)), logits


def check_gradient(model, batch):
    """Central differences along the gradient agree only if all of the graph runs in FP64."""
    model.zero_grad()
    mean_loss(model, batch)[0].backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
    losses = []
    for distance in (1e-4, -1e-4):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for there, here in zip(moved.parameters(), model.parameters()):
                there.add_(here.grad, alpha=distance / norm)
            losses.append(float(mean_loss(moved, batch)[0]))
    slope = (losses[0] - losses[1]) / 2e-4
    # The third derivative times distance^2 / 6 remains; FP32 anywhere would leave about 1e-3.
    assert abs(slope - norm) < 1e-5 * norm, (slope, norm)


def fp32_gradient_error(model, batch):
    """The error of PyTorch's own FP32 gradients, in the units of GRADIENT_ERROR_UNITS."""
    single = copy.deepcopy(model).float()
    single.zero_grad()
    logits = single(batch[:, :-1]).logits
    F.cross_entropy(logits.reshape(-1, VOCABULARY), batch[:, 1:].reshape(-1)).backward()
    model.zero_grad()
    mean_loss(model, batch)[0].backward()
    return max(((s.grad - p.grad).abs().max() / p.grad.abs().max()).item() * 2.0**23
               for s, p in zip(single.parameters(), model.parameters()))


def learning_rate(step):
    return fp32(PEAK_RATE * min(1.0, (step + 1) / WARMUP_STEPS))


def train(model, batches, noise=None):
    """The ten steps. noise(gradient), the engine's rounding imitated, is added to each gradient."""
    groups = [
        {"params": [p for p in model.parameters() if (p.dim() == 2) == decays],
         "weight_decay": fp32(WEIGHT_DECAY) if decays else 0.0} for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(fp32(BETA1), fp32(BETA2)), eps=fp32(EPSILON),
                                  foreach=False)
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss, _ = mean_loss(model, batches[step % BATCHES])
        loss.backward()
        gradients = [p.grad for p in model.parameters()]
        if noise is not None:
            for gradient in gradients:
                gradient.add_(noise(gradient))
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        if norm > CLIP_NORM:  # exactly; clip_grad_norm_ divides by norm + 1e-6
            for gradient in gradients:
                gradient.mul_(CLIP_NORM / norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm)
    return np.array(losses), np.array(norms)


def uniform_like(tensor, random):
    return torch.from_numpy(random.uniform(-1.0, 1.0, tuple(tensor.shape)))


def training_spread(initial, batches, reference, random):
    """Largest distance from the reference of any twin whose gradients err by up to what is allowed.

    Gradients that are exactly zero (positions beyond the sequence) are so in the engine too."""
    trained, losses, norms = reference
    spread = {"loss": np.zeros(STEPS), "gradient_norm": np.zeros(STEPS)}
    for _ in range(TWINS):
        twin = copy.deepcopy(initial)
        error = GRADIENT_ERROR_UNITS * 2.0**-23
        twin_losses, twin_norms = train(
            twin, batches,
            lambda g: error * g.abs().max() * uniform_like(g, random) * (g != 0))
        spread["loss"] = np.maximum(spread["loss"], abs(twin_losses - losses))
        spread["gradient_norm"] = np.maximum(spread["gradient_norm"], abs(twin_norms - norms))
        for (name, there), here in zip(twin.named_parameters(), trained.parameters()):
            distance = (there - here).detach().abs()
            if name.endswith("c_attn.bias"):
                # Softmax does not see a shift of all scores, so the keys' bias has no gradient.
                # Rounding makes one, AdamW makes a full step of it, and nothing depends on it.
                distance[WIDTH : 2 * WIDTH] = 0.0
            spread["final:" + name] = max(spread.get("final:" + name, 0.0), distance.max().item())
    return spread


def flat_gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def rounding_spread(initial, batch, unit_roundoff, random):
    """Root mean square moves, of the loss and (relative, 2-norm) of the whole gradient, when every
    weight and every module's output is off by up to one rounding of a precision."""
    def disturb(module, inputs, output):
        first = output[0] if isinstance(output, tuple) else output
        noisy = first * (1.0 + unit_roundoff * uniform_like(first, random))
        return (noisy, *output[1:]) if isinstance(output, tuple) else noisy

    reference = mean_loss(initial, batch)[0]
    gradient = flat_gradient(initial, reference)
    loss_squares = gradient_squares = 0.0
    for _ in range(TWINS):
        twin = copy.deepcopy(initial)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(1.0 + unit_roundoff * uniform_like(parameter, random))
        for name, module in twin.named_modules():
            is_block = name.removeprefix("transformer.h.").isdigit()
            if is_block or (not list(module.children()) and "drop" not in name):
                module.register_forward_hook(disturb)
        loss = mean_loss(twin, batch)[0]
        moved = flat_gradient(twin, loss) - gradient
        loss_squares += (loss.item() - reference.item()) ** 2
        gradient_squares += float((moved**2).sum() / (gradient**2).sum())
    return [math.sqrt(loss_squares / TWINS), math.sqrt(gradient_squares / TWINS)]


def first_step(model, batch, tensors):
    """Loss, logits and gradients of the first batch, whole and one row at a time."""
    model.zero_grad()
    loss, logits = mean_loss(model, batch)
    loss.backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    row_losses = []
    for row in batch.split(1):
        row_loss, _ = mean_loss(model, row)
        (row_loss / ROWS).backward()
        row_losses.append(row_loss.item())
    for (name, parameter), gradient in zip(model.named_parameters(), whole):
        # Rows are of equal length, so the mean of means is the mean: one gradient serves both.
        assert torch.allclose(parameter.grad, gradient, rtol=1e-11, atol=1e-13), name
        tensors["gradients:" + name] = gradient
    model.zero_grad()
    tensors["first:loss"] = [loss.item()]
    tensors["first:micro_batch_losses"] = row_losses
    tensors["first:logits"] = logits.detach()


def build():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    random = np.random.RandomState(SEED)  # its stream is frozen across NumPy versions
    initial = make_model(random)
    stream = torch.from_numpy(random.randint(0, VOCABULARY, BATCHES * ROWS * TOKENS + 1))
    # Sequence j is tokens [j T, j T + T], as in a shard: its last target is the next one's input.
    batches = stream.unfold(0, TOKENS + 1, TOKENS).reshape(BATCHES, ROWS, TOKENS + 1)
    check_gradient(initial, batches[0])
    print(f"PyTorch's FP32 gradients err by {fp32_gradient_error(initial, batches[0]):.1f} units")

    tensors = {
        "run:model": [VOCABULARY, CONTEXT, LAYERS, HEADS, WIDTH],
        "run:optimizer": [BETA1, BETA2, EPSILON, WEIGHT_DECAY, CLIP_NORM],
        "run:gradient_error_units": [GRADIENT_ERROR_UNITS],
        "run:shape": [BATCHES, ROWS, TOKENS, STEPS],
        "run:tokens": stream,
    }
    for name, parameter in initial.named_parameters():
        tensors["weights:" + name] = parameter.detach()
    first_step(initial, batches[0], tensors)
    tensors["first:batch_losses"] = [mean_loss(initial, batch)[0].item() for batch in batches]

    trained = copy.deepcopy(initial)
    losses, norms = train(trained, batches)
    clipped = norms > CLIP_NORM
    # Both branches of clipping, and no step so near the threshold that rounding could choose.
    assert 3 <= clipped.sum() <= STEPS - 3 and abs(norms - CLIP_NORM).min() > 0.01, norms
    tensors["steps:learning_rate"] = [learning_rate(step) for step in range(STEPS)]
    tensors["steps:loss"], tensors["steps:gradient_norm"] = losses, norms
    for name, parameter in trained.named_parameters():
        tensors["final:" + name] = parameter.detach()
    for name, value in training_spread(initial, batches, (trained, losses, norms), random).items():
        tensors["spread:" + name] = np.atleast_1d(value)
    for recipe, unit_roundoff in UNIT_ROUNDOFF.items():
        tensors["spread:first_" + recipe] = rounding_spread(
            initial, batches[0], unit_roundoff, random)
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()}


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=here / "gpt2_fixture.safetensors")
    options = parser.parse_args()
    tensors = build()
    # One metadata entry only: the order of several is not fixed, and the file's bytes should be.
    content = save(tensors, metadata={"made_by": "tests/parity/make_fixture.py"})
    options.out.write_bytes(content)
    print(f"{options.out}: {len(content)} bytes, {len(tensors)} tensors")
    print("torch", torch.__version__, "transformers", transformers.__version__)
    for name in ("first:loss", "steps:loss", "steps:gradient_norm", "spread:loss",
                 "spread:gradient_norm", "spread:first_bf16", "spread:first_fp16"):
        print(name, " ".join(f"{number:.7g}" for number in tensors[name]))


main()
