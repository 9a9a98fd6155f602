"""The reporter ``loss-slope-study``: both hypotheses of the loss-slope study, and GO or NO-GO."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs.validators import and_, ge, le

from altcore.plugin import BadInput, replace_text, setting
from altcore_reporters.markdown import row, some, table, text
from altcore_reporters.page.reporter import Page
from altcore_reporters.slope_study.estimates import Estimate
from altcore_reporters.slope_study.hypotheses import (
    Limits,
    Result,
    Verdict,
    first_hypothesis,
    second_hypothesis,
)
from altcore_reporters.slope_study.trust import Demands, Range, Trust, trust_of

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

FILE = "loss_slope_study.md"
PLUGIN = "loss-slope"
RETRIED = "retry"
"""The tag of a run whose settings a retry changed."""
MEASURES: Mapping[str, int | str] = {
    **dict.fromkeys(("loss", "loss_bits", "accuracy", "learning_rate"), 1),
    "loss-slope/weight_decay": 1,
    **dict.fromkeys(("loss-slope/point_loss", "val_loss", "val_accuracy"), "0.25 epoch"),
    "grad-stats/grad_norm_periodic": "0.25 epoch",
    "grad-stats/weight_norm_periodic": "0.25 epoch",
    **dict.fromkeys(("curvature/lambda_max", "curvature/hutchinson_trace"), 500),
    **dict.fromkeys(("noise/psd_tail", "noise/total_power"), "2 epochs"),
    **dict.fromkeys(("noise/gradient_variance", "noise/residual_power"), "2 epochs"),
}
"""What each run of the study has, and the most steps or epochs between two values."""
RANGES: Mapping[str, Range] = {
    "loss": (0, 10),
    "accuracy": (0, 1),
    "val_accuracy": (0, 1),
    "learning_rate": (1e-12, None),
    "loss-slope/knee_epoch": (1, 20),
}
"""Lowest and highest value of the study's measures."""
SHOWN = 20
"""Reasons that are named; the others are counted by what they say."""


def _share() -> Any:
    return and_(ge(0), le(1))


@attrs.define(eq=False)
class LossSlopeStudy:
    """Says whether the loss follows a power law, and whether its early slope tells the end.

    Writes ``loss_slope_study.md``, and beside it the page of the runs. Runs whose settings a retry
    changed are left out.
    """

    r_squared: float = setting(
        0.98, help="R² from which a power law fits a run", validator=_share()
    )
    share: float = setting(
        0.9,
        help="share of the runs that it has to fit, by the first hypothesis",
        validator=_share(),
    )
    correlation: float = setting(
        0.7, help="correlation that the second hypothesis asks for", validator=_share()
    )
    sample_r_squared: float = setting(
        0.95, help="median R² above which data can be trusted", validator=_share()
    )
    measures: dict[str, Any] = setting(
        factory=dict,
        help="measures that each run must have, with the most steps between two values, or epochs, "
        "as `2 epochs`; those of the study if empty",
    )
    ranges: dict[str, Any] = setting(
        factory=dict,
        help="`[LOWEST, HIGHEST]` value by measure, null for no limit; those of the study if empty",
    )
    with_changed: bool = setting(False, help="whether runs count that a retry changed")

    def render(self, runs: Sequence[RunRecord], out: Path) -> list[Path]:
        """Write the verdicts on some runs, and their page."""
        counted = [r for r in runs if self.with_changed or not is_changed(r)]
        if not counted:
            raise BadInput("no run is left: a retry changed each of them", hint="with_changed=true")
        found = [result_of(record) for record in counted]
        left_out = [r.name for r in runs if r not in counted]
        told = verdicts(found, self.limits, self.trust(counted, found, left_out), left_out)
        return [replace_text(out / FILE, told), *Page().render(counted, out)]

    @property
    def limits(self) -> Limits:
        """What the hypotheses ask for."""
        return Limits(r_squared=self.r_squared, share=self.share, correlation=self.correlation)

    def trust(
        self, records: Sequence[RunRecord], results: Sequence[Result], left_out: Sequence[str] = ()
    ) -> Trust:
        """Return whether the data of some runs can be trusted, whose results are given."""
        demands = Demands(
            every=self.measures or MEASURES,
            ranges=self.ranges or RANGES,
            r_squared=self.sample_r_squared,
        )
        return trust_of(records, results, demands, left_out)


def is_changed(record: RunRecord) -> bool:
    """Return whether a retry changed settings of a run."""
    return RETRIED in (record.config.get("tags") or ())


def result_of(record: RunRecord) -> Result:
    """Return what the study has of a run; `BadInput` if the diagnostic did not run."""
    rows = (record.summary.get("findings") or {}).get(PLUGIN) or ()
    known: Mapping[str, Any] = next((r for r in rows if isinstance(r, Mapping)), {})
    if not known:
        raise BadInput(
            f"{record.name} has no findings of the diagnostic {PLUGIN}",
            hint=f"train with --plugin {PLUGIN}, on a workload that has epochs",
        )
    early = next(
        (v for k, v in known.items() if k.startswith("alpha_") and k != "alpha_full"), None
    )
    try:
        return Result(
            run_id=record.name,
            variant=str(record.config.get("label") or ""),
            r_squared=known.get("r_squared"),
            alpha_early=early,
            best_val_ce=record.summary.get("best_val_loss"),
        )
    except ValueError as error:
        raise BadInput(f"{record.name}: {error}") from error


def verdicts(
    results: Sequence[Result], limits: Limits, trust: Trust, left_out: Sequence[str] = ()
) -> str:
    """Return the verdicts as Markdown."""
    first, second = first_hypothesis(results, limits), second_hypothesis(results, limits)
    out = f"{len(left_out)} were left out, since a retry changed them: {some(left_out)}."
    lines = [
        "# Loss slope",
        "",
        f"**{'GO' if trust.is_go else 'NO-GO'}: the data "
        f"{'can' if trust.is_go else 'cannot'} be trusted.** "
        f"H1 {first[0].word}; H2 {second[0].word}.",
        "",
        f"{len(results)} runs." + (f" {out}" if left_out else ""),
        "",
        "## H1: the loss follows a power law",
        "",
        f"More than {limits.share:.0%} of the runs have R² of at least {limits.r_squared:g} after "
        "the burn-in. A run that was not fitted counts against it. Intervals are exact (Clopper "
        "and Pearson), 95 %, and take runs as independent.",
        "",
        *_first_table(first),
        "",
        "## H2: the early slope tells the best validation loss",
        "",
        f"Their correlation is at least {limits.correlation:g}. Pearson's decides; Spearman's, of "
        "ranks, stands beside it. Intervals are by Fisher's transform, 95 %.",
        "",
        *_second_table(second),
        "",
        "## Whether the data can be trusted",
        "",
        *_reasons(trust),
        "",
        "| measure | steps between values |",
        row(["---"] * 2),
        *(row([f"`{name}`", each]) for name, each in trust.intervals.items()),
    ]
    return "\n".join([*lines, ""])


def _first_table(found: Sequence[Verdict]) -> list[str]:
    head = ["runs of", "share", "interval", "runs", "not fitted", "H1"]
    return table(
        head,
        (
            [
                text(v.of),
                f"{v.estimate.value:.1%}",
                f"{v.estimate.low:.1%} to {v.estimate.high:.1%}",
                str(v.estimate.n),
                str(v.left_out),
                v.word,
            ]
            for v in found
        ),
    )


def _second_table(found: Sequence[Verdict]) -> list[str]:
    head = ["runs of", "Pearson", "interval", "Spearman", "interval", "pairs", "left out", "H2"]
    return table(
        head,
        (
            [
                text(v.of),
                *_told(v.estimate),
                *_told(v.beside or v.estimate),
                str(v.estimate.n),
                str(v.left_out),
                v.word,
            ]
            for v in found
        ),
    )


def _told(found: Estimate) -> tuple[str, str]:
    if math.isnan(found.value):
        return "n/a", "n/a"
    if math.isnan(found.low):
        return f"{found.value:.3f}", "n/a"
    return f"{found.value:.3f}", f"{found.low:.3f} to {found.high:.3f}"


def _reasons(trust: Trust) -> Iterable[str]:
    if trust.is_go:
        yield (
            "Every run was fitted, and its files are as it left them. Every measure is there at "
            "its frequency, from the first step to the last, finite, and within its range."
        )
        return
    for name, problem in trust.reasons[:SHOWN]:
        yield f"- {text(name) + ': ' if name else ''}{text(problem)}"
    for problem, count in Counter(problem for _, problem in trust.reasons[SHOWN:]).most_common():
        yield f"- {count} more: {text(problem)}"
