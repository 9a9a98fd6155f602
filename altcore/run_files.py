"""The names of what altcore writes in a run directory."""

from __future__ import annotations

METRICS, EVENTS, TIMINGS = "metrics.jsonl", "events.jsonl", "timings.jsonl"
LOGS = (METRICS, EVENTS, TIMINGS)
CONFIG, ENVIRONMENT, SUMMARY = "config.yaml", "environment.json", "summary.json"
WHOLE_FILES = (CONFIG, ENVIRONMENT, SUMMARY)
HELD = (CONFIG, ENVIRONMENT)
"""Those that stay as they are while a run trains."""
LOCK = ".lock"
CHECKPOINTS, REPORTS = "checkpoints", "reports"
FOLDERS, FILES = (CHECKPOINTS, REPORTS), (LOCK, *LOGS, *WHOLE_FILES)
