"""A run that is killed at any file operation goes on as if nothing had happened."""

import pytest
from helpers_crashes import forked, killed, points_of
from helpers_faults import PLUGINS, check_is_eventful, check_same, eventful_run, go_on

from altcore.registry import HOOK_KINDS, entries

SHARES = 20
"""Tests among which all points are divided, so that processes of pytest can share them."""
ALL = tuple(e.name for e in entries() if e.kind in HOOK_KINDS)


@pytest.fixture(scope="module")
def kit(request, tmp_path_factory):
    """A starter of the run, its plugins and points in order; and the run that nobody kills."""
    plugins = tuple(dict.fromkeys([*PLUGINS, *getattr(request, "param", ())]))
    with eventful_run(tmp_path_factory.mktemp("crashes")) as start:
        points = points_of(lambda: start(plugins, name="whole"))
        check_is_eventful(start.runs / "whole")
        yield start, plugins, points


def check(kit, point):
    """Kill a run at a point, go on, and compare; the run is killed once more as it goes on."""
    start, plugins, points = kit
    name = f"killed-{point}"
    killed(lambda: start(plugins, name=name), point)
    forked(lambda: go_on(start, name, plugins), "any:25")
    assert forked(lambda: go_on(start, name, plugins)) == 0, points[point - 1]
    check_same(start.runs / name, start.runs / "whole")


@pytest.mark.parametrize("share", range(60))
def test_a_run_that_is_killed_goes_on_as_if_nothing_had_happened(kit, share):
    """At sixty of its file operations, from the first to the last."""
    check(kit, 1 + share * (len(kit[-1]) - 1) // 59)


@pytest.mark.exhaustive
@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("kit", [(), ALL], ids=["few plugins", "all plugins"], indirect=True)
def test_a_run_that_is_killed_anywhere_goes_on_as_if_nothing_had_happened(kit, share):
    """At each of its file operations, also with all first-party plugins."""
    points = range(1 + share, len(kit[-1]) + 1, SHARES)
    for point in points:
        check(kit, point)
    print(f"{len(points)} of {len(kit[-1])} points")
