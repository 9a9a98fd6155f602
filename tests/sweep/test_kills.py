"""A sweep whose processes are killed completes, and each job has its undisturbed result once."""

import random

import pytest
import torch  # noqa: F401 - forked children need not import it
from helpers_crashes import forked, killed, points_of
from helpers_killed_sweep import KilledSweep
from helpers_sweep_faults import bits_of, check_complete, toy, work


@pytest.fixture(scope="module")
def kit(tmp_path_factory, corpus):
    """Return a maker of the sweep of one job, the points of its life, and its run's bits."""
    folder = tmp_path_factory.mktemp("kills")

    def make(name):
        return toy(folder / name, corpus)

    points = points_of(lambda: work(make("whole")))
    return make, points, bits_of(make("whole"))


def check(kit, point):
    """Kill a job's first worker at a point, and the next one, too; then let one go on."""
    make, points, undisturbed = kit
    # Each begins the sweep itself, as `altcore sweep run` does.
    killed(lambda: work(make(f"killed-{point}")), point)
    forked(lambda: work(make(f"killed-{point}")), f"any:{1 + point % 40}")
    ledger = make(f"killed-{point}")
    work(ledger)
    check_complete(ledger, undisturbed)
    assert len(ledger.standing(ledger.names()[0]).attempts) <= 3, points[point - 1]


@pytest.mark.parametrize("share", range(12))
def test_a_job_whose_worker_is_killed_completes(kit, share):
    """At twelve of its file operations, from the first to the last."""
    check(kit, 1 + share * (len(kit[1]) - 1) // 11)


@pytest.mark.exhaustive
@pytest.mark.parametrize("share", range(10))
def test_a_job_whose_worker_is_killed_anywhere_completes(kit, share):
    """At each of its file operations."""
    for point in range(1 + share, len(kit[1]) + 1, 10):
        check(kit, point)


def test_the_points_are_those_of_a_jobs_life(kit):
    """From its place in the plan to its exit record."""
    _, points, _ = kit
    order = ["rename base-seed42", "rename 001", "rename step-00000001", "link exit.json"]
    assert [points.index(name) for name in order] == sorted(map(points.index, order))
    assert points[-1].startswith("remove .exit.json")
    assert points.count("rename base-seed42") == 2  # the job, and the run that is accepted


@pytest.mark.parametrize(
    ("seeds", "kills"),
    [
        pytest.param(3, 6, marks=pytest.mark.faults(6), id="12 jobs"),
        pytest.param(54, 100, marks=[pytest.mark.slow, pytest.mark.faults(100)], id="216 jobs"),
    ],
)
def test_a_sweep_goes_from_plan_to_end_through_kills(tmp_path, corpus, seeds, kills):
    """Of its workers and supervisor: two variants, a grid and seeds; each job has one result."""
    asked = {
        "variants": {"master": {"format": "E5M2"}, "float": {"format": "none"}},
        "grid": {"learning_rate": [0.01, 0.02]},
        "seeds": seeds,
        "retry": {"lost": {"limit": kills}},  # one job may have all the bad luck
    }
    undisturbed = toy(tmp_path / "whole", corpus, **asked)
    assert work(undisturbed) == 4 * seeds
    (tmp_path / "killed").mkdir()
    ledger = toy(tmp_path / "killed" / "toy", corpus, **asked)
    sweep = KilledSweep(ledger, random.Random(kills))
    sweep.run(kills)
    print(f"killed: {sweep.victims}")
    assert all(sweep.victims.values())
    check_complete(ledger, bits_of(undisturbed))
