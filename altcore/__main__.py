"""``python -m altcore`` is the ``altcore`` command."""

from altcore.cli import main

if __name__ == "__main__":
    main()
