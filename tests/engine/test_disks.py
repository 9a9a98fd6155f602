"""A disk that is full or read-only for a while, and a loss of power, cost no committed step."""

import errno
import os
import random

import pytest
from helpers import state
from helpers_crashes import forked, points_of
from helpers_disks import PowerLoss, full_disk, raising
from helpers_faults import PLUGINS, check_is_eventful, check_same, eventful_run, go_on, numbered

from altcore import durable
from altcore.errors import AltcoreError, NoSpace
from altcore.runs import list_checkpoints
from altcore.runs.checkpoint import load_newest

KINDS = ("bytes", "inodes", "read-only")
LEFT = ("nothing", "names", "some")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A starter of the run, which is there as ``whole``."""
    with eventful_run(tmp_path_factory.mktemp("disks")) as start:
        start(PLUGINS, name="whole")
        check_is_eventful(start.runs / "whole")
        yield start


@pytest.fixture(scope="module")
def asked(start):
    """What the run asks of a disk: the sizes of its writes, new names, changes."""
    found = {}
    for kind in KINDS:
        with full_disk(kind, 10**12) as found[kind]:
            start(PLUGINS, name=f"asks-{kind}")
    return found


def check_full(start, asked, kind, call):
    """Let the disk be full from the ``call``-th call on, then let it have room again."""
    name = f"{kind}-{call}"
    sizes = asked[kind]
    room = sum(sizes[:call]) + sizes[call] // 2 if kind == "bytes" else call
    with full_disk(kind, room), pytest.raises(AltcoreError) as said:
        start(PLUGINS, name=name)
    assert str(start.runs / name) in str(said.value) or str(start.runs) in str(said.value)
    if kind != "read-only":
        assert isinstance(said.value, NoSpace)
    if kind == "bytes":
        assert "bytes needed" in str(said.value)
    for kept in list_checkpoints(start.runs / name / "checkpoints"):
        state(start.runs / name, kept.path.name)  # whole: it loads
    go_on(start, name)
    check_same(start.runs / name, start.runs / "whole")


@pytest.mark.parametrize("share", range(30))
def test_a_full_disk_costs_nothing(start, asked, share):
    """By bytes, by inodes, and one that cannot be written for a while: ten calls of each."""
    kind = KINDS[share % 3]
    last = len(asked[kind]) - 1
    check_full(start, asked, kind, share // 3 * last // 9)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_full_at_any_call_costs_nothing(start, asked, kind):
    """At every one of them."""
    for call in range(len(asked[kind])):
        check_full(start, asked, kind, call)
    print(f"{len(asked[kind])} calls")


@pytest.fixture(scope="module")
def points(start):
    """How many file operations the run has."""
    return len(points_of(lambda: start(PLUGINS, name="counted")))


@pytest.mark.parametrize("case", numbered(20, 200))
def test_a_loss_of_power_leaves_the_last_committed_state(start, points, case, tmp_path):
    """Whatever was not synced is lost, or some of it; the run goes on from what it committed."""
    draw = random.Random(case)
    point, kind = draw.randint(1, points), LEFT[case % 3]

    def lose_power():
        begin = type(start)(tmp_path / "before", start.corpus, start.keys)
        begin.runs.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            disk = PowerLoss(begin.runs)
            passed = []

            def count(name):
                passed.append(name)
                if len(passed) == point:
                    disk.leave(tmp_path / "after", kind, draw)
                    (tmp_path / "committed").write_text(str(disk.committed))
                    os._exit(3)

            patch.setattr(durable, "crash_point", count)
            disk.install(patch)
            begin(PLUGINS, name="mine")

    assert forked(lose_power) == 3
    after = type(start)(tmp_path / "after", start.corpus, start.keys)
    committed = int((tmp_path / "committed").read_text())
    if committed >= 0:
        assert load_newest(after.runs / "mine/checkpoints").step >= committed
    go_on(after, "mine")
    check_same(after.runs / "mine", start.runs / "whole")


def test_an_error_of_a_descriptor_names_the_file(tmp_path, monkeypatch):
    """The system says of a failing fsync neither which file it was nor where."""
    monkeypatch.setattr(durable, "fsync", lambda descriptor: raising(errno.EIO))
    with pytest.raises(AltcoreError, match=r"one\.json cannot be written: Input/output error"):
        durable.replace_file(tmp_path / "one.json", b"{}")
    assert not list(tmp_path.iterdir())
