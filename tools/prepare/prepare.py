#!/usr/bin/env python3
"""`./deepwell data prepare` with a tokenizer: text, JSON lines and Parquet to token shards.

The parent reads and cuts (sources.py), workers encode (vocabulary.py), the parent writes in the order of
the input (output.py), so the shards do not depend on the number of workers. What was written is noted
every few seconds; after a kill the same command goes on from there. Memory: a few units of text per
worker, whatever the size of the inputs. docs/data.md is the manual.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from concurrent.futures.process import BrokenProcessPool

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes instead

import output  # noqa: E402
import sources  # noqa: E402
import vocabulary  # noqa: E402
from report import CONFIG, INTERRUPTED, IO, MEMORY, Failure, Progress, duration  # noqa: E402

UNIT_CHARACTERS = 1 << 19  # of text that a worker gets at once
UNIT_PIECES = 1 << 14
NOTE_SECONDS = 5


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Failure(CONFIG, f"{message} (`./deepwell data prepare --help` explains the options)")


def fraction(text):
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and below 1, found \"{text}\"")
    return value


def count(text):
    value = int(text.replace("_", ""))
    if not 1 <= value <= output.SHARD_TOKENS_MAX:
        raise argparse.ArgumentTypeError(f"expected 1 to {output.SHARD_TOKENS_MAX}, found \"{text}\"")
    return value


def escaped(text):
    r"""\n and \t as a shell passes them on."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def parse(arguments):
    parser = Parser(prog="./deepwell data prepare", allow_abbrev=False,
                    description="Text, .jsonl(.gz, .zst) and .parquet to token shards with a byte-pair "
                                "tokenizer. Without --tokenizer and --new-vocabulary, `data prepare` makes "
                                "shards of bytes and needs no Python. docs/data.md is the manual.")
    add = parser.add_argument
    add("--out", required=True, metavar="FOLDER", help="where the shards go: a new folder")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json; GPT-2's encoder.json with "
                       "vocab.bpe beside it; a folder with one of them; or bytes")
    which.add_argument("--new-vocabulary", type=count, metavar="N",
                       help="train a byte-pair vocabulary of N tokens on the inputs")
    add("--merges", metavar="FILE", help="the merges of a vocabulary, if they have another name")
    add("--end-of-text", metavar="TOKEN", help="the token after each document (default: <|endoftext|>, or "
        "what the tokenizer has of that kind)")
    add("--text-field", default="text", metavar="NAME", help="the key or column with the text (text)")
    add("--separator", type=escaped, metavar="TEXT", help=r"a text file is several documents, each ending "
        r"after TEXT, which stays; \n is a line end")
    add("--validation-fraction", type=fraction, default=0.1, metavar="F", help="share of the documents, "
        "chosen by their content, or of the end of a single document (0.1)")
    add("--validation-tokens", type=count, metavar="N",
        help="the first N tokens are for validation instead")
    add("--shard-tokens", type=count, default=1_000_000_000, metavar="N",
        help="at most so many in a file (1,000,000,000)")
    add("--workers", type=count, default=len(os.sched_getaffinity(0)), metavar="N",
        help="processes (all cores)")
    add("--overwrite", action="store_true", help="replace an earlier output when the new one is complete")
    add("inputs", nargs="+", metavar="INPUT", help="files and folders")
    return parser.parse_args(arguments)


def units(pieces):
    """Lists of pieces, enough for a worker to be busy with; and how far the inputs were read."""
    unit, characters = [], 0
    for piece in pieces:
        unit.append((piece.text, piece.split, piece.ends))
        characters += len(piece.text)
        if characters >= UNIT_CHARACTERS or len(unit) >= UNIT_PIECES:
            yield unit, piece.done_bytes
            unit, characters = [], 0
    if unit:
        yield unit, piece.done_bytes


def plan_of(options, found, merges_of):
    """All that decides what the shards will be."""
    chosen = {key: value for key, value in vars(options).items()
              if key not in ("workers", "overwrite", "out")}
    files = [[s.path, s.size, s.mtime_ns, s.hash] for s in found.sources]
    return {"options": chosen, "files": files, "tokenizer": merges_of}


def encode_all(options, found, staging, shards, journal, workers):
    """Reads, encodes and writes what the journal does not have yet."""
    waiting, done_units = deque(), journal["units"]
    progress = Progress(found.total_bytes, journal["bytes"])
    noted = time.monotonic()

    def note():
        journal.update(units=done_units, bytes=done_bytes, shards=shards.note())
        output.write_durable(staging.file(output.JOURNAL), json.dumps(journal))

    def take():
        nonlocal done_units, done_bytes, noted
        future, done_bytes = waiting.popleft()
        for split, data in enumerate(future.result()):
            shards.append(split, data)
        done_units += 1
        progress.show(done_bytes, shards.total())
        if time.monotonic() - noted > NOTE_SECONDS:
            note()
            noted = time.monotonic()

    done_bytes = journal["bytes"]
    try:
        for number, (unit, read_bytes) in enumerate(units(found.pieces())):
            if number < journal["skip"]:
                continue
            waiting.append((workers.submit(vocabulary.encode_unit, unit), read_bytes))
            if len(waiting) > 2 * options.workers:
                take()
        while waiting:
            take()
    finally:
        progress.close()


def choose_tokenizer(options):
    """The tokenizer, None for bytes, and what identifies it in the journal."""
    if options.new_vocabulary:
        return None, f"new {options.new_vocabulary}"
    tokenizer = vocabulary.open_tokenizer(options.tokenizer, options.merges)
    return tokenizer, "bytes" if tokenizer is None else tokenizer.to_str()


def train_tokenizer(options):
    """A vocabulary from all of the inputs; the cuts do not matter for counting words."""
    found = sources.Sources(options, vocabulary.Cutter(None))
    sys.stderr.write(f"training a vocabulary of {options.new_vocabulary:,} tokens on "
                     f"{found.total_bytes / 1e6:,.1f} MB...\n")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer = vocabulary.train((piece.text for piece in found.pieces()), options.new_vocabulary)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return tokenizer


def describe(options, found, tokenizer, end, shards, files, staging):
    counts = found.counts
    tokenizer_path = staging.file("tokenizer.json")
    description = {
        "tokenizer": "tokenizer.json" if tokenizer else "bytes",
        "vocabulary": vocabulary.size_of(tokenizer),
        "end_of_text": end[0],
        "end_of_text_token": end[1],
        "documents": counts.documents,
        "train_tokens": shards.total(sources.TRAIN),
        "validation_tokens": shards.total(sources.VALIDATION),
        "replaced_bytes": counts.replaced,
        "inputs": options.inputs,
        "shards": files,
    }
    if options.validation_tokens is None:
        description["validation_fraction"] = options.validation_fraction
    if tokenizer:
        description["tokenizer_xxh3_128"] = output.digest(tokenizer_path)
    return description


def start(options, tokenizer, identity):
    """Staging with a tokenizer in it, the inputs, and the journal to go on from."""
    staging = output.Staging(options.out)
    cutter = vocabulary.Cutter(tokenizer)
    found = sources.Sources(options, cutter)
    plan = json.loads(json.dumps(plan_of(options, found, identity)))
    journal = staging.journal()
    path = staging.file("tokenizer.json")
    if journal and journal.get("plan") == plan:
        sys.stderr.write(f"going on after {journal['bytes'] / 1e6:,.1f} MB in {staging.path}\n")
        if options.new_vocabulary:
            cutter.tokenizer = tokenizer = vocabulary.open_tokenizer(path, None)
        journal["skip"] = journal["units"]
        return staging, found, tokenizer, journal
    if journal:
        sys.stderr.write("inputs or options have changed: starting anew\n")
    staging.clear()
    if options.new_vocabulary:
        cutter.tokenizer = tokenizer = train_tokenizer(options)
    if tokenizer:
        output.write_durable(path, tokenizer.to_str(pretty=True))
        if cutter.tokenizer:  # cut like the workers encode
            cutter.tokenizer.encode_special_tokens = True
    journal = {"plan": plan, "units": 0, "bytes": 0, "skip": 0, "shards": None}
    output.write_durable(staging.file(output.JOURNAL), json.dumps(journal))
    return staging, found, tokenizer, journal


def prepare(options):
    began = time.monotonic()
    output.check_out(options.out, options.overwrite)
    tokenizer, identity = choose_tokenizer(options)
    if not options.new_vocabulary:
        vocabulary.end_of_text(tokenizer, options.end_of_text)
    staging, found, tokenizer, journal = start(options, tokenizer, identity)
    if tokenizer:
        tokenizer.encode_special_tokens = True
    end = vocabulary.end_of_text(tokenizer, options.end_of_text)
    code = vocabulary.token_code(vocabulary.size_of(tokenizer))
    token_bytes = 2 if code == "H" else 4
    shards = output.Shards(staging, token_bytes, options.shard_tokens, options.validation_tokens or 0,
                           journal["shards"])
    path = staging.file("tokenizer.json") if tokenizer else None
    with concurrent.futures.ProcessPoolExecutor(
            options.workers, multiprocessing.get_context("spawn"), vocabulary.start_worker,
            (path, end[0], code)) as workers:
        try:
            encode_all(options, found, staging, shards, journal, workers)
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise
    files = shards.finish()
    description = describe(options, found, tokenizer, end, shards, files, staging)
    output.write_durable(staging.file("dataset.json"), json.dumps(description, indent=1) + "\n")
    staging.publish(options.overwrite)
    report(options, found, description, time.monotonic() - began)


def report(options, found, description, seconds):
    c = found.counts
    print(f"documents   {c.documents:,} (passed over: {c.binary} binary, {c.empty} empty, {c.hidden} hidden, "
          f"{c.special} links and special files)")
    if found.binary_names:
        print(f"binary      {found.binaries()}")
    print(f"train       {description['train_tokens']:,} tokens")
    print(f"validation  {description['validation_tokens']:,} tokens")
    print(f"vocabulary  {description['vocabulary']:,}, end of text {description['end_of_text']} "
          f"({description['end_of_text_token']})")
    if c.replaced:
        print(f"not UTF-8   {c.replaced:,} places, now U+FFFD")
    print(f"written to {options.out} in {duration(seconds)}")


def main(arguments):
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        prepare(parse(arguments))
    except Failure as failure:
        return fail(failure)
    except KeyboardInterrupt:
        return fail(Failure(INTERRUPTED, "interrupted; the same command goes on from here"))
    except (MemoryError, BrokenProcessPool):
        return fail(Failure(MEMORY, "a worker ended unexpectedly, probably for lack of memory: use fewer "
                                    "--workers; the same command goes on from here"))
    except OSError as error:
        return fail(output.io_failure(error))
    return 0


def fail(failure):
    sys.stderr.write(f"deepwell: {failure}\n")
    return failure.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
