"""What ``altcore runs compare`` prints: in what runs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from altcore.builtin_types import digits, rounded, to_json
from altcore.cli.sparkline import sparkline
from altcore.cli.terminal import echo, print_columns
from altcore.config import with_defaults
from altcore.runs import (
    CODE,
    INITIAL_WEIGHTS,
    NAME,
    DirectoryRecord,
    RunRecord,
    change_line,
    other_code,
    sample_losses,
)

CURVE = 12
"""Characters of the curve of a loss."""
OUTCOME = (
    *("verdict", "status", "steps", "discarded", "final_loss", "val_loss", "best_val_loss"),
    *("stored_stall_final", "view_stall_final", "overflow_final", "flushed_final"),
    *("failure_step", "step_time_ms"),
)
"""The keys of a summary that are compared."""
OWN = ("name", "runs_dir", "format_digests", "format_origins", "changes")
"""Keys of a configuration in which all runs differ, or that follow from other ones."""
ENVIRONMENT = (
    *("altcore", "python", "platform", "device", "processor", "threads", "arithmetic"),
    *("git", "libraries"),
)
"""What is compared of the environment."""
PARTS = ("configuration", "code", "given", "environment")
"""What may differ key by key; ``given`` is what came from Python."""
CHANGES = "changes"
BESIDE = {INITIAL_WEIGHTS: "initial weights", CHANGES: "changes on the way"}
"""What is compared beside configuration and environment, and the names of its rows."""
DIGITS = 12
"""Characters of a digest that are shown."""
MISSING = "-"


def compared(records: Sequence[DirectoryRecord]) -> dict[str, Any]:
    """Return the outcome of runs, their data, and in which keys of `PARTS` they differ.

    Each value is a list with an item for each run; None where it is not known.
    """
    first = records[0]
    return {
        "runs": [record.name for record in records],
        "outcome": {key: [record.summary[key] for record in records] for key in OUTCOME},
        "data": [_data(record) for record in records],
        INITIAL_WEIGHTS: [_initial_weights(record) for record in records],
        CHANGES: [_changes(record) for record in records],
        "same_losses_up_to": [_same_up_to(first, record) for record in records],
        "losses": [sample_losses(record.directory, 4 * CURVE) for record in records],
        "configuration": _differences(
            [
                {k: v for k, v in config.items() if k not in OWN}
                for config in with_defaults([record.config for record in records])
            ]
        ),
        "code": _other_code([record.environment.get("code") for record in records]),
        "given": _differences([_given(record) for record in records]),
        "environment": _differences(
            [{k: record.environment.get(k) for k in ENVIRONMENT} for record in records]
        ),
    }


def _data(record: RunRecord) -> str | None:
    """Return the start of the digest of a run's data, or what else its workload calls them.

    Of data that came from Python that is the digest of the first batch.
    """
    facts = record.summary["workload_facts"]
    known = facts.get("sha256") or record.environment.get("first_batch") or ""
    return str(known)[:DIGITS] or facts.get("data")


def _given(record: RunRecord) -> dict[str, Any]:
    """Return modules, options and values of what came from Python; its code is with the others."""
    given = record.environment.get("given") or {}
    return {
        part: {key: own for key, own in about.items() if key not in (NAME, CODE)}
        for part, about in given.items()
    }


def _initial_weights(record: RunRecord) -> str | None:
    """Return the start of the digest of a model that was passed in, as its weights were then."""
    digest = record.environment.get(INITIAL_WEIGHTS)
    return str(digest)[:DIGITS] if digest else None


def _changes(record: RunRecord) -> list[dict[str, Any]]:
    """Return what was another when a run went on, whether that needed permission or not."""
    resumes = (event for event in record.events if event["event"] == "resume")
    return [{"step": e["step"], **c} for e in resumes for c in e.get("changes", ())]


def _same_up_to(first: RunRecord, other: RunRecord) -> int | None:
    """Return the last step up to which two runs have the same training losses; 0 if none.

    By the steps that both recorded, whatever their ``log_interval``; None if there is none.
    """
    # As text, since NaN is not NaN.
    ours, others = ({x["step"]: str(x["loss"]) for x in run.steps} for run in (first, other))
    both = [step for step in ours if step in others]
    same = list(takewhile(lambda step: ours[step] == others[step], both))
    return same[-1] if same else 0 if both else None


def _differences(trees: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the dotted keys whose values differ, in the order in which they are first met."""
    flat = [_flat(tree) for tree in trees]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = {key: [values.get(key) for values in flat] for key in keys}
    return {key: row for key, row in rows.items() if any(v != row[0] for v in row)}


def _other_code(codes: Sequence[Any]) -> dict[str, list[Any]]:
    """Return each format and plugin whose code is not the same in all runs that have one so named.

    A key ``recorded`` says which runs recorded their code, unless all did.
    """
    known = {} if all(codes) else {"recorded": [bool(code) for code in codes]}
    return {**known, **other_code(codes)}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a tree by dotted keys; plugins' settings are called as users do."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(value, "" if (prefix, key) == ("", "settings") else f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def print_comparison(found: Mapping[str, Any]) -> None:
    """Print the outcome and the data in full, and what differs otherwise."""
    rows = [["", *found["runs"]]]
    rows.append(["training loss", *(sparkline(x, CURVE) for x in found["losses"])])
    rows += [[key, *map(_cell, row)] for key, row in found["outcome"].items() if any_known(row)]
    rows.append(["data", *map(_cell, found["data"])])
    beside = {
        BESIDE[INITIAL_WEIGHTS]: found[INITIAL_WEIGHTS],
        BESIDE[CHANGES]: ["; ".join(map(change_line, changes)) for changes in found[CHANGES]],
    }
    rows += [[name, *map(_cell, row)] for name, row in beside.items() if any_known(row)]
    same = [{None: MISSING, 0: "none"}.get(s, f"step {s}") for s in found["same_losses_up_to"]]
    rows.append(["same losses up to", MISSING, *same[1:]])
    for part in PARTS:
        if found[part]:
            rows += [[], [part]]
            rows += [[key, *map(_exact, row)] for key, row in found[part].items()]
    print_columns(rows)
    same_parts = [part for part in PARTS if not found[part] and part != "given"]
    if same_parts:
        verb = "does" if len(same_parts) == 1 else "do"
        also = {"data": found["data"], **beside}
        known = {name: {v for v in row if v is not None} for name, row in also.items()}
        others = [name for name, values in known.items() if len(values) > 1]
        others += ["parts given from Python"] * bool(found["given"])
        but = f"; {' and '.join(others)} do" if others else ""
        echo(f"\n{_together(same_parts)} {verb} not differ{but}")


def _together(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def any_known(row: Sequence[Any]) -> bool:
    """Whether a row has a value for any run."""
    return any(value not in (None, "") for value in row)


def _exact(value: Any) -> str:
    """Return a setting as a user writes it: two that differ are never shown as one."""
    return digits(value) if isinstance(value, float) else _cell(value)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return MISSING
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "none"
    return value if isinstance(value, str) else json.dumps(to_json(value))
