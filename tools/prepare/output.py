"""Shards being written, the journal that a killed preparation continues from, and the moment at which
the finished set takes its place.

All is written in OUT.unfinished, beside OUT. OUT is either what was there before or the complete new set,
at every instant: the folder gets its name by one rename or, with --overwrite, changes places with the old
one (renameat2), which is removed afterwards.
"""

import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import struct

import xxhash

from report import CONFIG, DATA, IO, Failure
from sources import TRAIN, VALIDATION

HEADER_BYTES = 1024
SHARD_TOKENS_MAX = 2**31 - 1
FORMATS = {2: (20240520, 1), 4: (20240801, 7)}
NAMES = {TRAIN: "train", VALIDATION: "validation"}
OURS = re.compile(r"((train|validation)(_\d{6})?\.bin|dataset\.json|tokenizer\.json)$")
JOURNAL = "progress.json"


def sync_folder(path):
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durable(path, text):
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".tmp", path)


def check_out(out, overwrite):
    """Refuses to touch what is no earlier output."""
    if not os.path.lexists(out):
        return
    if not os.path.isdir(out):
        raise Failure(CONFIG, f"expected a folder or nothing at --out, found something else: {out}")
    names = sorted(os.listdir(out))
    strangers = [name for name in names if not OURS.match(name) or not os.path.isfile(os.path.join(out, name))]
    if strangers:
        raise Failure(CONFIG, f"expected a new folder or an earlier output at --out {out}, found "
                              f"{strangers[0]} in it: choose another --out")
    if names and not overwrite:
        raise Failure(CONFIG, f"expected no earlier output, found {os.path.join(out, names[0])}: choose "
                              "another --out, or replace it with --overwrite")


class Staging:
    """OUT.unfinished, locked while a preparation works in it."""

    def __init__(self, out):
        self.out = os.path.realpath(out)
        self.path = self.out + ".unfinished"
        os.makedirs(self.path, exist_ok=True)
        self.lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Failure(IO, f"another preparation works in {self.path}: wait for it, or choose another "
                              "--out")

    def file(self, name):
        return os.path.join(self.path, name)

    def journal(self):
        """What the last preparation noted, None if there is nothing to continue."""
        try:
            with open(self.file(JOURNAL), encoding="utf-8") as file:
                return json.load(file)
        except (OSError, ValueError):
            return None

    def clear(self):
        for name in os.listdir(self.path):
            os.unlink(self.file(name))

    def publish(self, overwrite):
        check_out(self.out, overwrite)
        os.unlink(self.file(JOURNAL))
        sync_folder(self.path)
        parent = os.path.dirname(self.out)
        if os.path.isdir(self.out) and os.listdir(self.out):
            libc = ctypes.CDLL(None, use_errno=True)
            here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
            if libc.renameat2(here, os.fsencode(self.path), here, os.fsencode(self.out), exchange) != 0:
                number = ctypes.get_errno()
                raise Failure(IO, f"cannot put {self.path} in the place of {self.out} in one step: "
                                  f"{os.strerror(number)}; choose a new --out")
            sync_folder(parent)
            shutil.rmtree(self.path)
        else:
            os.rename(self.path, self.out)
        sync_folder(parent)


class Shards:
    """The token files of both splits."""

    def __init__(self, staging, token_bytes, shard_tokens, validation_tokens, noted):
        self.staging, self.token_bytes, self.shard_tokens = staging, token_bytes, shard_tokens
        self.validation_left = validation_tokens
        self.counts = {TRAIN: [], VALIDATION: []}  # tokens of each file
        self.files = {}
        if noted:
            self._continue(noted)

    def _name(self, split, index):
        return f"{NAMES[split]}_{index:06}.bin"

    def _continue(self, noted):
        for split in (TRAIN, VALIDATION):
            self.counts[split] = list(noted["counts"][split])
            for index, tokens in enumerate(self.counts[split]):
                path = self.staging.file(self._name(split, index))
                alone = self.staging.file(NAMES[split] + ".bin")
                if not os.path.isfile(path) and os.path.isfile(alone):
                    os.rename(alone, path)  # finish() had begun
                size = HEADER_BYTES + tokens * self.token_bytes
                if not os.path.isfile(path) or os.path.getsize(path) < size:
                    raise Failure(IO, f"expected {size} bytes in {path}, as {JOURNAL} beside it notes, found "
                                      f"less: remove {self.staging.path} and start again")
                os.truncate(path, size)
            if self.counts[split]:
                self.files[split] = open(path, "r+b")
                self.files[split].seek(0, os.SEEK_END)
        self.validation_left = noted["validation_left"]

    def _room(self, split):
        """Tokens that the open file takes; opens the next one when it is full."""
        counts = self.counts[split]
        if not counts or counts[-1] == self.shard_tokens:
            self._close(split)
            self.files[split] = open(self.staging.file(self._name(split, len(counts))), "wb")
            self.files[split].write(bytes(HEADER_BYTES))
            counts.append(0)
        return self.shard_tokens - counts[-1]

    def _close(self, split):
        file = self.files.pop(split, None)
        if file is None:
            return
        magic, version = FORMATS[self.token_bytes]
        file.seek(0)
        file.write(struct.pack("<3i", magic, version, self.counts[split][-1]))
        file.flush()
        os.fsync(file.fileno())
        file.close()

    def append(self, split, data):
        view = memoryview(data)
        while view:
            place, most = split, len(view) // self.token_bytes
            if self.validation_left > 0:
                place, most = VALIDATION, min(most, self.validation_left)
            count = min(most, self._room(place))
            self.files[place].write(view[:count * self.token_bytes])
            self.counts[place][-1] += count
            if self.validation_left > 0:
                self.validation_left -= count
            view = view[count * self.token_bytes:]

    def note(self):
        """Makes what was written durable, and says what it is."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        return {"counts": [self.counts[TRAIN], self.counts[VALIDATION]],
                "validation_left": self.validation_left}

    def total(self, split=None):
        return sum(sum(self.counts[s]) for s in ((TRAIN, VALIDATION) if split is None else (split,)))

    def finish(self):
        """Closes all files; a split of one file drops the number. Returns their description."""
        described = []
        for split in (TRAIN, VALIDATION):
            self._close(split)
            if not self.total(split):
                raise Failure(DATA, f"expected documents for both sides, found none for {NAMES[split]}: "
                                    "give more, or another --validation-fraction or "
                                    "--validation-tokens")
            for index, tokens in enumerate(self.counts[split]):
                name = self._name(split, index)
                if len(self.counts[split]) == 1:
                    os.rename(self.staging.file(name), self.staging.file(NAMES[split] + ".bin"))
                    name = NAMES[split] + ".bin"
                described.append({"name": name, "split": NAMES[split], "tokens": tokens,
                                  "xxh3_128": digest(self.staging.file(name))})
        return described


def digest(path):
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def io_failure(error):
    """A file system's refusal, in words."""
    what = error.filename or "the output"
    full = "; free some space and run the same command again: it goes on where it was"
    return Failure(IO, f"cannot write {what}: {error.strerror}{full if error.errno == errno.ENOSPC else ''}")
