"""The folder of a sweep: found by the name or the file of the sweep, made from its file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attrs import evolve

from altcore import durable
from altcore.config import check_name
from altcore.errors import BadInput, nearest
from altcore.sweep.changes import Changes, bring_up_to_date
from altcore.sweep.job import Job
from altcore.sweep.ledger import JOBS, RUNS, Ledger
from altcore.sweep.retired import RETIRED
from altcore.sweep.runbook import RUNBOOK
from altcore.sweep.sweep_file import SweepFile, read_sweep, sweep_text
from altcore.sweep.tables import TABLES
from altcore.yaml_files import is_yaml_file, read_mapping

SWEEPS = "sweeps"
FILE = "sweep.yaml"


def is_sweep_file(told: str, sweeps_dir: str = SWEEPS) -> bool:
    """Return whether a sweep is told by its file, and not by the name of one that was begun.

    A file without the suffix of YAML may have that name by chance.
    """
    is_begun = Path(sweeps_dir, told, FILE).is_file()
    return is_yaml_file(told) or (Path(told).is_file() and not is_begun)


def folder_of(told: str, sweeps_dir: str = SWEEPS) -> Path:
    """Return the absolute path of the folder of a sweep, told by its name or its file.

    The folder's own path serves as the name: it is what a shell completes.
    """
    path, sweeps = Path(told), Path(sweeps_dir).absolute()
    name = path.name if path.parent == Path() or path.absolute().parent == sweeps else told
    if is_yaml_file(told):
        name = str(read_sweep(told).name)
    return sweeps / check_name(name, "the sweep")


def begun(told: str, sweeps_dir: str = SWEEPS) -> Path:
    """Return the folder of a sweep that was begun. Raises `BadInput` if there is none."""
    folder = folder_of(told, sweeps_dir)
    check_folder(folder)
    if not (folder / FILE).is_file():
        known = sorted(p.parent.name for p in Path(sweeps_dir).glob(f"*/{FILE}"))
        raise BadInput(
            f"there is no sweep {folder.name!r} in {sweeps_dir}",
            meant=nearest(folder.name, known),
            hint="altcore sweep run FILE begins one",
        )
    durable.check_no_links(folder.iterdir())
    return folder


def check_folder(folder: Path) -> None:
    """Raise `BadInput` if a sweep's folder, or something in it, is of another kind."""
    durable.check_kinds(folder.parent, files=[], folders=[folder.name])
    folders = [JOBS, RUNS, RETIRED, TABLES]
    durable.check_kinds(folder, files=[FILE, RUNBOOK], folders=folders)


def file_of(told: str, sweeps_dir: str = SWEEPS) -> str:
    """Return the file of a sweep that was begun, if this is the name of one, or else what it is.

    Raises:
        BadInput: for what is neither a file nor such a name.
    """
    return told if is_sweep_file(told, sweeps_dir) else str(begun(told, sweeps_dir) / FILE)


def open_sweep(told: str, sweeps_dir: str = SWEEPS) -> tuple[SweepFile, Ledger]:
    """Return a sweep that was begun. Raises `BadInput` if there is none of this name."""
    folder = begun(told, sweeps_dir)
    if "name" not in read_mapping(folder / FILE, "sweep"):  # which is always written
        problem = f"{folder / FILE} is empty or damaged: it has no name"
        raise BadInput(problem, hint="altcore sweep run FILE, with the file of the sweep, mends it")
    sweep = read_sweep(folder / FILE)
    return sweep, Ledger(folder, sweep.rules)


def begin_sweep(
    sweep: SweepFile, jobs: Sequence[Job], sweeps_dir: str = SWEEPS, *, accept: bool = False
) -> tuple[Ledger, Changes]:
    """Make a sweep's folder, or bring it up to date; see `bring_up_to_date`."""
    ledger = Ledger(folder_of(str(sweep.name), sweeps_dir), sweep.rules)
    check_folder(ledger.folder)
    if ledger.folder.is_dir():
        durable.check_no_links(ledger.folder.iterdir())
    changes = bring_up_to_date(ledger, jobs, accept=accept, lost_after=sweep.lost_after)
    save_sweep(sweep, ledger.folder)
    return ledger, changes


def save_sweep(sweep: SweepFile, folder: Path) -> None:
    """Write down in a sweep's folder what it was asked for, so that workers can open it.

    A command of another working directory finds the file of its base keys.
    """
    if sweep.config is not None and Path(sweep.config).is_file():
        sweep = evolve(sweep, config=str(Path(sweep.config).absolute()))
    durable.replace_file(folder / FILE, sweep_text(sweep).encode())
