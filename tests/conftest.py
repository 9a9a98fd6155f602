"""Settings that all tests share."""

import gc
import os
import signal
import sys

# Before torch is imported: tests are many and small, and a second thread only costs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Processes that tests start import the same modules, and one is enough to compile them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
from fault_counts import MADE, made_by, summary
from helpers import PluginShelf, forget_installed, text_file
from hypothesis import settings

# No test loses its power, and waiting for the disk would be a tenth of the time.
os.fsync = lambda descriptor: None

# Whoever starts the tests may ignore some, as a shell does for what it starts with `&`, or nohup.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

# To import and collect makes millions of objects, and hardly any garbage.
gc.disable()

settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")


def pytest_collection_modifyitems(items):
    """Let reports, which may come from another process, say how many faults a test makes."""
    for item in items:
        item.user_properties.append((MADE, made_by(item)))


def pytest_collection_finish():
    """Let the garbage collector leave all that in peace."""
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter):
    """Say how many faults of each kind were made and dealt with."""
    if lines := summary(terminalreporter.stats.get("passed", ())):
        terminalreporter.section("faults made (docs/faults.md)")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _logs_as_they_were():
    """The command points the log at its own stderr, which pytest closes after the test."""
    yield
    if "structlog" in sys.modules:
        sys.modules["structlog"].reset_defaults()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A small text file to train on: nothing is read from the machine's Python."""
    return text_file(tmp_path_factory.mktemp("corpus") / "words.txt")


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder on the path in which a test installs its own plugins, with real metadata."""
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield PluginShelf(tmp_path / "site", monkeypatch)
    forget_installed()


@pytest.fixture
def start(tmp_path, corpus, monkeypatch):
    """Return a function that trains a tiny model into ``tmp_path``; see `helpers.Starter`."""
    from helpers import Starter

    return Starter(tmp_path / "runs", corpus)
