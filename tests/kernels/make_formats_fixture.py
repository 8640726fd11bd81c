"""Makes formats_fixture.h: what ml_dtypes (Google, Apache 2.0) makes of chosen numbers.

    pip install ml_dtypes numpy
    python tests/kernels/make_formats_fixture.py > tests/kernels/formats_fixture.h

For each format: the value of every code, as FP32 bits; then FP32 numbers and the code that each is
rounded to. The numbers: every midpoint between two neighbours and what lies one FP32 step beside it,
both signs, and a spread over the range. ml_dtypes overflows to NaN or infinity where this engine
saturates, so only numbers up to the largest are here.
"""
import ml_dtypes
import numpy as np

FORMATS = {
    "e4m3": (ml_dtypes.float8_e4m3fn, 256),
    "e5m2": (ml_dtypes.float8_e5m2, 256),
    "e2m1": (ml_dtypes.float4_e2m1fn, 16),
}


def bits(values):
    return np.asarray(values, np.float32).view(np.uint32)


def table(name, numbers, kind, per_line):
    print(f"static const {kind} {name}[{len(numbers)}] = {{")
    for i in range(0, len(numbers), per_line):
        print("    " + " ".join(f"0x{int(n):X}," for n in numbers[i:i + per_line]))
    print("};")


print("/* Made by make_formats_fixture.py with ml_dtypes " + ml_dtypes.__version__ + "; see there. */")
print("#include <stdint.h>\n")
for name, (dtype, count) in FORMATS.items():
    codes = np.arange(count, dtype=np.uint8)
    values = codes.view(dtype).astype(np.float32)
    values[np.isnan(values)] = np.nan
    finite = np.unique(values[np.isfinite(values) & ~np.signbit(values)])
    middle = ((finite[:-1].astype(np.float64) + finite[1:]) / 2).astype(np.float32)
    random = np.random.default_rng(1)
    low, high = np.log2(finite[1]) - 3, np.log2(finite[-1])
    spread = np.exp2(random.uniform(low, high, 64)).astype(np.float32)
    inputs = np.concatenate([middle, np.nextafter(middle, np.float32(0)),
                             np.nextafter(middle, np.float32(np.inf)), spread])
    inputs = np.concatenate([inputs, -inputs])
    rounded = inputs.astype(dtype).view(np.uint8)
    table(name + "_values", bits(values), "uint32_t", 8)
    table(name + "_inputs", bits(inputs), "uint32_t", 8)
    table(name + "_codes", rounded, "uint8_t", 16)
