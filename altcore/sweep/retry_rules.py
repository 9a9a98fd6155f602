"""The rules of a sweep file for jobs that fail: own ones come before the default ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve

from altcore.errors import BadInput, nearest
from altcore.hooks import build, describe_settings
from altcore.registry import find
from altcore.sweep.job import Job
from altcore.sweep.retry import DEFAULT_RULES, Rule
from altcore.yaml_files import source_of, without_sources


def rules_of(given: Mapping[str, Mapping[str, Any]]) -> dict[str, Rule]:
    """Return what is done about each cause, in the order in which their patterns are tried.

    Args:
        given: by cause, what is not as in `DEFAULT_RULES`.

    Raises:
        BadInput: for a rule that never matches, or never does anything.
    """
    own: dict[str, Rule] = {}
    for cause, keys in given.items():
        key = f"retry.{cause}"
        build(Rule, keys, key)
        rule = own[cause] = evolve(DEFAULT_RULES.get(cause, Rule()), **without_sources(keys))
        if cause not in DEFAULT_RULES and not rule.patterns:
            hint = f"give it patterns, or name one of {', '.join(DEFAULT_RULES)}"
            meant = nearest(cause, DEFAULT_RULES)
            raise BadInput("no failure has this cause", key=key, meant=meant, hint=hint)
        if rule.limit and not (rule.halve or rule.repeat):
            problem = "a run that is repeated unchanged fails again"
            hint = "halve names settings to change, repeat: true tries it as it is"
            raise BadInput(problem, key=key, hint=hint)
    return {**own, **{cause: r for cause, r in DEFAULT_RULES.items() if cause not in own}}


def check_halved(given: Mapping[str, Mapping[str, Any]], jobs: Sequence[Job]) -> None:
    """Raise `BadInput` if a rule of a sweep file halves what none of its jobs has."""
    wanted = [(cause, name) for cause, keys in given.items() for name in keys.get("halve", ())]
    if not wanted:
        return
    known = set(_numbers(jobs))
    if not all(_has(known, name) for _, name in wanted):
        try:
            known |= _declared(jobs)
        except BadInput:  # what is not installed may have any setting, and stops its runs
            return
    for cause, name in wanted:
        key, source = f"retry.{cause}.halve", source_of(given[cause]["halve"], name)
        if name == "seed":
            problem = "the seed is a factor of the sweep: no retry changes it"
            raise BadInput(problem, key=key, source=source)
        if not _has(known, name):
            names = known | {key.rpartition(".")[2] for key in known}
            problem = f"no job has a number {name!r}"
            raise BadInput(problem, key=key, meant=nearest(name, names), source=source)


def _has(known: Iterable[str], name: str) -> bool:
    return any(name in (key, key.rpartition(".")[2]) for key in known)


def _numbers(jobs: Sequence[Job]) -> Iterator[str]:
    """Yield the keys and settings that are a number in any job."""
    for job in jobs:
        settings = job.config.get("settings", {})
        own = {f"{owner}.{name}": v for owner, of in settings.items() for name, v in of.items()}
        for key, value in {**job.config, **own}.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield key


def _declared(jobs: Sequence[Job]) -> set[str]:
    """Return the numbers that a job may leave to its workload to choose."""
    return {
        f"{workload}.{told['name']}"
        for workload in {job.config["workload"] for job in jobs}
        for told in describe_settings(find(workload, ("workload",)).load())
        if {"int", "float"} & set(told["type"].split(" | "))
    }
