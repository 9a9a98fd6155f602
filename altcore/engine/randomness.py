"""Random states: torch's on every device, Python's and numpy's."""

from __future__ import annotations

import random
import sys
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def seed_all(seed: int) -> None:
    """Set torch's, Python's and numpy's random states, on every device."""
    torch.manual_seed(seed)
    random.seed(seed)
    if (numpy := _numpy()) is not None:
        numpy.random.seed(seed % 2**32)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Set the same for a while: afterwards they are what they were."""
    with random_states_kept():
        seed_all(seed)
        yield


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Put the same back to what they were, whoever draws or seeds in between."""
    device, own = _device_at_work(), torch.initial_seed()
    before = random_state(device)
    try:
        yield
    finally:
        torch.manual_seed(own)  # of devices that are idle
        set_random_state(before, device)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the random states that a model may draw from: tensors and plain data.

    Many numbers are bytes: a checkpoint pickles each item of a list on its own.
    """
    version, numbers, gauss = random.getstate()
    state = {
        "cpu": torch.get_rng_state(),
        "python": [version, array("I", numbers).tobytes(), gauss],
    }
    if (module := _generators_of(device)) is not None:
        # A model or a plugin may draw on other devices than the run's own.
        state[device.type] = [module.get_rng_state(i) for i in range(module.device_count())]
    if (numpy := _numpy()) is not None:
        name, keys, *rest = numpy.random.get_state()
        state["numpy"] = [name, keys.tobytes(), *rest]
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if "python" in state:
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(array("I", numbers)), gauss))
    if (module := _generators_of(device)) is not None and device.type in state:
        here = zip(range(module.device_count()), state[device.type], strict=False)
        for index, own in here:  # a run may go on where there are fewer devices, or more
            module.set_rng_state(own.cpu(), index)
    if "numpy" in state and (numpy := _numpy()) is not None:
        name, keys, *rest = state["numpy"]
        numpy.random.set_state((name, numpy.frombuffer(keys, dtype=numpy.uint32), *rest))


def _generators_of(device: torch.device) -> Any:
    """Return the module with the random states of a kind of device, as `torch.cuda`; None if none.

    That of the CPU is in torch itself.
    """
    if device.type in ("cpu", "meta"):
        return None
    module = torch.get_device_module(device)
    return module if hasattr(module, "get_rng_state") else None


def _device_at_work() -> torch.device:
    """Return an accelerator that is in use: to ask an idle one for its state would start it."""
    found = torch.accelerator.current_accelerator()
    if found is not None:
        module = torch.get_device_module(found)
        if getattr(module, "is_initialized", torch.accelerator.is_available)():
            return found
    return torch.device("cpu")


def _numpy() -> Any:
    """Return numpy, if somebody has imported it and has its own generator in place."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    state = numpy.random.get_state(legacy=False)
    return numpy if state["bit_generator"] == "MT19937" else None
