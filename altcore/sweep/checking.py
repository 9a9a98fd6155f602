"""What a sweep file says for others is checked by them, before anything is written."""

from __future__ import annotations

from attrs import define, field

from altcore.config import TrainConfig
from altcore.sweep.expand import jobs_of, planned
from altcore.sweep.job import Job
from altcore.sweep.ledger import Ledger
from altcore.sweep.placing import check_executors
from altcore.sweep.sweep_file import SweepFile


@define
class SettingsCheck:
    """Checks configurations as their runs will: what they name is there, and takes its settings.

    Needs torch, which plugins import. Whatever has the same settings is checked once.
    """

    _seen: set[str] = field(init=False, factory=set)

    def __call__(self, config: TrainConfig) -> None:
        """Raise `BadInput` for a name that is not installed, and for settings that are refused."""
        own = {name: config.settings_of(name) for name in config.active}
        seen = repr((config.workload, config.optimizer, config.plugins, own))
        if seen not in self._seen:
            from altcore.engine import owners_of

            owners_of(config)
            self._seen.add(seen)


def checked_jobs_of(sweep: SweepFile, ledger: Ledger | None = None) -> list[Job]:
    """Return the jobs of a sweep, as `planned` of a ``ledger``: settings and executors are checked.

    Raises:
        BadInput: with the key, and the line of the sweep file.
    """
    check_executors(sweep)
    check = SettingsCheck()
    return jobs_of(sweep, check) if ledger is None else planned(sweep, ledger, check)
