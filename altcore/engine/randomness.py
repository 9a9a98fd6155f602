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
    has_begun = torch.cuda.is_initialized()  # to ask an idle GPU for its state would start it
    device, own = torch.device("cuda" if has_begun else "cpu"), torch.initial_seed()
    before = random_state(device)
    try:
        seed_all(seed)
        yield
    finally:
        torch.cuda.manual_seed_all(own)
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
    if device.type == "cuda":
        # A model or a plugin may draw on other devices than the run's own.
        state["cuda"] = torch.cuda.get_rng_state_all()
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
    if device.type == "cuda" and "cuda" in state:
        here = zip(range(torch.cuda.device_count()), state["cuda"], strict=False)
        for index, own in here:  # a run may go on where there are fewer devices, or more
            torch.cuda.set_rng_state(own.cpu(), index)
    if "numpy" in state and (numpy := _numpy()) is not None:
        name, keys, *rest = state["numpy"]
        numpy.random.set_state((name, numpy.frombuffer(keys, dtype=numpy.uint32), *rest))


def _numpy() -> Any:
    """Return numpy, if somebody has imported it and has its own generator in place."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    state = numpy.random.get_state(legacy=False)
    return numpy if state["bit_generator"] == "MT19937" else None
