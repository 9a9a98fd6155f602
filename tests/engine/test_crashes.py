"""A run that is killed at any file operation goes on as if nothing had happened."""

import pytest
from helpers_crashes import forked, killed, points_of
from helpers_faults import PLUGINS, check_is_eventful, check_same, eventful_run, go_on


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """A starter of the run, its points in order, and the run as it is when nobody kills it."""
    with eventful_run(tmp_path_factory.mktemp("crashes")) as start:
        points = points_of(lambda: start(PLUGINS, name="whole"))
        check_is_eventful(start.runs / "whole")
        yield start, points


def check(start, points, point):
    """Kill a run at a point, go on, and compare; the run is killed once more as it goes on."""
    name = f"killed-{point}"
    killed(lambda: start(PLUGINS, name=name), point)
    forked(lambda: go_on(start, name), "any:25")
    assert forked(lambda: go_on(start, name)) == 0, points[point - 1]
    check_same(start.runs / name, start.runs / "whole")


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
