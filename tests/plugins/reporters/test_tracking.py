"""What every tracker is made of: it sees the whole record, once, and never touches the run."""

import pytest
from helpers_trackers import FileTracker


@pytest.fixture
def track(shelf, start, tmp_path):
    """Return a function that trains with a tracker; it returns the Result and what was told."""
    shelf.install("reporter", "tried", FileTracker)
    file = str(tmp_path / "told.jsonl")

    def train(**keys):
        settings = {"tried__file": file, "tried__finish_timeout": 60.0, **keys}
        return start(["tried"], **settings), FileTracker(file=file)

    return train


def test_a_tracker_gets_the_whole_record(track):
    _, tracker = track(name="a", max_steps=4)
    assert [t["log"]["step"] for t in tracker.told("log")] == [1, 2, 3, 4, 4]
