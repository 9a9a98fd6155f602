"""The reporter ``wandb``: the run in Weights & Biases, live, offline, or sent afterwards."""

from __future__ import annotations

import math
import netrc
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import attrs
from attrs import field
from attrs.validators import in_, optional

from altcore.plugin import RunRecord, setting
from altcore_reporters.original_names import names_in_config, names_in_summary
from altcore_reporters.tracker_images import images_of
from altcore_reporters.tracking import TrackerReporter

if TYPE_CHECKING:
    from wandb import Run as WandbRun
    from wandb import Settings

PROJECT = "altgrad"
"""Where the original experiments are, and `ExperimentDataLoader` looks."""
CHECKPOINTS = ("best", "last")
ENDED = ("finished", "collapsed", "stopped")
"""Statuses of runs that came to an end of their own: a collapse is a result."""


@attrs.define(eq=False)
class WandbTracker(TrackerReporter):
    """Sends all that metrics.jsonl holds to Weights & Biases, by the same names and steps.

    Without a key of W&B, and unless ``WANDB_MODE`` says otherwise, everything is kept below the
    run's reports for ``wandb sync``. ``WANDB_BASE_URL`` names another server.
    """

    project: str | None = setting(
        None, help=f"the project; null is the run's `project`, else `WANDB_PROJECT`, else {PROJECT}"
    )
    entity: str | None = setting(None, help="user or team; null is the default of the account")
    group: str | None = setting(None, help="the group; null is the run's `label`")
    mode: str | None = setting(
        None,
        help="online or offline; null is `WANDB_MODE`, else online if there is a key",
        validator=optional(in_(("online", "offline"))),
    )
    checkpoints: tuple[str, ...] = setting(
        (),
        help="checkpoints that are sent as artifacts at the end: best, last",
        converter=tuple,
        validator=attrs.validators.deep_iterable(in_(CHECKPOINTS)),
    )
    imports = ("wandb", "altcore_reporters.plot")
    _wandb: WandbRun | None = field(init=False, default=None)
    _rows: int = field(init=False, default=0)

    def start(self, record: RunRecord) -> int:
        """Begin the run under its own id, or go on with it."""
        import wandb

        wandb.setup(_settings())  # or its warnings come on the terminal
        is_online = self._is_online()
        for folder in self._kept(record):  # by earlier sessions: the record has all of it
            shutil.rmtree(folder)
        config = record.config
        self._wandb = wandb.init(
            entity=self.entity,
            project=self._project(record),
            name=record.name,
            group=self.group or config.get("label"),
            tags=list(config.get("tags") or ()),
            config={**_known(config), "environment": dict(record.environment)},
            dir=self.folder(record).parent,
            id=self.id_of(record),
            resume="allow" if is_online else None,
            mode="online" if is_online else "offline",
            allow_val_change=True,
            settings=_settings(),
        )
        # Rows are numbered by W&B, and none may be numbered lower than one before: after a resume
        # steps come again. So its number is the row's, and charts are drawn over our step.
        self._wandb.define_metric("step")
        self._wandb.define_metric("*", step_metric="step")
        self._rows = self._wandb.starting_step
        if is_online:
            self.address = self._wandb.url or ""
        else:
            self.address = f"offline, for `wandb sync {Path(self._wandb.dir).parent}`"
        return self._rows

    def log(self, step: int, values: Mapping[str, Any], when: float) -> None:
        """Log a row; a list of counts is a histogram."""
        shown = {key: _shown(value) for key, value in values.items()}
        self._log({"step": step, "_timestamp": when, **shown})

    def alert(self, level: str, title: str, text: str, wait: float) -> None:
        """Have W&B alert people."""
        from wandb import AlertLevel

        assert self._wandb is not None
        self._wandb.alert(title, text, AlertLevel[level], wait)

    def finish(self, record: RunRecord) -> None:
        """Send summary, events, reports, images and checkpoints, and close the run."""
        assert self._wandb is not None
        sent, summary = self._wandb, record.summary
        sent.config.update(names_in_config(record), allow_val_change=True)
        sent.summary.update(_known({**summary, **names_in_summary(record)}))
        for file in _files(record):
            sent.save(file, base_path=record.directory, policy="now")
        for which in self.checkpoints:
            self._log_checkpoint(record, which)
        self._log_images(record)
        sent.finish(exit_code=0 if summary["status"] in ENDED else 1)

    def abandon(self) -> None:
        """Close the run, and end the client's process if its server does not answer.

        Otherwise it is asked again and again, and this process cannot end.
        """
        if self._wandb is not None:
            close = threading.Thread(target=_end_as_failed, args=(self._wandb,), daemon=True)
            close.start()
            close.join(self.finish_timeout)
            if close.is_alive():
                _kill_client()

    def holds(self, record: RunRecord) -> bool:
        """Whether W&B has all rows of the run, or its offline folder is there."""
        import wandb

        assert self.ledger is not None
        if not self._is_online():
            return bool(self._kept(record))
        path = "/".join(filter(None, (self.entity, self._project(record), self.id_of(record))))
        try:
            found = wandb.Api().run(path)
            # A broken server may have taken rows and thrown them away.
            return found.state != "running" and found.lastHistoryStep + 1 == len(self.ledger.order)
        except wandb.errors.CommError:
            return False

    def read_runs(self, address: str, names: Sequence[str]) -> list[RunRecord]:
        """Return the records of runs in ``ENTITY/PROJECT``, of all or of those named."""
        from altcore_reporters.wandb_runs import read_runs

        return list(read_runs(address, names))

    def _project(self, record: RunRecord) -> str:
        own = self.project or record.config.get("project")
        return own or os.environ.get("WANDB_PROJECT") or PROJECT

    def _is_online(self) -> bool:
        mode = self.mode or os.environ.get("WANDB_MODE")
        return mode == "online" if mode else _has_key()

    def _kept(self, record: RunRecord) -> list[Path]:
        """Return the folders of the client's sessions."""
        return list(self.folder(record).glob(f"*run-*-{self.id_of(record)}"))

    def _log(self, row: Mapping[str, Any]) -> None:
        assert self._wandb is not None
        self._wandb.log(row, step=self._rows)
        self._rows += 1

    def _log_images(self, record: RunRecord) -> None:
        """Log the run's images, in a row of their own."""
        import wandb

        found = images_of(record, self.folder(record))
        row = {f"reports/{name}": wandb.Image(path) for name, path in found.items()}
        if row and self.is_new({name: path.read_bytes().hex() for name, path in found.items()}):
            self._log({"step": record.summary["steps"], **row})

    def _log_checkpoint(self, record: RunRecord, which: str) -> None:
        import wandb

        assert self._wandb is not None
        assert record.directory is not None
        folder = record.directory / "checkpoints"
        pointer = folder / which
        if not pointer.exists():
            return
        name = pointer.read_text().strip()
        artifact = wandb.Artifact(f"{self.id_of(record)}-{which}", "model", metadata={"from": name})
        artifact.add_dir(str(folder / name), policy="immutable")  # or it is copied first
        self._wandb.log_artifact(artifact, aliases=[which]).wait()  # or nobody hears of an error


def _settings() -> Settings:
    """Return the client's settings: quiet, and without what environment.json has already."""
    import wandb

    private = {"x_disable_meta": True, "x_save_requirements": False}
    known: dict[str, Any] = {k: v for k, v in private.items() if k in wandb.Settings.model_fields}
    # The client reads this variable once in a process, which may send runs to several servers.
    if server := os.environ.get("WANDB_BASE_URL"):
        known["base_url"] = server
    return wandb.Settings(console="off", silent=True, disable_git=True, save_code=False, **known)


def _end_as_failed(sent: WandbRun) -> None:
    with suppress(Exception):  # the error before this one is told
        sent.finish(exit_code=1)


def _kill_client() -> None:
    """Kill the process that the client sends from, of which nothing is public."""
    import wandb

    # It leaves with the code of the process that was killed, and would take the error's place.
    with suppress(Exception, SystemExit):
        wandb.setup().ensure_service()._proc._process.kill()  # type: ignore[union-attr]
        wandb.teardown(1)  # or the exit of this process waits for it


def _has_key() -> bool:
    """Whether the client finds a key for its server, in the environment or where it logged in."""
    import wandb

    settings = wandb.setup().settings
    if settings.api_key or settings.identity_token_file:
        return True
    host = str(urlparse(settings.base_url).hostname)
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _shown(value: Any) -> Any:
    """Return a list of counts as a histogram, anything else as it is."""
    import wandb

    is_counts = isinstance(value, list) and all(0 <= count < math.inf for count in value)
    if not (is_counts and value):
        return value
    return wandb.Histogram(np_histogram=(value, list(range(len(value) + 1))))


def _files(record: RunRecord) -> list[Path]:
    """Return the events and the reports: what a reader of the run finds nowhere else in W&B."""
    assert record.directory is not None
    events = record.directory / "events.jsonl"
    reports = sorted(p for p in (record.directory / "reports").iterdir() if p.is_file())
    return [*([events] if events.exists() else []), *reports]
