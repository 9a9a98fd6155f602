"""Hostile files and names are named: nothing is executed, and memory is bounded."""

import json
import os
import random
import resource
import signal
import struct

import pytest
from helpers_cli import TINY
from helpers_crashes import ended, forked_command

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 14)
)
YAML = {
    "runs a function": "!!python/object/apply:os.mkdir [planted]",
    "runs a function below": "format: !!python/object/apply:os.mkdir [planted]",
    "names a function": "format: !!python/name:os.mkdir",
    "makes an object": "name: !!python/object/new:os.mkdir [planted]",
    "anchors of anchors": LAUGHS,
    "holds itself": "&a [*a]",
    "is deep": "[" * 5000,
    "is deep in braces": "{a: " * 5000,
    "has a long number": f"seed: {'9' * 50_000}",
    "is long": f"name: {'x' * 5_000_000}",
    "has many keys": "".join(f"k{i}: 1\n" for i in range(300_000)),
    "control characters": "name: \x1b[31m\x07",
    "is no text": b"\xff\xfe\x00\x01" * 100,
    "is torn": "{format: E4M3",
    "is a list": "- 1\n- 2",
    "is empty of sense": "values: [.nan, .inf]\nname: X",
}
FLAGS = ("--config", "--recipe", "--format")


def of_yaml(flag, text):
    def make(folder):
        (folder / "hostile.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return [flag, "hostile.yaml"]

    return make


def pipe(folder, name="hostile.yaml"):
    os.mkfifo(folder / name)


def endless(folder, name="hostile.yaml"):
    (folder / name).symlink_to("/dev/zero")


def loop(folder, name="hostile.yaml"):
    (folder / name).symlink_to(folder / name)


def directory(folder, name="hostile.yaml"):
    (folder / name).mkdir()


ODD = {"a pipe": pipe, "a device": endless, "a loop": loop, "a folder": directory}


def odd_file(make, *flags):
    def prepare(folder):
        make(folder)
        return list(flags)

    return prepare


def tokens(data):
    """A folder of token files with this as its train.bin, or with what a function makes of it."""

    def make(folder):
        (folder / "data").mkdir()
        (folder / "data/val.bin").write_bytes(struct.pack("<64H", *range(64)))
        if callable(data):
            data(folder / "data", "train.bin")
        else:
            (folder / "data/train.bin").write_bytes(data)
        return ["--data", "data", "--set", "gpt.tokenizer=byte"]

    return make


WORDS = {
    "version": "1.0",
    "model": {"type": "WordLevel", "vocab": {"?": 0, "a": 1}, "unk_token": "?"},
    "pre_tokenizer": {"type": "Whitespace"},
}
WHOLE = json.dumps(WORDS)


def model(**changes):
    return json.dumps({**WORDS, "model": {**WORDS["model"], **changes}})


def split(regex):
    pattern = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}
    return json.dumps({**WORDS, "pre_tokenizer": {**pattern, "invert": False}})


def normalized(normalizer):
    return json.dumps({**WORDS, "normalizer": normalizer})


TOKENIZERS = {
    "is empty": "",
    "is nothing": "null",
    "is a list": "[]",
    "is deep": "[" * 100_000,
    "is deep in braces": '{"a":' * 100_000,
    "is deep inside": WHOLE[:-1] + ', "x": ' + "[" * 100_000,
    "has deep parts": WHOLE[:-1] + ', "normalizer": ' + '{"type":"Sequence","normalizers":[' * 3000,
    "has a huge id": model(vocab={"?": 0, "a": 2**31}),
    "has an id of 32 bits": model(vocab={"?": 0, "a": 2**32 - 1}),
    "has an id beyond 32 bits": model(vocab={"?": 0, "a": 2**32}),
    "has an id beyond 64 bits": model(vocab={"?": 0, "a": 10**30}),
    "has an id just too large": model(vocab={"?": 0, "a": 2**20}),
    "has an id below 0": model(vocab={"?": 0, "a": -1}),
    "has half an id": model(vocab={"?": 0, "a": 1.5}),
    "has an id as text": model(vocab={"?": 0, "a": "1"}),
    "has no number": WHOLE.replace("1}", "NaN}"),
    "has no word for others": model(vocab={"a": 1}),
    "has no words": model(vocab={}),
    "has no model": '{"version": "1.0"}',
    "has another model": model(type="Evil"),
    "merges what is not there": model(type="BPE", merges=[["q", "zz"]]),
    "merges three": model(type="BPE", merges=["a a a"]),
    "has a torn pattern": split("(("),
    "has a slow pattern": split("(a+)+$"),
    "has a torn map": WHOLE[:-1]
    + ', "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}',
    "makes much of a letter": normalized(
        {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1_000_000}
    ),
    "begins with much": normalized({"type": "Prepend", "prepend": "a" * 100_000_000}),
    "has half a character": WHOLE.replace('"a"', '"\\ud800"'),
    "has a mark before it": f"\ufeff{WHOLE}",
    **{f"is cut at {i}": WHOLE[:i] for i in (1, 20, 60, len(WHOLE) - 1)},
    **{f"is random {i}": random.Random(i).randbytes(300) for i in range(3)},
}


def tokenizer(data):
    """A text, and a tokenizer.json with this in it."""

    def make(folder):
        (folder / "words.txt").write_text(f"{'a' * 40}! a b " * 300)
        if callable(data):
            data(folder, "hostile.json")
        else:
            text = data if isinstance(data, bytes) else data.encode()
            (folder / "hostile.json").write_bytes(text)
        return ["--data", "words.txt", "--set", "gpt.tokenizer=hostile.json"]

    return make


NAMES = (
    *("../out", "/tmp/out", "a/b", "..", ".", "", "x" * 300, "<script>", "a b", "-x", "a\nb"),
    *("\x1b[31m", "a\u202eb", "C:x", "~", "$(touch planted)", "`touch planted`", "a;b", "%00"),
)
CASES = {
    **{f"{flag} {what}": of_yaml(flag, text) for flag in FLAGS for what, text in YAML.items()},
    **{
        f"{flag} is {what}": odd_file(make, flag, "hostile.yaml")
        for flag in FLAGS
        for what, make in ODD.items()
    },
    **{f"train.bin is {what}": tokens(make) for what, make in ODD.items()},
    **{f"tokenizer is {what}": tokenizer(make) for what, make in ODD.items()},
    "train.bin is empty": tokens(b""),
    "train.bin is odd": tokens(b"abc"),
    "train.bin is short": tokens(b"\x01\x00"),
    **{f"tokenizer {what}": tokenizer(data) for what, data in TOKENIZERS.items()},
    "train.bin has large ids": tokens(struct.pack("<512H", *[65535] * 512)),
    **{f"--name {name!r:.20}": lambda folder, name=name: ["--name", name] for name in NAMES},
    **{f"--resume {name!r:.20}": lambda folder, name=name: ["--resume", name] for name in NAMES},
}


def limit():
    """Allow a gigabyte more than there is, and a minute."""
    with open("/proc/self/statm") as file:  # noqa: PTH123
        used = int(file.read().split()[5]) * resource.getpagesize()
    os.environ["RUST_BACKTRACE"] = "0"
    resource.setrlimit(resource.RLIMIT_DATA, (used + (1 << 30), resource.RLIM_INFINITY))
    signal.alarm(60)


DEAR = ("--recipe has many keys", "--format has many keys", "tokenizer begins with much")
"""They take seconds, and what others do: --config reads many keys as the first two."""


def some():
    """All cases; two of five, and those that are dear, are for `make test-exhaustive`."""
    for number, (name, make) in enumerate(CASES.items()):
        marks = [pytest.mark.exhaustive] if number % 5 > 2 or name in DEAR else []
        yield pytest.param(make, marks=marks, id=name)


@pytest.mark.parametrize("make", list(some()))
def test_hostile_input_is_named(make, tmp_path):
    """With exit code 2, in few words; nothing is made, in its folder or outside."""
    (tmp_path / "in").mkdir()
    given = make(tmp_path / "in")
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    steps = [] if "--resume" in given else ["--steps", "1", *TINY]
    with (tmp_path / "err").open("w") as err:
        child = forked_command(tmp_path / "in", ["train", *steps, *given], err, limit)
        code = ended(child)
    said = (tmp_path / "err").read_text()
    (tmp_path / "err").unlink()
    assert code == 2, said[-2000:]
    assert "Traceback" not in said
    assert len(said) < 2000
    assert not [c for c in said if ord(c) < 32 and c != "\n"]
    if "gpt.tokenizer=hostile.json" in given:
        assert "altcore: gpt.tokenizer: hostile.json " in said
    named = given[1] if given[0].startswith("--resume") or given[0] == "--name" else ""
    assert any(
        word in said for word in (given[0][2:], "hostile.yaml", ".bin", repr(named)[1:-1][:9])
    ), said
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before
