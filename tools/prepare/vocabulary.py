"""Tokenizers: opened, converted, trained; and text to token bytes in worker processes."""

import array
import ctypes
import json
import os
import signal

import tokenizers

from report import CONFIG, DATA, IO, Failure

END_NAMES = ["<|endoftext|>", "<|end_of_text|>", "<|begin_of_text|>", "</s>", "<eos>"]
BYTES = "bytes"
WINDOW = 512  # characters on either side of a cut that are compared
TRIES = 64


def _from_gpt2(vocab_path, merges_path):
    """encoder.json and vocab.bpe (or vocab.json and merges.txt) as one tokenizer."""
    try:
        with open(vocab_path, encoding="utf-8") as file:
            vocab = json.load(file)
        with open(merges_path, encoding="utf-8") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise Failure(IO, f"cannot read {error.filename}: {error.strerror}; --merges names the merges "
                          "that belong to a vocabulary")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([name for name in END_NAMES if name in vocab][:1])
    return tokenizer


def open_tokenizer(path, merges):
    """A tokenizers.Tokenizer; None for bytes."""
    if path == BYTES:
        return None
    if os.path.isdir(path):
        names = [("tokenizer.json", None), ("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")]
        for name, other in names:
            if os.path.isfile(os.path.join(path, name)):
                merges = merges or (other and os.path.join(path, other))
                path = os.path.join(path, name)
                break
        else:
            raise Failure(CONFIG, f"expected tokenizer.json, or encoder.json and vocab.bpe, in {path}, found "
                                  "none of them")
    try:
        with open(path, encoding="utf-8") as file:
            content = file.read()
        value = json.loads(content)
        if isinstance(value, dict) and not isinstance(value.get("model"), dict):
            for end, other in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
                if not merges and path.endswith(end):
                    merges = path.removesuffix(end) + other
            if not merges:
                raise Failure(CONFIG, f"{path} holds a vocabulary without merges: name them with --merges")
            return _from_gpt2(path, merges)
        tokenizer = tokenizers.Tokenizer.from_str(content)
    except OSError as error:
        raise Failure(IO, f"cannot read {path}: {error.strerror}")
    except Failure:
        raise
    except Exception as error:  # the library raises plain Exception
        raise Failure(DATA, f"{path}: expected a tokenizer.json, found: {str(error)[:200]}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def train(texts, size):
    """A new byte-level BPE vocabulary; <|endoftext|> is its first token."""
    if size < 257:
        raise Failure(CONFIG, f"expected a vocabulary of 257 tokens or more (256 bytes and the end of text), "
                              f"found {size}")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, special_tokens=END_NAMES[:1], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def size_of(tokenizer):
    return 256 if tokenizer is None else max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def end_of_text(tokenizer, wished):
    """(number, name) of the token that ends a document."""
    if tokenizer is None:
        return 0, "\\x00"
    for name in [wished] if wished else END_NAMES:
        token = tokenizer.token_to_id(name)
        if token is not None:
            return token, name
    what = f"the token {wished}" if wished else "one of " + ", ".join(END_NAMES)
    raise Failure(CONFIG, f"expected {what} in the tokenizer, to end documents with, found none: name one "
                          "with --end-of-text")


def token_code(vocabulary):
    """The array type of a shard's tokens."""
    return "H" if vocabulary <= 1 << 16 else "I"


def _any_space(*characters):
    return any(c.isspace() for c in characters)


class Cutter:
    """Finds a place where a text can be cut without changing a token: after a line end or before a space,
    and only where the tokens of the surroundings are the same with and without the cut."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def _ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _holds(self, text, place):
        left, right = text[max(place - WINDOW, 0):place], text[place:place + WINDOW]
        return self._ids(left + right) == self._ids(left) + self._ids(right)

    def __call__(self, text, wished):
        """A place in [1, wished], or wished itself where nothing better is near."""
        if self.tokenizer is None:
            return wished
        tries = 0
        for place in range(wished, wished // 2, -1):
            before, after = text[place - 1], text[place]
            behind_line = before == "\n" and not _any_space(text[place - 2], after)
            at_space = after == " " and not _any_space(before, text[place + 1])
            if not (behind_line or at_space):
                continue
            if self._holds(text, place):
                return place
            tries += 1
            if tries == TRIES:
                break
        return wished


def start_worker(path, end, code):
    """In each worker, once. A worker dies with its parent, however that dies."""
    global _tokenizer, _end, _code
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    _tokenizer, _end, _code = None, end, code
    if path:
        _tokenizer = tokenizers.Tokenizer.from_file(path)
        _tokenizer.no_truncation()
        _tokenizer.no_padding()
        # "<|endoftext|>" in a text is text; only the end of a document is the token
        _tokenizer.encode_special_tokens = True


def encode_unit(unit):
    """unit: [(text, split, ends)]. The tokens of each split, as bytes of a shard."""
    tokens = [array.array(_code), array.array(_code)]
    if _tokenizer is None:
        lists = [text.encode("utf-8") for text, _, _ in unit]
    else:
        texts = [text for text, _, _ in unit]
        lists = [e.ids for e in _tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    for ids, (_, split, ends) in zip(lists, unit):
        tokens[split].extend(ids)
        if ends:
            tokens[split].append(_end)
    return [part.tobytes() for part in tokens]
