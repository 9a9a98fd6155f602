"""The report on failures: which runs failed, how, and what was seen to prevent it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from altcore.plugin import BadInput, get_format
from altcore_reporters.columns import labels, need
from altcore_reporters.comparison import CONDITION, by_condition, without_copies
from altcore_reporters.failure_evidence import (
    DIVERGENCE,
    FROM_REASON,
    MODES,
    NON_FINITE,
    OVERFLOW,
    STALL,
    UNDERFLOW,
    UNKNOWN,
    VANISHING,
)
from altcore_reporters.failures import FailureAnalyzer
from altcore_reporters.frame_tables import (
    NOT_KNOWN,
    bullets,
    cell,
    copies_text,
    count,
    frame_table,
    head,
    listed,
    rows_table,
    run_link,
    runs_text,
)
from altcore_reporters.markdown import text

if TYPE_CHECKING:
    import pandas as pd

TITLE = "FP8 Failure Mode Documentation"
SUMMARY = ("format", CONDITION, "collapse_step", "reason", "last_good_loss")
POWERS = "E7M0"
"""The format that has a section of its own whenever it was run."""
PREVENTION = {
    OVERFLOW: "Scale by the tensor's own amax, which cannot overflow, or give delayed scaling a "
    "margin; clip gradients; a format with more exponent bits reaches further.",
    UNDERFLOW: "Scale by channel or block, so that small values have a scale of their own; a "
    "format with more exponent bits reaches lower.",
    VANISHING: "Find the layer whose gradient is zero first: `altcore explain`. A format with more "
    "exponent bits for `gradient` keeps smaller ones.",
    STALL: "Round stored weights stochastically, keep float32 master weights (recipe `master`), "
    "use a larger learning rate, or a format with more mantissa bits.",
    DIVERGENCE: "Use a smaller learning rate or a longer warm-up; `altcore explain` says which "
    "operand does it.",
    NON_FINITE: "Find the layer and operand that the evidence names: it is not the format's range.",
    UNKNOWN: "Run again with diagnostics, as `--preset format-experiment` does: what is not "
    "measured cannot be explained.",
}
"""What usually helps. What helped in these runs is said beside it."""


def failure_modes(
    failures: pd.DataFrame, runs: pd.DataFrame | None = None, problems: Sequence[str] = ()
) -> str:
    """Return the report as Markdown.

    Args:
        failures: a row a failure, as `FailureAnalyzer` returns them. Of other frames, what is
            missing is filled in.
        runs: a row a run, those that did not fail included. Without it, the report cannot say
            what did not fail.
        problems: what is wrong with the records of the runs, as `altcore.plugin.problems_of` says.
    """
    failures = FailureAnalyzer().merge_failure_data(failures, [])
    failures = failures.assign(format=labels(failures, "format", NOT_KNOWN))
    copies = copies_text(failures if runs is None else runs)
    failures = without_copies(failures)
    if runs is not None:
        need(runs, "format")
        runs = runs.assign(format=labels(runs, "format", NOT_KNOWN)) if len(runs) else runs
        runs = without_copies(runs)
    ran = "" if runs is None else f" in {count(len(runs), 'run')}"
    parts = head(TITLE, f"{count(len(failures), 'failure')}{ran}", problems)
    if not len(failures) and (runs is None or not len(runs)):
        return "\n\n".join([*parts, "No data: there is no failure, and no run is known."]) + "\n"
    parts += [*([copies] if copies else []), "## Summary", *_summary(failures, runs)]
    for fmt in dict.fromkeys(failures["format"].astype(str)):
        if fmt != POWERS:
            parts += [f"## {text(fmt)}", *_of_format(fmt, failures, runs)]
    parts += _powers(failures, runs)
    if len(failures):
        parts += ["## Classification", *_classification(failures)]
        parts += ["## Prevention", *_prevention(failures, runs)]
    return "\n\n".join(parts) + "\n"


def _summary(failures: pd.DataFrame, runs: pd.DataFrame | None) -> Iterator[str]:
    if not len(failures):
        yield "No run failed."
        return
    yield frame_table(failures, SUMMARY)
    if runs is not None:
        fine = dict.fromkeys(str(f) for f in runs["format"] if f not in set(failures["format"]))
        if fine:
            yield f"No run of {listed(fine)} failed."


def _of_format(fmt: str, failures: pd.DataFrame, runs: pd.DataFrame | None) -> Iterator[str]:
    """Say how often a format failed under each condition, and the evidence of each failure."""
    own = failures[failures["format"].astype(str) == fmt]
    for condition, rows in by_condition(own).items():
        where = f" under {text(condition)}" if condition else ""
        ran = [] if runs is None else by_condition(runs[runs["format"] == fmt]).get(condition, [])
        of = f" of {runs_text(ran)}" if len(ran) else ""
        yield f"Failed in {len(rows) if of else count(len(rows), 'run')}{of}{where}:"
        yield bullets(map(_one, rows.to_dict("records")))
    learned = _survived(fmt, failures, runs)
    if learned:
        yield f"Did not fail under {listed(learned)}."


def _one(row: dict[str, Any]) -> str:
    """Return a failure in a line: run, mode, how the mode is known, and the evidence."""
    known = "" if row["mode_from"] != FROM_REASON else f", from {FROM_REASON}"
    step = row["collapse_step"]
    when = "" if math.isnan(step) else f" at step {cell(step)}"
    why = row["evidence"] or f"{cell(row['reason'])}."
    mode = f"**{row['failure_mode']}**{known}{when}"
    return f"{run_link(row)}: {mode}. {text(why)}"


def _powers(failures: pd.DataFrame, runs: pd.DataFrame | None) -> list[str]:
    """Return the section on E7M0, if it was run."""
    frames = [failures] if runs is None else [failures, runs]
    if not any((df["format"].astype(str) == POWERS).any() for df in frames):
        return []
    parts = [f"## {POWERS}: powers of two only", _about_powers()]
    said = list(_of_format(POWERS, failures, runs))
    if runs is not None:
        own = runs[runs["format"].astype(str) == POWERS]
        said.append(
            frame_table(
                own, (CONDITION, "seed", "state", "learned", "final_loss", "bit_stall_final")
            )
        )
    if not (failures["format"].astype(str) == POWERS).any():
        said.insert(0, "No run of it failed.")
    return [*parts, *said]


def _about_powers() -> str:
    """Say what E7M0's grid means for an update, from its values."""
    try:
        largest, second = sorted(get_format(POWERS).values, reverse=True)[:2]
    except BadInput:
        return "The format is not installed, so its values are not known."
    ratio = largest / second
    return (
        f"Neighbouring values differ by a factor of {ratio:g}. Rounded to nearest, a stored weight "
        f"moves only if a single update makes it larger by {(ratio - 1) / 2:.0%} or smaller by "
        f"{(1 - 1 / ratio) / 2:.0%}. Smaller updates are lost, unless they are rounded "
        "stochastically or kept in a master weight."
    )


def _classification(failures: pd.DataFrame) -> Iterator[str]:
    rows = []
    for mode, meaning in MODES.items():
        own = failures[failures["failure_mode"] == mode]
        if len(own):
            measured = int((own["mode_from"] != FROM_REASON).sum())
            rows.append(
                {
                    "mode": mode,
                    "meaning": meaning,
                    "failures": len(own),
                    "measured": measured,
                    "from the reason alone": len(own) - measured,
                    "formats": ", ".join(dict.fromkeys(own["format"].astype(str))),
                }
            )
    yield rows_table(rows)
    yield (
        "A mode is measured if the run's own measurements show it. Where only a reason in words is "
        "left, NaN and infinity count as overflow, and more than half of the gradients being zero "
        "as gradient_vanishing."
    )


def _prevention(failures: pd.DataFrame, runs: pd.DataFrame | None) -> Iterator[str]:
    """Say what usually helps against each mode that was met, and what helped in these runs."""
    lines = []
    for mode in MODES:
        formats = dict.fromkeys(failures["format"][failures["failure_mode"] == mode].astype(str))
        if not formats:
            continue
        seen = [
            f"{text(fmt)} did not fail under {listed(where)}"
            for fmt in formats
            if (where := _survived(fmt, failures, runs))
        ]
        said = f" In these runs, {'; '.join(seen)}." if seen else ""
        lines.append(f"**{mode}**: {PREVENTION[mode]}{said}")
    yield bullets(lines)


def _survived(fmt: str, failures: pd.DataFrame, runs: pd.DataFrame | None) -> list[str]:
    """Return the conditions under which a format ran and never failed, with the runs of each."""
    if runs is None:
        return []
    failed = by_condition(failures[failures["format"].astype(str) == fmt])
    return [
        f"{condition} ({runs_text(own)})"
        for condition, own in by_condition(runs[runs["format"].astype(str) == fmt]).items()
        if condition and condition not in failed
    ]
