#!/usr/bin/env python3
"""Makes tokenizer_fixture.json and tokenizer_expected.json with the `tokenizers` library.

  python3 tests/data/make_tokenizer_fixture.py     (with the Python of ./deepwell data prepare)

The first is a byte-level BPE of 600 tokens trained on this repository's README and documents. The second
holds, for several pre_tokenizers put into it, the tokens of hard texts (as hex: some are no UTF-8).
"""

import json
import pathlib
import random

import tokenizers

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
LAST = dict(LEVEL, use_regex=False)
GPT4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|"
        r"\s*[\r\n]|\s+(?!\S)|\s+")


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


VARIANTS = [  # pre_tokenizer, ignore_merges, whether the tokens spell the text
    (LEVEL, False, True),
    (LEVEL, True, True),
    (dict(LEVEL, add_prefix_space=True), False, False),
    (LAST, False, True),
    (sequence(split(GPT4), LAST), False, True),
    (sequence(split(GPT4, "Removed", True), LAST), True, True),
    (sequence(split("\n", kind="String"), split(r"^.|x*|$"), LAST), False, True),
    (sequence(split(" ", "Removed", kind="String"), {"type": "Digits", "individual_digits": True}, LEVEL),
     False, False),
]


def train():
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train([str(file) for file in files], trainer)
    added = tokenizers.AddedToken
    tokenizer.add_special_tokens([added("<mask>", lstrip=True), added("<|end", special=True)])
    tokenizer.add_tokens([added("zq", single_word=True), added("<b>", rstrip=True), added("    <")])
    return tokenizer


def texts():
    rng = random.Random(1)
    code = (ROOT / "data" / "tokenizer.c").read_text()
    yield from [b"", b"a", b" ", b"\n", code[:600].encode(), (ROOT / "README.md").read_bytes()[:400],
                "naïve café — “quotes” Ünïcødé 日本語 한국어 العربية हिन्दी ไทย 👨‍👩‍👧 🇩🇪 e\u0301".encode(),
                "I'll don't WE'RE x'ſ 123456 ٣٤ Ⅷ ½ 1.5e-3".encode(), b"   \t\t \r\n\r\n  x  \n\n\n y   ",
                "a\u00a0b\u3000c\u2028d\u180ee\u200bf\x85g\x1ch\x00i".encode(),
                b"zq azq zq_ (zq) \xe2\x85\xa7zq <mask>  <mask> <b>  x<|endoftext|><|end<|endof     <",
                b"<|endoftext|>", b"x" * 300, b" " * 100, b"ab" * 60, "é".encode() * 50,
                b"\xff\xfe ok \xe2\x82 \xf0\x9f\x98 \xc0\xaf \xed\xa0\x80 \xf4\x90\x80\x80 \xc3", b"\x80" * 7]
    pool = [" ", "  ", "\n", "\t", "'s", "zq", "<mask>", "<b>", "the", "é", "日", "1", "23", "_", "\u00a0", "x"]
    for _ in range(40):
        yield "".join(rng.choice(pool) for _ in range(rng.randrange(20))).encode()


def main():
    base = train()
    text = base.to_str(pretty=False)
    (HERE / "tokenizer_fixture.json").write_text(text + "\n")
    expected = []
    for pre_tokenizer, ignore_merges, spells in VARIANTS:
        tree = json.loads(text)
        tree["pre_tokenizer"] = pre_tokenizer
        tree["model"]["ignore_merges"] = ignore_merges
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(tree))
        cases = []
        for data in texts():
            valid = data.decode("utf-8", "replace")
            tokenizer.encode_special_tokens = False
            special = tokenizer.encode(valid, add_special_tokens=False).ids
            tokenizer.encode_special_tokens = True
            plain = tokenizer.encode(valid, add_special_tokens=False).ids
            cases.append({"text": data.hex(), "valid": valid.encode().hex(), "special": special,
                          # "<b>" takes the space behind it, which is then in no token
                          "plain": plain, "spells": spells and b"<b>" not in data})
        expected.append({"pre_tokenizer": pre_tokenizer, "ignore_merges": ignore_merges, "cases": cases})
    (HERE / "tokenizer_expected.json").write_text(
        json.dumps(expected, separators=(",", ":")).replace('{"text"', '\n{"text"') + "\n")


if __name__ == "__main__":
    main()
