"""The tool of `data prepare` with a tokenizer. Called by tool_test.c with the tool's path.

Oracles: the text that went in; plain `tokenizers` on whole documents; byte equality of outputs for any
number of workers and after SIGKILL; a table of wrong inputs with exit code and words of the message.
"""

import array
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import pyarrow
import pyarrow.parquet
import tokenizers

HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURE = os.path.join(os.path.dirname(HERE), "data", "tokenizer_fixture.json")
TOOL = os.path.abspath(sys.argv.pop())
WORDS = ["the", "Tensor", "é日本", "x = 1;\n", "\n\n", "  ", "loss", "<|endoftext|>", "zq", "12345", "it's", "\t"]


def text(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def run(*arguments, **options):
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, **options)


class Prepare(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR"))
        self.before = os.getcwd()
        os.chdir(self.folder)

    def tearDown(self):
        os.chdir(self.before)
        shutil.rmtree(self.folder)

    def write(self, name, data):
        with open(name, "wb") as file:
            file.write(data if isinstance(data, bytes) else data.encode())
        return name

    def good(self, *arguments):
        done = run(*arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def tokens(self, folder):
        """All tokens of all shards of a set: {split: list}, checked against dataset.json."""
        with open(f"{folder}/dataset.json") as file:
            description = json.load(file)
        lists = {"train": [], "validation": []}
        for shard in description["shards"]:
            with open(f"{folder}/{shard['name']}", "rb") as file:
                data = file.read()
            head = array.array("i", data[:1024])
            self.assertIn((head[0], head[1]), [(20240520, 1), (20240801, 7)])
            self.assertEqual(head[2], shard["tokens"])
            lists[shard["split"]] += array.array("H" if head[0] == 20240520 else "I", data[1024:]).tolist()
        self.assertEqual(len(lists["train"]), description["train_tokens"])
        self.assertEqual(len(lists["validation"]), description["validation_tokens"])
        return lists, description

    def expected(self, documents):
        """Each document by plain `tokenizers`, special tokens as text, then the end."""
        tokenizer = tokenizers.Tokenizer.from_file(FIXTURE)
        tokenizer.encode_special_tokens = True
        return [tokenizer.encode(d, add_special_tokens=False).ids + [0] for d in documents]

    def test_formats_give_the_same_tokens(self):
        rng = random.Random(1)
        documents = [text(rng, rng.randrange(1, 60)) for _ in range(300)]
        lines = "".join(json.dumps({"text": d, "id": 1}) + "\n" for d in documents)
        self.write("a.jsonl", lines)
        with gzip.open("b.jsonl.gz", "wt") as file:
            file.write(lines)
        with pyarrow.CompressedOutputStream("c.jsonl.zst", "zstd") as file:
            file.write(lines.encode())
        table = pyarrow.table({"id": list(range(300)), "text": documents})
        pyarrow.parquet.write_table(table, "d.parquet", row_group_size=64, compression="zstd")
        want = [t for d in self.expected(documents) for t in d]
        for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"):
            out = "out_" + name
            self.good("--tokenizer", FIXTURE, "--out", out, "--validation-tokens", "500", "--workers", "1", name)
            lists, _ = self.tokens(out)
            self.assertEqual(lists["validation"] + lists["train"], want)
            self.assertEqual(len(lists["validation"]), 500)

    def test_documents_go_to_one_side_by_content(self):
        rng = random.Random(2)
        documents = [text(rng, 30) + str(i) for i in range(200)]
        self.write("a.jsonl", "".join(json.dumps(d) + "\n" for d in documents))
        self.write("b.jsonl", "".join(json.dumps(d) + "\n" for d in reversed(documents)))
        sides = []
        for name in ("a", "b"):
            self.good("--tokenizer", FIXTURE, "--out", name, "--validation-fraction", "0.3", name + ".jsonl")
            lists, description = self.tokens(name)
            self.assertEqual(description["documents"], 200)
            cut = {}
            for split, tokens in lists.items():
                found, document = set(), []
                for token in tokens:
                    document.append(token)
                    if token == 0:
                        found.add(tuple(document))
                        document = []
                self.assertEqual(document, [])
                cut[split] = found
            self.assertEqual(cut["train"] | cut["validation"], {tuple(d) for d in self.expected(documents)})
            self.assertFalse(cut["train"] & cut["validation"])
            self.assertTrue(30 < len(cut["validation"]) < 90)
            sides.append(cut)
        self.assertEqual(sides[0], sides[1])

    def test_a_long_document_is_cut_where_no_token_changes(self):
        rng = random.Random(3)
        long = text(rng, 150_000)
        self.write("long.txt", long)
        self.good("--tokenizer", FIXTURE, "--out", "one", "--validation-tokens", "1000", "--workers", "2", "long.txt")
        lists, _ = self.tokens("one")
        self.assertEqual(lists["validation"] + lists["train"], self.expected([long])[0])
        # the same whatever the workers, and in several shards
        self.good("--tokenizer", FIXTURE, "--out", "two", "--validation-tokens", "1000", "--workers", "3",
                  "--shard-tokens", "100000", "long.txt")
        again, description = self.tokens("two")
        self.assertEqual(again, lists)
        self.assertGreater(len(description["shards"]), 3)

    def test_one_document_is_split_at_its_end(self):
        self.write("text", "line\n" * 1000)
        self.good("--tokenizer", "bytes", "--out", "out", "text")
        lists, _ = self.tokens("out")
        self.assertEqual((len(lists["train"]), len(lists["validation"])), (4500, 501))
        self.assertEqual(bytes(lists["train"] + lists["validation"]), b"line\n" * 1000 + b"\0")

    def test_no_character_is_cut(self):
        whole = "é" * 1000 + "x"  # 2001 bytes: nine tenths end within a character
        self.write("text", whole)
        self.assertNotIn("U+FFFD", self.good("--tokenizer", "bytes", "--out", "out", "text"))
        lists, _ = self.tokens("out")
        self.assertEqual(len(lists["train"]), 1800)
        self.assertEqual(bytes(lists["train"] + lists["validation"]), whole.encode() + b"\0")

    def test_separators_across_blocks(self):
        rng = random.Random(7)
        ends = "<end>"  # 1 MiB is read at once: separators on and around the borders
        whole = ""
        for border in range(1, 4):
            whole += "x" * ((border << 20) - len(whole) - rng.randrange(2 * len(ends))) + ends + "ab" + ends
        whole += "<en"
        self.write("text", whole)
        self.good("--tokenizer", "bytes", "--out", "out", "--separator", ends, "--validation-tokens", "5", "text")
        lists, _ = self.tokens("out")
        expected = [document + ends for document in whole.split(ends)[:-1]] + ["<en"]
        self.assertEqual(bytes(lists["validation"] + lists["train"]),
                         "".join(document + "\0" for document in expected).encode())

    def test_a_text_that_changes_is_refused(self):
        self.write("text", "line\n" * 1000)
        script = ("import os, sys; sys.path.insert(0, os.path.dirname(sys.argv[1]))\n"
                  "import prepare, sources\n"
                  "read = sources.Sources._stream\n"
                  "def change(self, *arguments):\n"
                  "    with open('text', 'a') as file: file.write('more')\n"
                  "    yield from read(self, *arguments)\n"
                  "sources.Sources._stream = change\n"
                  "sys.exit(prepare.main(sys.argv[2:]))\n")
        arguments = ["--tokenizer", "bytes", "--out", "out", "text"]
        done = subprocess.run([sys.executable, "-c", script, TOOL, *arguments], capture_output=True,
                              text=True, check=False)
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertIn("text: expected it to stay as it was", done.stderr)
        self.assertFalse(os.path.exists("out"))
        self.good(*arguments)

    def test_separator_and_broken_text(self):
        self.write("text", b"one\n\ntwo \xff\xe2\x82 end\n\nthree")
        out = self.good("--tokenizer", "bytes", "--out", "out", "--separator", "\\n\\n", "--validation-tokens",
                        "5", "text")
        self.assertIn("2 places, now U+FFFD", out)
        lists, _ = self.tokens("out")
        self.assertEqual(bytes(lists["validation"] + lists["train"]),
                         "one\n\n\0two \ufffd\ufffd end\n\n\0three\0".encode())

    def test_new_vocabulary(self):
        rng = random.Random(4)
        for i in range(8):
            self.write(f"t{i}", text(rng, 400))
        os.mkdir("in")
        for i in range(8):
            os.rename(f"t{i}", f"in/t{i}")
        for out, workers in (("a", "1"), ("b", "2")):
            self.good("--new-vocabulary", "300", "--out", out, "--workers", workers, "in")
        self.assertEqual(open("a/tokenizer.json").read(), open("b/tokenizer.json").read())
        lists, description = self.tokens("a")
        self.assertEqual(lists, self.tokens("b")[0])
        self.assertEqual((description["vocabulary"], description["end_of_text"]), (300, 0))
        tokenizer = tokenizers.Tokenizer.from_file("a/tokenizer.json")
        texts = {tokenizer.decode(part, skip_special_tokens=False)
                 for part in self.documents(lists["train"] + lists["validation"])}
        self.assertEqual(texts, {open(f"in/t{i}").read() for i in range(8)})

    def documents(self, tokens):
        part = []
        for token in tokens:
            if token == 0:
                yield part
                part = []
            else:
                part.append(token)

    def test_gpt2_files(self):
        with open(FIXTURE) as file:
            model = json.load(file)["model"]
        self.write("encoder.json", json.dumps(model["vocab"]))
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        self.write("vocab.bpe", "#version: 0.2\n" + "\n".join(merges) + "\n")
        self.write("text", "the loss of the model\n" * 100)
        self.good("--tokenizer", ".", "--out", "out", "text")
        lists, _ = self.tokens("out")
        self.good("--tokenizer", FIXTURE, "--out", "out2", "text")
        self.assertEqual(lists, self.tokens("out2")[0])

    def test_goes_on_after_a_kill_at_the_end(self):
        self.write("text", "".join(f"the loss of step {step}\n\n" for step in range(3000)))
        arguments = ["--tokenizer", FIXTURE, "--separator", "\\n\\n", "text"]
        self.good(*arguments, "--out", "whole")
        script = ("import os, signal, sys; sys.path.insert(0, os.path.dirname(sys.argv[1]))\n"
                  "import output, prepare\n"
                  "output.digest = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
                  "prepare.main(sys.argv[2:])\n")
        child = subprocess.run([sys.executable, "-c", script, TOOL, *arguments, "--workers", "1",
                                "--out", "killed"], capture_output=True, check=False)
        self.assertEqual(child.returncode, -signal.SIGKILL)
        self.assertIn("train.bin", os.listdir("killed.unfinished"))
        self.good(*arguments, "--out", "killed")
        for name in sorted(os.listdir("whole")):
            with open("whole/" + name, "rb") as a, open("killed/" + name, "rb") as b:
                self.assertEqual(a.read(), b.read())

    def test_goes_on_after_a_kill(self):
        rng = random.Random(5)
        with open("big.jsonl", "w") as file:
            for _ in range(400):
                file.write(json.dumps({"text": text(rng, 4000)}) + "\n")
        arguments = ["--tokenizer", FIXTURE, "--workers", "1", "big.jsonl"]
        self.good(*arguments, "--out", "whole")
        kills = 0
        for attempt in range(60):
            child = subprocess.Popen([sys.executable, "-c", NOTE_OFTEN, TOOL, *arguments, "--out", "killed"],
                                     stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            try:
                self.assertEqual(child.wait(timeout=0.8 + 0.25 * attempt), 0)
                break
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait()
                kills += 1
                self.assertFalse(os.path.exists("killed"))
        self.assertGreater(kills, 0)
        for name in sorted(os.listdir("whole")):
            with open("whole/" + name, "rb") as a, open("killed/" + name, "rb") as b:
                self.assertEqual(a.read(), b.read(), name)
        self.assertFalse(os.path.exists("killed.unfinished"))

    def test_overwrite_is_one_step(self):
        self.write("text", "some text for both sides\n" * 50)
        self.write("other", "another text for both sides\n" * 50)
        self.good("--tokenizer", "bytes", "--out", "out", "text")
        refused = run("--tokenizer", "bytes", "--out", "out", "other")
        self.assertEqual(refused.returncode, 2)
        self.assertIn("--overwrite", refused.stderr)
        self.good("--tokenizer", "bytes", "--out", "out", "--overwrite", "other")
        self.assertIn(b"another text", bytes(self.tokens("out")[0]["train"]))
        self.write("out/notes", "mine")
        self.assertEqual(run("--tokenizer", "bytes", "--out", "out", "--overwrite", "text").returncode, 2)
        self.assertEqual(open("out/notes").read(), "mine")

    def test_wrong_inputs(self):
        self.write("text", "some text for both sides\n" * 50)
        self.write("empty", "")
        self.write("binary", b"a\0b")
        self.write("bad.jsonl", '{"text": "a"}\n{"text": 3}\n')
        self.write("bad2.jsonl", '{"text": "a"}\n{"tex')
        self.write("other.jsonl", '{"content": "a"}\n')
        self.write("bad.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 100)[:-20])
        self.write("no.jsonl.gz", "not compressed")
        self.write("bad.jsonl.zst", "not compressed")
        self.write("bad.parquet", b"PAR1" + b"x" * 100 + b"PAR1")
        pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), "numbers.parquet")
        pyarrow.parquet.write_table(pyarrow.table({"words": ["a"]}), "words.parquet")
        self.write("no.json", "{")
        self.write("vocab_only.json", '{"a": 0}')
        self.write("piece.json", '{"model": {"type": "WordPiece"}}')
        os.mkdir("folder")
        os.mkdir("folder/none")
        bytes_ = ["--tokenizer", "bytes"]
        cases = [
            (bytes_ + ["missing"], 5, "missing"),
            (bytes_ + ["empty"], 3, "1 empty"),
            (bytes_ + ["binary"], 3, "1 binary (binary), 0 hidden"),
            (bytes_ + ["binary"] * 5, 3, "5 binary (binary, binary, binary and 2 more), 0"),
            (bytes_ + ["folder"], 3, "no document"),
            (bytes_ + ["/dev/null"], 2, "something else"),
            (bytes_ + ["bad.jsonl"], 3, "bad.jsonl:2: expected text"),
            (bytes_ + ["bad2.jsonl"], 3, "bad2.jsonl:2: expected JSON"),
            (bytes_ + ["other.jsonl"], 3, 'the key "text", found content'),
            (bytes_ + ["bad.jsonl.gz"], 3, "broken"),
            (bytes_ + ["no.jsonl.gz"], 3, "broken"),
            (bytes_ + ["bad.jsonl.zst"], 3, "broken"),
            (bytes_ + ["bad.parquet"], 3, "broken"),
            (bytes_ + ["numbers.parquet"], 3, "expected text in the column"),
            (bytes_ + ["words.parquet"], 3, "found words"),
            (["--tokenizer", "no.json", "text"], 3, "no.json"),
            (["--tokenizer", "missing.json", "text"], 5, "missing.json"),
            (["--tokenizer", "vocab_only.json", "text"], 2, "--merges"),
            (["--tokenizer", "piece.json", "text"], 3, "piece.json"),
            (["--tokenizer", "folder", "text"], 2, "tokenizer.json"),
            (["--tokenizer", FIXTURE, "--end-of-text", "nope", "text"], 2, "nope"),
            (["--new-vocabulary", "100", "text"], 2, "257"),
            (["text"], 2, "--tokenizer"),
            (bytes_ + ["--validation-fraction", "1", "text"], 2, "below 1"),
            (bytes_ + ["--validation-tokens", "999999", "text"], 3, "train"),
            (bytes_ + ["--frob", "text"], 2, "--frob"),
        ]
        for arguments, code, words in cases:
            done = run("--out", "out", *arguments)
            self.assertEqual(done.returncode, code, (arguments, done.stderr))
            self.assertIn(words, done.stderr)
            self.assertFalse("Traceback" in done.stderr, done.stderr)
            self.assertFalse(os.path.exists("out"))
        done = run(*bytes_, "--out", "text", "text")
        self.assertEqual(done.returncode, 2)
        self.assertIn("expected a folder", done.stderr)


# The tool, noting its progress at every unit, so that a kill finds something to go on from.
NOTE_OFTEN = """
import os, runpy, sys
tool = sys.argv[1]
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(tool))
if __name__ == "__main__":
    import prepare
    prepare.NOTE_SECONDS = 0
    sys.exit(prepare.main(sys.argv[1:]))
"""

if __name__ == "__main__":
    unittest.main(warnings="ignore")
