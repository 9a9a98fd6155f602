"""Failed jobs are tried again when people say so; the runbook tells which recovered, and how."""

import signal

import pytest
from attrs import define
from helpers_cli import call
from helpers_crashes import forked
from helpers_sweep_faults import toy, work
from helpers_sweeps import complete, fail, ledger_of

from altcore.errors import BadInput
from altcore.plugin import hookimpl, setting
from altcore.sweep import State, Watch, try_again
from altcore.sweep.runbook import RUNBOOK

OOM = "out of memory: 3 bytes"
KEYS = {"base": {"gpt.size": "tiny", "gpt.batch_size": 64}}


@pytest.fixture
def ledger(tmp_path):
    """A sweep of two jobs."""
    return ledger_of(tmp_path, **KEYS, seeds=2)


def first(ledger):
    return ledger.jobs()[0]


def test_an_unknown_failure_may_be_mended_outside_the_run(ledger):
    """The job waits again, and its next attempt goes on with the run of the last."""
    job = first(ledger)
    fail(ledger, job, "FileNotFoundError: data")
    (ledger.standing(job.name).last.work / job.name).mkdir()
    assert ledger.take(job, Watch(60)) is None
    try_again(ledger, job.name, {})
    standing = ledger.standing(job.name)
    assert standing.state is State.WAITING
    assert standing.decision.why == "told to be tried again"
    held = ledger.take(job, Watch(60))
    assert held.attempt.number == 2
    assert held.before is not None


def test_a_changed_setting_is_the_next_attempts(ledger):
    """Beside those that were changed before; the run begins anew."""
    job = first(ledger)
    fail(ledger, job, OOM)
    held = ledger.take(job, Watch(60))
    assert held.lease.changed == {"gpt.batch_size": 32}
    held.attempt.end(ended("ValueError: no"))
    try_again(ledger, job.name, {"learning_rate": 0.5})
    held = ledger.take(job, Watch(60))
    assert held.lease.changed == {"gpt.batch_size": 32, "learning_rate": 0.5}
    assert held.before is None


def ended(error):
    from altcore.sweep import Exit

    return Exit(status="failed", error=error)


@define(eq=False)
class Fails:
    """An intervention that ends each run, as if by its numbers."""

    share: float = setting(0.0, help="a fraction")
    count: int = setting(0, help="a whole number")

    @hookimpl
    def pre_step(self, run, step):
        raise ValueError("gradient overflow")


def test_a_whole_number_is_halved_to_a_fraction_if_it_may_be_one(tmp_path, shelf, corpus):
    """By its type: it was given so in the sweep file, or when people told what to try."""
    shelf.install("intervention", "fails", Fails)
    rule = {"gradient": {"limit": 1, "halve": {"share": 0, "count": 1, "learning_rate": 0}}}
    keys = {"plugins": ["fails"], "fails.share": 1, "fails.count": 3, "learning_rate": 4}
    ledger = toy(tmp_path / "toy", corpus, keys, retry=rule)
    job = first(ledger)
    assert work(ledger) == 2
    halved = {"fails.share": 0.5, "fails.count": 1, "learning_rate": 2.0}
    assert ledger.standing(job.name).last.lease.changed == halved
    try_again(ledger, job.name, {"fails.share": 3, "learning_rate": 1})
    assert work(ledger) == 2
    halved = {"fails.share": 1.5, "fails.count": 1, "learning_rate": 0.5}
    assert ledger.standing(job.name).last.lease.changed == halved


def test_a_rule_that_is_edited_after_a_failure_halves_as_one_that_was_there(
    tmp_path, shelf, corpus
):
    """It is the rule that says what follows; the run's fractions are known whatever it was."""
    shelf.install("intervention", "fails", Fails)
    keys = {"plugins": ["fails"], "fails.share": 1}
    ledger = toy(tmp_path / "toy", corpus, keys, retry={"gradient": {"limit": 0, "halve": {}}})
    job = first(ledger)
    assert work(ledger) == 1
    rule = {"gradient": {"limit": 1, "halve": {"share": 0}}}
    ledger = toy(tmp_path / "toy", corpus, keys, retry=rule)
    assert work(ledger) == 1
    assert ledger.standing(job.name).last.lease.changed == {"fails.share": 0.5}


def test_the_rules_count_anew(ledger):
    """As if the attempts before had not been made."""
    job = first(ledger)
    fail(ledger, job, "TimeoutError")
    fail(ledger, job, "TimeoutError")
    assert ledger.standing(job.name).state is State.FAILED
    try_again(ledger, job.name, {"learning_rate": 0.5})
    fail(ledger, job, "TimeoutError")
    assert ledger.standing(job.name).state is State.WAITING
    fail(ledger, job, "TimeoutError")
    assert ledger.standing(job.name).state is State.FAILED


@pytest.mark.parametrize(
    ("error", "changed", "told"),
    [
        ("ValueError: no", {"seed": 3}, "the seed is a factor of the sweep"),
        ("ValueError: no", {"learning_rat": 3}, "learning_rat: there is no such"),
        ("ValueError: no", {"gpt.sizee": "tiny"}, r"gpt\.sizee: there is no such setting"),
        ("ValueError: no", {"runs_dir": "x"}, "the sweep names its runs"),
        ("ValueError: no", {"learning_rate": "x"}, "learning_rate"),
        ("ValueError: no", {"gpt.batch_size": 64}, "an unchanged run would fail again"),
        ("loss is not finite", {}, "an unchanged run would fail again"),
    ],
)
def test_what_is_refused(tmp_path, error, changed, told):
    """Another seed, no such setting, and a run that would fail by its numbers as before."""
    ledger = ledger_of(tmp_path, **KEYS, retry={"gradient": {"limit": 0}})
    job = first(ledger)
    fail(ledger, job, error)
    with pytest.raises(BadInput, match=told):
        try_again(ledger, job.name, changed)
    assert ledger.standing(job.name).state is State.FAILED


def test_a_collapse_that_is_a_failure_is_not_repeated_unchanged(ledger):
    """It is by its numbers, whatever its verdict says."""
    job = first(ledger)
    fail(ledger, job, "it collapsed: the loss rose", verdict="the loss rose")
    with pytest.raises(BadInput, match="an unchanged run would fail again"):
        try_again(ledger, job.name, {})
    try_again(ledger, job.name, {"learning_rate": 0.5})


def test_only_failed_jobs_are_tried_again(ledger):
    """Not one that waits, or has a result."""
    one, other = ledger.jobs()
    complete(ledger, one)
    for job, state in ((one, "completed"), (other, "waiting")):
        with pytest.raises(BadInput, match=f"{job.name} is {state}: only failed jobs"):
            try_again(ledger, job.name, {})
    with pytest.raises(BadInput, match="there is no job 'x'"):
        try_again(ledger, "x", {})


def test_a_recovered_job_is_in_the_runbook(ledger):
    """With every error that counts and the action taken; a lost worker is none."""
    one, other = ledger.jobs()
    fail(ledger, one, "gone", status="lost")
    complete(ledger, one)
    assert not (ledger.folder / RUNBOOK).exists()
    fail(ledger, other, "out of `memory`\nand more")
    complete_after(ledger, other, {"gpt.batch_size": 32}, "ValueError: no")
    try_again(ledger, other.name, {"learning_rate": 0.5})
    complete(ledger, other, changed={"gpt.batch_size": 32, "learning_rate": 0.5})
    assert (ledger.folder / RUNBOOK).read_text().splitlines() == [
        "# Jobs that recovered: error, and action taken",
        "",
        f"- **{other.name}**: `out of 'memory' and more`: tried again with gpt.batch_size 32",
        f"- **{other.name}**: `ValueError: no`: tried again by people with learning_rate 0.5",
    ]


def test_the_runbook_loses_no_line_to_a_killed_worker(ledger):
    """One that dies before it publishes, and the next one just after: the line is there once."""
    job = first(ledger)
    fail(ledger, job, OOM)
    for point in (f"rename {job.name}", "link exit.json"):
        assert forked(lambda: complete(ledger, job), point) == -signal.SIGKILL
        assert (ledger.folder / RUNBOOK).read_text().count(f"- **{job.name}**") == 1
    assert ledger.standing(job.name).state is State.COMPLETED


def complete_after(ledger, job, changed, error):
    """Let a second attempt, with a changed setting, fail with another error."""
    from altcore.sweep.attempt import lease

    lease(ledger.folder / "jobs" / job.name, 2, changed).attempt.end(ended(error))


def test_the_command(ledger, capsys):
    """All failed jobs or those named; the exit code is 1 if one of all gives up."""
    one, other = ledger.jobs()
    where = ("--sweeps-dir", ledger.folder.parent)
    assert "no job failed" in call(capsys, "sweep", "retry", "toy", *where).err
    fail(ledger, one, "ValueError: no")
    for _ in range(3):
        fail(ledger, other, "loss is not finite")
    done = call(capsys, "sweep", "retry", "toy", *where)
    assert done.code == 1
    assert done.out.splitlines()[0] == f"tried again: {one.name}: as it was"
    assert done.out.splitlines()[1].startswith(f"gives up: {other.name}: loss is not finite: train")
    done = call(capsys, "sweep", "retry", "toy", other.name, *where)
    assert (done.code, done.out) == (2, "")
    done = call(capsys, "sweep", "retry", "toy", other.name, "--set", "learning_rate=0.5", *where)
    assert (done.code, done.out) == (0, f"tried again: {other.name}: with learning_rate 0.5\n")
    assert not [j for j in ledger.jobs() if ledger.standing(j.name).state is State.FAILED]
