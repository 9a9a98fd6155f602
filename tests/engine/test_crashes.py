"""A run that is killed at any file operation goes on as if nothing had happened."""

import math

import pytest
from attrs import define
from helpers import Starter, events, metrics_bytes, state, text_file, weights_sha256
from helpers_checkpoints import without_resumes
from helpers_crashes import forked, killed, points_of

from altcore import BadInput, hookimpl
from altcore.registry import entries
from altcore.runs import list_checkpoints

KEYS = {
    "max_steps": 22,
    "checkpoint_interval": 5,
    "eval_interval": 7,
    "max_checkpoints": 2,
    "snapshot_interval": 2,
    "max_snapshots": 3,
    "gpt__dropout": 0.1,
    "format": "E4M3",
    "recipe": {"stored_weight": {"format": "FORMAT", "rounding": "stochastic"}, "weight": "FORMAT"},
    "rollback__steps": 3,
    "rollback__nan_patience": 1,
    "rollback__format": "E5M2",
}
PLUGINS = ("trouble", "rollback")
OF_HOOKS = ("intervention", "diagnostic", "reporter")
ALL = tuple(e.name for e in entries() if e.kind in OF_HOOKS)


@pytest.fixture(scope="module")
def kit(request, tmp_path_factory):
    """A starter of the run, its points in order, and the run as it is when nobody kills it."""
    from helpers import PluginShelf

    plugins = dict.fromkeys([*PLUGINS, *getattr(request, "param", ())])

    folder = tmp_path_factory.mktemp("crashes")
    (folder / "site").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "site"))

        @define(eq=False)
        class Trouble:
            @hookimpl
            def pre_backward(self, step):
                if step.index in (8, 16):
                    step.loss = step.loss * math.nan

        PluginShelf(folder / "site", patch).install("intervention", "trouble", Trouble)
        start = Starter(folder / "runs", text_file(folder / "words.txt"), KEYS)

        def train(name):
            start(plugins, name=name)

        points = points_of(lambda: train("whole"))
        told = {event["event"] for event in events(start.runs / "whole")}
        assert {"nan", "rollback", "recipe"} <= told
        yield start, train, points


def go_on(start, train, name):
    """Resume a run, or begin it anew if it had not begun; one that is finished stays as it is."""
    if not list_checkpoints(start.runs / name / "checkpoints"):
        train(name)
        return
    try:
        start.resume(name)
    except BadInput as error:
        assert "is finished" in str(error)  # noqa: PT017 - it need not be raised


def same(one, other):
    """Assert that two runs left the same."""
    assert weights_sha256(one) == weights_sha256(other)
    assert metrics_bytes(one) == metrics_bytes(other)
    assert without_resumes(one) == without_resumes(other)
    first, second = state(one), state(other)
    assert first["ranks"][0]["plugins"] == second["ranks"][0]["plugins"]
    for key in ("detector", "lr_scale", "step", "progress", "shifts"):
        assert repr(first[key]) == repr(second[key]), key  # a NaN is not equal to itself


def check(kit, point):
    """Kill a run at a point, and once more as it goes on; let it end, and compare."""
    start, train, points = kit
    name = f"killed-{point}"
    killed(lambda: train(name), point)
    forked(lambda: go_on(start, train, name), "any:25")
    assert forked(lambda: go_on(start, train, name)) == 0, points[point - 1]
    same(start.runs / name, start.runs / "whole")


@pytest.mark.parametrize("share", range(60))
def test_a_run_that_is_killed_goes_on_as_if_nothing_had_happened(kit, share):
    """At sixty of its file operations, from the first to the last."""
    check(kit, 1 + share * (len(kit[-1]) - 1) // 59)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kit", [(), ALL], ids=["few plugins", "all plugins"], indirect=True)
def test_a_run_that_is_killed_anywhere_goes_on_as_if_nothing_had_happened(kit):
    """At each of its file operations, also with all first-party plugins."""
    for point in range(1, len(kit[-1]) + 1):
        check(kit, point)
    print(f"{len(kit[-1])} points")
