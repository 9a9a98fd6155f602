"""altcore's first-party reporters: they tell people how runs went, and what many runs show.

The classes below analyse runs from Python. They load on first use, with pandas.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from altcore_reporters.comparison import FormatComparator
    from altcore_reporters.failures import FailureAnalyzer
    from altcore_reporters.generator import ReportGenerator
    from altcore_reporters.loader import ExperimentDataLoader
    from altcore_reporters.slope_study.exported import ExportedStudy

__version__ = "0.1.0"

_HOME = {
    "ExperimentDataLoader": "altcore_reporters.loader",
    "ExportedStudy": "altcore_reporters.slope_study.exported",
    "FailureAnalyzer": "altcore_reporters.failures",
    "FormatComparator": "altcore_reporters.comparison",
    "ReportGenerator": "altcore_reporters.generator",
}

__all__ = [
    "ExperimentDataLoader",
    "ExportedStudy",
    "FailureAnalyzer",
    "FormatComparator",
    "ReportGenerator",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'altcore_reporters' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
