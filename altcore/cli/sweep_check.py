"""``altcore sweep check``: what would stop a sweep, before it begins."""

from __future__ import annotations

from typing import Any

import click

from altcore.cli.options import once
from altcore.cli.sweep_options import SWEEPS_DIR, asked_of, asking
from altcore.cli.terminal import echo, paragraph


@click.command()
@click.argument("file", required=False)
@asking
@once("--steps", type=click.IntRange(1), help="Steps of each short training.")
@click.option("--resources", is_flag=True, help="Run workers side by side, too.")
@once("--executor", metavar="NAME[:...]", default="local:2", help="Which places these workers.")
@once("--memory-gb", type=float, help="Most memory of all workers (default the machine's).")
@once("--slowdown", type=float, help="Longest step, in those of a worker alone (default 2).")
@SWEEPS_DIR
def check(
    file: str | None,
    steps: int | None,
    executor: str,
    memory_gb: float | None,
    slowdown: float | None,
    sweeps_dir: str,
    *,
    resources: bool,
    **given: Any,
) -> int | None:
    """Try a few steps of each variant, and say what is amiss.

    Each line says PASS or FAIL, and after a FAIL the command that mends it. The exit code is 1 if
    anything failed. FILE may be the name of a sweep that was begun.
    """
    from altcore.sweep import (
        Ledger,
        Limits,
        Preflight,
        folder_of,
        keep_checked,
        make_executor,
        side_by_side,
    )

    asked = asked_of(file, given, sweeps_dir)
    make_executor(executor, asked.executors)
    told = file or f"--name {asked.name}"
    flight = Preflight(asked, told, steps)
    failed = 0
    for finding in flight.findings():
        failed += not _show(finding)
    if resources and flight.measured:
        limits = {"memory_gb": memory_gb, "slowdown": slowdown}
        own = Limits(**{key: value for key, value in limits.items() if value is not None})
        for finding in side_by_side(asked, told, executor, sweeps_dir, flight.measured, own):
            failed += not _show(finding)
    if flight.measured:
        keep_checked(Ledger(folder_of(str(asked.name), sweeps_dir)), flight.measured)
    echo(f"{len(flight.failed)}/{len(asked.variant_names)} variants failed")
    return 1 if failed else None


def _show(finding: Any) -> bool:
    """Print a finding; return whether it passed."""
    told = f": {finding.told}" if finding.told else ""
    paragraph(f"{'PASS' if finding.passed else 'FAIL'}  {finding.what}{told}", indent=6)
    if not finding.passed:
        # In one piece, to be copied.
        echo(f"      {finding.remedy}")
    return bool(finding.passed)
