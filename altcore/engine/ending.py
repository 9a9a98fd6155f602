"""The end of a run, whatever it was: the summary is written, and everybody is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from attrs import define, field

from altcore.engine.dispatch import Dispatcher
from altcore.engine.history import RunHistory
from altcore.engine.ranks import Ranks
from altcore.engine.rescue import put_back
from altcore.engine.state import Run
from altcore.engine.step_record import StepRecord
from altcore.engine.summarizing import summarize
from altcore.errors import AltcoreError, Interrupted, LostRank, text_of
from altcore.runs import RUN_ID, SUMMARY, RunDirectory, Summary, kept_checkpoints, step_lines
from altcore.signals import is_from_signal


@define(eq=False)
class Ending:
    """Keeps how a run ends, and writes it."""

    run: Run
    directory: RunDirectory
    dispatch: Dispatcher
    history: RunHistory
    record: StepRecord
    facts: Mapping[str, Any]
    """Repeated in the summary."""
    ranks: Ranks
    error: str | None = field(init=False, default=None)
    """What ended the run, if it failed or was interrupted."""
    findings: dict[str, list[Any]] = field(init=False, factory=dict)
    """What plugins say that they found, by name."""

    @property
    def status(self) -> str:
        """How the run ended; ``running`` while it does."""
        return self.history.status

    @status.setter
    def status(self, status: str) -> None:
        self.history.status = status

    @contextmanager
    def noting_errors(self) -> Iterator[None]:
        """Keep for the summary what ends the run, and raise it."""
        try:
            yield
        except BaseException as error:
            is_leaving = isinstance(error, Interrupted) or is_from_signal(error)
            self.status = "interrupted" if is_leaving else "failed"
            self.error = f"{type(error).__name__}: {text_of(error)}"
            raise

    def end(self, check_place: Callable[[], None], seal: Callable[[], None]) -> None:
        """Write what is left and say that the run is over; each part comes if another fails.

        ``check_place`` saves the state of a run whose directory a plugin took away. ``seal`` comes
        last: it notes that nothing is left to do.
        """
        has_left = self.status == "failed"
        with ExitStack() as always:
            always.callback(self.directory.close)
            always.callback(seal)
            # Again: run_end may have added a report, or failed; and now the record is whole.
            always.callback(self.write, is_last=True)
            if not has_left:  # else the other ranks were told of the error at once
                always.callback(self._agree)
            always.callback(self._check, check_place)
            always.callback(self.tell)
            always.callback(self.write)
            always.callback(self._check, check_place)
            with self.noting_errors():
                self._put_back()
                self.record.flush()
                lines = step_lines(self.directory.path)
                self.findings = self.dispatch.findings(self.run, lines)

    def _check(self, check_place: Callable[[], None]) -> None:
        """Look for the directory, unless the run failed: its state may be that of half a step."""
        if self.error is None:
            with self.noting_errors():
                check_place()

    def _put_back(self) -> None:
        """Write files of the record anew that other code removed since a run that failed looked."""
        if self.error is not None:
            with suppress(AltcoreError, OSError):
                put_back(self.directory, self.run)

    def _agree(self) -> None:
        """Fail if another rank fails as it ends, and tell of the observers that it disabled."""
        error = self.error if self.status == "failed" else None
        with self.noting_errors():
            failed, broken = self.ranks.ends(error, self.dispatch.boundary.errors)
            self.dispatch.disable_broken(self.run, broken)
            if failed and error is None:
                raise LostRank("; ".join(failed))

    def tell(self) -> None:
        """Tell the plugins that the run is over."""
        summary = self.summary()
        with self.noting_errors(), ExitStack() as always:
            always.callback(self.dispatch.call, "run_end", run=self.run, summary=summary)
            self.run.emit("end", **{k: summary[k] for k in ("status", "verdict", "error")})

    def summary(self) -> dict[str, Any]:
        """Return how the run ended, as summary.json has it."""
        return self._made().to_plain()

    def _made(self) -> Summary:
        kept = kept_checkpoints(self.directory.checkpoints)
        facts = {**self.facts, RUN_ID: self.directory.run_id, "checkpoints": kept}
        told = (self.status, facts, self.findings, self.error)
        return summarize(self.run, self.history, *told)

    def write(self, *, is_last: bool = False) -> None:
        """Write summary.json, at once or not at all; at last with the digests of the record."""
        records = self.directory.records() if is_last else {}
        self.directory.write_json(SUMMARY, self._made().to_file(records))
