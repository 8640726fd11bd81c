#!/usr/bin/env python3
"""Arguments and outputs of compare.py and pytorch_step.py, without PyTorch and without a GPU.

Oracle: lines that deepwell and pytorch_step.py print, and what must not be taken for them.
usage: python3 tools/rivals/rivals_test.py
"""
import contextlib
import io
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import compare  # noqa: E402
import pytorch_step  # noqa: E402

DEEPWELL = """device      NVIDIA H200
step        median 109.3 ms, p10 109.1, p90 109.6 over 60 steps
speed       599500 tokens/s, 481.2000 TFLOPS, mfu 48.6% of 989.5 (BF16 dense)
power       690 W, SM 1440 MHz (median of 60 looks), limited by power; 1.15 kJ a million tokens
"""
PYTORCH = 'compiling {"noise": 1}\n{"rival": "pytorch", "tokens_per_s": 5e5, "median_ms": 131.0}\n'


class Outputs(unittest.TestCase):
    def test_deepwell(self):
        row = compare.parse_deepwell(DEEPWELL)
        self.assertEqual((row["tokens_per_s"], row["median_ms"]), (599500, 109.3))
        self.assertIn("limited by power", row["power"])

    def test_pytorch(self):
        self.assertEqual(compare.parse_pytorch(PYTORCH)["tokens_per_s"], 5e5)

    def test_what_is_no_output(self):
        for text in ("", "speed       n/a\n", DEEPWELL.replace("599500", "0")):
            self.assertRaises(compare.Failure, compare.parse_deepwell, text)
        for text in ("", "{", "[1]", '{"rival": "pytorch"}', '{"rival": "pytorch", "tokens_per_s": 0}'):
            self.assertRaises(compare.Failure, compare.parse_pytorch, text)

    def test_the_ratio_is_to_the_best_rival(self):
        lines, ratio = compare.summary({"deepwell": [4, 2, 3], "a": [1, 1, 9], "b": [2, 2, 2]})
        self.assertEqual(ratio, 1.5)
        self.assertIn("deepwell / b: 1.500", lines[-1])


class Arguments(unittest.TestCase):
    def refused(self, parse, arguments):
        with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit) as left:
            parse(arguments.split())
        self.assertEqual(left.exception.code, 2)

    def test_both_get_the_same_shape(self):
        options = compare.parse_options(
            "--deepwell d --data s.bin --model 124m --batch 64 --micro-batch 32 "
            "--mode default,reduce-overhead".split())
        self.assertEqual(options.modes, ["default", "reduce-overhead"])
        command = compare.deepwell_command(options)
        for part in ("--model.layers=12", "--model.heads=12", "--model.width=768", "--train.batch=64",
                     "--train.micro_batch=32", "--data.train=s.bin", "--precision.recipe=bf16"):
            self.assertIn(part, command)
        again = pytorch_step.parse(compare.pytorch_command(options, "reduce-overhead")[2:])
        for name in ("layers", "heads", "width", "batch", "micro_batch", "sequence", "vocabulary",
                     "data", "steps", "warmup", "dtype", "device"):
            self.assertEqual(getattr(again, name), getattr(options, name))
        self.assertEqual(again.mode, "reduce-overhead")

    def test_refusals(self):
        for arguments in ("--batch 4", "--model 124m", "--model 125m --batch 4",
                          "--model 124m --layers 2 --batch 4", "--layers 2 --heads 2 --batch 4",
                          "--model 124m --batch 4 --micro-batch 3", "--model 124m --batch 0",
                          "--layers 1 --heads 3 --width 16 --batch 1",
                          "--model 124m --batch 4 --mode fast"):
            self.refused(pytorch_step.parse, arguments)
        for arguments in ("--model 124m --batch 4", "--deepwell d --model 124m --batch 4 --rounds 0",
                          "--deepwell d --model 124m --batch 4 --mode default,fast"):
            self.refused(compare.parse_options, arguments)

    def test_padding(self):
        self.assertEqual([pytorch_step.padded(v) for v in (1, 128, 129, 50257)],
                         [128, 128, 256, 50304])


if __name__ == "__main__":
    unittest.main()
