"""Options that the commands of sweeps share."""

from __future__ import annotations

from altcore.cli.options import once

SWEEPS_DIR = once("--sweeps-dir", metavar="FOLDER", default="sweeps", help="Where the sweeps are.")
