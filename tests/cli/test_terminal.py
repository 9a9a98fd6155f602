"""No name that somebody else chose commands the terminal."""

import re
from pathlib import Path

import pytest
from helpers_cli import call
from torch import nn

import altcore
from altcore.builtin_types import printable
from altcore.log import log
from altcore.quantization.context import Clock, Context

EVIL = "a\x1b]0;title\x07\x1b[2Jb\r\u202ec\x9b1m"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize("text", [EVIL, "\x00", "\x7f", "\x85", "\u2028", "\ud800", "\u200f"])
def test_control_characters_are_escaped(text):
    assert not RAW.search(printable(text))
    assert printable(text) != text


@pytest.mark.parametrize("text", ["", "plain", "zwölf 格子\n\tindented", "8\u00a0%"])
def test_text_stays_as_it_is(text):
    assert printable(text) == text


def test_names_of_folders_and_layers_are_escaped(start, capsys):
    """A folder beside the runs, and a layer of the caller's own model, left out of the recipe."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(256, 8)
            self.add_module(EVIL, nn.Linear(8, 256))

        def forward(self, x):
            return self._modules[EVIL](self.embedding(x))

    config = start.config(["progress"], name="r", max_steps=1, format="E4M3", recipe="pure")
    altcore.train(config, model=Net())
    (start.runs / "r").rename(start.runs / f"r{EVIL}")
    seen = capsys.readouterr()
    found = call(capsys, "runs", "list", "--runs-dir", start.runs)
    (start.runs / f"r{EVIL}").rename(start.runs / "r")
    shown = call(capsys, "runs", "show", "r", "--runs-dir", start.runs)
    assert found.code == shown.code == 0
    for text in (seen.out, seen.err, found.out, found.err, shown.out):
        assert not RAW.search(text)
    assert printable(EVIL) in found.out


def test_messages_from_python_are_escaped(capsys):
    """Whatever structlog's configuration is, the default one included; warnings, too."""
    log.warning(f"a {EVIL} message", name=EVIL, path=Path(EVIL), names=[EVIL])
    log.info(EVIL)
    with pytest.warns(RuntimeWarning) as told:
        Context(Clock(0)).warn(f"layer {EVIL}")
    seen = capsys.readouterr()
    colours = re.sub(r"\x1b\[[0-9;]*m", "", seen.out + seen.err)
    assert not RAW.search(colours)
    assert printable(EVIL) in colours
    assert str(told[0].message) == printable(f"layer {EVIL}")


def test_names_of_plugins_are_escaped(shelf, capsys):
    """Their summaries, too: metadata may hold anything."""
    shelf.install("diagnostic", "mine", object)
    (metadata,) = shelf.folder.glob("*/METADATA")
    metadata.write_text(metadata.read_text().replace("a test's", "evil \x1b[2J"))
    from helpers import forget_installed

    forget_installed()
    found = call(capsys, "plugins", "list")
    assert "mine" in found.out
    assert not RAW.search(found.out + found.err)


def test_an_error_with_control_characters_is_escaped(capsys):
    found = call(capsys, "runs", "show", EVIL)
    assert found.code == 2
    assert not RAW.search(found.err)
