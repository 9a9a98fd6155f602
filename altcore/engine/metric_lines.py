"""Lines of metrics, made of values that stay on the device as long as they can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import define, field


@define(eq=False)
class Line:
    """A recorded step's line of metrics, and its measures that are still on the device."""

    values: dict[str, Any]
    measures: dict[str, Any] = field(factory=dict)
    timings: dict[str, float | None] = field(factory=dict)
    """How long the step took; empty until that is known."""


@define(eq=False)
class MetricLines:
    """Makes lines of metrics from host values and measures that stay on the device.

    What is measured after the optimizer is read together with the next step's one host read, so
    that a line costs no read of its own: it is complete one step later, or at `flush`.
    """

    write: Callable[[Line], None]
    """Told each complete line."""
    previous: Line | None = None
    current: Line | None = None

    def read(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Read device values in one transfer, and what the previous line lacks with them."""
        lacking = self.previous.measures if self.previous else {}
        host = to_host(
            {("now", k): v for k, v in values.items()}
            | {("before", k): v for k, v in lacking.items()}
        )
        if self.previous:
            self.previous.values.update({k: host["before", k] for k in lacking})
            self.previous.measures = {}
        return {k: host["now", k] for k in values}

    def begin(self, line: Mapping[str, Any]) -> None:
        """Begin this step's line with what the host knows."""
        self.current = Line(dict(line))

    def add(self, measures: Mapping[str, Any]) -> None:
        """Add measures that are still on the device to this step's line."""
        if self.current:
            self.current.measures.update(measures)

    def end_step(self) -> None:
        """Hand on the previous line, which is complete by now."""
        if self.previous:
            self.write(self.previous)
        self.previous, self.current = self.current, None

    def flush(self) -> None:
        """Read what is outstanding, and hand on every line."""
        for _ in range(2):
            if self.previous and self.previous.measures:
                self.read({})
            self.end_step()


def to_host(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return device scalars and short vectors as numbers and lists, in one transfer a device."""
    tensors: dict[torch.device, dict[Any, torch.Tensor]] = {}
    for key, value in values.items():
        if isinstance(value, torch.Tensor):
            tensors.setdefault(value.device, {})[key] = value
    host = {k: v for own in tensors.values() for k, v in _read(own).items()}
    return {k: host.get(k, v) for k, v in values.items()}


def _read(tensors: Mapping[Any, torch.Tensor]) -> dict[Any, Any]:
    """Return the numbers of tensors that are on one device."""
    # Those of one type at once: thousands of single conversions would take milliseconds.
    groups: dict[tuple[torch.dtype, bool], list[Any]] = {}
    for key, tensor in sorted(tensors.items(), key=lambda item: not item[1].is_floating_point()):
        groups.setdefault((tensor.dtype, tensor.dim() == 0), []).append(key)
    bits, floats = [], 0
    for (dtype, is_scalar), keys in groups.items():
        own = [tensors[key].detach() for key in keys]
        flat = torch.stack(own) if is_scalar else torch.cat(own)
        # float64 does not hold every whole number of 64 bits: the bits travel.
        bits.append(flat.double().view(torch.int64) if dtype.is_floating_point else flat.long())
        floats += flat.numel() if dtype.is_floating_point else 0
    read = torch.cat(bits).cpu()
    numbers = iter([*read[:floats].view(torch.float64).tolist(), *read[floats:].tolist()])
    host: dict[Any, Any] = {}
    for (dtype, is_scalar), keys in groups.items():
        for key in keys:
            taken = [next(numbers) for _ in range(tensors[key].numel())]
            if dtype is torch.uint64:
                taken = [number % 2**64 for number in taken]
            host[key] = taken[0] if is_scalar else taken
    return host
