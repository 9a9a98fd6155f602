"""A run that is killed at any file operation goes on as if nothing had happened."""

import math
from contextlib import suppress

import pytest
from attrs import define
from helpers import Starter, events, metrics_bytes, state, text_file, weights_sha256
from helpers_checkpoints import without_resumes
from helpers_crashes import forked, killed, points_of

from altcore import BadInput, hookimpl
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


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """A starter of the run, its points in order, and the run as it is when nobody kills it."""
    from helpers import PluginShelf

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
        points = points_of(lambda: start(PLUGINS, name="whole"))
        told = {event["event"] for event in events(start.runs / "whole")}
        assert {"nan", "rollback", "recipe"} <= told
        yield start, points


def go_on(start, name):
    """Resume a run, or begin it anew if it had not begun; one that is finished stays as it is."""
    if not list_checkpoints(start.runs / name / "checkpoints"):
        start(PLUGINS, name=name)
        return
    with suppress(BadInput):
        start.resume(name)


def same(one, other):
    """Assert that two runs left the same."""
    assert weights_sha256(one) == weights_sha256(other)
    assert metrics_bytes(one) == metrics_bytes(other)
    assert without_resumes(one) == without_resumes(other)
    first, second = state(one), state(other)
    assert first["ranks"][0]["plugins"] == second["ranks"][0]["plugins"]
    for key in ("detector", "lr_scale", "step", "progress", "shifts"):
        assert first[key] == second[key], key


def check(start, points, point):
    """Kill a run at a point, go on, and compare; the run is killed once more as it goes on."""
    name = f"killed-{point}"
    killed(lambda: start(PLUGINS, name=name), point)
    forked(lambda: go_on(start, name), "any:25")
    assert forked(lambda: go_on(start, name)) == 0, points[point - 1]
    same(start.runs / name, start.runs / "whole")


@pytest.mark.exhaustive
def test_a_run_that_is_killed_anywhere_goes_on_as_if_nothing_had_happened(kit):
    """At each of its file operations."""
    start, points = kit
    for point in range(1, len(points) + 1):
        check(start, points, point)
    print(f"{len(points)} points")


@pytest.mark.parametrize("share", range(60))
def test_a_run_that_is_killed_goes_on_as_if_nothing_had_happened(kit, share):
    """At sixty of its file operations, from the first to the last."""
    start, points = kit
    check(start, points, 1 + share * (len(points) - 1) // 59)
