"""YAML as altcore reads it: numbers, keys that come twice, and the line of each value."""

import runpy
import sys
import time
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altcore import BadInput, yaml_files
from altcore.errors import Source
from altcore.yaml_files import (
    dump_yaml,
    load_yaml,
    read_mapping,
    source_of,
    updated,
    without_sources,
)


def at(line):
    return Source("a.yaml", line)


def test_each_key_and_item_knows_its_line():
    """Below other keys, in lists, in flow style and behind an alias."""
    text = "a: 1\nb:\n  c: {d: 2,\n    e: 3}\nf:\n- x\n-\n  g: 4\nh: &h {i: 5}\nj: *h\n"
    found = load_yaml(text, Source("a.yaml"))
    assert {key: source_of(found, key) for key in found} == {
        "a": at(1),
        "b": at(2),
        "f": at(5),
        "h": at(9),
        "j": at(10),
    }
    assert source_of(found) == at(1)
    assert source_of(found["b"]["c"], "e") == at(4)
    assert [source_of(found["f"], i) for i in range(2)] == [at(6), at(8)]
    assert source_of(found["j"], "i") == at(9)
    assert source_of(found["f"], 7) is source_of({"a": 1}, "a") is None


def test_a_flag_s_value_has_no_line():
    """It is the flag's, at every depth."""
    source = Source(flag="--set")
    found = load_yaml("{a: {b: 1}}", source)
    assert source_of(found) == source_of(found["a"], "b") == source


def test_values_without_sources_are_plain():
    """At every depth, so that checkpoints and other YAML hold them; changed ones keep sources."""
    found = load_yaml("a: [{b: 1}]\n", Source("a.yaml"))
    plain = without_sources(found)
    assert (type(plain), type(plain["a"]), type(plain["a"][0])) == (dict, list, dict)
    assert plain == found
    changed = updated(found, {"a": 2, "c": 3})
    assert (changed, source_of(changed, "a")) == ({"a": 2, "c": 3}, at(1))
    assert type(updated({"a": 1}, {"a": 2})) is dict


@pytest.mark.parametrize("text", ["a: &a {b: *a}", "&a [*a]"])
def test_a_value_that_holds_itself_is_refused(text):
    """Nothing could ever write it down."""
    with pytest.raises(BadInput, match=r"^here, line 1: not valid YAML: .*recursive"):
        load_yaml(text, Source("here"))


@pytest.mark.parametrize(
    ("text", "number"),
    [("6e-4", 6e-4), ("1E3", 1e3), ("+1e2", 1e2), ("-.5e1", -5.0), ("1.e2", 100.0), ("2e0", 2.0)],
)
def test_a_number_with_an_exponent_is_a_number(text, number):
    """YAML 1.1 reads 6e-4 as text."""
    assert load_yaml(text, Source("here")) == number
    assert isinstance(load_yaml(text, Source("here")), float)


@pytest.mark.parametrize("text", ["6e", "e4", "E4M3", "1e5x", "1.2.3e4", "0x1e-4", "E3M4"])
def test_what_looks_like_one_stays_text(text):
    """Formats' names above all."""
    assert load_yaml(text, Source("here")) == text


@pytest.mark.parametrize(
    "text", ["12:00:00", "12:00", "-1:30", "1:30.5", "010", "-07", "00", "0_10"]
)
def test_what_has_colons_or_a_leading_zero_is_text(text):
    """No number to the base of 60 or 8, as it is to PyYAML; it stays text when it is written."""
    assert load_yaml(text, Source()) == text
    assert load_yaml(dump_yaml(text), Source()) == text


@pytest.mark.parametrize("text", ["2026-11-28", "2026-11-28T10:00:00Z", "2020-13-45"])
def test_what_looks_like_a_date_is_text(text):
    """A good name of a run, which PyYAML makes a date of; it stays text when it is written."""
    assert load_yaml(text, Source()) == text
    assert load_yaml(dump_yaml(text), Source()) == text


def test_anchors_and_merges_are_plain_yaml():
    """A key that overrides a merged one is not given twice."""
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a}\n"
    assert load_yaml(text, Source("here"))["b"] == {"x": 3, "y": 2}
    assert load_yaml(text, Source("here"))["c"] == {"x": 1, "y": 2}


@given(text=st.text(max_size=40))
def test_any_text_is_yaml_or_bad_input(text):
    """Whatever a file or --set holds, the answer is a value or a message that names where."""
    with suppress(BadInput):
        load_yaml(text, Source("here"))


@pytest.mark.parametrize("text", ["0b_", "[" * 500, "a: b: c", "\x07", "!!set 3"])
def test_what_yaml_stumbles_over_is_bad_input(text):
    """Impossible numbers, and what is nested too deep: the message names where."""
    with pytest.raises(BadInput, match=r"^here.*: not valid YAML: ."):
        load_yaml(text, Source("here"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("strict: !!bool abc", "'abc' is neither true nor false"),
        ("label: !!timestamp abc", "'abc' is not a date"),
        ("seed: !!int abc", "'abc' is not a whole number"),
        ("seed: " + "1" * 5000, "has too many digits"),
        ("grad_clip: !!float abc", "'abc' is not a number"),
        ("tags: !!set 3", "'3' is not a set"),
        ("---\nformat: E5M2", "one document a file is needed"),
        ("name: a\0b", "characters are not allowed: 0x0"),
        ("freeze: " + "[" * 300 + "]" * 300, "nested too deeply"),
        ("freeze: " + "[" * 3000, "nested too deeply"),
    ],
)
def test_what_is_not_yaml_is_named_with_its_line(text, problem):
    """Whether PyYAML reads, parses or makes a value of it when it fails."""
    with pytest.raises(BadInput, match=r"^r\.yaml, line 2: not valid YAML: ") as caught:
        load_yaml(f"format: E4M3\n{text}\n", Source("r.yaml"))
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 160


def test_a_path_that_no_file_can_have_is_refused():
    """A NUL in it, as YAML can write one."""
    with pytest.raises(BadInput, match=r"^recipe 'a.x00b\.yaml': no file can have this name"):
        read_mapping("a\0b.yaml", "recipe")


# --------------------------------------------------------------------------------------- bounds


def anchors(count):
    """A list of anchors, each of which stands for ten of the one before."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, count)]
    return "\n".join(lines)


PAIRS = (("a", "b"), ("b", "c"), ("c", "d"))
HOSTILE = {
    "anchors of anchors": (anchors(12), "more than 200000 values"),
    "many anchors": ("\n".join(f"a{i}: &a{i} x" for i in range(2000)), "more than 1024 anchors"),
    "merges of merges": (
        "a: &a {x: 1, y: 2}\n"
        + "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 99)}]}}\n" for a, b in PAIRS),
        "more than 200000 values",
    ),
    "a long text": (f"a: {'x' * 70_000}", "more than 65536 characters"),
    "a long number": (f"a: 1{':59' * 30_000}", "more than 65536 characters"),
    "a large file": ("a: &a [x, y]\n" + "- *a\n" * 940_000, "more than 4 MiB"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_too_large_is_refused_at_once(text, problem, tmp_path):
    """In a file and in a flag, in little time and memory."""
    path = tmp_path / "a.yaml"
    path.write_text(text)
    began = time.process_time()  # of this process: other work on the machine does not count
    tracemalloc.start()
    with pytest.raises(BadInput, match=rf"a\.yaml, line \d+: not valid YAML: .*{problem}"):
        read_mapping(path, "config")
    with pytest.raises(BadInput, match=problem):
        load_yaml(text, Source(flag="--set"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - began < 5
    assert peak < 200 << 20


def test_large_tables_are_read():
    """With aliases of them: three formats of 16 bits, value by value, have fewer values."""
    table = "[" + ", ".join(map(str, range(1 << 16))) + "]"
    found = load_yaml(f"a: &a {table}\nb: *a\nc: *a\n", Source("a.yaml"))
    assert found["c"][-1] == (1 << 16) - 1


MANY = {
    "numbers": "[" + "1," * 2_000_000,
    "keys": "".join(f"k{i}: 1\n" for i in range(150_000)),
    "lists": "[" + "[1]," * 1_000_000,
    "aliases": "a: &a x\nb:\n" + " - *a\n" * 500_000,
}


@pytest.mark.parametrize("text", MANY.values(), ids=MANY)
def test_many_values_are_refused_before_anything_is_made_of_them(text):
    """Just under the largest size, in a third of a second; PyYAML's own scanner takes up to 16."""
    began = time.process_time()
    with pytest.raises(BadInput, match="more than 200000 values"):
        load_yaml(text, Source("a.yaml"))
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "text", ["a: 1\nb: [x, 6e-4]", "a: 1\na: 2", "a: [}", "a: b\0", "é:\n- \0"]
)
def test_without_libyaml_the_same_is_read_and_refused(text, monkeypatch):
    """A PyYAML that was built without it has the same values, sources and lines."""
    monkeypatch.setitem(sys.modules, "yaml.cyaml", None)
    plain = runpy.run_path(yaml_files.__file__)

    def found(load):
        try:
            held = load(text, Source("a.yaml"))
        except BadInput as error:
            return error.source
        return held, held.sources

    assert found(plain["load_yaml"]) == found(load_yaml)


def test_what_is_no_text_is_refused():
    """An argument may hold half a character."""
    with pytest.raises(BadInput, match="not valid YAML: characters are not allowed: 0xdcff"):
        load_yaml("a\udcff", Source(flag="--set"))
