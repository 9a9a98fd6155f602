"""The record of a run, whatever it was read from: what reports, frames and pages are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from altcore.errors import BadInput
from altcore.log import log
from altcore.run_files import CHECKPOINTS, CONFIG, EVENTS, METRICS, TIMINGS
from altcore.runs.as_left import altered, warn_of_altered
from altcore.runs.checkpoint import load_newest_weights
from altcore.runs.environment_file import read_environment
from altcore.runs.html import run_html
from altcore.runs.json_lines import read_lines
from altcore.runs.reading import find_run, list_runs, summary_of
from altcore.runs.summary import UNFINISHED, Summary
from altcore.yaml_files import read_mapping

Line = Mapping[str, Any]


class RunRecord:
    """What is known of one run. Each part is read when it is first asked for, and kept.

    This class knows nothing but the run's name: a source of runs, such as a tracker, derives from
    it and overrides the parts that it has.

    Attributes:
        name: the run's name.
        source: where it was read: the path of its directory, or an address for people.
        directory: the run's directory, None if it was read from elsewhere.
        url: its page, None without one.
    """

    directory: Path | None = None
    url: str | None = None

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.source!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return run_html(self.summary, [line["loss"] for line in self.steps])

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The configuration, by the keys of `TrainConfig`; empty if it is not known."""
        return {}

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """Versions, device and state of the code; empty if they are not known."""
        return {}

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """How it ended, by the keys of `Summary`; what is not known is None or empty."""
        return full_summary({"name": self.name})

    @cached_property
    def metrics(self) -> Sequence[Line]:
        """The recorded lines: those of steps have ``loss``, those of evaluations ``val_loss``."""
        return []

    @cached_property
    def timings(self) -> Sequence[Line]:
        """Step times and throughput, a line a recorded step."""
        return []

    @cached_property
    def events(self) -> Sequence[Line]:
        """What happened: start and end, NaN, collapse, actions, changes of format, warnings."""
        return []

    @cached_property
    def reports(self) -> Mapping[str, str]:
        """The text of its reports, by path in the run's directory."""
        return {}

    @cached_property
    def problems(self) -> Sequence[str]:
        """What is wrong with the record, as it is known: files that were changed afterwards."""
        return []

    def read_weights(self, most_bytes: int) -> Mapping[str, Any] | None:
        """Return what the newest checkpoint holds of the model, None if there is none.

        That is ``step``, ``model`` (the parameters, by name) and ``quantization``: ``plan``, the
        casts by layer, and ``stored``, the scale of each stored weight. It is read each time. None
        as well if the file has more than ``most_bytes``.
        """
        return None

    @property
    def steps(self) -> list[Line]:
        """The lines of recorded steps."""
        return [line for line in self.metrics if "loss" in line]

    @property
    def evaluations(self) -> list[Line]:
        """The lines of evaluations."""
        return [line for line in self.metrics if "val_loss" in line]


class DirectoryRecord(RunRecord):
    """The record in a run's directory, also that of a run that goes on or was killed."""

    directory: Path

    def __init__(self, directory: Path) -> None:
        super().__init__(directory.name, str(directory))
        self.directory = directory

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The keys of config.yaml."""
        file = self.directory / CONFIG
        return read_mapping(file, "run") if file.exists() else {}

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """The keys of environment.json."""
        return read_environment(self.directory)

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """The run's summary, the facts so far if it is not over."""
        return summary_of(self.directory)

    @cached_property
    def metrics(self) -> Sequence[Line]:
        """The lines of metrics.jsonl."""
        return read_lines(self.directory / METRICS)

    @cached_property
    def timings(self) -> Sequence[Line]:
        """The lines of timings.jsonl."""
        return read_lines(self.directory / TIMINGS)

    @cached_property
    def events(self) -> Sequence[Line]:
        """The lines of events.jsonl."""
        return read_lines(self.directory / EVENTS)

    @cached_property
    def reports(self) -> Mapping[str, str]:
        """The Markdown files in reports/."""
        found = sorted((self.directory / "reports").glob("*.md"))
        return {f"reports/{file.name}": file.read_text() for file in found}

    @cached_property
    def problems(self) -> Sequence[str]:
        """A sentence for each file that is not as the run left it."""
        return list(altered(self.directory).values())

    def read_weights(self, most_bytes: int) -> Mapping[str, Any] | None:
        """Return what the newest valid checkpoint holds of the model."""
        return load_newest_weights(self.directory / CHECKPOINTS, most_bytes)


def read_run(directory: str | Path) -> DirectoryRecord:
    """Return the record of the run in a directory.

    Raises:
        BadInput: if it has no summary that can be read, and no record that a run can have written.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise BadInput(f"{directory} is not a run's directory")
    record = DirectoryRecord(directory)
    _ = record.summary  # Read now, so that what is no run is refused here.
    warn_of_altered(directory)
    return record


class Records(list[DirectoryRecord]):
    """Records of runs, and what was left out of them."""

    def __init__(self, records: Iterable[DirectoryRecord] = ()) -> None:
        super().__init__(records)
        self.left_out: list[str] = []
        """A sentence for each run that cannot be read."""

    def leave_out(self, problem: str) -> None:
        """Note why a run is left out, and warn."""
        self.left_out.append(problem)
        log.warning(problem)


def read_runs(folder: str, names: Sequence[str] = ()) -> Records:
    """Return the records of runs in a folder: those named, or else all of them, oldest first.

    Of all of them, those that cannot be read are left out, each with a warning, and named by
    ``left_out`` of what is returned.

    Raises:
        BadInput: if a named run is not there or cannot be read, or if there is no run at all.
    """
    if names:
        return Records(read_run(find_run(name, folder)) for name in names)
    found = Records()
    for directory in list_runs(folder, found.leave_out):
        try:
            record = read_run(directory)
            _ = record.config, record.environment  # Read now: a report would end at them later.
            found.append(record)
        except BadInput as error:
            found.leave_out(f"{directory.name} cannot be read, and is left out: {error}")
    if not found:
        raise BadInput(f"there are no runs in {folder}")
    return found


def full_summary(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return a summary with every key of `Summary`: what is not known is None or empty.

    >>> full_summary({"name": "r", "steps": 3})["steps"], full_summary({})["final_loss"]
    (3, None)
    """
    unknown = Summary(name="", directory="", status=UNFINISHED, steps=0)
    return {**unknown.to_plain(), **known}
