"""The folder that a reporter writes to for a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from altcore.cli.status import Status
from altcore.errors import BadInput, PluginError, keyed
from altcore.output_files import check_beside_record


@contextmanager
def writing(folder: Path, doing: str) -> Iterator[None]:
    """Make the folder that a reporter writes to; if it cannot, that is told of --out."""
    with keyed("--out"):
        check_beside_record(folder)
    try:
        with Status() as status:
            status.now(doing)
            if not folder.exists():
                folder.mkdir(parents=True)
            yield
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot be written: {error.strerror}") from error
    except PluginError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and _lies_in(cause.filename, folder):
            raise BadInput(f"--out {folder}: cannot be written: {cause.strerror}") from cause
        raise


def _lies_in(file: object, folder: Path) -> bool:
    """Whether an error's file is in a folder, or the folder itself."""
    return isinstance(file, str | Path) and folder.resolve() in (
        Path(file).resolve(),
        *Path(file).resolve().parents,
    )
