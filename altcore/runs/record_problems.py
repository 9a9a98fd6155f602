"""What is wrong with recorded runs, in sentences: a report says it beside its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from altcore.runs.alike import other_code
from altcore.runs.identity import code_of, given_in
from altcore.runs.identity_changes import compare
from altcore.runs.reading import identity_in
from altcore.runs.record import RunRecord

ELSEWHERE = ("data", "world_size", "platform")
"""Kinds of changes that no configuration tells."""


def problems_of(records: Sequence[RunRecord]) -> list[str]:
    """Return what whoever reads a report on some runs has to know of their records.

    That is each file that was changed since its run wrote it, each run that `read_runs` left out,
    and what `differences_of` returns.
    """
    changed = [problem for record in records for problem in record.problems]
    return [*changed, *getattr(records, "left_out", ()), *differences_of(records)]


def differences_of(records: Sequence[RunRecord]) -> list[str]:
    """Return which runs had other data or code, or ran elsewhere, than the first.

    A sentence for all runs that differ in the same way. What the first or the other has no record
    of is not known, so it differs in nothing.
    """
    found: dict[str, list[str]] = {}
    known = ((r.name, identity_in(r.directory)) for r in records if r.directory)
    identities = [(name, identity) for name, identity in known if identity]
    if not identities:
        return []
    first, there = identities[0]
    for name, identity in identities[1:]:
        given = given_in(there).keys() | given_in(identity).keys()
        changes = [
            f"{c.what} {c.text_now} instead of {c.text_before}"
            for c in compare(there, identity)
            if (c.kind in ELSEWHERE and None not in (c.before, c.now))
            or (c.kind == "plugin" and c.what in given)
        ]
        code = other_code([code_of(there), code_of(identity)])
        changes += [f"{what} {now} instead of {before}" for what, (before, now) in code.items()]
        if changes:
            found.setdefault("; ".join(changes), []).append(name)
    told = []
    for text, (name, *others) in found.items():
        had = f"{name} and {len(others)} more have" if others else f"{name} has"
        told.append(f"not all runs were made alike: {had} {text}, which {first} has")
    return told
