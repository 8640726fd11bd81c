"""The tool of `plot`. Called by tool_test.c with the tool's path.

Oracles: means, gaps and groups by hand; the eight bytes that begin a PNG, and that a picture of other
numbers is another; equal bytes of two runs; a table of wrong inputs with exit code and words of the
message.
"""

import json
import os
import subprocess
import sys
import tempfile
import unittest

TOOL = os.path.abspath(sys.argv.pop())
sys.path.insert(0, os.path.dirname(TOOL))
import numerics  # noqa: E402

PNG = b"\x89PNG\r\n\x1a\n"


def report(**changes):
    data = {
        "against": "fp32",
        "precision": "mxfp8, head bf16 (emulated)",
        "tensors": [
            {"tensor": "block.0.mlp.fc.input", "relative_error": 0.02, "at_largest": 0, "to_zero": 0},
            {"tensor": "block.1.mlp.fc.input", "relative_error": 0.04, "at_largest": 0, "to_zero": 0},
            {"tensor": "head.input", "relative_error": 0.03, "at_largest": 0, "to_zero": 0},
        ],
        "gradients": {"linear": 0.05, "norm": 0.03, "all": 0.04},
        "losses": [[5.0, 4.0, 3.5], [5.5, 4.5, 3.0]],
        "losses_against": [[5.0, 3.5, 3.25], [5.5, 4.75, 3.25]],
        "loss_gap": 0.25,
        "seed_noise": 0.125,
    }
    data.update(changes)
    return {key: value for key, value in data.items() if value is not None}


def metrics(loss):
    records = [{"record": "run", "step": 0, "details": {"configuration": {"train.seed": str(loss)}}}]
    for step in range(1, 5):
        records.append({"record": "step", "step": step, "loss": loss / step, "tokens": 8,
                        "step_ms": 2.0, "tokens_per_s": 4000.0, "learning_rate": 0.1})
    return "".join(json.dumps(record) + "\n" for record in records)


class Plot(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR"))
        self.addCleanup(self.folder.cleanup)

    def put(self, name, content):
        path = os.path.join(self.folder.name, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(content if isinstance(content, str) else json.dumps(content))
        return path

    def run_tool(self, *arguments, out="plots"):
        return subprocess.run([sys.executable, TOOL, *arguments, "--dpi", "40", "--out",
                               os.path.join(self.folder.name, out)], capture_output=True, text=True)

    def files(self, out="plots"):
        folder = os.path.join(self.folder.name, out)
        contents = {}
        for name in sorted(os.listdir(folder)):
            with open(os.path.join(folder, name), "rb") as file:
                contents[name] = file.read()
        return contents

    def draw(self, *arguments, out="plots"):
        done = self.run_tool(*arguments, out=out)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return self.files(out)

    def test_kinds_and_gaps(self):
        read = numerics.read(self.put("a.json", report()))
        self.assertEqual(read.kinds(), {"mlp.fc.input": [0.02, 0.04], "head.input": [0.03]})
        self.assertEqual(read.gaps(), [[0.0, 0.5, 0.25], [0.0, -0.25, -0.25]])
        self.assertEqual(numerics.mean_curve(read.gaps()), [0.0, 0.125, 0.0])

    def test_a_report(self):
        path = self.put("mxfp8.json", report())
        files = self.draw(path)
        pictures = ["gradient_errors.png", "loss.png", "loss_gap.png", "overview.png",
                    "quantisation_errors.png"]
        self.assertEqual(sorted(files), sorted(["index.html", *pictures]))
        for name in pictures:
            self.assertEqual(files[name][:8], PNG)
        for words in (b"mxfp8, head bf16 (emulated)", b"fp32", b"+0.2500", b"0.1250", b"0.0400"):
            self.assertIn(words, files["index.html"])
        self.assertEqual(self.draw(path, out="again"), files)

    def test_each_picture_shows_its_numbers(self):
        before = self.draw(self.put("a.json", report()), out="before")
        changes = {
            "loss.png": {"losses": [[5.0, 4.0, 3.5], [5.5, 4.5, 2.0]]},
            "loss_gap.png": {"seed_noise": 0.5},
            "quantisation_errors.png": {"tensors": [{"tensor": "head.input", "relative_error": 0.3}]},
            "gradient_errors.png": {"gradients": {"linear": 0.5, "all": 0.5}},
        }
        for picture, change in changes.items():
            after = self.draw(self.put("a.json", report(**change)), out="after")
            self.assertNotEqual(after[picture], before[picture], picture)

    def test_several_reports_and_a_smaller_one(self):
        small = report(tensors=None, losses=None, losses_against=None, loss_gap=None, seed_noise=None)
        files = self.draw(self.put("mxfp8.json", report()), self.put("bf16.json", small))
        self.assertIn("quantisation_errors.png", files)
        self.assertIn(b"bf16", files["index.html"])
        alone = self.draw(self.put("bf16.json", small), out="alone")
        self.assertEqual(sorted(alone), ["gradient_errors.png", "index.html", "overview.png"])

    def test_runs(self):
        files = self.draw(self.put("a.jsonl", metrics(4.0)), self.put("b.jsonl", metrics(3.0)))
        self.assertEqual(sorted(files), ["index.html", "learning_rate.png", "loss.png", "overview.png",
                                         "throughput.png"])
        for words in (b"a.jsonl", b"b.jsonl", b"What differs", b"train.seed", b"0.7500"):
            self.assertIn(words, files["index.html"])

    def test_any_python_can_check(self):
        good, bad = self.put("good.json", report()), self.put("prose", "some text\n")
        run = self.put("run.jsonl", metrics(4.0))
        for path, code in ((good, 0), (run, 0), (bad, 3)):
            done = subprocess.run([sys.executable, "-S", TOOL, "--check", path],
                                  capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stdout), (code, ""), done.stderr)
            self.assertNotIn("Traceback", done.stderr)

    def test_wrong_inputs(self):
        good = self.put("good.json", report())
        run = self.put("run.jsonl", metrics(4.0))
        for name, content, words in (
                ("text", "no JSON", "Expecting value"),
                ("list", "[]", "an object"),
                ("deep", "[" * 100000, "RecursionError"),
                ("empty", {}, "precision"),
                ("nan", json.dumps(report(loss_gap=float("nan"))), "loss_gap"),
                ("bool", report(gradients={"all": True}), "gradients.all"),
                ("all", report(gradients={}), "an entry all"),
                ("tensors", report(tensors=[1]), "tensors"),
                ("name", report(tensors=[{"relative_error": 1.0}]), "name"),
                ("lengths", report(losses=[[1.0], [1.0, 2.0]]), "one length"),
                ("other", report(losses_against=[[1.0]]), "as many losses"),
                ("gap", report(loss_gap=None), "loss_gap"),
                ("null", report(losses=[[None]], losses_against=[[1.0]]), "null"),
        ):
            with self.assertRaises(ValueError, msg=name) as refused:
                numerics.read(self.put(name + ".json", content))
            self.assertIn(words, str(refused.exception), name)
        for arguments, code, words in (
                ([good, run], 2, "not both"),
                ([good, "--x", "tokens"], 2, "--x"),
                ([os.path.join(self.folder.name, "deep.json")], 3, "deep.json: expected what"),
                ([good, "--smooth", "0"], 2, "--smooth"),
                ([os.path.join(self.folder.name, "nowhere.json")], 5, "nowhere.json"),
                ([os.path.join(self.folder.name, "nowhere")], 5, "nowhere: No such file"),
                ([self.put("number", "1\n")], 3, "number is no run: expected a run's folder"),
                ([self.put("prose", "some text\n")], 3, "found in line 1 no record of a run: 'some text'"),
                ([self.put("deep", "[" * 100000 + "\n")], 3, "deep is no run"),
                ([self.folder.name], 5, "metrics.jsonl: No such file"),
        ):
            done = self.run_tool(*arguments)
            self.assertEqual(done.returncode, code, words)
            self.assertIn(words, done.stderr)
            self.assertNotIn("Traceback", done.stderr)
        self.assertFalse(os.path.exists(os.path.join(self.folder.name, "plots")))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]])
