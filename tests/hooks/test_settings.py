"""Settings: the fields of an attrs class, made of plain data without converting anything."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs
import numpy as np
import pytest
from attrs import define, field
from attrs.validators import ge, in_, instance_of, optional

import altcore
from altcore import BadInput, Format, setting
from altcore.hooks import build, describe_settings, to_plain
from altcore.hooks.settings import init_fields


@define
class Part:
    """A part of the settings below."""

    size: int = 1


@define(eq=False)
class Thing:
    """Settings of every type that there is."""

    count: int = setting(3, help="how many", validator=ge(1))
    rate: float = setting(0.5)
    is_on: bool = setting(False)
    name: str = setting("x", validator=in_(("x", "y", "a/b")))
    maybe: int | None = setting(None)
    to: Format = setting("E3M4", help="a format")
    or_none: Format | None = setting("none")
    names: tuple[str, ...] = setting(())
    numbers: list[float] = setting(factory=list)
    pair: tuple[int, float] = setting((1, 2.0))
    chain: dict[str, Format | None] = setting(factory=dict)
    lists: dict[str, list[str]] = setting(factory=dict)
    part: Part = setting(factory=Part)
    choice: Literal["a", "b"] = setting("a")
    some: Sequence[str] = setting(())
    distinct: frozenset[int] = setting(frozenset({1}))
    free: Any = setting(None)
    needs: ClassVar[tuple[str, ...]] = ("gradients",)
    state: "NotThere" = field(init=False, default=0)  # noqa: F821 - for the type checker only


def made(**given):
    return build(Thing, given, "thing")


def test_defaults_are_resolved_like_what_is_given():
    """A default format is written as a name, and is a format before the first step."""
    found = made()
    assert found.to is altcore.get_format("E3M4")
    assert found.or_none is None
    assert (found.count, found.rate, found.is_on, found.names) == (3, 0.5, False, ())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 5, 5),
        ("rate", 2, 2.0),
        ("maybe", 4, 4),
        ("maybe", None, None),
        ("names", ["a", "b"], ("a", "b")),
        ("numbers", [1, 2.5], [1.0, 2.5]),
        ("pair", [3, 4], (3, 4.0)),
        ("lists", {"a": ["b"]}, {"a": ["b"]}),
        ("part", {"size": 2}, Part(2)),
        ("choice", "b", "b"),
        ("some", ["a"], ("a",)),
        ("distinct", [2, 2], frozenset({2})),
        ("free", {"a": [1]}, {"a": [1]}),
        ("or_none", "none", None),
        ("or_none", None, None),
    ],
)
def test_plain_data_become_settings(name, value, expected):
    """As YAML gives them: lists for tuples, integers for floats, names for formats."""
    found = getattr(made(**{name: value}), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", np.int64(5), 5),
        ("count", np.uint8(5), 5),
        ("rate", np.float32(0.5), 0.5),
        ("rate", np.float64(0.1), 0.1),
        ("rate", np.int32(2), 2.0),
        ("is_on", np.bool_(True), True),
        ("name", np.str_("x"), "x"),
        ("name", Path("a") / "b", "a/b"),
        ("maybe", np.int16(4), 4),
        ("numbers", [np.float16(1), np.int8(2)], [1.0, 2.0]),
        ("pair", (np.int64(3), np.float32(0.25)), (3, 0.25)),
        ("part", {"size": np.int64(2)}, Part(2)),
        ("free", {"a": [np.int64(1), (Path("p"), np.float32(0.5))]}, {"a": [1, ("p", 0.5)]}),
    ],
)
def test_numpy_s_numbers_and_paths_are_python_s(name, value, expected):
    """Whatever their width, within lists and mappings too."""
    found = getattr(made(**{name: value}), name)
    assert found == expected
    assert type(found) is type(expected)
    assert repr(found) == repr(expected)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("count", np.float64(3), "thing.count: 3.0 is not a whole number"),
        ("count", np.bool_(True), "thing.count: True is not a whole number"),
        ("count", np.array([3]), "thing.count"),
        ("rate", np.bool_(False), "thing.rate: False is not a number"),
        ("rate", np.str_("0.5"), "thing.rate: '0.5' is not a number"),
        ("rate", np.complex64(1), "thing.rate: "),
        ("is_on", np.int64(1), "thing.is_on: 1 is not true or false"),
        ("name", np.int64(3), "thing.name: 3 is not text"),
        ("names", Path("ab"), "thing.names: 'ab' is not a list of names"),
    ],
)
def test_numpy_s_numbers_are_taken_as_strictly(name, value, words):
    with pytest.raises(BadInput, match=f"^{words}"):
        made(**{name: value})


def test_formats_are_given_by_name():
    """Within other settings too."""
    e4m3 = altcore.get_format("E4M3")
    assert made(to="E4M3").to is e4m3
    assert made(to=e4m3).to is e4m3
    assert made(chain={"E3M4": "E4M3", "E4M3": "none"}).chain == {"E3M4": e4m3, "E4M3": None}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("count", 3.0, "thing.count: 3.0 is not a whole number"),
        ("count", True, "thing.count: True is not a whole number"),
        ("count", "3", "thing.count: '3' is not a whole number"),
        ("count", None, "thing.count: None is not a whole number"),
        ("rate", "0.5", "thing.rate: '0.5' is not a number"),
        ("rate", True, "thing.rate: True is not a number"),
        ("is_on", "false", "thing.is_on: 'false' is not true or false"),
        ("is_on", 0, "thing.is_on: 0 is not true or false"),
        ("name", 3, "thing.name: 3 is not text"),
        ("maybe", 1.5, "thing.maybe: 1.5 is not a whole number or null"),
        ("to", "none", "thing.to: unknown format 'none'"),
        ("to", "E3M4Q", r"thing.to: unknown format 'E3M4Q' \(did you mean E3M4"),
        ("to", 3, "thing.to: a format is given by its name"),
        ("names", "ab", "thing.names: 'ab' is not a list of names"),
        ("names", {"a": 1}, "thing.names: {'a': 1} is not a list of names"),
        ("names", [1], r"thing.names: \[1\] is not a list of names"),
        ("numbers", "12", "thing.numbers: '12' is not"),
        ("numbers", ["1"], "thing.numbers"),
        ("pair", [1], "thing.pair"),
        ("pair", [1, 2, 3], "thing.pair"),
        ("pair", [1.5, 2], "thing.pair"),
        ("lists", {"a": "b"}, "thing.lists"),
        ("lists", [["a", ["b"]]], "thing.lists"),
        ("chain", {1: "E4M3"}, "thing.chain: the name 1 is not text: put it in quotes"),
        ("chain", {"a": "E3M4Q"}, "thing.chain: unknown format 'E3M4Q'"),
        ("part", {"siez": 1}, "thing.part"),
        ("part", {"size": "1"}, "thing.part"),
        ("choice", "c", "thing.choice: 'c' is not"),
        ("some", "a", "thing.some"),
    ],
)
def test_nothing_is_converted_silently(name, value, words):
    """A value of another type is refused, with the setting, the value and what it should be."""
    with pytest.raises(BadInput, match=f"^{words}"):
        made(**{name: value})


def test_the_classs_own_refusals_name_the_setting():
    """Attrs' validators, and what a class raises after them."""
    with pytest.raises(BadInput, match=r"^thing.count: must be >= 1: 0$"):
        made(count=0)
    with pytest.raises(BadInput, match=r"^thing.name: must be in .*'z'"):
        made(name="z")

    @define(eq=False)
    class Pair:
        low: int = setting(1, validator=instance_of(int))
        high: int = setting(2, validator=optional(ge(0)))

        def __attrs_post_init__(self):
            if self.low > self.high:
                raise ValueError("low is above high")
            if self.low == self.high:
                raise BadInput("the same as high", key="low")

    with pytest.raises(BadInput, match=r"^pair: low is above high$"):
        build(Pair, {"low": 3}, "pair")
    with pytest.raises(BadInput, match=r"^pair.low: the same as high$"):
        build(Pair, {"low": 2}, "pair")


def test_an_unknown_setting_is_refused_with_the_nearest():
    """And with the settings that there are; a field without init is none."""
    words = (
        r"^thing.cuont: there is no such setting \(did you mean count\?\): settings of thing are"
    )
    with pytest.raises(BadInput, match=words):
        made(cuont=1)
    with pytest.raises(BadInput, match=r"^thing.state: there is no such setting"):
        made(state=1)

    @define(eq=False)
    class Bare:
        pass

    with pytest.raises(BadInput, match=r"settings of bare are none$"):
        build(Bare, {"a": 1}, "bare")


def test_a_setting_without_default_is_required():
    """Named, before anything runs."""

    @define(eq=False)
    class Needy:
        path: str = setting(help="where")

    with pytest.raises(BadInput, match=r"^needy.path: a value is required$"):
        build(Needy, {}, "needy")
    assert build(Needy, {"path": "x"}, "needy").path == "x"
    assert describe_settings(Needy) == [
        {"name": "path", "type": "str", "default": "required", "help": "where"}
    ]


def test_a_type_that_no_setting_can_have_is_the_plugins_error():
    """Said as such, not as an error of what was given."""

    @define(eq=False)
    class Odd:
        value: int | str = setting(1)

    with pytest.raises(BadInput, match=r"^odd.value: no setting can have the type int \| str$"):
        build(Odd, {}, "odd")


def test_what_is_no_attrs_class_is_named():
    """A plugin that forgot @define, or whose types cannot be resolved."""

    class Bare:
        pass

    with pytest.raises(BadInput, match=r"^bare: an attrs class"):
        build(Bare, {}, "bare")

    @define(eq=False)
    class Lost:
        value: "NotThere" = setting(1)  # noqa: F821 - it is the test

    with pytest.raises(BadInput, match=r"^lost: .*NotThere"):
        build(Lost, {}, "lost")


def test_types_are_resolved_where_they_were_written():
    """A base class may lie in another module, with names that the subclass does not know."""
    from altcore_diagnostics.ulp_stats import UlpStats

    @define(eq=False)
    class Mine(UlpStats):
        more: int = setting(1)

    assert list(init_fields(Mine)) == ["interval", "more"]
    assert build(Mine, {"interval": 2}, "mine").interval == 2


def test_describe_shows_names_types_defaults_and_help():
    """What `altcore plugins info` prints; formats by their names."""
    rows = {row["name"]: row for row in describe_settings(Thing)}
    assert rows["count"] == {"name": "count", "type": "int", "default": 3, "help": "how many"}
    assert rows["to"]["default"] == "E3M4"
    assert rows["or_none"]["type"] == "Format | None"
    assert rows["names"]["type"] == "tuple[str, ...]"
    assert rows["numbers"]["default"] == []
    assert "state" not in rows


def test_settings_become_plain_data_again():
    """As a configuration file writes them."""
    given = {"to": "E4M3", "chain": {"E3M4": "E4M3"}, "names": ["a"]}
    thing = made(**given)
    assert {name: to_plain(getattr(thing, name)) for name in given} == given
    assert to_plain({"a": (altcore.get_format("E3M4"), None)}) == {"a": ["E3M4", None]}


def test_setting_is_an_attrs_field():
    """With a default or a factory, a validator, a converter, and its help in the metadata."""

    @define(eq=False)
    class Small:
        x: int = setting(1, help="a number", converter=lambda v: v * 2)
        y: list = setting(factory=list)

    assert build(Small, {"x": 3}, "small").x == 6
    assert attrs.fields(Small).x.metadata["help"] == "a number"
    assert Small().x == 2
    assert Small().y is not Small().y


def test_a_setting_without_annotation_takes_anything():
    """Attrs allows it, and nothing can be checked."""

    @define(eq=False)
    class Loose:
        x = setting(1)

    assert build(Loose, {"x": "two"}, "loose").x == "two"
    assert build(Loose, {}, "loose").x == 1


def test_defaults_that_are_made_are_resolved_too():
    """Names in a list are formats, as if they were given; no two instances share a default."""

    @define(eq=False)
    class Lists:
        made: list[Format] = setting(factory=lambda: ["E3M4"])
        written: list[Format] = setting(["E5M2"])
        anything: Any = setting({"a": [1]})

    first, second = build(Lists, {}), build(Lists, {})
    assert [f.name for f in (*first.made, *first.written)] == ["E3M4", "E5M2"]
    first.written.append("more")
    first.anything["a"].append(2)
    assert len(second.written) == 1
    assert second.anything == build(Lists, {}).anything == {"a": [1]}
