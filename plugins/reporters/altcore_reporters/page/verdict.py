"""The verdict on runs in a sentence, and what it rests on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from altcore_reporters.intervals import Values, common_seeds, comparable, seed_means
from altcore_reporters.leads import Lead, Rival, lead_of
from altcore_reporters.original_names import FAILED, STATES
from altcore_reporters.page.words import NONE, duration, loss, number, plural, share
from altcore_reporters.run_facts import is_again

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
    runs: Sequence[RunRecord]
    """Those of the group that are no copies of others."""
    values: Values
    """The validation losses at the end by seed, of the runs that did not fail."""
    compared: Values
    """Those in the seeds that all configurations have, as by `comparable`."""
    failed: Sequence[str | None]
    """The seeds of the runs that failed, or whose validation loss is not finite."""

    @property
    def judged(self) -> list[bool]:
        """Of each run that was evaluated, whether it learned."""
        learned = (record.summary.get("learned") for record in self.runs)
        return [bool(value) for value in learned if value is not None]

    @property
    def learned(self) -> int:
        """How many runs learned."""
        return sum(self.judged)

    @property
    def losses(self) -> list[float]:
        """The losses that are compared, one a seed."""
        return seed_means(self.compared)

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
        runs = [r for i, r in enumerate(group.records) if not is_again(r, group.records[:i])]
        values: dict[str | None, list[float]] = {}
        failed = []
        for record in runs:
            own, seed = record.summary.get("val_loss"), record.summary.get("seed")
            key = None if seed is None else str(seed)
            if STATES.get(str(record.summary.get("status"))) in FAILED:
                failed.append(key)
            elif is_finite(own):
                values.setdefault(key, []).append(own)
            elif own is not None or record.summary.get("learned") is not None:
                failed.append(key)  # it was evaluated, and a summary holds null for NaN
        found.append(Outcome(group, runs, values, values, failed))
    known = [o for o in found if o.values]
    kept = comparable(*(o.values for o in known))
    known = [evolve(o, compared=values) for o, values in zip(known, kept, strict=True)]
    return [*sorted(known, key=lambda o: o.mean), *(o for o in found if not o.values)]


def lead_among(found: Sequence[Outcome]) -> Lead | None:
    """Return the lead as the reports have it; configurations are called by their place."""
    return lead_of(
        {str(i): outcome.values for i, outcome in enumerate(found)},
        {str(i): outcome.failed for i, outcome in enumerate(found)},
    )


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
    if "val_loss" not in last:
        return []
    value = last["val_loss"]
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


def verdict_of_runs(groups: Sequence[Group]) -> Verdict:
    """Return the verdict on several runs: how many learned, and which configuration is best."""
    found = outcomes(groups)
    records = [record for o in found for record in o.runs]
    learned, judged = sum(o.learned for o in found), sum(len(o.judged) for o in found)
    parts = []
    if judged:
        parts.append(f"{learned} of {plural(judged, 'run')} learned")
    known = [o for o in found if o.losses]
    lead = lead_among(known)
    if lead and lead.rivals:
        label = known[0].group.label
        parts.append(f"{label} ends lowest, at {known[0].words}{lead.about_failures}")
    elif known:
        parts.append(f"the validation loss ends at {known[0].words}")
    if not parts:
        parts.append(f"{plural(len(records), 'run')}, and none was evaluated")
    reasons = list(_reasons(lead, known)) if lead and lead.rivals else []
    if copies := [r.name for o in found for r in o.group.records if r not in o.runs]:
        reasons.append(f"Copies of other runs, which count once: {_some(copies)}.")
    if len({_task(record) for record in records}) > 1:
        reasons.append("The runs differ in their data or model: their losses cannot be compared.")
    if learned:
        none = [o for o in found if o.judged and not o.learned]
        some = [o for o in found if 0 < o.learned < len(o.judged)]
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


def figures_of_runs(groups: Sequence[Group]) -> list[Figure]:
    """Return the numbers that decide the verdict on several runs."""
    every = outcomes(groups)
    records = [record for o in every for record in o.runs]
    found, judged = [o for o in every if o.losses], [x for o in every for x in o.judged]
    figures = []
    if judged:
        figures.append(Figure(f"{sum(judged)} of {len(judged)}", "runs learned"))
    if len(found) > 1:
        best, worst = found[0], found[-1]
        figures.append(Figure(loss(best.mean), "lowest validation loss", best.group.label))
        figures.append(Figure(loss(worst.mean), "highest", worst.group.label))
    collapsed = sum(bool(r.summary.get("collapses")) for r in records)
    figures.append(Figure(str(collapsed), "collapsed", "runs, also those that went on"))
    seeds = {str(r.summary.get("seed")) for r in records}
    figures.append(Figure(str(len(groups)), "configurations", plural(len(seeds), "seed")))
    return figures


def _reasons(lead: Lead, known: Sequence[Outcome]) -> Iterator[str]:
    """Say whether the seeds tell the lowest from the second, and who is ahead of it."""
    labels = [o.group.label for o in known]
    if lead.about_seeds:
        yield lead.about_seeds
    if lead.repeated:
        yield f"{_some([labels[int(i)] for i in lead.repeated])}: {lead.about_repeats}."
    ahead = [labels[int(r.format)] for r in lead.rivals if r.is_ahead]
    if ahead:
        yield f"In the seeds that both have, it is above {_some(ahead)}."
    if not lead.rivals[0].is_ahead:
        yield _gap(lead.rivals[0], known[0].values, known[1].values, labels[1])


def _gap(second: Rival, ours: Values, others: Values, label: str) -> str:
    """Say whether the seeds tell the two lowest apart."""
    change = second.change
    if second.is_equal:
        return f"That equals {label} with every seed."
    gap = f"That is {number(change.mean, 3)} below {label}"
    if change.n < 2:
        return f"{gap}; with one seed each, a small gap may be chance."
    apart = second.is_distinguishable
    if seeds := common_seeds(ours, others):
        lower = sum(fmean(ours[seed]) < fmean(others[seed]) for seed in seeds)
        if lower == len(seeds):
            not_apart = "" if apart else ", but these do not tell the two apart"
            return f"{gap}, and lower with each of {lower} seeds{not_apart}."
        of = f"{lower} of {len(seeds)} seeds"
        if apart:
            return f"{gap}, and lower with {of}, which tell the two apart."
        return f"{gap}, but lower with only {of}: they do not tell the two apart."
    if apart:
        return f"{gap}, and their seeds tell the two apart."
    return f"{gap}, but their seeds overlap: they do not tell the two apart."


def _task(record: RunRecord) -> str:
    """Return the facts of data and model, as text, without what is a remark."""
    facts = record.summary.get("workload_facts") or {}
    return json.dumps(
        {k: v for k, v in facts.items() if k != "notice"}, sort_keys=True, default=str
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def is_finite(value: Any) -> bool:
    """Whether a value of a summary is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
