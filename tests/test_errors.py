"""Errors as data: what each part says, and the one place where they become text."""

import pickle

import pytest

from altcore.errors import DEFAULT, BadInput, Source, item_key, keyed, located, shown, text_of

FILE = Source("run.yaml", 12)


@pytest.mark.parametrize(
    ("source", "text", "place"),
    [
        (FILE, "in run.yaml, line 12", "run.yaml, line 12"),
        (Source("run.yaml"), "in run.yaml", "run.yaml"),
        (Source(flag="--set"), "by --set", "--set"),
        (DEFAULT, "by default", "default"),
        (
            Source(flag="--preset", through="preset mine"),
            "by --preset, through preset mine",
            "--preset",
        ),
        (
            FILE._replace(through="use_fp8"),
            "in run.yaml, line 12, through use_fp8",
            "run.yaml, line 12",
        ),
    ],
)
def test_a_source_is_text_only_in_messages(source, text, place):
    """A file and its line, a flag, a preset, and a default."""
    assert (str(source), source.place) == (text, place)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "no"),
        ({"key": "seed"}, "seed: no"),
        ({"key": "recipe", "part": "r: weight"}, "recipe r: weight: no"),
        ({"key": "seed", "source": FILE}, "seed: no (given in run.yaml, line 12)"),
        ({"source": FILE}, "run.yaml, line 12: no"),
        ({"key": "a", "meant": "b", "hint": "one of b, c"}, "a: no (did you mean b?): one of b, c"),
    ],
)
def test_bad_input_becomes_text_from_its_parts(parts, text):
    """A problem alone is enough, as a plugin's author writes it."""
    error = BadInput("no", **parts)
    assert str(error) == text
    assert str(pickle.loads(pickle.dumps(error))) == text


def test_bad_input_is_filled_on_its_way():
    """Whoever knows the key or the source adds it; what is known is kept."""
    error = BadInput("no")
    error.fill(key="seed")
    error.fill(key="other", source=FILE)
    error.fill(source=DEFAULT)
    assert (error.key, error.source) == ("seed", FILE)

    def fail():
        with located({"gpt.n_head": FILE, "gpt": DEFAULT}), keyed("gpt.n_head"):
            raise BadInput("no")

    with pytest.raises(BadInput, match=r"^gpt.n_head: no \(given in run.yaml, line 12\)$"):
        fail()
    with pytest.raises(BadInput, match=r"^gpt.n_heads: no$"), located({"gpt": FILE}):
        raise BadInput("no", key="gpt.n_heads")


def test_a_text_that_looks_like_a_key_is_none():
    """Only data decides where something was given, however a plugin words its message."""
    with pytest.raises(BadInput, match=r"^seed: no$"), located({"seed": FILE}):
        raise BadInput("seed: no")


def test_an_error_inside_a_value_names_both():
    """The outer key first; where the inner value was given is known better."""
    inner = BadInput("no", key="format", part="MINE", meant="x", hint="y", source=FILE)
    outer = inner.inside("recipe", "r: weight", DEFAULT)
    assert str(outer) == (
        "recipe r: weight: format MINE: no (did you mean x?): y (given in run.yaml, line 12)"
    )
    assert BadInput("no").inside("recipe", source=DEFAULT).source == DEFAULT


def test_an_item_of_a_key_has_a_source_of_its_own():
    """A list over several lines, or names that several flags give."""
    sources = {"plugins": Source("run.yaml", 1), item_key("plugins", "b"): Source("run.yaml", 3)}
    for item, line in (("b", 3), ("a", 1), (None, 1)):
        with pytest.raises(BadInput) as caught, located(sources), keyed("plugins", item):
            raise BadInput("no")
        assert str(caught.value) == f"plugins: no (given in run.yaml, line {line})"


def test_a_word_is_not_said_twice():
    """The problem of a format begins with the word, whatever the key is called."""
    assert str(BadInput("format X has 104 bits", key="format")) == "format X has 104 bits"
    assert str(BadInput("no", key="format", part="X")) == "format X: no"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(10**400, id="digits"),
        pytest.param(10**9000, id="more digits than Python writes"),
        pytest.param("x" * 999, id="text"),
        pytest.param([[["y" * 99] * 9] * 9] * 9, id="lists"),
        pytest.param({"x" * 99: {1: 2}}, id="mapping"),
    ],
)
def test_a_refused_value_is_shown_in_a_line(value):
    """Numbers that Python does not write, long texts, and lists that grow with their depth."""
    bomb = value
    for _ in range(40):
        bomb = [bomb] * 9
    for shape in (value, bomb):
        text = shown(shape)
        assert 0 < len(text) <= 60
        assert text.isprintable()


def test_an_exception_of_megabytes_is_cut():
    """Each record, log and terminal would have all of it."""
    text = text_of(ValueError("x" * 10_000_000))
    assert text.endswith("x... (9996000 characters more)")
    assert len(text) < 4100
