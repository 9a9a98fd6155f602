"""What a sweep file declares of a GPU and of the runs on it, against what these took."""

import pytest
from helpers_cli import call
from helpers_sweeps import complete, ledger_of

from altcore.config import TrainConfig
from altcore.errors import BadInput
from altcore.sweep import Limits, Preflight, SweepFile, placing_of, status_of
from altcore.sweep.resources import _findings

DECLARED = {
    "gpu_gb": 12,
    "workers_per_gpu": 3,
    "memory_gb": {"small": 2, "large": 4},
    "utilization": 0.8,
    "minutes": 30,
}
VARIANTS = {"small": {}, "large": {}}


def sweep(**keys):
    return SweepFile(name="s", variants=VARIANTS, resources={**DECLARED, **keys})


def on_gpu(gigabytes, busy=90.0):
    return {"peak_gpu_memory_bytes": 1e9 * gigabytes, "gpu_utilization": busy}


@pytest.fixture
def ledger(tmp_path):
    return ledger_of(tmp_path, variants=VARIANTS)


def test_workers_that_have_no_room_are_refused():
    """Three of the largest variant; as much as there is has room."""
    assert sweep().declared.together == 12
    with pytest.raises(BadInput, match="3 workers that take 12 of 11 GB have no room") as caught:
        sweep(gpu_gb=11)
    assert caught.value.key == "resources.memory_gb"


def test_other_variants_are_refused():
    with pytest.raises(BadInput, match="huge: there is no such variant") as caught:
        sweep(memory_gb={"huge": 1})
    assert caught.value.key == "resources.memory_gb"


def test_the_plan_tells_it(tmp_path, capsys):
    path = tmp_path / "s.yaml"
    own = "workers_per_gpu: 3, memory_gb: {base: 4}, utilization: 0.8, minutes: 30"
    path.write_text(f"base: {{gpt.size: tiny}}\nresources: {{gpu_gb: 12, {own}}}\n")
    told = call(capsys, "sweep", "plan", path, "--sweeps-dir", tmp_path).err
    declared = "3 workers take 12 of a GPU's 12 GB; a run takes 30 min; GPUs are busy 80 %"
    assert f"declared: {declared} of the time\n" in told
    path.write_text("base: {gpt.size: tiny}\n")
    assert "declared" not in call(capsys, "sweep", "plan", path, "--sweeps-dir", tmp_path).err


def test_executors_get_the_number_of_workers(ledger):
    assert placing_of(sweep(), ledger, "local", print).workers_per_gpu == 3
    assert placing_of(SweepFile(), ledger, "local", print).workers_per_gpu == 2


def test_what_passes_it_is_an_alert(ledger):
    """By variant; nothing is said of a run without a GPU, or of one that keeps to it."""
    large, small = sorted(ledger.jobs(), key=lambda job: job.name)
    complete(ledger, large, used=on_gpu(4.0), seconds=1800.0)
    complete(ledger, small, used=on_gpu(2.5), seconds=1801.0)
    alerts = status_of(sweep(minutes=10), ledger, 0.0).alerts
    assert alerts == [
        f"{large.name} took 30 min (declared 10 min)",
        f"{small.name} took 2.50 GB of GPU memory (declared 2 GB)",
        f"{small.name} took 30 min (declared 10 min)",
    ]
    found = status_of(sweep(utilization=0.95), ledger, 0.0).alerts
    assert found[-1] == "GPUs are busy 90 % of the time (declared 95 %)"
    assert [line.split()[0] for line in status_of(sweep(), ledger, 0.0).alerts] == [small.name] * 2


def test_a_run_without_a_gpu_is_compared_with_nothing(ledger):
    for job in ledger.jobs():
        complete(ledger, job, seconds=3000.0)
    assert status_of(sweep(), ledger, 0.0).alerts == []


def test_a_check_fails_a_variant_that_passes_it():
    flight = Preflight(sweep(), "s.yaml")
    flight.measured["large"] = {"seconds": 1900.0, "peak_gpu_memory_bytes": 4.5e9}
    memory, time = flight._declared("large", TrainConfig(), 1.0)
    assert memory.what == "large: resources"
    assert memory.told == "a run takes 4.50 GB of GPU memory (declared 4 GB)"
    assert memory.remedy == "altcore sweep check s.yaml --set gpt.batch_size=N"
    assert time.told == "a run takes 32 min (declared 30 min)"
    flight.measured["large"] = {"seconds": 1800.0, "peak_gpu_memory_bytes": 4e9}
    assert [*flight._declared("large", TrainConfig(), 1.0)] == []


@pytest.mark.parametrize(
    ("busy", "told", "remedy"),
    [
        (80.0, "busy 80 % of the time", ""),
        (79.0, "GPUs are busy 79 % of the time (declared 80 %)", "local:2"),
    ],
)
def test_workers_side_by_side_are_to_keep_the_gpu_busy(ledger, busy, told, remedy):
    for job in ledger.jobs():
        complete(ledger, job, used=on_gpu(1.0, busy))
    *_, found = _findings(ledger, "s.yaml", {}, Limits(), sweep().declared)
    assert (found.what, found.told) == ("side by side: GPU", told)
    assert found.remedy.rpartition(" ")[2] == remedy
