"""How many faults the tests of docs/faults.md make.

``python tests/fault_counts.py FILE...`` counts those of tests in files, and prints JSON.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs/faults.md"
ROW = re.compile(r"^\| (.+?) \| `(tests/\S+)` \|", re.MULTILINE)
MADE = "faults"
"""The marker of a test that makes several, and the key under which reports hold the number."""


def made_by(item: pytest.Item) -> int:
    """Return how many faults a test makes; an example of hypothesis is one."""
    marker = item.get_closest_marker(MADE)
    drawn = getattr(getattr(item, "obj", None), "_hypothesis_internal_use_settings", None)
    return marker.args[0] if marker else drawn.max_examples if drawn else 1


def function_of(nodeid: str) -> str:
    """Return the test function of a case, as the page names it."""
    return nodeid.partition("[")[0]


def summary(reports: Iterable[pytest.TestReport]) -> list[str]:
    """Return a line for each row of the page whose faults were made, by tests that passed."""
    found: Counter[str] = Counter()
    for report in reports:
        found[function_of(report.nodeid)] += dict(report.user_properties).get(MADE, 0)  # type: ignore[call-overload]
    rows = ROW.findall(PAGE.read_text())
    return [f"{found[test]:>6}  {fault}" for fault, test in rows if found[test]]


class Counting:
    """Notes how many faults each test function makes: in `make test`, and in all."""

    def __init__(self) -> None:
        self.found: dict[str, list[int]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Count."""
        for item in items:
            number, counts = made_by(item), self.found.setdefault(function_of(item.nodeid), [0, 0])
            is_later = any(map(item.get_closest_marker, ("exhaustive", "slow")))
            counts[0] += 0 if is_later else number
            counts[1] += number


if __name__ == "__main__":
    counting = Counting()
    pytest.main(["--collect-only", "-qq", "-m", "", *sys.argv[1:]], plugins=[counting])
    print("\n" + json.dumps(counting.found))
