"""Cells and columns that the tables of both studies share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altcore_reporters.study_pages.document import Cell, Interval, Number
from altcore_reporters.study_pages.words import LEVEL, NOT_TOLD, factor, number, value

Row = Mapping[str, Any]
"""An estimate in an answer: its mean, its interval, and what else is known of it."""


def interval(row: Row) -> Interval:
    """Return an estimate's mean and interval."""
    return Interval(*(value(row[key]) for key in ("mean", "low", "high")))


def p_value(row: Row) -> Number:
    """Return the corrected p of a row."""
    p = value(row["p_holm"])
    return Number(p, number(p))


def learning_rate(given: float) -> Number:
    """Return what the learning rate is multiplied by."""
    return Number(given, factor(given))


def of_seeds(count: int, about: Row) -> Number:
    """Return in how many of the seeds something happened."""
    return Number(count, f"{count} of {len(about['seeds'])}")


JUDGED = ("gap [95 %]", "p (Holm)", "diverged", "")
"""The heads of the columns that `judged` returns."""


def judged(row: Row, about: Row) -> list[Cell]:
    """Return the columns that every arm has: gap, corrected p, diverged, and a verdict."""
    words = "worse than the twin" if row["guilty"] else NOT_TOLD
    if value(row["high"]) < 0 and value(row["p_holm"]) < LEVEL:
        words = "better than the twin"
    return [interval(row), p_value(row), of_seeds(row["diverged"], about), words]
