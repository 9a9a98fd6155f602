"""The verdict on runs in a sentence, and what it rests on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from attrs import frozen

from altcore_reporters.page.words import NONE, duration, loss, number, plural, share
from altcore_reporters.pictures import by_seed

if TYPE_CHECKING:
    from altcore.plugin import RunRecord
    from altcore_reporters.pictures import Group

UNFINISHED = "unfinished"
NAMED = 4
"""Configurations that a sentence names."""


@frozen
class Verdict:
    """What a page says first."""

    sentence: str
    reasons: Sequence[str]
    """Sentences."""


@frozen
class Figure:
    """A number that decides the verdict."""

    value: str
    label: str
    note: str = ""


@frozen
class Outcome:
    """How the runs of one configuration ended."""

    group: Group
    of_seeds: Mapping[str, float]
    """The validation loss at the end by seed: the mean of the seed's runs that have one."""
    judged: int
    """How many runs were evaluated."""
    learned: int
    """How many of them learned."""

    @property
    def losses(self) -> list[float]:
        """The losses, one a seed."""
        return list(self.of_seeds.values())

    @property
    def mean(self) -> float:
        """The mean of the losses; infinite without any."""
        return fmean(self.losses) if self.losses else math.inf

    @property
    def words(self) -> str:
        """The losses in words: their mean, and their range over seeds."""
        if not self.losses:
            return NONE
        if len(self.losses) == 1:
            return loss(self.losses[0])
        low, high = min(self.losses), max(self.losses)
        return f"{loss(self.mean)} ({loss(low)} to {loss(high)})"


def outcomes(groups: Sequence[Group]) -> list[Outcome]:
    """Return the outcomes of configurations, the lowest validation loss first."""
    found = []
    for group in groups:
        summaries = [record.summary for record in group.records]
        losses = {
            seed: [r.summary["val_loss"] for r in records if is_finite(r.summary.get("val_loss"))]
            for seed, records in by_seed(group.records).items()
        }
        means = {seed: fmean(own) for seed, own in losses.items() if own}
        judged = [s["learned"] for s in summaries if s.get("learned") is not None]
        found.append(Outcome(group, means, len(judged), sum(judged)))
    return sorted(found, key=lambda outcome: outcome.mean)


# One run ------------------------------------------------------------------------------------------


def verdict_of_run(record: RunRecord) -> Verdict:
    """Return the verdict on one run."""
    summary = record.summary
    subject, verdict = subject_of(summary), str(summary.get("verdict") or "")
    if summary.get("status") == UNFINISHED:
        done = f"step {summary.get('steps')} of {summary.get('max_steps') or 'an unknown number'}"
        sentence = f"{subject} is not over: {done} is recorded."
    elif not verdict or verdict.startswith("not known"):
        sentence = f"Whether {subject} learned is not known: nothing was evaluated."
    else:
        sentence = f"{subject} {verdict}."
    reasons = [*_loss_reason(summary), *_failure_reason(summary)]
    if summary.get("degraded"):
        reasons.append(f"Disabled, since they broke: {', '.join(summary['degraded'])}.")
    return Verdict(sentence, reasons)


def subject_of(summary: Mapping[str, Any]) -> str:
    """Return what was trained in: the format and the recipe."""
    fmt, recipe = summary.get("format"), summary.get("recipe")
    if fmt is None:
        return str(summary.get("name"))
    if fmt == "none":
        return f"{summary.get('name')} (not quantized)"
    return f"{fmt} ({str(recipe).removesuffix('.yaml')})" if recipe else str(fmt)


def figures_of_run(record: RunRecord) -> list[Figure]:
    """Return the numbers that decide the verdict on one run; what was not measured is left out."""
    s = record.summary
    found = []
    if is_finite(s.get("val_loss")):
        entropy = _entropy(s)
        note = "" if entropy is None else f"unigram entropy {loss(entropy)}"
        found.append(Figure(loss(s["val_loss"]), "validation loss", note))
    elif is_finite(s.get("final_loss")):
        found.append(Figure(loss(s["final_loss"]), "training loss", "nothing was evaluated"))
    if s.get("status") == UNFINISHED and record.steps:
        last = record.steps[-1]
        found.append(Figure(loss(last["loss"]), "training loss", f"of step {last['step']}"))
    if is_finite(s.get("bit_stall_final")):
        note = {"stored": "of stored weights", "view": "of views: late, not lost"}
        found.append(
            Figure(
                share(s["bit_stall_final"]), "updates stalled", note.get(s.get("bit_stall_of"), "")
            )
        )
    if is_finite(s.get("overflow_final")):
        found.append(Figure(share(s["overflow_final"]), "overflow"))
    if is_finite(s.get("flushed_final")):
        found.append(Figure(share(s["flushed_final"]), "flushed to zero"))
    if s.get("discarded"):
        found.append(Figure(str(s["discarded"]), "steps discarded", f"of {s.get('steps')}"))
    if is_finite(s.get("flop_share")):
        note = f"{share(s.get('parameter_share'))} of parameters"
        found.append(Figure(share(s["flop_share"]), "of FLOPs quantized", note))
    if is_finite(s.get("seconds")):
        note = f"{number(s.get('step_time_ms'), 3)} ms a step"
        found.append(Figure(duration(s["seconds"]), "of training", note))
    return found


def _loss_reason(summary: Mapping[str, Any]) -> list[str]:
    last, entropy = summary.get("evaluation") or {}, _entropy(summary)
    value = last.get("val_loss")
    if value is None:
        return []
    at = f"at step {last['step']}" if "step" in last else "at the end"
    if not is_finite(value):
        return [f"The validation loss {at} is not finite."]
    if entropy:
        gap = value / entropy - 1
        side = "above" if gap > 0 else "below"
        return [
            f"The validation loss {at} is {loss(value)}, {share(abs(gap))} {side} the unigram "
            f"entropy of the data, {loss(entropy)}."
        ]
    first = (summary.get("first_evaluation") or {}).get("val_loss")
    if is_finite(first):
        return [f"The validation loss went from {loss(first)} to {loss(value)}."]
    return [f"The validation loss {at} is {loss(value)}."]


def _failure_reason(summary: Mapping[str, Any]) -> list[str]:
    reason = summary.get("failure_reason") or summary.get("error")
    if not reason:
        return []
    at = f"Step {summary['failure_step']}: " if summary.get("failure_step") is not None else ""
    return [f"{at}{reason.rstrip('.')}."]


def _entropy(summary: Mapping[str, Any]) -> float | None:
    value = (summary.get("workload_facts") or {}).get("unigram_entropy")
    return float(value) if is_finite(value) else None


# Several runs -------------------------------------------------------------------------------------


def verdict_of_runs(records: Sequence[RunRecord], groups: Sequence[Group]) -> Verdict:
    """Return the verdict on several runs: how many learned, and which configuration is best."""
    found = outcomes(groups)
    learned, judged = sum(o.learned for o in found), [r for r in records if _is_judged(r)]
    parts = []
    if judged:
        parts.append(f"{learned} of {plural(len(judged), 'run')} learned")
    known = [o for o in found if o.losses]
    if len(known) > 1:
        parts.append(f"{known[0].group.label} ends lowest, at {known[0].words}")
    elif known:
        parts.append(f"the validation loss ends at {known[0].words}")
    if not parts:
        parts.append(f"{plural(len(records), 'run')}, and none was evaluated")
    reasons = [] if len(known) < 2 else [_lead(*known[:2])]
    if len({_task(record) for record in records}) > 1:
        reasons.append("The runs differ in their data or model: their losses cannot be compared.")
    if learned:
        none = [o for o in found if o.judged and not o.learned]
        some = [o for o in found if 0 < o.learned < o.judged]
        for of, word in ((none, "No run"), (some, "Only some runs")):
            if of:
                reasons.append(f"{word} learned of {_some([o.group.label for o in of])}.")
    for status in ("collapsed", "failed", "interrupted", UNFINISHED):
        count = sum(r.summary.get("status") == status for r in records)
        if count:
            word = (
                ("is not over" if count == 1 else "are not over")
                if status == UNFINISHED
                else status
            )
            reasons.append(f"{plural(count, 'run')} {word}.")
    text = "; ".join(parts)
    return Verdict(f"{text[0].upper()}{text[1:]}.", reasons)


def figures_of_runs(records: Sequence[RunRecord], groups: Sequence[Group]) -> list[Figure]:
    """Return the numbers that decide the verdict on several runs."""
    found = [o for o in outcomes(groups) if o.losses]
    judged = [r for r in records if _is_judged(r)]
    figures = []
    if judged:
        learned = sum(r.summary["learned"] for r in judged)
        figures.append(Figure(f"{learned} of {len(judged)}", "runs learned"))
    if len(found) > 1:
        best, worst = found[0], found[-1]
        figures.append(Figure(loss(best.mean), "lowest validation loss", best.group.label))
        figures.append(Figure(loss(worst.mean), "highest", worst.group.label))
    collapsed = sum(bool(r.summary.get("collapses")) for r in records)
    figures.append(Figure(str(collapsed), "collapsed", "runs, also those that went on"))
    seeds = {str(r.summary.get("seed")) for r in records}
    figures.append(Figure(str(len(groups)), "configurations", plural(len(seeds), "seed")))
    return figures


def _lead(best: Outcome, second: Outcome) -> str:
    """Say whether the seeds tell the two lowest apart: in pairs where both have the same seeds."""
    gap = f"That is {number(second.mean - best.mean, 3)} below {second.group.label}"
    if min(len(best.losses), len(second.losses)) < 2:
        return f"{gap}; with one seed each, a small gap may be chance."
    ours, others = best.of_seeds, second.of_seeds
    if ours.keys() == others.keys():
        lower = sum(ours[seed] < others[seed] for seed in ours)
        if lower == len(ours):
            return f"{gap}, and lower with each of {lower} seeds."
        of = f"{lower} of {len(ours)} seeds"
        return f"{gap}, but lower with only {of}: they do not tell the two apart."
    if max(best.losses) < min(second.losses):
        return f"{gap}, and each of its seeds is below each of the other's."
    return f"{gap}, but their seeds overlap: they do not tell the two apart."


def _task(record: RunRecord) -> str:
    """Return the facts of data and model, as text, without what is a remark."""
    facts = record.summary.get("workload_facts") or {}
    return json.dumps(
        {k: v for k, v in facts.items() if k != "notice"}, sort_keys=True, default=str
    )


def _is_judged(record: RunRecord) -> bool:
    return record.summary.get("learned") is not None


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def is_finite(value: Any) -> bool:
    """Whether a value of a summary is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
