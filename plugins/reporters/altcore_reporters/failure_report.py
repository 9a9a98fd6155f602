"""The reporter ``failure-report``: where training broke, and what was measured there.

It is written from the run's own record, so it can be written again at any time. It begins with the
conclusion and has a section for each cause. What was not measured is left out, and one line says
which plugin would measure it; what a report says follows from the measurements, never from a
format's name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field

from altcore.plugin import RunRecord, hookimpl, read_run, replace_text
from altcore_reporters.failure_measures import gradients, losses, readings, stalls
from altcore_reporters.failure_samples import (
    interpretation,
    not_measured,
    samples,
    sparsity,
    unmoved,
)
from altcore_reporters.markdown import (
    MISSING,
    caution,
    number,
    overflow,
    rate,
    some,
    table,
    text,
)

if TYPE_CHECKING:
    from altcore.plugin import Run

FILE = "failure.md"
LAST_STEPS = 10

CAUSES = {
    "nan_patience": "too many consecutive steps were not finite",
    "diverged": "the loss diverged",
    "stalled": "most updates of stored weights moved nothing, and nothing was learned",
    "dead_gradients": "gradients are dead, and the loss stood still",
    "stopped": "a plugin stopped the run in a step that was not finite",
}

DISCARDING = ("SkipStep", "Rollback", "Stop")
"""Actions in place of an update."""
SHARES = ("parameter_share", "flop_share")

Event = Mapping[str, Any]


@attrs.define(eq=False)
class FailureReport:
    """Writes ``reports/failure.md``, with a section for every cause of a collapse of the run.

    A Stop in a step that was not finite counts as one. The file is written after each verdict on
    a collapse and again at the end, when it is known what became of the run.
    """

    is_collapsing: bool = field(init=False, default=False)
    nonfinite_step: int = field(init=False, default=0)

    @hookimpl
    def on_event(self, run: Run, event: Event) -> None:
        """Write when the verdict on a collapse is there."""
        kind = event["event"]
        path = run.reports_dir / FILE
        if kind == "collapse":
            self.is_collapsing = True
        elif kind == "nan":
            self.nonfinite_step = event["step"]
        elif kind == "verdict":
            is_stop = _is_stop(event) and self.nonfinite_step == event["step"]
            if self.is_collapsing or is_stop:
                self.is_collapsing = False
                write(read_run(run.directory), path)
                self._tell(run, path)
        elif kind == "end" and (path.exists() or self.is_collapsing):
            # Also for a run that failed between a collapse and the verdict on it.
            write(read_run(run.directory), path)

    def _tell(self, run: Run, path: Path) -> None:
        relative = path.relative_to(run.directory).as_posix()
        if relative not in run.reports:
            run.reports.append(relative)
            run.emit("report", path=relative)

    def render(self, runs: Sequence[RunRecord], out: Path) -> list[Path]:
        """Write the reports of recorded runs into the folder ``out``; returns their paths."""
        out.mkdir(parents=True, exist_ok=True)
        if len(runs) == 1:
            return [write(runs[0], out / FILE)]
        # Numbered, since runs of different folders may have one name.
        return [write(r, out / f"failure-{i}-{r.name}.md") for i, r in enumerate(runs, start=1)]


def write(record: RunRecord, path: Path) -> Path:
    """Write the report of a run, at once or not at all; returns ``path``."""
    return replace_text(path, Report(record).markdown())


class Report:
    """The report of a run, section by section."""

    def __init__(self, record: RunRecord) -> None:
        self.config, self.environment = record.config, record.environment
        self.summary, self.metrics = record.summary, record.steps
        self.problems = record.problems
        self.events = happened(record.events)

    def markdown(self) -> str:
        """Return it in Markdown."""
        found = self.breakdowns()
        title = f"# {text(self.summary['name'])}: "
        if found:
            title += f"{found[0][0]['cause']} at step {found[0][0]['step']}"
        else:
            title += "no collapse was recorded"
        by_cause: dict[str, list[tuple[Event, Event | None]]] = {}
        for event, verdict in found:
            by_cause.setdefault(event["cause"], []).append((event, verdict))
        firsts = [several[0][0] for several in by_cause.values()]
        sections = [[title], *([part] for part in caution(self.problems))]
        sections += [self._conclusion(firsts), self._head(), self._summary()]
        for several in by_cause.values():
            sections += self._breakdown(several)
        if not found:
            end = math.inf
            sections += measured(
                ("## Last steps", self._last_steps(end)),
                ("## Gradients and the grid", sparsity(self.metrics, end)),
                ("## Zero-update regions", unmoved(self.metrics, end)),
                ("## The last samples of the diagnostics", samples(self.metrics, end)),
            )
        if missing := not_measured(self.metrics):
            sections.append(["## Not measured", "", missing])
        if warnings := self._all("warning"):
            rows = [(str(e["step"]), text(e["message"])) for e in warnings]
            sections.append(["## Warnings: no collapse", "", *table(("step", ""), rows)])
        sections.append(["## Environment", "", self._environment()])
        return "\n\n".join("\n".join(lines) for lines in sections) + "\n"

    def breakdowns(self) -> list[tuple[Event, Event | None]]:
        """Return each collapse (or Stop in a non-finite step) with the verdict on it."""
        found: list[tuple[Event, Event | None]] = []
        nonfinite = {e["step"] for e in self.events if e["event"] == "nan"}
        for event in self.events:
            if event["event"] == "collapse":
                found.append((event, None))
            elif event["event"] == "verdict":
                if found and found[-1][1] is None:
                    found[-1] = found[-1][0], event
                elif _is_stop(event) and event["step"] in nonfinite:
                    found.append(({**event, "cause": "stopped", "reason": _reasons(event)}, event))
        return found

    # The whole run ---------------------------------------------------------------------------

    def _conclusion(self, events: Sequence[Event]) -> list[str]:
        """Say how the run went, and what the measurements mean, cause by cause."""
        verdict = self.summary["verdict"] or "not over when this was written"
        lines = ["## Conclusion", "", f"**{text(verdict)}**."]
        for event in events:
            cause = text(CAUSES.get(event["cause"], event["cause"]))
            lines += ["", f"Step {event['step']}, {cause}:", ""]
            first = self._streak(event["step"])[:1]
            since = first[0]["step"] if first else None
            lines += interpretation(event, self.metrics, self.config, since)
            lines += [f"- {text(_not_finite(e))}" for e in first]
        return lines

    def _streak(self, step: int) -> list[Event]:
        """Return what was not finite up to a step: the last of it, on consecutive steps."""
        met = [e for e in self._all("nan") if e["step"] <= step]
        first = max(0, len(met) - 1)
        while first and met[first - 1]["step"] == met[first]["step"] - 1:
            first -= 1
        return met[first:]

    def _head(self) -> list[str]:
        recipe = self.config.get("recipe")
        if isinstance(recipe, dict):
            recipe = recipe.get("name", "given in config.yaml")
        status = self.summary["status"]
        rows = {
            "format": self.environment.get("format") or self.config.get("format"),
            "recipe": recipe,
            "started": self.environment.get("started"),
            "status": "not over when this was written" if status == "unfinished" else status,
        }
        for shift in self._all("recipe"):
            to = ", ".join(shift["to"]) or "none"
            rows[f"formats from step {shift['step'] + 1}"] = f"{to} (by {shift['plugin']})"
        return table(("", ""), [(k, text(v)) for k, v in rows.items() if v is not None])

    def _summary(self) -> list[str]:
        own = self.summary
        about = self.environment
        share = {k: own[k] if own[k] is not None else about.get(k) for k in SHARES}
        rows = [
            ("steps (batches drawn)", f"{text(own['steps'])} of {text(self.config['max_steps'])}")
            if "max_steps" in self.config
            else ("steps (batches drawn)", text(own["steps"])),
            ("failure step", text(own.get("failure_step"))),
            ("reason", text(own.get("failure_reason"))),
            ("shifted to", self._shifted("to")),
            ("shift step", self._shifted("step")),
            ("discarded steps", text(self._discarded())),
            ("loss, last recorded", number(self.metrics[-1]["loss"] if self.metrics else None)),
            ("validation loss", number(own.get("val_loss"))),
            ("validation loss, float32 products", number(own.get("val_loss_float32"))),
            (self._best_label(), number(own.get("best_val_loss"))),
            ("parameters quantized", rate(share["parameter_share"])),
            ("FLOPs quantized", rate(share["flop_share"])),
            ("stored weights stalled, mean of recorded steps", rate(own.get("stored_stall_rate"))),
            ("views stalled, mean of recorded steps", rate(own.get("view_stall_rate"))),
            ("overflow, mean of recorded steps", overflow(own)),
            ("flushed to zero, mean of recorded steps", rate(own.get("flushed_rate"))),
        ]
        return ["## Summary", "", *table(("", ""), [r for r in rows if r[1] != MISSING])]

    def _discarded(self) -> int:
        """Return how many steps made no update, recorded or not."""
        if (known := self.summary.get("discarded")) is not None:
            return int(known)
        # The run is not over: there is no summary that counted them.
        found = [x for x in self.metrics if x.get("discarded")] + self._all("nan")
        # A verdict with a cause is on a collapse: it comes after the update.
        found += [e for e in self._all("verdict") if not e.get("cause") and _has(e, *DISCARDING)]
        return len({x["step"] for x in found})

    def _best_label(self) -> str:
        monitor = self.summary.get("monitor") or "val_loss"
        own = monitor == "val_loss"
        return "best validation loss" if own else f"validation loss at the best {monitor}"

    def _shifted(self, key: str) -> str:
        shifts = self.summary.get("shifts")
        if not shifts:
            return "no shift" if shifts is not None else MISSING
        last = shifts[-1][key]
        return text(", ".join(last) or "none") if isinstance(last, list) else text(last)

    def _environment(self) -> str:
        about = self.environment
        if not about:
            return MISSING.capitalize() + "."
        git = about.get("git") or {}
        commit = f"{git['commit'][:12]}{' (changed)' * bool(git.get('dirty'))}" if git else MISSING
        parts = [
            f"altcore {about.get('altcore', MISSING)}",
            f"torch {about.get('libraries', {}).get('torch', MISSING)}",
            f"Python {about.get('python', MISSING)}",
            f"device {about.get('device', MISSING)}",
            f"seed {about.get('seed', self.config.get('seed', MISSING))}",
            f"git {commit}",
            "plugins " + (", ".join(about.get("plugins", {})) or "none"),
        ]
        return text("; ".join(parts)) + "."

    # One collapse ----------------------------------------------------------------------------

    def _breakdown(self, several: Sequence[tuple[Event, Event | None]]) -> list[list[str]]:
        """Return the sections of one cause: its first collapse, and when it came again."""
        (event, verdict), *again = several
        step = event["step"]
        about = f"## Step {step}: {text(CAUSES.get(event['cause'], event['cause']))}"
        rows = [
            (str(e["step"]), text(e["reason"]), text(v["outcome"]) if v else "") for e, v in again
        ]
        repeats = table(("step", "reason", "outcome"), rows) if rows else []
        return measured(
            (about, [f"{text(event['reason'])}."]),
            ("### What was measured", [f"- {x}" for x in readings(event)]),
            ("### What was not finite first", self._nonfinite(step)),
            ("### Gradients", gradients(event)),
            ("### Updates that moved nothing, by layer", stalls(event)),
            ("### Lost in quantization, by layer", losses(event)),
            ("### Gradients and the grid", sparsity(self.metrics, step)),
            ("### Zero-update regions", unmoved(self.metrics, step)),
            (f"### The last {LAST_STEPS} recorded steps", self._last_steps(step)),
            ("### The last samples of the diagnostics", samples(self.metrics, step)),
            ("### What was proposed, and what was done", self._done(event, verdict)),
            ("### The same cause again", repeats),
        )

    def _nonfinite(self, step: int) -> list[str]:
        met = [e for e in self._all("nan") if e["step"] <= step]
        if not met:
            return []
        several = self._streak(step)
        head = ("step", "what", "layer", "operand", "value")
        shown = several if len(several) == 1 else (several[0], several[-1])
        rows = [tuple(text(e.get(k)) for k in head) for e in shown]
        of = f"the first and the last of {len(several)} consecutive ones"
        which = of if len(several) > 1 else "one"
        when = "now" if met[-1]["step"] == step else f"last at step {met[-1]['step']}"
        return [
            f"Non-finite steps so far: {len(met)}; {when}, {which}:",
            "",
            *table(head, rows),
        ]

    def _last_steps(self, step: float) -> list[str]:
        lines = [line for line in self.metrics if line["step"] <= step][-LAST_STEPS:]
        columns = {
            "step": [str(x["step"]) for x in lines],
            "loss": [number(x["loss"]) for x in lines],
            "gradient norm, raw": [number(x.get("grad_norm")) for x in lines],
            "learning rate": [number(x.get("learning_rate")) for x in lines],
            "stored stall": [rate(x.get("stored_stall_rate")) for x in lines],
            "view stall": [rate(x.get("view_stall_rate")) for x in lines],
            "overflow": [overflow(x) for x in lines],
            "flushed": [rate(x.get("flushed_rate")) for x in lines],
            "": ["discarded" if x.get("discarded") else "" for x in lines],
        }
        kept = {name: own for name, own in columns.items() if set(own) - {MISSING, ""}}
        return table(tuple(kept), list(zip(*kept.values(), strict=True))) if lines else []

    def _done(self, event: Event, verdict: Event | None) -> list[str]:
        if verdict is None:
            return []
        proposals = [(p, "chosen") for p in verdict["chosen"]]
        proposals += [(p, f"refused: {p['why']}") for p in verdict["refused"]]
        rows = [
            (text(p["plugin"]), text(_action(p)), text(p["reason"]), text(fate))
            for p, fate in proposals
        ]
        lines = table(("plugin", "action", "reason", "verdict"), rows) if rows else []
        if not rows:
            lines = ["No plugin proposed anything."]
        lines += ["", f"Outcome: {text(verdict['outcome'])}."]
        for other in self.events:
            if other["step"] == event["step"] and other["event"] in ("recipe", "rollback"):
                lines.append(f"- {text(_consequence(other))}")
        return lines

    def _all(self, kind: str) -> list[Event]:
        return [e for e in self.events if e["event"] == kind]


def measured(*sections: tuple[str, Sequence[str]]) -> list[list[str]]:
    """Return the sections that have anything, each under its heading."""
    return [[heading, "", *lines] for heading, lines in sections if lines]


def happened(events: Iterable[Event]) -> list[Event]:
    """Return the events without those that a resumed run took back and went through again."""
    kept: list[Event] = []
    for event in events:
        if event["event"] == "resume":
            kept = [e for e in kept if e["step"] <= event["step"] and e["event"] != "end"]
        kept.append(event)
    return kept


def _action(plain: Mapping[str, Any]) -> str:
    parts = [plain["action"]]
    for key, value in plain.items():
        if key not in ("plugin", "action", "reason", "why") and value != []:
            words = some(value) if isinstance(value, list) else value
            parts.append(f"{key} {'none' if value is None else words}")
    return ", ".join(parts)


def _consequence(event: Event) -> str:
    if event["event"] == "rollback":
        return f"rolled back to step {event['to']} by {event['plugin']}"
    errors = [e for e in (event.get("stored_error") or {}).values() if isinstance(e, int | float)]
    worst = f"; largest relative error of re-encoding {max(errors):.3g}" if errors else ""
    to = ", ".join(event["to"]) or "none"
    return f"formats {', '.join(event['from'])} -> {to} by {event['plugin']}{worst}"


def _not_finite(nan: Event) -> str:
    """Say what was not finite first, and where."""
    where = f" of {nan['layer']}" if nan.get("layer") else ""
    operand = f" ({nan['operand']})" if nan.get("operand") else ""
    return f"At step {nan['step']} the {nan['what']}{where}{operand} was not finite first."


def _is_stop(verdict: Event) -> bool:
    return _has(verdict, "Stop")


def _has(verdict: Event, *actions: str) -> bool:
    return any(p["action"] in actions for p in verdict["chosen"])


def _reasons(verdict: Event) -> str:
    return "; ".join(p["reason"] for p in verdict["chosen"])
