"""Counts the tests in files: ``python tests/fault_counts.py FILE...`` prints them as JSON."""

import json
import sys

import pytest


class Counting:
    """Notes how many cases each test function has: those of `make test`, and all."""

    def __init__(self) -> None:
        self.found: dict[str, list[int]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Count; an example of hypothesis is a case."""
        for item in items:
            name = item.nodeid.partition("[")[0]
            drawn = getattr(item.obj, "_hypothesis_internal_use_settings", None)  # type: ignore[attr-defined]
            number = drawn.max_examples if drawn else 1
            counts = self.found.setdefault(name, [0, 0])
            counts[0] += 0 if item.get_closest_marker("exhaustive") else number
            counts[1] += number


if __name__ == "__main__":
    counting = Counting()
    pytest.main(["--collect-only", "-qq", "-m", "", *sys.argv[1:]], plugins=[counting])
    print("\n" + json.dumps(counting.found))
