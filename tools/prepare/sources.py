"""Inputs to documents: text, JSON lines and Parquet, compressed or not, in pieces of bounded size.

The pieces of a document, one after the other, are its text. Everything here is a pure function of the
inputs and the options, so that a preparation that was killed can run through it again to where it was.
Bytes that are no UTF-8 become U+FFFD and are counted.
"""

import codecs
import gzip
import io
import json
import math
import os
import stat
import zlib
from dataclasses import dataclass

import pyarrow
import pyarrow.parquet
import xxhash

from report import CONFIG, DATA, IO, Failure

READ_BYTES = 1 << 20
PIECE_CHARACTERS = 1 << 17  # of a document that is cut
DOCUMENT_BYTES_MAX = 1 << 28  # of one that must be in memory whole: a line, a row, up to a separator
CHARACTER_BYTES_MAX = 4  # in UTF-8
TRAIN, VALIDATION = 0, 1
JSON, PARQUET, TEXT = "json", "parquet", "text"


@dataclass
class Piece:
    text: str
    split: int
    ends: bool  # the document ends here
    done_bytes: int  # of all inputs, read so far


@dataclass
class Source:
    path: str
    kind: str
    size: int
    mtime_ns: int
    hash: int = 0  # XXH3-64 of a text's bytes


@dataclass
class Counts:
    binary: int = 0  # files and documents
    empty: int = 0
    hidden: int = 0
    special: int = 0
    documents: int = 0
    replaced: int = 0  # U+FFFD in place of bytes that are no UTF-8


def kind_of(path):
    name = path.lower()
    for end in (".gz", ".zst"):
        name = name.removesuffix(end)
    if name.endswith((".jsonl", ".ndjson")):
        return JSON
    return PARQUET if name.endswith(".parquet") else TEXT


def open_bytes(path):
    """(file to read from, raw file whose tell() is the progress)"""
    raw = open(path, "rb")
    if path.lower().endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), READ_BYTES), raw
    if path.lower().endswith(".zst"):
        stream = pyarrow.input_stream(raw, compression="zstd")
        return io.BufferedReader(stream, READ_BYTES), raw
    return raw, raw


def broken(path, error):
    """A failure that names the file."""
    if isinstance(error, OSError) and error.errno is not None:
        return Failure(IO, f"cannot read {path}: {error.strerror}")
    return Failure(DATA, f"{path}: expected a whole {os.path.splitext(path)[1]} file, found a broken "
                         f"one: {error}; copy or make it again")


def place_of(hash64):
    """Where a document belongs, in [0, 1): as the built-in preparation has it (data/prepare.c)."""
    return (hash64 >> 11) * 2.0**-53


NAMED = 3  # of the files that are passed over

BROKEN = (OSError, EOFError, zlib.error, pyarrow.ArrowException)


class Sources:
    """The inputs, found and looked through once."""

    def __init__(self, options, cutter):
        self.options, self.cutter = options, cutter
        self.counts = Counts()
        self.binary_names = []
        self.sources = []
        out = os.path.realpath(options.out)
        self.avoid = {out, out + ".unfinished"}
        for path in options.inputs:
            self._find(path, named=True)
        self._look_through()
        self.binary_files = self.counts.binary
        self.total_bytes = sum(source.size for source in self.sources)
        self.documents_known = all(s.kind == TEXT for s in self.sources) and not options.separator
        self._decide_split()

    def _find(self, path, named=False):
        try:
            info = os.stat(path) if named else os.lstat(path)
            if stat.S_ISDIR(info.st_mode):
                if os.path.realpath(path) in self.avoid:
                    return
                for name in sorted(os.listdir(path), key=os.fsencode):
                    if name.startswith("."):
                        self.counts.hidden += 1
                    else:
                        self._find(os.path.join(path, name))
                return
        except OSError as error:
            raise Failure(IO, f"cannot read {path}: {error.strerror}")
        if not stat.S_ISREG(info.st_mode):
            if named:
                raise Failure(CONFIG, f"expected a file or a folder, found something else: {path}")
            self.counts.special += 1
        elif info.st_size == 0:
            self.counts.empty += 1
        else:
            self.sources.append(Source(path, kind_of(path), info.st_size, info.st_mtime_ns))

    def _look_through(self):
        """Hashes text files and leaves out binaries, which hold a zero byte."""
        kept = []
        for source in self.sources:
            if source.kind == TEXT:
                state, zero = xxhash.xxh3_64(), False
                try:
                    with open_bytes(source.path)[0] as file:
                        while block := file.read(READ_BYTES):
                            zero = zero or b"\0" in block
                            state.update(block)
                except BROKEN as error:
                    raise broken(source.path, error)
                source.hash = state.intdigest()
                if zero:
                    self.binary_names.append(source.path)
                    self.counts.binary += 1
                    continue
            kept.append(source)
        self.sources = kept
        if not kept:
            c = self.counts
            named = f" ({self.binaries()})" if c.binary else ""
            raise Failure(DATA, f"expected text, found no document in the inputs (passed over: {c.empty} "
                                f"empty, {c.binary} binary{named}, {c.hidden} hidden, {c.special} links and "
                                "special files): name text, .jsonl or .parquet files or folders that "
                                "hold some")

    def binaries(self):
        """The first binaries that were passed over, as the built-in preparation names them."""
        names = ", ".join(self.binary_names[:NAMED])
        more = len(self.binary_names) - NAMED
        return f"{names} and {more} more" if more > 0 else names

    def _decide_split(self):
        """As the built-in preparation does it: few documents leave no side empty."""
        self.threshold = self.options.validation_fraction
        if not self.documents_known or len(self.sources) < 2 or self.options.validation_tokens:
            return
        places = [place_of(source.hash) for source in self.sources]
        lowest, highest = min(places), max(places)
        if lowest == highest:
            raise Failure(DATA, f"expected documents for training and for validation, found "
                                f"{len(places)} with the same content: give different ones")
        self.threshold = min(max(self.threshold, math.nextafter(lowest, 1)), highest)

    def split_of(self, hash64):
        if self.options.validation_tokens:
            return TRAIN  # the writer counts
        return VALIDATION if place_of(hash64) < self.threshold else TRAIN

    def pieces(self):
        """All pieces of all documents, in order."""
        base = 0
        self.counts.documents = self.counts.replaced = 0
        self.counts.binary = self.binary_files
        for source in self.sources:
            reader = {JSON: self._json, PARQUET: self._parquet, TEXT: self._text}[source.kind]
            try:
                for text, split, ends, done in reader(source):
                    self.counts.documents += ends
                    yield Piece(text, split, ends, base + min(done, source.size))
                self._require_unchanged(source)
            except BROKEN as error:
                raise broken(source.path, error)
            base += source.size

    def _require_unchanged(self, source):
        """What was read is what was looked through, and what dataset.json will describe."""
        info = os.stat(source.path)
        if (info.st_size, info.st_mtime_ns) != (source.size, source.mtime_ns):
            raise Failure(DATA, f"{source.path}: expected it to stay as it was, found it changed while it "
                                "was being prepared: give the same command again when it is complete")

    def _whole(self, text, done):
        """A document that is in memory; a zero byte makes it a binary, as it does a file."""
        if "\0" in text:
            self.counts.binary += 1
            return
        split = self.split_of(xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")))
        at = 0
        while len(text) - at > 2 * PIECE_CHARACTERS:
            # what the cutter sees of a text; a copy of all that follows, at every cut, takes minutes
            place = self.cutter(text[at:at + 2 * PIECE_CHARACTERS], PIECE_CHARACTERS)
            yield text[at:at + place], split, False, done
            at += place
        yield text[at:], split, True, done

    def _decode(self, data):
        text = data.decode("utf-8", "replace")
        if "\ufffd" in text:
            self.counts.replaced += text.count("\ufffd") - data.count(b"\xef\xbf\xbd")
        return text

    def _json(self, source):
        file, raw = open_bytes(source.path)
        wanted = self.options.text_field
        with file:
            number = 0
            while line := file.readline(DOCUMENT_BYTES_MAX + 1):
                number += 1
                where = f"{source.path}:{number}"
                if len(line) > DOCUMENT_BYTES_MAX:
                    raise Failure(DATA, f"{where}: expected a line of at most {DOCUMENT_BYTES_MAX} bytes, "
                                        "found a longer one")
                if not line.strip():
                    continue
                try:
                    value = json.loads(self._decode(line))
                except (ValueError, RecursionError) as error:
                    raise Failure(DATA, f"{where}: expected JSON, found {str(error)[:80]}")
                if isinstance(value, dict) and wanted not in value:
                    keys = ", ".join(sorted(map(str, value))[:10])
                    raise Failure(DATA, f"{where}: expected the key \"{wanted}\", found {keys[:200]}: name "
                                        "the right one with --text-field")
                text = value[wanted] if isinstance(value, dict) else value
                if not isinstance(text, str):
                    raise Failure(DATA, f"{where}: expected text as \"{wanted}\", found "
                                        f"{type(text).__name__}")
                # a lone surrogate, which JSON can write and UTF-8 cannot
                text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                if text:
                    yield from self._whole(text, raw.tell())

    def _parquet(self, source):
        wanted = self.options.text_field
        with pyarrow.parquet.ParquetFile(source.path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            if wanted not in names:
                raise Failure(DATA, f"{source.path}: expected the column \"{wanted}\", found "
                                    f"{', '.join(names[:10])}: name the right one with --text-field")
            kind = file.schema_arrow.field(wanted).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise Failure(DATA, f"{source.path}: expected text in the column \"{wanted}\", found "
                                    f"{kind}")
            rows, done = max(file.metadata.num_rows, 1), 0
            for batch in file.iter_batches(batch_size=64, columns=[wanted], use_threads=False):
                for value in batch.column(0).cast(pyarrow.large_binary()):
                    done += 1
                    data = value.as_py()
                    if data:
                        yield from self._whole(self._decode(data), source.size * done // rows)

    def _text(self, source):
        if self.options.separator:
            yield from self._separated(source)
            return
        single = len(self.sources) == 1 and not self.options.validation_tokens
        if single and source.path.lower().endswith((".gz", ".zst")):
            raise Failure(CONFIG, f"{source.path} is the only document, and its end is kept for validation: "
                                  "unpack it first, or use --separator or --validation-tokens")
        limit = self._cut_of(source) if single else source.size
        file, raw = open_bytes(source.path)
        with file:
            if single:
                yield from self._stream(file, raw, limit, TRAIN, False)
                yield from self._stream(file, raw, source.size - limit, VALIDATION, True)
            else:
                yield from self._stream(file, raw, None, self.split_of(source.hash), True)

    def _cut_of(self, source):
        """Where the validation part of the only document begins: after a line end where one is near."""
        kept = min(int(self.options.validation_fraction * source.size + 0.5), source.size)
        wished = source.size - kept
        if kept == 0 or wished == 0:
            raise Failure(DATA, f"expected text for training and for validation, found one document of "
                                f"{source.size} bytes: give more text")
        near = min(4096, kept // 2, wished)
        with open(source.path, "rb") as file:
            file.seek(wished - near)
            line_end = file.read(near).rfind(b"\n")
            if line_end >= 0:
                return wished - near + line_end + 1
            start = max(wished - CHARACTER_BYTES_MAX + 1, 1)
            file.seek(start)
            behind = file.read(wished - start + 1)
        for back in range(len(behind)):  # to the first byte of the character that lies there
            if behind[-1 - back] & 0xC0 != 0x80:
                return wished - back
        return wished

    def _blocks(self, file, limit):
        """Decoded text of the next `limit` bytes (None: all)."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while limit is None or limit > 0:
            data = file.read(READ_BYTES if limit is None else min(READ_BYTES, limit))
            text = decoder.decode(data, not data)
            if "\ufffd" in text:
                self.counts.replaced += text.count("\ufffd") - data.count(b"\xef\xbf\xbd")
            yield text
            if not data:
                return
            limit = None if limit is None else limit - len(data)
        yield decoder.decode(b"", True)

    def _stream(self, file, raw, limit, split, ends):
        buffer = ""
        for text in self._blocks(file, limit):
            buffer += text
            while len(buffer) > 2 * PIECE_CHARACTERS:
                place = self.cutter(buffer, PIECE_CHARACTERS)
                yield buffer[:place], split, False, raw.tell()
                buffer = buffer[place:]
        yield buffer, split, ends, raw.tell()

    def _separated(self, source):
        """Documents end after each separator, which stays in the text."""
        separator = self.options.separator
        overlap = len(separator) - 1  # characters that may begin a separator
        waiting, length, end = [], 0, ""  # of the document that has not ended; its last characters
        file, raw = open_bytes(source.path)
        with file:
            for text in self._blocks(file, None):
                documents = (end + text).split(separator)
                for document in documents[:-1]:
                    yield from self._whole("".join(waiting) + document + separator, raw.tell())
                    waiting, length = [], 0
                place = max(len(documents[-1]) - overlap, 0)
                waiting.append(documents[-1][:place])
                end = documents[-1][place:]
                length += place
                if length > DOCUMENT_BYTES_MAX:
                    raise Failure(DATA, f"{source.path}: expected the separator at least every "
                                        f"{DOCUMENT_BYTES_MAX} characters, found none in as many")
            rest = "".join(waiting) + end
            if rest:
                yield from self._whole(rest, raw.tell())
