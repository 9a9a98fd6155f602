"""Standard streams that cannot be written."""

import errno
import io
import os

FAILURES = {
    "full": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "its reader has gone": BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)),
    "closed": ValueError("I/O operation on closed file."),
    "of another encoding": UnicodeEncodeError("ascii", "\u03b1", 0, 1, "ordinal not in range(128)"),
}
"""Why, and with which error."""


class Broken(io.StringIO):
    """A stream of which every write fails; ``why`` is one of `FAILURES`."""

    def __init__(self, why):
        super().__init__()
        self.error = FAILURES[why]

    def write(self, _):
        raise self.error
