"""``altcore sweep list`` and ``status``: which job is where, and how the sweep goes."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from altcore.builtin_types import duration
from altcore.cli.options import AS_JSON, once, print_json
from altcore.cli.sweep_options import SWEEPS_DIR
from altcore.cli.terminal import echo, paragraph, print_table
from altcore.errors import BadInput, nearest

if TYPE_CHECKING:
    from altcore.sweep import Row, Status

STATES = ("waiting", "running", "completed", "failed", "damaged", "collapsed")
"""The states of jobs; collapsed ones are completed."""
DAMAGED, RUNNING = "damaged", "running"
LOOK = 2.0
"""Least seconds between two looks at a sweep."""
SHARE = 10
"""A look is followed by a pause so many times as long."""
SHOWN = 5


@click.command("list")
@click.argument("name")
@once("--status", "wanted", metavar="STATE", help=f"Only those that are {', '.join(STATES)}.")
@AS_JSON
@SWEEPS_DIR
def list_(name: str, wanted: str | None, as_json: bool, sweeps_dir: str) -> None:
    """List the jobs with their states."""
    from altcore.sweep import open_sweep, survey

    if wanted is not None and wanted not in STATES:
        known, meant = ", ".join(STATES), nearest(wanted, STATES)
        raise BadInput(f"{wanted!r} is none of {known}", key="--status", meant=meant)
    _, ledger = open_sweep(name, sweeps_dir)
    rows = [row for row in survey(ledger) if wanted in (None, row.state.value, _status(row))]
    if as_json:
        print_json([{"name": row.name, **_facts(row)} for row in rows])
        return
    table = [[row.name, row.state.value, str(row.attempts), _time(row), _told(row)] for row in rows]
    print_table(["job", "state", "attempts", "time", ""], table)


def _status(row: Row) -> str:
    return "collapsed" if row.is_collapsed else row.exit.status if row.exit else ""


def _facts(row: Row) -> dict[str, object]:
    return {
        "state": row.state.value,
        "attempts": row.attempts,
        "status": _status(row),
        "seconds": row.seconds,
        "verdict": row.exit.verdict if row.exit else "",
        "error": row.exit.error if row.exit else "",
        "why": row.why,
        "changed": dict(row.changed),
        "lost": row.is_lost,
    }


def _time(row: Row) -> str:
    return duration(row.seconds) if row.seconds else ""


def _told(row: Row) -> str:
    if row.is_lost:
        return "its worker is gone"
    if row.lacks_run or row.state.value == DAMAGED:
        return row.why
    # What the attempt before came to is nothing about one that goes on.
    ended = row.exit if row.state.value != RUNNING else None
    told = (ended.error or ended.verdict) if ended else ""
    changed = ", ".join(f"{key} {value}" for key, value in row.changed.items())
    return "; ".join(filter(None, (told, changed and f"with {changed}")))


@click.command()
@click.argument("name")
@click.option("--watch", is_flag=True, help="Show it again while it changes, until all is done.")
@click.option("--show-failed", is_flag=True, help="Name each failed job, with its error.")
@AS_JSON
@SWEEPS_DIR
def status(
    name: str, sweeps_dir: str, *, watch: bool, show_failed: bool, as_json: bool
) -> int | None:
    """Show counts, the time that is left, and what is wrong.

    The exit code is 1 if a job failed.
    """
    from altcore.sweep import open_sweep, status_of

    before: object = None
    while True:
        began = time.monotonic()
        asked, ledger = open_sweep(name, sweeps_dir)
        found = status_of(asked, ledger)
        plain = found.to_plain()
        if plain != before:
            _clear(watch and before is not None)
            if as_json:
                print_json(plain)
            else:
                print_status(ledger.folder.name, found, show_failed=show_failed)
        before = plain
        if not watch or found.is_over:
            return 1 if found.failed else None
        time.sleep(max(LOOK, SHARE * (time.monotonic() - began)))


def _clear(again: bool) -> None:
    """Begin the screen anew on a terminal; elsewhere leave a blank line."""
    if again and sys.stdout.isatty():
        click.clear()
    elif again:
        echo()


def print_status(name: str, found: Status, *, show_failed: bool) -> None:
    """Print how a sweep stands."""
    echo(f"{name}: {len(found.rows)} job{'s' * (len(found.rows) != 1)}")
    more = {
        "completed": _parts(
            (found.collapsed, "collapsed"), (found.changed, "with a setting that a retry changed")
        ),
        "running": _parts((found.lost, "without its worker, which is gone")),
        "waiting": _parts((found.lacking_run, "completed, but the run is missing")),
    }
    for state, count in found.counts.items():
        if count or state != "damaged":
            echo(f"  {state:<9} {count:>6}{more.get(state, '')}")
    if found.mean_seconds is not None:
        echo(f"a run takes {duration(found.mean_seconds)} on average{_told_left(found)}")
    if not found.is_over and not found.slots:
        echo(f"nothing runs at this moment: altcore sweep run {name} goes on")
    for job, problems in list(found.outside.items())[:SHOWN]:
        told = ", ".join(f"{key} {value}" for key, value in problems.items())
        paragraph(f"outside its range: {job}: {told}")
    if len(found.outside) > SHOWN:
        echo(f"outside its range: {len(found.outside) - SHOWN} more runs (--json names them)")
    for alert in found.alerts[:SHOWN]:
        paragraph(f"alert: {alert}")
    if len(found.alerts) > SHOWN:
        echo(f"alert: {len(found.alerts) - SHOWN} more (--json has them)")
    for row in found.failed if show_failed else ():
        told = f"{row.exit.error if row.exit else ''} ({row.why})"
        state = row.state.value
        paragraph(f"{state}: {row.name}: {row.why if state == DAMAGED else told}")
    if found.failed and not show_failed:
        echo("failed jobs: --show-failed says why")


def _parts(*counted: tuple[int, str]) -> str:
    told = [f"{count} {what}" for count, what in counted if count]
    return f", of them {', '.join(told)}" if told else ""


def _told_left(found: Status) -> str:
    if found.is_over or found.seconds_left is None:
        return ""
    slots = f"{found.slots} slot{'s' * (found.slots != 1)}"
    return f"; about {duration(found.seconds_left)} left with {slots}"


def print_end(name: str, found: Status, wall: float) -> None:
    """Print what a sweep took and used, when its command is over."""
    used, counts = found.used, found.counts
    told = [f"{counts['completed']}/{len(found.rows)} runs completed in {duration(wall)}"]
    if found.failure_rate:
        told.append(f"{100 * found.failure_rate:.1f} % failed")
    parts = [f"{name}: {', '.join(told)}; all attempts took {duration(used['seconds'])}"]
    if used["seconds"] and "cpu_seconds" in used:
        parts.append(f"CPU {100 * used['cpu_seconds'] / used['seconds']:.0f} %")
    for key, what in (("peak_memory_bytes", "memory"), ("peak_gpu_memory_bytes", "GPU memory")):
        if key in used:
            parts.append(f"{what} {used[key] / 1e9:.2f} GB at most")
    if "gpu_utilization" in used:
        parts.append(f"GPU busy {used['gpu_utilization']:.0f} % of the time")
    elif "peak_gpu_memory_bytes" in used:
        parts.append("how busy it was is not measured (pip install nvidia-ml-py)")
    paragraph(", ".join(parts))
