"""Flags that decide what is computed: whoever changes one is named, in whichever call it does."""

import colorsys
import logging
import os
import sys
import warnings

import pytest
import torch
from attrs import define
from helpers import events
from structlog.testing import capture_logs

from altcore import hookimpl
from altcore.engine.flag_watch import QUICK, FlagWatch
from altcore.registry import find

CHANGES = {
    "torch's number of threads": lambda: torch.set_num_threads(3),
    "torch's deterministic algorithms": lambda: torch.use_deterministic_algorithms(
        True, warn_only=True
    ),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "torch's precision of float32 products": lambda: torch.set_float32_matmul_precision("medium"),
    "torch.backends.cudnn.allow_tf32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "torch.backends.cudnn.deterministic": lambda: setattr(
        torch.backends.cudnn, "deterministic", True
    ),
    "torch.backends.cudnn.benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch's flushing of denormals": lambda: torch.set_flush_denormal(True),
    # Not one that may be there already.
    "warnings.filters": lambda: warnings.filterwarnings("ignore", "nobody says this"),
    "os.environ": lambda: os.environ.update(HOME="elsewhere", ALTCORE_NOBODY_S="1"),
    "sys.modules": lambda: sys.modules.pop("colorsys"),
    "the working directory": lambda: os.chdir("/"),
    "the recursion limit": lambda: sys.setrecursionlimit(2500),
    "logging.disable": lambda: logging.disable(logging.ERROR),
    "sys.excepthook": lambda: setattr(sys, "excepthook", print),
}

NAMED = {
    "os.environ": "HOME, ALTCORE_NOBODY_S of os.environ",
    "sys.modules": "colorsys of sys.modules",
}
"""Of what is named."""


@pytest.fixture(autouse=True)
def _flags_as_they_were():
    with warnings.catch_warnings():
        watch = FlagWatch()
        yield
        watch.put_back()


def later(change):
    """Return a class of plugins that call ``change`` in their second step."""

    @define(eq=False)
    class Later:
        @hookimpl
        def post_step(self, step):
            if step.index == 2:
                change()

    return Later


def test_what_an_observer_changes_in_any_call_is_put_back(shelf, start):
    """Not in the first call of its hook alone, and without ``check_observers``."""
    assert CHANGES.keys() == {flag.label for flag in QUICK}
    names = [f"changes-{i}" for i in range(len(CHANGES))]
    for name, change in zip(names, CHANGES.values(), strict=True):
        shelf.install("diagnostic", name, later(change))
    before = FlagWatch()
    run = start(names).run_directory
    assert before.changed() == []
    assert sys.modules["colorsys"] is colorsys
    assert "ALTCORE_NOBODY_S" not in os.environ
    told = {e["plugin"]: e["message"] for e in events(run, "degraded")}
    for name, label in zip(names, CHANGES, strict=True):
        assert told[name].endswith(f"it may not change {NAMED.get(label, label)}"), name


def test_whoever_may_change_numbers_is_named(shelf, start, monkeypatch):
    """An intervention and a workload keep what they set; the making of an observer does not."""

    @define(eq=False)
    class Made:
        def __attrs_post_init__(self):
            torch.backends.cudnn.benchmark = True

        @hookimpl
        def run_start(self):
            """Be a reporter."""

    shelf.install("reporter", "made", Made)
    shelf.install("intervention", "acts", later(lambda: torch.set_flush_denormal(True)))
    built = sys.modules[find("gpt", ("workload",)).load().__module__].BuiltGpt
    own = built.batch

    seen = set()

    def batch(self, split, index, micro):
        seen.add((torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic))
        if (split, index) == ("train", 3):
            torch.backends.cudnn.deterministic = True
        return own(self, split, index, micro)

    monkeypatch.setattr(built, "batch", batch)
    with capture_logs() as logs:
        start(["made", "acts"])
    told = [x["event"] for x in logs if " changed " in x["event"]]
    assert told == [
        "reporter made (acme-made 1.2.3) changed torch.backends.cudnn.benchmark in the "
        "construction of its class: it is put back",
        "intervention acts (acme-acts 1.2.3) changed torch's flushing of denormals in post_step",
        "workload gpt (altcore-workloads 0.1.0) changed torch.backends.cudnn.deterministic in "
        "batch('train', 3, 0)",
    ]
    assert seen == {(False, False), (False, True)}


def test_a_module_that_is_imported_may_add_filters(monkeypatch):
    watch = FlagWatch()
    warnings.simplefilter("error")
    monkeypatch.setitem(sys.modules, "acme_that_warns", sys)
    assert watch.put_back() == []
    assert FlagWatch().changed() == []


def test_a_reporter_may_add_variables_and_a_hook_for_exceptions(monkeypatch):
    """As libraries that it sends with do; whoever is called next is not to blame."""
    watch = FlagWatch()
    monkeypatch.setenv("ALTCORE_NOBODY_S", "1")
    monkeypatch.setattr(sys, "excepthook", print)
    assert watch.put_back(is_reporter=True) == []
    assert watch.put_back() == []
    monkeypatch.setenv("ALTCORE_NOBODY_S", "2")
    assert watch.put_back(is_reporter=True) == ["ALTCORE_NOBODY_S of os.environ"]
    assert os.environ["ALTCORE_NOBODY_S"] == "1"
