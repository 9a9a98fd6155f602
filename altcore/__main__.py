"""``python -m altcore`` is the ``altcore`` command."""

import sys

from altcore.signals import handle_signals


def start() -> None:
    """Handle signals from now on, and call the command."""
    handle_signals()
    # Imports take time, in which a signal may come.
    from altcore.cli import main
    from altcore.cli.threads import leave_threads
    from altcore.cli.uncaught import refuse_silent_end, tell_uncaught

    tell_uncaught(debug="--debug" in sys.argv)
    refuse_silent_end()
    try:
        main()
    except SystemExit as leaving:
        if isinstance(leaving.code, int):
            leave_threads(leaving.code)
        raise


if __name__ == "__main__":
    start()
