"""The runs of a study are jobs of a ledger: side by side, each once, and none is lost."""

import errno
import json
import os
import signal

import pytest
from attrs import define
from helpers import text_file
from helpers_cli import call
from helpers_crashes import ended, forked
from helpers_epochs import Points

from altcore.cli import cli
from altcore.errors import AltcoreError, BadInput
from altcore.plugin import hookimpl
from altcore.recipes.cast_reading import Place, read_cast
from altcore.runs import read_lines
from altcore.study import batch
from altcore.study.arms import Arm, twin
from altcore.study.batch import Batch
from altcore.study.runner import Runner, Trial
from altcore.study.setup import Cost
from altcore.sweep import Ledger, open_sweep, worker
from altcore.sweep.attempt import lease

F = Arm("F", {"0": {"weight@fwd": read_cast({"format": "E4M3"}, Place())}})
TRIALS = [Trial(F, seed=1), Trial(twin(), seed=1)]


POINTS = {"workload": "points", "optimizer": "sgd"}


@pytest.fixture
def runner(start, shelf, tmp_path):
    """Return a function that makes the Runner of a folder, whose runs take no time."""
    shelf.install("workload", "points", Points)

    def made(folder="study", executor="local", **keys):
        config = start.config(max_steps=4, checkpoint_interval=1, **{**POINTS, **keys})
        return Runner(tmp_path / folder, config, lambda _: None, executor=executor)

    return made


def jobs_in(folder):
    return sorted(p.name.partition("-s")[0] for p in folder.iterdir())


def attempts_at(study, key):
    """The exits of the attempts at an arm's run, in order."""
    paths = sorted(study.folder.glob(f"jobs/{key}-*/attempts/*/exit.json"))
    return [json.loads(path.read_text())["status"] for path in paths]


def test_a_killed_study_goes_on_in_the_middle_of_a_run(runner):
    """From the last checkpoint, and with the outcome of a study that was not disturbed."""
    crash = "rename step-00000002:2"  # of the second run
    assert forked(lambda: runner().outcomes(TRIALS), crash) == -signal.SIGKILL
    study = runner()
    found = study.outcomes(TRIALS)
    assert study.done == 1
    assert attempts_at(study, "twin") == ["lost", "finished"]
    (path,) = study.folder.glob("runs/twin-*")
    assert [e["step"] for e in read_lines(path / "events.jsonl") if e["event"] == "resume"] == [1]
    assert found == runner("undisturbed").outcomes(TRIALS)


@define(eq=False)
class Forks:
    """An executor whose two workers are children of this process, which has imported torch."""

    def run(self, placing):
        children = []
        for _ in range(2):
            child = os.fork()
            if not child:
                try:
                    cli(placing.command[3:], standalone_mode=False)
                finally:
                    os._exit(0)
            children.append(child)
        assert [ended(child) for child in children] == [0, 0]


def test_workers_elsewhere_make_the_same_runs(runner, shelf):
    """The folder holds all that they need; the study reads what they published."""
    shelf.install("executor", "forks", Forks)
    there = runner("there", executor="forks")
    assert there.outcomes(TRIALS) == runner("here").outcomes(TRIALS)
    assert there.done == 2
    leases = [json.loads(p.read_text()) for p in there.folder.glob("jobs/*/attempts/*/lease.json")]
    assert {lease["executor"] for lease in leases} == {"forks"}
    assert os.getpid() not in {lease["process"]["pid"] for lease in leases}


def test_an_unknown_executor_is_refused(runner):
    with pytest.raises(BadInput, match="locl"):
        runner(executor="locl")


@define(eq=False)
class Does:
    """An intervention that does something after step 2, as it is told from outside."""

    do = staticmethod(lambda: None)

    @hookimpl
    def post_step(self, run, step):
        if step.index == 2:
            Does.do()


@pytest.fixture
def does(shelf, monkeypatch):
    """Return a function that sets what happens after step 2 of every run."""
    shelf.install("intervention", "does", Does)
    return lambda action: monkeypatch.setattr(Does, "do", staticmethod(action))


def test_a_failed_run_ends_the_study(runner, does):
    """With the error of its attempt, before another run begins; the same command goes on with it.

    From its last checkpoint, and the outcome is that of a study in which nothing failed.
    """

    def fail():
        raise ValueError("planted")

    does(fail)
    study = runner(plugins=["does"])
    with pytest.raises(AltcoreError, match=r"F-s1-lr1-\w+: .*planted"):
        study.outcomes(TRIALS)
    assert study.done == 0
    assert attempts_at(study, "twin") == []
    does(lambda: None)
    again = runner(plugins=["does"])
    assert again.outcomes(TRIALS) == runner("undisturbed", plugins=["does"]).outcomes(TRIALS)
    assert again.done == 2
    assert attempts_at(study, "F") == ["failed", "finished"]
    (path,) = study.folder.glob("runs/F-*")
    assert [e["step"] for e in read_lines(path / "events.jsonl") if e["event"] == "resume"] == [1]
    assert not (study.folder / "retired").exists()


def test_a_failed_run_elsewhere_ends_the_study_as_well(runner, does, shelf):
    """No worker begins another run: the two that were being run end first."""

    def fail():
        raise ValueError("planted")

    shelf.install("executor", "forks", Forks)
    does(fail)
    study = runner(executor="forks", plugins=["does"])
    with pytest.raises(AltcoreError, match="planted"):
        study.outcomes([Trial(twin(), seed) for seed in range(8)])
    assert len(list(study.folder.glob("jobs/*/attempts/001"))) <= 4
    assert (study.folder / "stop").exists()


def test_a_worker_looks_at_the_run_before_only(runner, monkeypatch):
    """So a batch of many runs takes no more than as many looks."""
    study, looks = runner(), []
    real = Batch._look_at
    monkeypatch.setattr(batch, "PAUSE", 1000.0)
    monkeypatch.setattr(Batch, "_look_at", lambda *told: (looks.append(told), real(*told))[1])
    assert len(study.outcomes([Trial(twin(), seed) for seed in range(6)])) == 6
    assert len(looks) <= 7


def test_a_study_says_what_it_waits_for(runner, monkeypatch):
    """A disk that is full, for one: it would stand still for ten minutes without a word."""
    study, told = runner(), []
    study.tell = told.append
    errors = iter([OSError(errno.ENOSPC, "No space left on device", "runs")])
    real = Ledger.take

    def take(*given):
        for error in errors:
            raise error
        return real(*given)

    monkeypatch.setattr(worker, "PAUSE", 0.01)
    monkeypatch.setattr(Ledger, "take", take)
    study.outcomes(TRIALS[1:])
    waits, made = told
    assert waits == "[Errno 28] No space left on device: 'runs': waiting 0.01 s"
    assert made.startswith("twin-s1")


def test_a_study_names_the_process_that_has_a_run(runner):
    study, told = runner(), []
    study.tell = told.append
    job = study._job(TRIALS[1], {})
    study._ledger.add([job])
    held = lease(study._ledger.folder / "jobs" / job.name, 1, {}, "local")
    study._make_room([job.name])
    assert told == [
        f"process {os.getpid()} on {held.lease.process.host} has {job.name}: waiting for it"
    ]


def test_a_run_that_no_worker_made_is_named(runner, shelf):
    """With what is wrong; nobody is sent to a folder that is not there."""

    @define(eq=False)
    class Idle:
        def run(self, placing):
            (job,) = placing.folder.glob("jobs/*/job.json")
            job.write_text("{}")

    shelf.install("executor", "idle", Idle)
    with pytest.raises(
        AltcoreError, match=r"1 run was not made: twin-s1-.*job\.json.*goes on"
    ) as e:
        runner(executor="idle").outcomes(TRIALS[1:])
    assert "workers" not in str(e.value)


def test_a_file_that_changes_between_two_runs_is_noticed(runner, tmp_path):
    """Whatever their seeds. The later run is kept where nobody takes it for a result."""
    own = text_file(tmp_path / "words.txt")
    study = runner(workload="gpt", optimizer="adamw", gpt__data=str(own))
    study.tell = lambda _: own.write_text(own.read_text().upper())
    with pytest.raises(AltcoreError, match=r"words\.txt changed while the study ran"):
        study.outcomes([Trial(twin(), seed=1), Trial(twin(), seed=2)])
    (kept,), (retired,) = (list((study.folder / f).iterdir()) for f in ("runs", "retired"))
    assert kept.name.startswith("twin-s1-")
    assert retired.name.startswith("twin-s2-")


def test_what_is_not_asked_for_any_more_is_not_run(runner):
    """Of a study that was killed and is asked another question; nothing of it is deleted."""
    assert forked(lambda: runner().outcomes(TRIALS), "rename step-00000002:1") == -signal.SIGKILL
    study = runner()
    study.outcomes([Trial(twin(), seed=1)])
    assert study.done == 1
    assert jobs_in(study.folder / "jobs") == jobs_in(study.folder / "runs") == ["twin"]
    # What commands of sweeps need to know: whose jobs these are, and at which learning rate.
    sweep, ledger = open_sweep("study", str(study.folder.parent))
    assert sweep.study
    assert ledger.jobs()[0].factors["learning_rate"] == ledger.jobs()[0].config["learning_rate"]
    assert jobs_in(study.folder / "retired") == ["F"]
    work = "retired/*/jobs/attempts/001/taken/*"
    assert list(study.folder.glob(f"{work}/checkpoints/step-00000001"))


def test_checkpoints_take_a_hundredth_of_a_run():
    """As each is quicker than the start of a run, in which there are two."""
    assert Cost(start=0.5, step=0.1).steps_between_checkpoints == 500
    assert Cost(start=0.0, step=0.1).steps_between_checkpoints == 1


@pytest.mark.slow
def test_two_processes_give_the_answer_of_one(capsys, corpus, tmp_path, monkeypatch):
    """With --executor local:2, which a study may also go on with.

    An answer holds its study's name: the studies have the same one, in two folders.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tiny = ["gpt.size=tiny", "gpt.n_layer=1", "gpt.block_size=16", "eval_steps=1"]
    sets = [part for key in (*tiny, f"gpt.data={corpus}") for part in ("--set", key)]
    given = ["explain", "--format", "E2M1", "--recipe", "master", "--steps", "5", "--seeds", "2"]
    one, two = (tmp_path / name / "studies" / "mine" for name in ("one", "two"))
    for study, executor in ((one, "local"), (two, "local:2")):
        (place := study.parents[1]).mkdir()
        monkeypatch.chdir(place)
        outcome = call(capsys, *given, *sets, "--name", "mine", "--executor", executor)
        assert outcome.code == 0, outcome.err
    found = [json.loads((study / "explain.json").read_text()) for study in (one, two)]
    assert found[0] == found[1]
    assert {p.name[-6:] for p in (two / "workers").iterdir()} == {"-0.log", "-1.log"}
    # Both workers stay for all batches.
    leases = [json.loads(p.read_text()) for p in two.glob("jobs/*/attempts/*/l*")]
    assert len({lease["process"]["pid"] for lease in leases}) == 2
    assert not (one / "workers").exists()
