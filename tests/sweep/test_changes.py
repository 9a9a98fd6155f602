"""A changed sweep file is refused, with what would be lost of the jobs that it changes."""

import pytest
from helpers_sweeps import complete, fail, ledger_of

from altcore.errors import BadInput
from altcore.sweep import Exit, verify
from altcore.sweep.attempt import lease

NOTHING = "--accept-changes accepts it: none of these jobs trained a step, so nothing is lost"


def fails_after(step):
    """Return what lets an attempt fail after a checkpoint of this step."""

    def fails(ledger, job):
        held = lease(ledger.folder / "jobs" / job.name, 1, {})
        (held.attempt.work / job.name / "checkpoints" / f"step-{step:08}").mkdir(parents=True)
        ledger.end(job, held, Exit(status="failed", error="ValueError"))

    return fails


def begins(ledger, job):
    """Let an attempt begin."""
    lease(ledger.folder / "jobs" / job.name, 1, {})


def test_a_priority_may_change_at_any_time(tmp_path):
    """Also of jobs that began: these are the same runs, in another order."""
    keys = {"variants": {"a": {}, "b": {}}}
    complete(ledger_of(tmp_path, **keys), ledger_of(tmp_path, **keys).job("a-seed42"))
    ledger = ledger_of(tmp_path, **keys, priority={"b": 1})
    assert [(job.name, job.priority) for job in ledger.jobs()] == [
        ("b-seed42", 1),
        ("a-seed42", 100),
    ]
    assert verify(ledger, ledger.jobs(), []).completed == ["a-seed42"]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (lambda ledger, job: None, NOTHING),
        (lambda ledger, job: fail(ledger, job, "BadInput: gpt.sizee"), NOTHING),
        (fails_after(0), NOTHING),
        (fails_after(2), "1 of these jobs trained: give the sweep another name"),
        (begins, "1 of these jobs trained"),
        (complete, "1 of these jobs trained: give the sweep another name, or accept it with "),
    ],
)
def test_the_refusal_says_what_would_be_lost(tmp_path, what, told):
    """Nothing if no job trained, as after a mistake in the file; else how many did."""
    ledger = ledger_of(tmp_path, seeds=2)
    what(ledger, ledger.jobs()[0])
    with pytest.raises(BadInput, match=f"2 changed: .*: {told}"):
        ledger_of(tmp_path, base={"gpt.size": "tiny", "max_steps": 7}, seeds=2)
