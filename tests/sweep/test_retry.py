"""Whether a job that failed is tried again: a pure function of its exits and configuration."""

import pytest
from attrs import evolve
from helpers_sweeps import ledger_of, record

from altcore.sweep import DEFAULT_RULES, Exit, Rule, SweepFile, Watch, decide
from altcore.sweep.retry import cause_of, ended_in_a_row
from altcore.sweep.run_job import run_job
from altcore.sweep.table import table_of

CONFIG = {"learning_rate": 0.1, "seed": 3, "settings": {"resnet": {"batch_size": 128}}}


def failed(error, status="failed"):
    return Exit(status=status, error=error)


OOM = failed("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ("CUDA out of memory", "out_of_memory"),
        ("DefaultCPUAllocator: can't allocate memory: you tried to", "out_of_memory"),
        ("MemoryError: ", "out_of_memory"),
        ("Gradient overflow in step 3", "gradient"),
        ("NaN loss", "gradient"),
        ("TimeoutError: no answer", "timeout"),
        ("ValueError: something else", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_cause_is_told_by_the_error(error, cause):
    """By the patterns of the rules, in any case."""
    assert cause_of(failed(error), DEFAULT_RULES) == cause


def test_out_of_memory_halves_the_batch():
    """Three times, to no less than 16, and says which setting of whom."""
    changed, sizes = {}, []
    for count in range(1, 5):
        decision = decide([OOM] * count, CONFIG, changed)
        if decision.goes_on:
            changed = decision.changed
            sizes.append(changed["resnet.batch_size"])
    assert sizes == [64, 32, 16]
    assert not decision.goes_on
    assert "3 more attempts" in decision.why
    small = {"settings": {"resnet": {"batch_size": 20}}}
    assert decide([OOM], small, {}).changed == {"resnet.batch_size": 16}
    least = decide([OOM], {"settings": {"resnet": {"batch_size": 16}}}, {})
    assert not least.goes_on
    assert "batch_size, workers" in least.why


def test_a_loaders_workers_halve_to_one():
    """In whatever has such a setting, beside the batch."""
    config = {"settings": {"images": {"batch_size": 32, "workers": 3}, "other": {"workers": 1}}}
    assert decide([OOM], config, {}).changed == {"images.batch_size": 16, "images.workers": 1}


@pytest.mark.parametrize(
    ("name", "batch", "halved"),
    [
        ("resnet.batch_size", 128, {"resnet.batch_size": 64}),
        ("other.batch_size", 128, {}),
        ("batch_size", 128, {"resnet.batch_size": 64}),
        ("resnet.batch_size", None, {"resnet.batch_size": 256}),
    ],
)
def test_a_setting_may_have_its_full_name(name, batch, halved):
    """In a rule; also if the workload chose its value."""
    config = {"settings": {"resnet": {"batch_size": batch} if batch else {}}}
    known = evolve(OOM, settings={"resnet.batch_size": 512}) if batch is None else OOM
    rules = {"out_of_memory": evolve(DEFAULT_RULES["out_of_memory"], halve={name: 16})}
    assert decide([known], config, {}, rules).changed == halved


def test_a_gradient_lowers_the_rate_and_never_the_seed():
    """Training is deterministic: the same attempt would fail again."""
    decision = decide([failed("gradient overflow")], CONFIG, {})
    assert decision.changed == {"learning_rate": 0.05}
    again = decide([failed("nan loss")] * 2, CONFIG, decision.changed)
    assert again.changed == {"learning_rate": 0.025}
    assert not decide([failed("nan loss")] * 3, CONFIG, again.changed).goes_on


def test_an_unknown_failure_is_not_repeated():
    """Nor one whose rule has nothing to change."""
    assert not decide([failed("KeyError: 'x'")], CONFIG, {}).goes_on
    bare = decide([failed("out of memory")], {}, {})
    assert not bare.goes_on
    assert "batch_size" in bare.why


@pytest.mark.parametrize("status", ["interrupted", "lost", "refused"])
def test_a_worker_that_is_taken_away_is_no_failure(status):
    """It burns no retry, and keeps what a retry had changed, as long as the job goes forward."""
    gone = failed("", status)
    for count in (1, 50):
        ends = [evolve(gone, checkpoint=step) for step in range(count)]
        decision = decide([OOM, *ends], CONFIG, {"resnet.batch_size": 64})
        assert decision.goes_on
        assert decision.changed == {"resnet.batch_size": 64}
    decision = decide([OOM, gone, OOM, gone, OOM], CONFIG, {"resnet.batch_size": 32})
    assert decision.changed == {"resnet.batch_size": 16}
    always = decide([gone] * 3, CONFIG, {})
    assert always.goes_on is (status != "lost")


def test_a_job_that_ends_its_workers_is_given_up():
    """Three in a row, or as many as a sweep file says, between which no checkpoint is newer."""

    def lost(*steps):
        return [Exit(status="lost", checkpoint=step) for step in steps]

    stuck = lost(-1, 4, 4, 4)
    assert decide(stuck[:-1], CONFIG, {}).goes_on
    decision = decide(stuck, CONFIG, {})
    assert not decision.goes_on
    assert decision.why == "it lost 3 workers in a row without a newer checkpoint"
    # An attempt that was lost before it had a copy of the last one's checkpoints is no progress.
    assert ended_in_a_row(lost(4, -1, 4)) == 3
    assert ended_in_a_row([*lost(4, 4), failed("", "interrupted"), *lost(4)]) == 1
    patient = {**DEFAULT_RULES, "lost": Rule(limit=4)}
    assert decide(stuck, CONFIG, {}, patient).goes_on


def test_a_job_that_interrupts_itself_lets_others_begin_and_is_given_up():
    """Ten signals in a row without a newer checkpoint; a disk, or progress, makes it none."""
    stuck = [Exit(status="interrupted", cause="signal", checkpoint=4)] * 10
    assert [decide(stuck[:n], CONFIG, {}).comes_later for n in (1, 2, 9)] == [False, True, True]
    decision = decide(stuck, CONFIG, {})
    assert (decision.goes_on, decision.why) == (
        False,
        "it was interrupted 10 times in a row without a newer checkpoint",
    )
    further = decide([*stuck, evolve(stuck[0], checkpoint=5)], CONFIG, {})
    full = decide([*stuck, failed("No space left", "interrupted")], CONFIG, {})
    assert [(d.goes_on, d.comes_later) for d in (further, full)] == [(True, False)] * 2


def test_a_timeout_is_repeated_as_it_was():
    """Once: it goes on from its last checkpoint."""
    late = failed("", "timeout")
    first = decide([late], CONFIG, {})
    assert first.goes_on
    assert not first.changed
    assert not decide([late, late], CONFIG, {}).goes_on


def test_a_result_needs_nothing():
    """Whatever came before."""
    for status in ("finished", "collapsed", "stopped"):
        assert not decide([OOM, Exit(status=status)], CONFIG, {}).goes_on


def test_rules_are_data():
    """Patterns, limits and what is changed may all be others."""
    rules = {"mine": Rule(limit=1, patterns=("disk on fire",), halve={"learning_rate": 0.04})}
    told = failed("Disk on Fire")
    assert decide([told], CONFIG, {}, rules).changed == {"learning_rate": 0.05}
    assert decide([told], CONFIG, {"learning_rate": 0.05}, rules).changed == {"learning_rate": 0.04}
    assert not decide([told, told], CONFIG, {}, rules).goes_on
    assert not decide([OOM], CONFIG, {}, rules).goes_on


def test_own_rules_come_first():
    """Their patterns are tried in the order of the file, and before the default ones."""
    own = {
        "node": {"patterns": ["out of memory on node"], "limit": 1, "repeat": True},
        "any_node": {"patterns": ["on node"]},
        "unknown": {"limit": 0},
    }
    rules = SweepFile(retry=own).rules
    assert list(rules)[:4] == ["node", "any_node", "unknown", "out_of_memory"]
    assert cause_of(failed("Out of memory on node 3"), rules) == "node"
    assert cause_of(failed("no disk on node 3"), rules) == "any_node"
    assert cause_of(failed("out of memory"), rules) == "out_of_memory"


@pytest.mark.parametrize(
    ("told", "cause", "changed"),
    [
        ([{"cause": "nan_patience", "reason": "3 steps"}], "gradient", {"learning_rate": 0.05}),
        ([{"cause": "nan_patience"}, {"cause": "diverged", "reason": "big"}], "collapse", {}),
        ([], "collapse", {}),
    ],
)
def test_a_collapse_that_is_a_failure_has_a_cause(tmp_path, told, cause, changed):
    """Values that are not finite are the rule `gradient`'s; and the row says that it collapsed."""
    keys = {"gpt.size": "tiny", "max_steps": 6, "learning_rate": 0.1}
    retry = {"gradient": {"limit": 1}}
    ledger = ledger_of(tmp_path, base=keys, collapse_is="failure", retry=retry)
    (job,) = ledger.jobs()
    held = ledger.take(job, Watch(60))
    record(held.attempt.work / job.name, status="collapsed", verdict="bad", collapses=told)
    ended = ledger.end(job, held, run_job(job, held, collapse_fails=True, rules=ledger.rules))
    reason = told[-1].get("reason") if told else "bad"
    assert (ended.status, ended.cause, ended.error) == ("failed", cause, f"it collapsed: {reason}")
    assert ledger.standing(job.name).decision.changed == changed
    if not changed:
        (row,) = table_of(SweepFile(), ledger).rows
        assert (row["state"], row["collapsed"]) == ("failed", True)
