"""A signal at any time, also in the first second, in the last step, or twice, loses nothing."""

import os
import random
import signal
import time

import pytest
from attrs import define
from helpers import Starter, metrics_bytes, text_file, weights_sha256
from helpers_cli import TINY
from helpers_crashes import ended, forked_command
from helpers_faults import numbered

from altcore import hookimpl
from altcore.runs import list_checkpoints, summary_of
from altcore.signals import WATCHED

STEPS = 12
WHEN = ("at any time", "in the first second", "in the last step", "twice")


@define(eq=False)
class Sends:
    """Sends a signal to its own process in the middle of a step."""

    number: int = 0

    @hookimpl
    def post_step(self, step):
        if self.number and step.index == STEPS:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def start(tmp_path_factory, shelf):
    shelf.install("reporter", "sends", Sends)
    folder = tmp_path_factory.getbasetemp() / "signals"
    if not folder.exists():
        folder.mkdir()
        text_file(folder / "words.txt")
    return Starter(folder / "runs", folder / "words.txt")


@pytest.fixture(autouse=True)
def _hangups_are_heard():
    """Under nohup, or a CI that does as it does, SIGHUP is ignored, and so it is by every child."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def arguments(start, name, number=0):
    given = [
        "train",
        *TINY,
        "--set",
        "gpt.batch_size=2",
        "--data",
        str(start.corpus),
        "--steps",
        str(STEPS),
        "--name",
        name,
    ]
    given += ["--plugin", "sends", "--set", f"sends.number={number}"]
    return [*given, "--device", "cpu", "--set", "checkpoint_interval=5", "--set", "eval_steps=1"]


@pytest.mark.parametrize("case", numbered(20, 100))
def test_a_signal_at_any_time_loses_nothing(start, case, tmp_path):
    """The exit code is its own, nothing is a traceback, and the run ends as if it never came."""
    draw = random.Random(case)
    when, number = WHEN[case % 4], WATCHED[case // 4 % len(WATCHED)]
    whole = start.runs / "whole"
    if not whole.exists():
        with (tmp_path / "whole").open("w") as err:
            assert ended(forked_command(start.runs.parent, arguments(start, "whole"), err)) == 0
    name = f"case-{case}"
    own = number if when == "in the last step" else 0
    with (tmp_path / "err").open("w") as err:
        child = forked_command(start.runs.parent, arguments(start, name, own), err)
        if when != "in the last step":
            time.sleep(draw.uniform(0, 0.3 if when == "in the first second" else 1.0))
            sent = signal.SIGINT if when == "twice" else number
            os.kill(child, sent)
            if when == "twice":
                time.sleep(draw.choice([0, 0.001, 0.05]))
                os.kill(child, sent)
        code = ended(child)
    said = (tmp_path / "err").read_text()
    assert "Traceback" not in said, said
    assert code in (0, 128 + (signal.SIGINT if when == "twice" else number)), said
    if own:
        assert code == 128 + own
    run = start.runs / name
    with (tmp_path / "again").open("w") as err:
        if not list_checkpoints(run / "checkpoints"):
            code = ended(forked_command(start.runs.parent, arguments(start, name), err))
        elif not (run / "summary.json").exists() or summary_of(run)["status"] != "finished":
            code = ended(forked_command(start.runs.parent, ["train", "--resume", name], err))
        else:
            code = 0
    assert code == 0, (tmp_path / "again").read_text()
    assert summary_of(run)["status"] == "finished"
    assert weights_sha256(run) == weights_sha256(whole)
    assert metrics_bytes(run) == metrics_bytes(whole)
