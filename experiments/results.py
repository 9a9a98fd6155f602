"""Train the runs of docs/results/format_comparison.md and its neighbours, and write the reports.

Three seeds each of five formats, rounded to nearest and stochastically, and of E5M2 with the
original experiments' two optimizers: 36 runs of 300 steps. Started again, the script keeps finished
runs and resumes an interrupted one from its newest checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from run import CONFIGS, execute, is_begun

from altcore.runs import ENDED, summary_of

FOLDER = Path(__file__).parent / "results"
FORMATS = ("E0M7", "E1M6", "E3M4", "E5M2", "E7M0")
RECIPES = {"nearest": "pure", "stochastic": str(FOLDER / "pure-stochastic.yaml")}
OPTIMIZERS = ("standard", "manifold")
SEEDS = (42, 43, 44)
TINY = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "block_size": 32,
    "batch_size": 8,
    "learning_rate": 6e-3,
    "warmup_steps": 30,
    "shadow.interval": 10,
}
"""What makes an original configuration as small as the runs of formats."""
REPORTS = ("format-comparison", "failure-modes", "manifold-comparison", "page")


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each run, with the arguments of ``altcore train`` that make it."""
    for rounding, fmt, seed in product(RECIPES, FORMATS, SEEDS):
        given = ["--config", str(FOLDER / "formats.yaml"), "--format", fmt]
        given += ["--recipe", RECIPES[rounding]]
        yield f"{fmt}-{rounding}-s{seed}", [*given, "--seed", str(seed)]
    for optimizer, seed in product(OPTIMIZERS, SEEDS):
        given = ["--config", str(CONFIGS / f"e5m2_{optimizer}.yaml"), "--steps", "300"]
        for key, value in TINY.items():
            given += ["--set", f"{key}={value}"]
        yield f"E5M2-{optimizer}-s{seed}", [*given, "--seed", str(seed)]


def command(name: str, given: Sequence[str], runs_dir: Path) -> list[str] | None:
    """Return the arguments for altcore that start or resume a run, or None if it is over."""
    own = ["--set", f"runs_dir={runs_dir}"]
    if not is_begun(runs_dir / name):
        return ["train", "--name", name, *given, *own]
    is_over = summary_of(runs_dir / name)["status"] in ENDED
    return None if is_over else ["train", "--resume", name, *own]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is left, write the reports, and return the first exit code that is not 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/results"), help="of the runs")
    parser.add_argument("--out", default="docs/results", help="folder of the reports")
    parser.add_argument("--only", choices=("train", "report"), help="do only this")
    asked = parser.parse_args(arguments)
    commands = []
    if asked.only != "report":
        commands += [command(name, given, asked.runs_dir) for name, given in runs()]
    if asked.only != "train":
        source = ["--from", str(asked.runs_dir), "--out", asked.out]
        commands += [["report", reporter, *source] for reporter in REPORTS]
    for given in filter(None, commands):
        print(f"\naltcore {' '.join(given)}", flush=True)
        if code := execute([sys.executable, "-m", "altcore", *given]):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
