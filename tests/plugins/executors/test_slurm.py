"""Pilots are placed, kept, replaced and cancelled as the queue says; Slurm's commands are stubs."""

import os
import stat
from types import SimpleNamespace

import pytest
from helpers_cli import call

from altcore.plugin import BadInput, Placing
from altcore.sweep import Ledger, SweepFile, make_executor, read_sweep, script_of
from altcore_executors import slurm
from altcore_executors.slurm import Slurm
from altcore_executors.slurm_queue import Queue, pilot_name

STUBS = {
    # The number of lines is that of the calls so far.
    "sbatch": """
        [ -e $CLUSTER/refuse ] && { cat $CLUSTER/refuse >&2; exit 1; }
        echo "$1" >> $CLUSTER/sbatch
        id=$(wc -l < $CLUSTER/sbatch); echo "$id|PENDING|Resources" >> $CLUSTER/queue
        echo "Submitted batch job $id" """,
    "squeue": """
        echo "$@" >> $CLUSTER/squeue
        [ -e $CLUSTER/down ] && { echo "Unable to contact slurm controller" >&2; exit 1; }
        cat $CLUSTER/queue""",
    "scancel": 'echo "$@" >> $CLUSTER/scancel',
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Slurm's commands, and a clock that stands still but for waiting."""
    bin_, state = tmp_path / "bin", tmp_path / "state"
    bin_.mkdir()
    state.mkdir()
    (state / "queue").touch()
    for name, lines in STUBS.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{lines}\n")
        (bin_ / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("CLUSTER", str(state))
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(slurm, "time", clock)

    def calls(name):
        return (state / name).read_text().splitlines() if (state / name).exists() else []

    return SimpleNamespace(
        state=state,
        clock=clock,
        queue=state / "queue",
        calls=calls,
    )


def busy(*_, **__):
    raise BlockingIOError(11, "Resource temporarily unavailable")


def place(
    tmp_path, steps, attempts=lambda: 0, looks=None, waiting=lambda: 1, declared=2, **settings
):
    """Run a sweep whose count of jobs left is that of the steps, with what they do; return words.

    A step is a number, and an action that takes place when it is counted.
    """
    told, left = [], iter(steps)
    looks = [] if looks is None else looks

    def count():
        number, act = next(left)
        act()
        return number

    placing = Placing(
        folder=tmp_path / "sweeps" / "toy",
        command=("work",),
        work=lambda: 0,
        left=count,
        waiting=waiting,
        attempts=attempts,
        workers_per_gpu=declared,
        tell=told.append,
        look=lambda: looks.append(1),
    )
    Slurm(**settings).run(placing)
    return told


def minutes(number, left=5, act=bool):
    """A minute of steps that begin with an action."""
    return [(left, act), *[(left, bool)] * 60] * number


DONE = [(0, bool)] * 2


def test_pilots_are_submitted_once_and_those_that_wait_are_cancelled(tmp_path, cluster):
    """No more of them than jobs; the scheduler is asked once a minute."""
    looks = []
    told = place(tmp_path, minutes(10, left=2) + DONE, looks=looks, pilots=3)
    assert len(looks) > 500
    assert len(cluster.calls("sbatch")) == 2
    assert 9 <= len(cluster.calls("squeue")) <= 11
    assert cluster.clock.now > 590
    name = pilot_name(tmp_path / "sweeps" / "toy")
    assert cluster.calls("squeue")[0].split() == [
        *("--me", "--noheader", f"--name={name}", "--format=%i|%T|%r")
    ]
    assert cluster.calls("scancel") == [f"--me --state=PENDING --name={name}"]
    assert told == [
        f"submitted: 1, 2; they go on without this command, and `scancel --name={name}` ends them",
        "pilots wait for: Resources",
    ]


def test_pilots_that_are_there_are_kept_and_one_that_ended_is_replaced(tmp_path, cluster):
    """A pilot that is about to end counts no more."""
    cluster.queue.write_text("70|RUNNING|None\n71|RUNNING|None\n")
    ended = lambda: cluster.queue.write_text("70|RUNNING|None\n71|COMPLETING|None\n")  # noqa: E731
    told = place(tmp_path, minutes(2) + minutes(1, act=ended) + minutes(1) + DONE, pilots=2)
    assert len(cluster.calls("sbatch")) == 1
    assert told[0].startswith("submitted: 1;")


def test_workers_for_each_gpu_are_those_of_the_sweep_unless_told(tmp_path, cluster, monkeypatch):
    pilots, make = [], slurm.Pilot

    def seen(**keys):
        pilots.append(keys["workers_per_gpu"])
        return make(**keys)

    monkeypatch.setattr(slurm, "Pilot", seen)
    for own in ({}, {"workers_per_gpu": 1}):
        place(tmp_path, minutes(1) + DONE, declared=3, **own)
        cluster.queue.write_text("")
    assert pilots == [3, 1]


def test_a_scheduler_that_does_not_answer_is_asked_again(tmp_path, cluster):
    """It is told once, and nothing is submitted meanwhile."""
    down = cluster.state / "down"
    steps = minutes(1, act=down.touch) + minutes(2) + minutes(1, act=down.unlink) + minutes(1)
    told = place(tmp_path, steps + DONE)
    assert told[0] == (
        "squeue does not answer, and is asked again: Unable to contact slurm controller"
    )
    assert [line.split(":")[0] for line in told] == [
        *("squeue does not answer, and is asked again", "submitted", "pilots wait for")
    ]


def test_what_sbatch_refuses_is_an_error_at_first_and_tried_again_later(tmp_path, cluster):
    """Its settings were good once."""
    refuse = cluster.state / "refuse"
    refuse.write_text("sbatch: error: invalid account\n")
    with pytest.raises(BadInput, match="Slurm refuses the pilot: sbatch: error: invalid account"):
        place(tmp_path, minutes(1))
    cluster.queue.write_text("70|RUNNING|None\n")
    told = place(tmp_path, minutes(1) + minutes(1, act=lambda: cluster.queue.write_text("")) + DONE)
    assert told == ["sbatch fails, and is tried again: sbatch: error: invalid account"]


def test_a_busy_login_node_is_asked_again(tmp_path, cluster, monkeypatch):
    """It refuses to start sbatch: that is no fault of the settings, not even at first."""
    real, calls = Slurm._executor, iter([1, 2])

    def executor(self, folder):
        made = real(self, folder)
        if next(calls, None) == 1:
            made.submit = busy
        return made

    monkeypatch.setattr(Slurm, "_executor", executor)
    told = place(tmp_path, minutes(2) + DONE)
    assert (
        told[0] == "sbatch fails, and is tried again: [Errno 11] Resource temporarily unavailable"
    )
    assert len(cluster.calls("sbatch")) == 1


def test_pilots_that_begin_no_job_are_not_replaced_for_ever(tmp_path, cluster):
    """While attempts are made they are."""
    empty = lambda: cluster.queue.write_text("")  # noqa: E731
    with pytest.raises(BadInput, match="none began a job") as caught:
        place(tmp_path, minutes(9, act=empty))
    assert len(cluster.calls("sbatch")) == 3
    assert "pilots/3_0_log.out" in caught.value.hint
    made = iter(range(99))
    place(tmp_path, minutes(9, act=empty) + DONE, attempts=lambda: next(made))
    assert len(cluster.calls("sbatch")) == 12


def test_no_pilot_joins_one_that_holds_all_that_is_left(tmp_path, cluster):
    """It would end without a job; and those that did so are no sign that nothing works."""
    cluster.queue.write_text("70|RUNNING|None\n71|RUNNING|None\n72|RUNNING|None\n")
    ended = lambda: cluster.queue.write_text("70|RUNNING|None\n")  # noqa: E731
    steps = minutes(1) + minutes(9, act=ended) + DONE
    place(tmp_path, steps, waiting=lambda: 0, pilots=3)
    assert not cluster.calls("sbatch")
    cluster.queue.write_text("")
    place(tmp_path, minutes(1) + DONE, waiting=lambda: 0, pilots=3)
    assert len(cluster.calls("sbatch")) == 3  # nobody holds it any more


@pytest.mark.parametrize("answer", ["slurm_load_jobs error", "7|RUN", "7_[0-3]|PENDING|None", ""])
def test_an_answer_that_is_none_is_asked_for_again(tmp_path, cluster, monkeypatch, answer):
    """Half a line, an array's, or an error of the system: no pilot is taken for gone."""
    told = []
    queue = Queue("altcore-toy", told.append)
    cluster.queue.write_text("70|RUNNING|None\n" + answer)
    if not answer:
        monkeypatch.setattr("altcore_executors.slurm_queue.subprocess.run", busy)
    assert queue.pilots() is None
    queue.cancel_waiting()
    assert told[0].startswith("squeue does not answer, and is asked again: ")
    assert len(told) == (1 if answer else 2)


def test_a_sweep_has_one_name_in_the_queue(tmp_path):
    """By whichever path its folder is reached."""
    (tmp_path / "own").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "own")
    assert pilot_name(tmp_path / "link" / "toy") == pilot_name(tmp_path / "own" / "toy")


def test_without_slurm(tmp_path, monkeypatch):
    """It is an error before anything is done."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="sbatch is not found"):
        place(tmp_path, [])


# ------------------------------------------------------------------------- the batch script


def script(tmp_path, told="slurm", **settings):
    return script_of(SweepFile(executors={"slurm": settings}), Ledger(tmp_path / "toy"), told)


def test_every_setting_is_in_the_batch_script(tmp_path):
    """Those of the command line win; no Slurm is needed, and nothing is written."""
    text = script(
        tmp_path,
        "slurm:4,account=abc,cpus=6",
        account="other",
        partition="gpu",
        time=60,
        gres="gpu:2",
        mem="32G",
        setup=["module load cuda"],
        prefix="apptainer exec image.sif",
        output="/logs/%j.out",
        error="/logs/%j.err",
        sbatch={"qos": "high"},
    )
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in text.splitlines()
        if line.startswith("#SBATCH")
    )
    assert options == {
        "account": "abc",
        "cpus-per-task": "6",
        "error": "/logs/%j.err",
        "gres": "gpu:2",
        "job-name": pilot_name(tmp_path / "toy"),
        "mem": "32G",
        "nodes": "1",
        "open-mode": "append",
        "output": "/logs/%j.out",
        "partition": "gpu",
        "qos": "high",
        "requeue": "",
        "signal": "USR2@90",
        "time": "60",
    }
    assert "module load cuda" in text.splitlines()
    (srun,) = (line for line in text.splitlines() if line.startswith("srun"))
    for part in (
        " --output /logs/%j.out --error /logs/%j.err --cpus-per-task 6 ",
        " apptainer exec image.sif ",
        " -m submitit.core._submit ",
    ):
        assert part.replace(" /logs", "=/logs").replace("task 6", "task=6") in srun
    assert not list(tmp_path.iterdir())


def test_the_shortest_script(tmp_path):
    """Asks for what is needed, and prints into the sweep's folder; a short time warns later."""
    text = script(tmp_path, "slurm:time=2", sbatch={"requeue": False, "exclusive": True})
    assert "#SBATCH --exclusive" in text.splitlines()
    for absent in (
        "--account",
        "--gres",
        "--mem",
        "--cpus",
        "--error",
        "# setup",
        "wckey",
        "requeue",
    ):
        assert absent not in text
    assert "--signal=USR2@24" in text
    assert f"--output={tmp_path}/toy/pilots/%j_0_log.out" in text


def test_settings_are_checked(tmp_path):
    """With the nearest name, before anything is placed."""
    with pytest.raises(BadInput, match="did you mean max_hours"):
        make_executor("slurm:max_hour=3")
    with pytest.raises(BadInput, match="no such setting"):
        make_executor("slurm", {"slurm": {"tim": 3}})
    for option in ("array", "job_name"):
        with pytest.raises(BadInput, match=f"{option}: a pilot is one job"):
            make_executor("slurm", {"slurm": {"sbatch": {option: "0-3"}}})
    with pytest.raises(BadInput, match="'local' starts workers without a batch script"):
        script(tmp_path, "local:2")


def test_submitit_is_an_extra(tmp_path, monkeypatch):
    """Without it, the error says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(BadInput, match="altcore-executors\\[slurm\\]"):
        script(tmp_path)


def test_the_commands_take_settings_from_the_sweep_file(tmp_path, capsys):
    """`plan --script` shows the script, and `run` refuses what is wrong before it writes."""
    file = tmp_path / "toy.yaml"
    file.write_text("executors: {slurm: {qos: high}, local: {slots: -1}}\n")
    options = ("--sweeps-dir", tmp_path / "sweeps", "--executor")
    refused = call(capsys, "sweep", "plan", file, "--script", *options, "slurm")
    assert (refused.code, "slurm.qos: there is no such setting" in refused.err) == (2, True)
    refused = call(capsys, "sweep", "run", file, *options, "local")
    assert (refused.code, "local.slots: must be >= 0" in refused.err) == (2, True)
    file.write_text("executors: {slurm: {sbatch: {qos: high}}}\n")
    shown = call(capsys, "sweep", "plan", file, "--script", *options, "slurm:mem=8G")
    assert shown.code == 0, shown.err
    assert {"#SBATCH --qos=high", "#SBATCH --mem=8G"} < set(shown.out.splitlines())
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("time", "minutes"), [("90", 90), ("12:00:00", 720), ("1-00:00:00", 1440), ("0:00:30", 1)]
)
def test_the_time_of_an_allocation(tmp_path, time, minutes):
    """In minutes, or as sbatch has it, in hours, minutes and seconds."""
    sweep, ledger = SweepFile(name="toy"), Ledger(tmp_path / "toy")
    assert f"--time={minutes}\n" in script_of(sweep, ledger, f"slurm:time={time}")


@pytest.mark.parametrize("given", ["time=12:00", "time=0", "time=1.5", "max_hours=11:00:00"])
def test_a_time_that_may_mean_two_is_refused(given):
    """Or is none: by the name of the setting."""
    with pytest.raises(BadInput, match=f"slurm.{given.partition('=')[0]}: "):
        make_executor(f"slurm:{given}")


@pytest.mark.parametrize(
    "line",
    [
        "timeout_minutes: 1:30:00",
        "lost_after: 1:00",
        "alerts: {minutes: 1:00}",
        "executors: {slurm: {max_hours: 11:00:00}}",
    ],
)
def test_other_durations_are_numbers(tmp_path, line):
    """Each key of a sweep file that is one refuses a text with colons by its name."""
    path = tmp_path / "toy.yaml"
    path.write_text(line)
    with pytest.raises(BadInput, match=r"timeout_minutes|lost_after|alerts\.minutes|max_hours"):
        make_executor("slurm", read_sweep(path).executors)
