"""What an attempt uses is its own, though its worker ran others before."""

import resource
import sys
from types import SimpleNamespace

import pytest

from altcore.cli.sweep_status import print_end
from altcore.sweep import Exit, Row, State, Status, usage
from altcore.sweep.usage import Usage

LARGE = 1 << 27
"""Bytes."""


def large():
    return bytes(LARGE).replace(b"\0", b"\1")  # a page that is only read takes no memory


@pytest.mark.skipif(not usage.FORGET.exists(), reason="the system keeps one maximum a process")
def test_a_small_job_after_a_large_one_has_its_own_memory():
    """Where the kernel forgets the most that the process ever had."""
    first = Usage()
    large()
    used = first.to_plain()
    assert used["peak_memory_of"] == "attempt"
    assert Usage().to_plain()["peak_memory_bytes"] < used["peak_memory_bytes"] - LARGE / 2


def test_elsewhere_it_is_that_of_the_worker_so_far(monkeypatch, tmp_path):
    """And the record says so."""
    monkeypatch.setattr(usage, "FORGET", tmp_path / "none" / "clear_refs")
    used = Usage().to_plain()
    assert used["peak_memory_of"] == "worker so far"
    unit = 1 if sys.platform == "darwin" else 1024
    assert used["peak_memory_bytes"] == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is as busy as a list says, in turn, and then unknown."""
    busy, resets = [10, 20], []
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        utilization=lambda: busy.pop(0),
        max_memory_allocated=lambda: 7,
        reset_peak_memory_stats=lambda: resets.append(1),
    )
    monkeypatch.setitem(sys.modules, "torch.cuda", cuda)
    return SimpleNamespace(busy=busy, resets=resets)


def test_how_busy_a_gpu_is(gpu):
    """The mean of the samples. A library that cannot say is asked once, and ends nothing."""
    used = Usage()
    for _ in range(3):
        used.sample()
    gpu.busy.append(100)
    used.sample()
    found = used.to_plain()
    assert (found["gpu_utilization"], found["peak_gpu_memory_bytes"]) == (15.0, 7)
    assert gpu.busy == [100]
    assert gpu.resets == [1]
    gpu.busy.clear()
    unknown = Usage()
    unknown.sample()
    assert "gpu_utilization" not in unknown.to_plain()


def test_a_module_that_is_being_imported_ends_no_heartbeat(monkeypatch):
    """Another thread imports torch when the heart begins to beat."""
    monkeypatch.setitem(sys.modules, "torch.cuda", SimpleNamespace())
    Usage().sample()


def end_of(capsys, *used):
    """Return the last line of a sweep whose attempts of 3 s and 1 s used this."""
    exits = [
        Exit(status="finished", seconds=seconds, used={"peak_gpu_memory_bytes": 2e9, **own})
        for seconds, own in zip((3.0, 1.0), used, strict=True)
    ]
    row = Row(name="a", state=State.COMPLETED, exits=tuple(exits))
    print_end("toy", Status(rows=[row]), 1.0)
    return capsys.readouterr().out


def test_the_end_of_a_sweep_says_whether_it_was_measured(capsys):
    """By the time of each attempt; how to measure it, if nobody did."""
    told = end_of(capsys, {"gpu_utilization": 90.0}, {"gpu_utilization": 10.0})
    assert "GPU memory 2.00 GB at most, GPU busy 70 % of the time" in told
    assert "not measured (pip install nvidia-ml-py)" in end_of(capsys, {}, {})
