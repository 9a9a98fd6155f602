"""Runs docs/notebook.ipynb from its first cell, and keeps what it shows: ``make notebook``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def executed(path: Path, folder: str) -> nbformat.NotebookNode:
    """Return the notebook with new outputs; its runs are written into a folder.

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


def main() -> int:
    """Execute the notebook in a folder of its own, and write it where it was."""
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(executed(NOTEBOOK, folder), NOTEBOOK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
