"""The benchmarks run, and docs/benchmarks.md has what they print."""

import importlib
import re
import subprocess
import sys

import pytest
import torch
from helpers_cli import ROOT
from torch.utils._python_dispatch import TorchDispatchMode

FOLDER = ROOT / "benchmarks"
PAGE = (ROOT / "docs" / "benchmarks.md").read_text()
SCRIPTS = re.findall(r'"(\w+)\.py"', (FOLDER / "run.py").read_text())
FAST = ("startup", "small")
SLOWER = [
    pytest.param(name, marks=[] if name in FAST else pytest.mark.slow, id=name) for name in SCRIPTS
]


def rows(text):
    """Return (title of the table, first cell) of all rows of the tables in a text."""
    found, title = set(), None
    for line in text.splitlines():
        if line.startswith("### "):
            title = line.removeprefix("### ")
        elif line.startswith("| ") and not line.startswith("| ---"):
            first = line.split("|")[1].strip()
            found |= {(title, first)} if first else set()
    return found


def section(name):
    """Return what the page has of a script."""
    _, _, rest = PAGE.partition(f"\n## {name}.py\n")
    return rest.partition("\n## ")[0]


@pytest.mark.parametrize("name", SLOWER)
def test_a_benchmark_runs_and_the_page_has_its_rows(name, tmp_path):
    """What depends on the installed peers and the machine's cores may be missing here."""
    made = tmp_path / "tables.md"
    command = [sys.executable, FOLDER / f"{name}.py", "--quick", "--markdown", made]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = rows(made.read_text())
    assert found
    assert found <= rows(section(name)), "run benchmarks/run.py --markdown docs/benchmarks.md"


def test_all_benchmarks_are_run():
    """`make bench` leaves none out, and the page has them all, in order."""
    assert re.findall(r"^## (\w+)\.py$", PAGE, re.MULTILINE) == SCRIPTS
    scripts = {p.stem for p in FOLDER.glob("*.py") if "def main()" in p.read_text()}
    assert scripts == {*SCRIPTS, "run", "exactness", "models"}  # the last two have pages


def test_run_hands_on_the_device_to_those_that_take_one():
    takes = re.findall(r'"(\w+)\.py": True', (FOLDER / "run.py").read_text())
    assert takes == [n for n in SCRIPTS if "runs_on_gpu=True" in (FOLDER / f"{n}.py").read_text()]
    assert "quantize" in takes


def test_a_clock_waits_for_a_gpu_before_and_after(monkeypatch):
    """Its calls return before the work is done."""
    monkeypatch.syspath_prepend(FOLDER)
    done = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append("waits"))
    clock = importlib.import_module("clock").Clock
    clock(torch.device("cuda")).seconds(lambda: done.append("call"))
    assert done == ["waits", "call", "waits"]
    clock(torch.device("cpu")).seconds(lambda: done.append("call"))
    assert done[3:] == ["call"]
    assert clock(torch.device("cuda")).typical([1.0, 2.0, 9.0]) == 2.0
    assert clock(torch.device("cpu")).typical([1.0, 2.0, 9.0]) == 1.0


@pytest.mark.skipif(torch.__version__ < "2.13", reason="earlier ones take more for the same")
def test_the_engine_adds_few_operations_to_a_step(monkeypatch, tmp_path):
    """Each is a launch on a GPU; to count does not depend on the machine's load."""

    class Operations(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.number += 1
            return func(*args, **kwargs or {})

    monkeypatch.syspath_prepend(FOLDER)
    clock, module = importlib.import_module("clock"), importlib.import_module("engine")
    engine = module.make_engine(str(tmp_path), 10, "tiny", clock.Clock(torch.device("cpu")))
    bare = module.BareLoop(engine, "tiny")
    for index in range(1, 4):
        with Operations() as ours:
            engine.train_step(module.Step(index))
        with Operations() as own:
            bare.step(index)
    engine.directory.close()
    assert ours.number - own.number <= 27


def test_the_page_says_on_which_machine():
    """And not with figures that mean nothing; nor with a folder of that machine."""
    assert {first for title, first in rows(PAGE) if title == "The machine"} >= {"CPU", "cores"}
    assert "--quick:" not in PAGE.partition("<!-- tables: begin -->")[2]
    assert not re.search(r"/(?:home|root|Users|tmp|work)/", PAGE)


def test_without_peers_a_line_says_so(tmp_path):
    """A peer that is not installed is left out, and nothing else."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
sys.modules["qtorch"] = sys.modules["torchao"] = None
import peers, torch
found, missing = peers.available(torch.zeros(2, 1024))
assert set(missing) >= {"qtorch", "torchao"}, missing
assert all("not installed" in missing[n] for n in ("qtorch", "torchao")), missing
assert {"torch cast", "gfloat", "ml_dtypes"} <= set(found)
print(peers.reason(RuntimeError("Error in /somebody/home/x.cpp")))
"""
    command = [sys.executable, "-c", code, FOLDER]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "cannot be built here: Error in x.cpp"
