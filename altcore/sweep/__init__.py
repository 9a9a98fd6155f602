"""Sweeps: many runs, and one ledger that says what became of each. Needs no torch.

A sweep file says what is to be run, the ledger is a folder that holds what was, and workers, as
many as there are and wherever they are, pull jobs from it.
"""

from altcore.sweep.archive import collect
from altcore.sweep.asking import Given, asked_sweep
from altcore.sweep.attempt import Attempt, Watch
from altcore.sweep.audit import check_accepted
from altcore.sweep.changes import Changes, bring_up_to_date, changes_of
from altcore.sweep.checking import checked_jobs_of
from altcore.sweep.estimate import Estimate, estimate_of, keep_checked
from altcore.sweep.exits import LOST, SIGNAL, Exit
from altcore.sweep.expand import check_nothing, jobs_of, planned
from altcore.sweep.exporting import export
from altcore.sweep.folder import (
    SWEEPS,
    begin_sweep,
    check_folder,
    file_of,
    folder_of,
    is_sweep_file,
    open_sweep,
    save_sweep,
)
from altcore.sweep.job import Job
from altcore.sweep.ledger import Ledger, Standing, State
from altcore.sweep.limits import Alerts
from altcore.sweep.placing import make_executor, placing_of, script_of, worker_of
from altcore.sweep.preflight import Finding, Preflight
from altcore.sweep.progress import Progress
from altcore.sweep.records import read_record, record_text
from altcore.sweep.resources import Limits, side_by_side
from altcore.sweep.retry import DEFAULT_RULES, Decision, Rule, decide
from altcore.sweep.rows import Row, survey
from altcore.sweep.run_job import OWN
from altcore.sweep.running import run_sweep
from altcore.sweep.status import Status, status_of
from altcore.sweep.sweep_file import Measure, SweepFile, read_sweep, sweep_text
from altcore.sweep.table import Table, table_of
from altcore.sweep.time_left import TimeLeft
from altcore.sweep.trying_again import try_again
from altcore.sweep.verification import Verification, verify
from altcore.sweep.worker import Worker

__all__ = [
    "DEFAULT_RULES",
    "LOST",
    "OWN",
    "SIGNAL",
    "SWEEPS",
    "Alerts",
    "Attempt",
    "Changes",
    "Decision",
    "Estimate",
    "Exit",
    "Finding",
    "Given",
    "Job",
    "Ledger",
    "Limits",
    "Measure",
    "Preflight",
    "Progress",
    "Row",
    "Rule",
    "Standing",
    "State",
    "Status",
    "SweepFile",
    "Table",
    "TimeLeft",
    "Verification",
    "Watch",
    "Worker",
    "asked_sweep",
    "begin_sweep",
    "bring_up_to_date",
    "changes_of",
    "check_accepted",
    "check_folder",
    "check_nothing",
    "checked_jobs_of",
    "collect",
    "decide",
    "estimate_of",
    "export",
    "file_of",
    "folder_of",
    "is_sweep_file",
    "jobs_of",
    "keep_checked",
    "make_executor",
    "open_sweep",
    "placing_of",
    "planned",
    "read_record",
    "read_sweep",
    "record_text",
    "run_sweep",
    "save_sweep",
    "script_of",
    "side_by_side",
    "status_of",
    "survey",
    "sweep_text",
    "table_of",
    "try_again",
    "verify",
    "worker_of",
]
