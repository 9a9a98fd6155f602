"""A job: one run of a sweep, as frozen plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from attrs import field, fields, frozen
from attrs.validators import instance_of

from altcore.config import TrainConfig, check_name
from altcore.errors import BadInput
from altcore.formats import digest
from altcore.sweep.tables import Table, with_tables, without_tables

RETRIED = "retry"
"""The tag of a run whose settings a retry changed: another experiment than was asked for."""
PRIORITY = 100
"""Of a job that names none. Jobs of a lower number begin first."""


@frozen(kw_only=True)
class Job:
    """A run that a sweep asks for, whatever became of it."""

    name: str
    """Of its folder in the sweep, and of its run."""
    config: Mapping[str, Any]
    """The complete configuration, formats written down; without ``name`` and ``runs_dir``."""
    factors: Mapping[str, Any] = field(factory=dict)
    """What tells it from the others: the value of each key of the grid, and the seed."""
    variant: str = "base"
    identity: Mapping[str, Any] = field(factory=dict)
    """What else decides its numbers, if whoever made it says so: digests of data and code."""
    priority: int = field(default=PRIORITY, validator=instance_of(int))

    @property
    def turn(self) -> tuple[int, str]:
        """By which jobs are sorted: in this order workers take them."""
        return self.priority, self.name

    @cached_property
    def digest(self) -> str:
        """Tells the job from another one of its name; its priority is no part of it."""
        return _digest_of(self._told({}))

    def _told(self, tables: dict[int, Table]) -> dict[str, Any]:
        # attrs.asdict would copy every value of ten thousand configurations.
        own = {a.name: getattr(self, a.name) for a in fields(Job)}
        told: dict[str, Any] = without_tables(own, tables)
        return told

    def to_plain(self, tables: dict[int, Table]) -> dict[str, Any]:
        """Return the job as its file holds it; ``tables`` gets its long lists, which it names."""
        told = self._told(tables)
        return {**told, "digest": _digest_of(told)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], read: Callable[[str], Table]) -> Job:
        """Return the job of a file, whose long lists ``read`` gives by their names.

        Raises `BadInput` if the file was changed.
        """
        known = dict(plain)
        told = known.pop("digest", None)
        try:
            if _digest_of(known) != told:
                raise ValueError
            job = cls(**with_tables(known, read))
        except BadInput:
            raise
        except (TypeError, ValueError, AttributeError):
            named = f"the job {known.get('name')!r}"
            raise BadInput(f"it is not what a sweep wrote of {named}") from None
        check_name(job.name, "name")
        return job

    def train_config(self, runs_dir: str, changed: Mapping[str, Any]) -> TrainConfig:
        """Return the configuration of an attempt, which may change settings by dotted key."""
        plain: dict[str, Any] = {**self.config, "name": self.name, "runs_dir": runs_dir}
        for key, value in changed.items():
            owner, _, name = key.rpartition(".")
            if owner:
                settings = plain.get("settings", {})
                own = {**settings.get(owner, {}), name: value}
                plain["settings"] = {**settings, owner: own}
            else:
                plain[name] = value
        return TrainConfig.from_plain(plain)


def _digest_of(told: Mapping[str, Any]) -> str:
    # A grid's 1 and 1.0 are one value: the configuration has what becomes of either.
    factors = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in told.get("factors", {}).items()
    }
    return digest({k: v for k, v in {**told, "factors": factors}.items() if k != "priority"})
