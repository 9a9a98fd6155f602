"""Runs a notebook of docs/ from its first cell, and keeps what it shows: ``make notebook``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from altcore.sweep import begin_sweep, export, jobs_of, read_sweep, run_sweep

ROOT = Path(__file__).parents[1]
NOTEBOOK, LOSS_SLOPE = (ROOT / "docs" / f"{name}.ipynb" for name in ("notebook", "loss-slope"))
SMALL = f"""\
preset: {ROOT / "examples" / "loss-slope-toy.yaml"}
name: loss-slope-small
base: {{epochs: 6}}
grid: {{learning_rate: [0.1], weight_decay: [0.001]}}
seeds: 2
"""
"""Eight runs of the toy study: two or three minutes on one core."""


def executed(path: Path, folder: str) -> nbformat.NotebookNode:
    """Return the notebook with new outputs, run in a folder.

    Raises:
        CellExecutionError: if a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    # The times of execution would make each version differ from the last.
    client = NotebookClient(
        notebook,
        timeout=600,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": folder}},
    )
    client.execute()
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    # No folder of a machine stays in what is shown.
    return nbformat.reads(nbformat.writes(notebook).replace(f"{folder}/", ""), as_version=4)


def small_export(folder: Path) -> Path:
    """Run a small loss-slope study into a folder, and return the folder of its export."""
    (folder / "small.yaml").write_text(SMALL)
    sweep = read_sweep(folder / "small.yaml")
    ledger, _ = begin_sweep(sweep, jobs_of(sweep), str(folder))
    run_sweep(sweep, ledger)
    out = ledger.folder / "export"
    export(sweep, ledger, out)
    return out


def main() -> int:
    """Execute a notebook, and write it where it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", choices=("notebook", "loss-slope"), default="notebook")
    parser.add_argument("--export", help="folder that `altcore sweep export` wrote (loss-slope)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if asked.name == "notebook":
            path, folder = NOTEBOOK, scratch
        else:
            path, folder = LOSS_SLOPE, asked.export or str(small_export(Path(scratch)))
        nbformat.write(executed(path, str(Path(folder).resolve())), path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
