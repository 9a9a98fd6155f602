"""The resources that a sweep file declares: a GPU, and what its workers and runs may take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen
from attrs.validators import and_, deep_mapping, ge, gt, instance_of, le, optional

from altcore.builtin_types import duration
from altcore.errors import BadInput
from altcore.hooks import setting

GPU_MEMORY, BUSY = "peak_gpu_memory_bytes", "gpu_utilization"
"""What is measured of a run on a GPU."""


@frozen(kw_only=True)
class Declared:
    """What a GPU has, and its workers take. Runs without a GPU are compared with none of it."""

    gpu_gb: float | None = setting(None, help="memory of a GPU, in GB", validator=optional(gt(0)))
    workers_per_gpu: int = setting(
        2, help="workers that executors place on a GPU, unless told", validator=ge(1)
    )
    memory_gb: dict[str, float] = setting(
        factory=dict,
        help="most GPU memory of a worker, in GB, by variant",
        validator=deep_mapping(instance_of(str), gt(0)),
    )
    utilization: float | None = setting(
        None,
        help="share of the time in which GPUs are busy, at least; measured if `nvidia-ml-py` is "
        "installed",
        validator=optional(and_(gt(0), le(1))),
    )
    minutes: float | None = setting(None, help="of a run, at most", validator=optional(gt(0)))

    def __attrs_post_init__(self) -> None:
        if self.gpu_gb is not None and self.together > self.gpu_gb:
            raise BadInput(f"{self._told_together} have no room", key="memory_gb")

    @property
    def together(self) -> float:
        """The memory of the workers of a GPU, if all have the largest variant."""
        return self.workers_per_gpu * max(self.memory_gb.values(), default=0.0)

    @property
    def _told_together(self) -> str:
        return f"{self.workers_per_gpu} workers that take {self.together:g} of {self.gpu_gb:g} GB"

    def __str__(self) -> str:
        told = []
        if self.gpu_gb is not None and self.memory_gb:
            workers = f"{self.workers_per_gpu} workers"
            told.append(f"{workers} take {self.together:g} of a GPU's {self.gpu_gb:g} GB")
        if self.minutes is not None:
            told.append(f"a run takes {duration(60 * self.minutes)}")
        if self.utilization is not None:
            told.append(f"GPUs are busy {100 * self.utilization:g} % of the time")
        return "; ".join(told)

    def passed_by(self, variant: str, used: Mapping[str, Any], seconds: float | None) -> list[str]:
        """Return what a run took beyond what is declared; of one without a GPU nothing.

        Args:
            variant: of the run.
            used: what was measured of it.
            seconds: of the whole run, None if it is not known.
        """
        if GPU_MEMORY not in used:
            return []
        found, most = [], self.memory_gb.get(variant)
        if most is not None and used[GPU_MEMORY] > 1e9 * most:
            found.append(f"{used[GPU_MEMORY] / 1e9:.2f} GB of GPU memory (declared {most:g} GB)")
        if self.minutes is not None and seconds is not None and seconds > 60 * self.minutes:
            found.append(f"{duration(seconds)} (declared {duration(60 * self.minutes)})")
        return found

    def idle(self, busy: float) -> str:
        """Return what is wrong with the percentage of the time in which GPUs were busy."""
        if self.utilization is None or busy >= 100 * self.utilization:
            return ""
        return f"GPUs are busy {busy:.0f} % of the time (declared {100 * self.utilization:g} %)"
