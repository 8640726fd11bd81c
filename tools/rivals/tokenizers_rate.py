#!/usr/bin/env python3
"""The rate and memory of `data prepare` beside plain `tokenizers.encode_batch`, in turns on one text.

  tokenizers_rate.py TOKENIZER.json SOURCE.txt FOLDER [--megabytes 1000] [--plain-megabytes 32]

Writes FOLDER/text: SOURCE's lines in random order, every twentieth word replaced by random letters, so
that no cache of words makes it too easy. Run it with the Python of ./deepwell data prepare (.venv).
"""

import argparse
import os
import random
import resource
import subprocess
import sys
import time

import tokenizers

TOOL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "prepare", "prepare.py")


def write_text(source, path, size):
    rng = random.Random(1)
    with open(source, encoding="utf-8") as file:
        lines = file.read().split("\n")
    with open(path, "w", encoding="utf-8") as file:
        while size > 0:
            words = " ".join(rng.choice(lines) + "\n" for _ in range(200)).split(" ")
            for _ in range(len(words) // 20):
                word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9)))
                words[rng.randrange(len(words))] = word
            block = " ".join(words)
            file.write(block)
            size -= len(block)


def plain(tokenizer_path, text_path, megabytes):
    """MB/s of encode_batch over pieces of 64 KiB, all cores."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer = tokenizers.Tokenizer.from_file(tokenizer_path)
    with open(text_path, encoding="utf-8", errors="replace") as file:
        pieces = [file.read(1 << 16) for _ in range(megabytes * 16)]
    began = time.monotonic()
    for first in range(0, len(pieces), 64):
        tokenizer.encode_batch(pieces[first:first + 64], add_special_tokens=False)
    return sum(map(len, pieces)) / 1e6 / (time.monotonic() - began)


def main():
    parser = argparse.ArgumentParser()
    for name in ("tokenizer", "source", "folder"):
        parser.add_argument(name)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--plain-megabytes", type=int, default=32)
    options = parser.parse_args()
    os.makedirs(options.folder, exist_ok=True)
    text, out = (os.path.join(options.folder, name) for name in ("text", "shards"))
    write_text(options.source, text, options.megabytes * 1_000_000)
    before = plain(options.tokenizer, text, options.plain_megabytes)
    began = time.monotonic()
    subprocess.run([sys.executable, TOOL, "--tokenizer", options.tokenizer, "--out", out, text], check=True)
    rate = os.path.getsize(text) / 1e6 / (time.monotonic() - began)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    after = plain(options.tokenizer, text, options.plain_megabytes)
    print(f"encode_batch {before:.2f} and {after:.2f} MB/s before and after, data prepare {rate:.2f} MB/s; "
          f"largest process {peak:.0f} MiB; load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
