"""Run the original format experiments one after another.

Started again, the script skips finished runs and resumes an interrupted one from its newest
checkpoint.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from altcore.config import load_config
from altcore.errors import AltcoreError, BadInput
from altcore.runs import ENDED, list_runs, summary_of
from altcore.yaml_files import read_mapping

CONFIGS = Path(__file__).parent / "configs"
ORDER = (
    "bf16_baseline",
    "e5m2_fp8",
    "e5m2_short",
    "e0m7_uniform",
    "e1m6_uniform",
    "e3m4_uniform",
    "e7m0_uniform",
    "e5m2_standard",
    "e5m2_manifold",
)
"""Baselines come first, so that later runs can be compared with them at once."""
PRESET = "format-experiment"


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--data", help="the data of all runs, as for altcore train --data")
    parser.add_argument("--steps", type=int, help="steps of each, for a trial under other names")
    parser.add_argument("--runs-dir", default="runs", help="folder of the runs (default: runs)")
    parser.add_argument("--only", nargs="+", choices=ORDER, help="run only these")
    parser.add_argument(
        "--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="set any key"
    )
    return parser.parse_args(arguments)


def name_of(config: str, steps: int | None) -> str:
    """Return the name of a configuration's run. A trial has another name than the full run."""
    label = load_config(CONFIGS / f"{config}.yaml").label
    return f"{label}-{steps}-steps" if steps else str(label)


def command(config: str, name: str, asked: argparse.Namespace) -> list[str] | None:
    """Return the arguments for altcore that start or resume a run, or None if it is done."""
    path = Path(asked.runs_dir) / name
    own = ["--set", f"runs_dir={asked.runs_dir}"]
    own += ["--device", asked.device] if asked.device else []
    if is_begun(path):
        config: dict[str, Any] = read_mapping(path / "config.yaml", "run")
        check_same(path, config, asked)
        # A run killed between its last checkpoint and its last line is done, too.
        last = path / "checkpoints" / f"step-{config['max_steps']:08d}"
        if summary_of(path)["status"] in ENDED or last.exists():
            return None
        return ["train", "--resume", name, *own]
    chosen = ["--data", asked.data] if asked.data else []
    chosen += ["--steps", str(asked.steps)] if asked.steps else []
    for text in asked.sets:
        chosen += ["--set", text]
    file = str(CONFIGS / f"{config}.yaml")
    return ["train", "--config", file, "--preset", PRESET, "--name", name, *own, *chosen]


def is_begun(path: Path) -> bool:
    """Return whether there is a run to resume. Renames a run that has no checkpoint."""
    if not path.exists():
        return False
    if any((path / "checkpoints").glob("step-*")) and (path / "config.yaml").is_file():
        return True
    number = 1
    while (aside := path.with_name(f"{path.name}-cut-{number}")).exists():
        number += 1
    path.rename(aside)
    print(f"{path} has no checkpoint to resume from; renamed to {aside}", flush=True)
    return False


def check_same(path: Path, config: dict[str, Any], asked: argparse.Namespace) -> None:
    """Refuse to mix runs on different data, which are not comparable."""
    used = config["settings"].get(config["workload"], {}).get("data")
    if asked.data != used:
        raise BadInput(
            f"{path} was trained on {used or 'its default data'}, and not on "
            f"{asked.data or 'the default data'}: give the same data, or another --runs-dir"
        )


def execute(command: Sequence[str]) -> int:
    """Run a command and return its exit code. Signals to stop are passed on to the command.

    It then writes a checkpoint, and this script waits for it. A terminal sends Ctrl-C to both.
    """
    children: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def pass_on(number: int, _: object) -> None:
        asked.append(number)
        if number != signal.SIGINT:
            for child in children:
                child.send_signal(number)

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, pass_on) for number in wanted}
    try:
        children.append(subprocess.Popen(command))
        code = children[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # The command may have ended before the signal reached it. Start nothing after one.
    return 128 + asked[0] if asked and code == 0 else code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the remaining experiments and return the exit code."""
    asked = options(arguments)
    failed = []
    for config in asked.only or ORDER:
        name = name_of(config, asked.steps)
        try:
            given = command(config, name, asked)
        except (AltcoreError, yaml.YAMLError) as error:
            print(f"experiments: {error}", file=sys.stderr)
            return 2
        if given is None:
            print(f"{name} is done", flush=True)
            continue
        print(f"\naltcore {' '.join(given)}", flush=True)
        code = execute([sys.executable, "-m", "altcore", *given])
        # An interruption ends all runs. After a failure the others still run.
        if code in (130, 138, 143) or code < 0:
            print("interrupted; the same command continues", file=sys.stderr)
            return code if code > 0 else 128 - code
        if code:
            failed.append(name)
    return tell(asked, failed)


def tell(asked: argparse.Namespace, failed: Sequence[str]) -> int:
    """Write and print a table of the runs, and return the exit code."""
    names = [name_of(c, asked.steps) for c in asked.only or ORDER]
    folder = Path(asked.runs_dir)
    found = {path.name: summary_of(path) for path in list_runs(asked.runs_dir)}
    text = table([found[name] for name in names if name in found])
    suffix = f"-{asked.steps}-steps" if asked.steps else ""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"format-experiments{suffix}.md"
    page.write_text(f"# The original format experiments\n\n{text}\n", encoding="utf-8")
    print(f"\n{text}\n\nreport  {page}")
    if failed:
        print(f"failed: {', '.join(failed)}; the same command tries again", file=sys.stderr)
    return int(bool(failed))


COLUMNS = (
    "run",
    "format",
    "verdict",
    "steps",
    "training loss",
    "validation loss",
    "stalled views",
    "overflow",
)


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """Return the runs as a markdown table. Rates are means over the run, or n/a."""
    rows = [(*COLUMNS, "flushed to zero", "shifted to", "reports")]
    rows.append(("---",) * len(rows[0]))
    for s in summaries:
        shifts = [f"{', '.join(x['to']) or 'none'} at {x['step']}" for x in s["shifts"]]
        reports = [f"[{Path(r).name}]({s['name']}/{r})" for r in s["reports"]]
        rates = [share(s[k]) for k in ("view_stall_rate", "overflow_rate", "flushed_rate")]
        losses = number(s["final_loss"]), number(s["val_loss"])
        known = (s["name"], s["format"] or "n/a", s["verdict"] or s["status"], str(s["steps"]))
        known += losses
        rows.append((*known, *rates, "; ".join(shifts) or "-", ", ".join(reports) or "-"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def share(value: Any) -> str:
    """Return a share in percent, or n/a."""
    return "n/a" if value is None else f"{value:.1%}"


def number(value: Any) -> str:
    """Return a loss with four decimals, or n/a."""
    return "n/a" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
