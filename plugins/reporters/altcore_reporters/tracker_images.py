"""The images that trackers show of a run: its pictures, and what lies among its reports."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from altcore.plugin import BadInput, RunRecord

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif")
DOTS = 110
"""Pixels of an inch of a picture."""


def images_of(record: RunRecord, folder: Path) -> dict[str, Path]:
    """Return the images of a run that is over, by name; pictures are drawn into a folder.

    Drawn are the curves, the layers if they were measured, and the values if ``value-histogram``
    measured them: nothing is read from checkpoints, since the end of the run waits.
    """
    from altcore_reporters import plot

    drawn = {"curves": plot.curves, "layers": plot.heat_maps, "values": plot.values}
    if not any(key.startswith("value-histogram/") for line in record.steps for key in line):
        del drawn["values"]
    found = {}
    for name, draw in drawn.items():
        with suppress(BadInput):  # there is nothing to draw
            found[name] = folder / f"{name}.png"
            draw(record).savefig(found[name], dpi=DOTS)
    assert record.directory is not None
    others = sorted((record.directory / "reports").iterdir())
    found |= {path.stem: path for path in others if path.suffix in SUFFIXES}
    return {name: path for name, path in found.items() if path.exists()}
