"""A job: one run of a sweep, as frozen plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, fields, frozen

from altcore.config import TrainConfig, check_name
from altcore.errors import BadInput
from altcore.formats import digest

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
    priority: int = PRIORITY

    @property
    def digest(self) -> str:
        """Tells the job from another one of its name; its priority is no part of it."""
        told = self._told()
        del told["priority"]
        return digest(told)

    def _told(self) -> dict[str, Any]:
        # attrs.asdict would copy every value of ten thousand configurations.
        return {a.name: getattr(self, a.name) for a in fields(Job)}

    def to_plain(self) -> dict[str, Any]:
        """Return the job as its file holds it."""
        return {**self._told(), "digest": self.digest}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Job:
        """Return the job of a file. Raises `BadInput` if the file was changed."""
        known = dict(plain)
        told = known.pop("digest", None)
        try:
            job = cls(**known)
            changed = job.digest != told
        except (TypeError, ValueError, AttributeError):
            changed = True
        if changed:
            raise BadInput(f"it is not what a sweep wrote of the job {known.get('name')!r}")
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
