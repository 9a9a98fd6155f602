"""torch.compile in a run: it compiles the model between its quantized layers.

Quantized layers are left out of compiled graphs (their kernels, counters and scales cannot be
traced), so a change of recipe makes no graph invalid. After too many recompilations torch gives a
function up, and says so in a log only; here that becomes an event.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOGGER = "torch._dynamo.convert_frame"
_LIMIT = re.compile(
    r"hit config\.(\w*recompile_limit).*?function: '(\w+)'.*?last reason: ([^\n]*)", re.S
)


class _RecompileHandler(logging.Handler):
    """Emits an event for each function that torch gives up compiling."""

    def __init__(self, run_emit: Callable[..., None]) -> None:
        super().__init__(logging.WARNING)
        self.run_emit = run_emit

    def emit(self, record: logging.LogRecord) -> None:
        found = _LIMIT.search(record.getMessage())
        if found:
            limit, function, reason = found.groups()
            self.run_emit("eager", function=function, limit=limit, reason=reason)


@contextmanager
def tell_recompiles(run_emit: Callable[..., None]) -> Iterator[None]:
    """Emit the event ``eager`` (function, limit, reason) whenever torch gives a function up."""
    logger, handler = logging.getLogger(_LOGGER), _RecompileHandler(run_emit)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
