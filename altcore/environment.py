"""The environment variables that altcore reads."""

from __future__ import annotations

import os
from collections.abc import Mapping

from altcore.errors import nearest

KERNELS = "ALTCORE_KERNELS"
CRASH_AT = "ALTCORE_CRASH_AT"
"""Where a test has the process killed: see `altcore.durable.crash_point`."""
EXECUTOR_PID = "ALTCORE_EXECUTOR_PID"
"""Tells a worker the process that started it: once that one is gone, the worker begins no job."""
VARIABLES = {KERNELS: ("on", "off", "1", "0")}
"""The variables for users, and the values of each."""
PREFIX = "ALTCORE_"


def unknown_variables(given: Mapping[str, str] = os.environ) -> list[str]:
    """Return a line for each variable that looks like altcore's and means nothing to it.

    >>> unknown_variables({"ALTCORE_KERNEL": "off"})
    ['the environment variable ALTCORE_KERNEL is not known (did you mean ALTCORE_KERNELS?)']
    >>> unknown_variables({"ALTCORE_CACHE_DIR": "x"})
    ['the environment variable ALTCORE_CACHE_DIR is not known (there is ALTCORE_KERNELS)']
    """
    lines = []
    for name, value in given.items():
        about = f"the environment variable {name}"
        if name in VARIABLES and value.lower() not in VARIABLES[name]:
            lines.append(f"{about} is {value!r}: one of {', '.join(VARIABLES[name])}")
        elif name.startswith(PREFIX) and name not in (*VARIABLES, CRASH_AT, EXECUTOR_PID):
            # The prefix is common to all, and makes none nearer.
            meant = nearest(name.removeprefix(PREFIX), (v.removeprefix(PREFIX) for v in VARIABLES))
            hint = f"did you mean {PREFIX}{meant}?" if meant else f"there is {', '.join(VARIABLES)}"
            lines.append(f"{about} is not known ({hint})")
    return lines
