"""The training loop, and what it alone needs: the run and the step, dispatch, capture, collapse.

Uses every room below: runs, quantization, config, hooks, numerics, recipes and formats.
"""

from altcore.engine.capture import Deferred
from altcore.engine.collapse import StallWindow, Trend
from altcore.engine.dispatch import WATCHES, check_class, hooks_of
from altcore.engine.loop import Engine
from altcore.engine.randomness import random_state
from altcore.engine.setup import build_workload, choose_device, prepare, resumed
from altcore.engine.state import Run, Step

__all__ = [
    "WATCHES",
    "Deferred",
    "Engine",
    "Run",
    "StallWindow",
    "Step",
    "Trend",
    "build_workload",
    "check_class",
    "choose_device",
    "hooks_of",
    "prepare",
    "random_state",
    "resumed",
]
