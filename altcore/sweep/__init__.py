"""Sweeps: many runs, and one ledger that says what became of each. Needs no torch.

A sweep file says what is to be run, the ledger is a folder that holds what was, and workers, as
many as there are and wherever they are, pull jobs from it.
"""

from altcore.sweep.attempt import Attempt, Watch
from altcore.sweep.exits import Exit
from altcore.sweep.expand import jobs_of
from altcore.sweep.job import Job
from altcore.sweep.ledger import Ledger, Standing, State
from altcore.sweep.retry import DEFAULT_RULES, Decision, Rule, decide
from altcore.sweep.sweep_file import Measure, SweepFile, read_sweep, sweep_text
from altcore.sweep.worker import Worker

__all__ = [
    "DEFAULT_RULES",
    "Attempt",
    "Decision",
    "Exit",
    "Job",
    "Ledger",
    "Measure",
    "Rule",
    "Standing",
    "State",
    "SweepFile",
    "Watch",
    "Worker",
    "decide",
    "jobs_of",
    "read_sweep",
    "sweep_text",
]
