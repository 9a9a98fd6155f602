"""Jobs that failed are tried again because people say so, with what they mended or change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altcore.errors import BadInput, keyed
from altcore.sweep.checking import SettingsCheck
from altcore.sweep.expand import NOT_A_JOBS
from altcore.sweep.ledger import MISSING, Ledger, State
from altcore.sweep.retry import cause_of


def try_again(ledger: Ledger, name: str, changed: Mapping[str, Any]) -> None:
    """Let a failed job be tried again with some settings changed, by dotted key.

    Its rules begin to count anew.

    Raises:
        BadInput: if it did not fail, if it would be the same run again that fails by its numbers,
            if the seed is to change, or if there is no such setting.
    """
    job, standing = ledger.job(name), ledger.standing(name)
    last = standing.last
    if standing.state is not State.FAILED or last is None or last.exit is None:
        told = "only failed jobs are tried again"
        if standing.state is State.WAITING and last and last.exit and last.exit.is_complete:
            told = f"{MISSING}, and altcore sweep run makes it again"
        raise BadInput(f"{name} is {standing.state.value}: {told}")
    if "seed" in changed:
        raise BadInput(
            "the seed is a factor of the sweep: no retry changes it",
            key="--set",
            hint="give another seed a job of its own, by seeds in the sweep file",
        )
    if changed and job.identity:
        raise BadInput(f"{name} is a run of a study, which asks for it as it is", key="--set")
    if where := set(changed) & set(NOT_A_JOBS):
        raise BadInput("the sweep names its runs", key="--set", part=min(where))
    now = dict(last.lease.changed)
    with keyed("--set"):
        before, after = job.train_config("", now), job.train_config("", {**now, **changed})
        if changed:
            SettingsCheck()(after)
    if before == after:
        cause = cause_of(last.exit, ledger.rules)
        rule = ledger.rules.get(cause)
        if changed or last.exit.verdict or (rule is not None and rule.halve):
            raise BadInput(
                f"{name}: {last.exit.error or cause}: training is deterministic, and an unchanged "
                "run would fail again",
                hint="--set KEY=VALUE changes a setting",
            )
    last.follow(changed)
