"""What a plugin may hand to the engine."""

import re
from collections import OrderedDict, defaultdict
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import define, frozen
from helpers import events

from altcore import Stop, hookimpl
from altcore.engine.plugins import Plugin
from altcore.engine.returns import check_return, check_state
from altcore.errors import PluginError
from altcore.registry import HOOK_KINDS, KINDS


@frozen
class Custom:
    """Not plain data."""

    x: int = 1


class Unit(torch.Tensor):
    """A tensor with a type of its own."""


def attributed(value):
    """A tensor that has an attribute."""
    tensor = torch.ones(2)
    tensor.note = value
    return tensor


GOOD = [
    torch.nn.Buffer(torch.ones(2)),
    attributed("plain"),
    {},
    {"a": torch.ones(2), "b": [1, 2.5, "x", None, True], "c": {"d": (1, 2)}, 3: OrderedDict(e=1)},
    torch.nn.Parameter(torch.ones(2)),
    [],
]
BAD = [
    ({"a": {1, 2}}, r"state\['a'\] is set"),
    ({"a": [np.float64(1.0)]}, r"state\['a'\]\[0\] is float64"),
    ({"a": Custom()}, r"state\['a'\] is Custom"),
    ({"a": defaultdict(int)}, r"state\['a'\] is defaultdict"),
    ({(1, Custom()): 1}, r"a key of state\[1\] is Custom"),
    (np.zeros(2), "state is ndarray"),
    ([torch.ones(2).as_subclass(Unit)], r"state\[0\] is Unit"),
    ([attributed(Custom())], r"state\[0\] is Tensor"),
]


@pytest.mark.parametrize("value", GOOD)
def test_plain_state_survives_a_safe_load(value, tmp_path):
    """What is allowed comes back from a load that runs no code."""
    torch.save(check_state(value), tmp_path / "x.pt")
    assert str(torch.load(tmp_path / "x.pt", weights_only=True)) == str(value)


@pytest.mark.parametrize(("value", "says"), BAD)
def test_state_that_could_not_be_loaded_is_refused_when_saved(value, says):
    """Else every checkpoint would be written and none could be read."""
    with pytest.raises(PluginError, match=says):
        check_state(value)


def test_a_state_must_come_back_where_its_module_is_not_imported():
    """What this process declared to be safe is of no use to the one that resumes."""
    with torch.serialization.safe_globals([Unit]), pytest.raises(PluginError, match="is Unit"):
        check_state(torch.ones(2).as_subclass(Unit))


MEASURES = [
    ({"x": torch.ones(2).to_sparse()}, "measure x is a tensor without plain numbers"),
    ({"x": torch.ones((), device="meta")}, "measure x is a tensor without plain numbers"),
    ({"a/b c\n": 1.0}, r"the measure's name 'a/b c\\n' is not text that can be printed"),
    ({" a": 1.0}, "the measure's name ' a' is not text that can be printed"),
    ({"step": 1.0}, "a measure cannot be called step: findings have the step under it"),
    ({"a" * 301: 1.0}, "the measure's name 'a+' is not text that can be printed"),
    ({"made": 2.0}, "measure made was returned by another hook in this step"),
]


@pytest.mark.parametrize(("returned", "says"), MEASURES)
def test_measures_that_the_record_cannot_hold_are_the_plugins_failure(shelf, start, returned, says):
    """The run goes on, and names the plugin."""

    @define(eq=False)
    class Odd:
        @hookimpl
        def post_backward(self):
            return {"made": 1.0}

        @hookimpl
        def post_step(self):
            return returned

    shelf.install("diagnostic", "odd", Odd)
    result = start(["odd"], max_steps=1)
    (told,) = events(result.run_directory, "degraded")
    assert re.search(f"diagnostic odd .* failed in post_step: {says}", told["message"])
    assert result.diagnostics_history[0]["odd/made"] == 1.0


def test_a_measure_that_is_none_is_left_out(shelf, start):
    """It was not made: others see it no more than the record."""
    seen = []

    @define(eq=False)
    class Half:
        @hookimpl
        def post_backward(self):
            return {"made": 1.0, "not_made": None}

        @hookimpl
        def post_step(self, step):
            seen.append(step.measures["half"])

    shelf.install("diagnostic", "half", Half)
    result = start(["half"], max_steps=1)
    assert seen == [{"made": 1.0}]
    assert result.diagnostics_history == [{"step": 1, "half/made": 1.0}]
    assert not result.summary["degraded"]


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("stop", "it returned str, not an Action or None, or a list of Actions"),
        ([Stop(reason="a"), "stop"], "item 1 of the list that it returned is 'stop', not an Act"),
        ((None,), "item 0 of the list that it returned is None, not an Action"),
    ],
)
def test_what_is_no_action_is_named_by_its_place(returned, says):
    with pytest.raises(PluginError, match=says):
        check_return(Plugin("p", "intervention", "acme 1", None), "pre_step", returned)


FINDINGS = [
    "two\nlines",
    "a\tb",
    "\x1b[31mred",
    "",
    "a" * 301,
    {},
    {"a\nb": 1},
    {"": 1},
    {"a": "two\nlines"},
    {"a": "b" * 301},
    {3: 1},
    {"a": [1]},
    {f"c{i}": 1 for i in range(17)},
]


@pytest.mark.parametrize("finding", FINDINGS)
def test_findings_are_lines_and_small_rows(finding):
    """A text with line breaks or of 5,000 letters would spoil the summary."""
    with pytest.raises(PluginError, match="is neither a line of text nor a row of text and num"):
        check_return(Plugin("p", "diagnostic", "acme 1", None), "findings", ["good", finding])


def test_findings_take_what_history_holds():
    """Numbers, text, None, and a measure that is True or False."""
    row = {"a": True, "b": 1, "c": 2.5, "d": None, "e": "", "f": "x"}
    check_return(Plugin("p", "diagnostic", "acme 1", None), "findings", ["a" * 300, row])


# ----------------------------------------------------- the table of kinds in docs/plugins.md

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
RETURNS = {
    "an Action": ("pre_step", Stop(reason="enough")),
    "measures": ("post_step", {"x": 1.0}),
    "a context manager": ("watch_forward", nullcontext()),
}


def table(heading, number=0):
    """Return the rows of a table under a heading, by column."""
    part = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = re.findall(r"(?:^\|.*\n)+", part, re.MULTILINE)[number].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


def is_allowed(kind, hook, returned):
    try:
        check_return(Plugin("p", kind, "acme 1", None), hook, returned)
    except PluginError:
        return False
    return True


def test_the_table_of_kinds_is_true():
    """Which kinds may return what, and whose state is kept."""
    rows = {row["kind"]: row for row in table("The class of a plugin")}
    assert list(rows) == [kind for kind in KINDS if kind != "format"]
    for kind in HOOK_KINDS:
        assert rows[kind]["must have"] == "`@define(eq=False)`"
        assert rows[kind]["state in checkpoints"] == "yes"
        for column, (hook, returned) in RETURNS.items():
            assert rows[kind][column] == ("yes" if is_allowed(kind, hook, returned) else "no")
            assert is_allowed(kind, hook, None)
            assert not is_allowed(kind, "run_start", returned)
    for kind in ("optimizer", "workload"):
        assert rows[kind]["must have"] == "`build`"
        assert {rows[kind][column] for column in RETURNS} == {"–"}


def test_the_table_names_all_that_a_class_may_have():
    """Every attribute that the loader, the dispatcher and the report look for by name."""
    found = "".join(row["name"] for row in table("The class of a plugin", 1))
    root = PAGE.parents[1] / "altcore"
    sources = [root / "engine" / f"{n}.py" for n in ("plugins", "dispatch")]
    sources += [root / "hooks" / "plugin_class.py", root / "cli" / "report.py"]
    objects = r"self\.instance|plugin\.instance|instance|cls|made"
    pattern = rf'(?:(?:get|has)attr\((?:{objects}), |own\.method\()"(\w+)"'
    looked_for = {name for path in sources for name in re.findall(pattern, path.read_text())}
    assert looked_for >= {"needs", "requires", "interval", "state_dict", "render"}
    assert all(f"`{name}" in found for name in {*looked_for, "name"})


def test_the_table_says_what_a_state_may_hold():
    """Each type by name, and no other."""
    (row,) = [r for r in table("The class of a plugin", 1) if r["name"].startswith("`state_dict")]
    kept = {
        "tensors": torch.ones(1), "numbers": 1.5, "text": "x", "None": None, "lists": [1],
        "tuples": (1,), "dicts": {"a": 1},
    }  # fmt: skip
    for word, value in kept.items():
        assert word in row["what it is"]
        check_state({"x": value})
