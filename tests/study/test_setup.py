"""The configuration that the runs of a study share."""

import pytest
import structlog
from helpers_cli import call
from helpers_epochs import Points
from structlog.testing import capture_logs

from altcore.config import load_config
from altcore.errors import DEFAULT, BadInput
from altcore.study.arms import twin
from altcore.study.options import Options
from altcore.study.setup import base_config, check_arms


def test_a_study_counts_in_steps(shelf, tmp_path):
    """What is given in epochs is computed at once: a study changes the number of steps."""
    shelf.install("workload", "points", Points)
    given = {"workload": "points", "epochs": 3, "warmup_epochs": 0.5, "evals_per_epoch": 2}
    config, _ = base_config(None, [(k, v, DEFAULT) for k, v in given.items()], [])
    assert (config.max_steps, config.warmup_steps, config.eval_interval) == (30, 5, 5)
    in_steps = {"workload": "points", "max_steps": 30, "warmup_steps": 5, "eval_interval": 5}
    same, _ = base_config(None, [(k, v, DEFAULT) for k, v in in_steps.items()], [])
    assert config == same
    assert base_config(None, [], [])[0].max_steps == load_config().max_steps


def test_the_runs_are_judged_by_as_many_batches_as_any_run():
    """Whether a twin learned is no matter of one batch; they evaluate at their end alone."""
    config, _ = base_config(None, [], [])
    assert (config.eval_interval, config.eval_steps) == (0, load_config().eval_steps)
    assert base_config(None, [("eval_steps", 3, DEFAULT)], [])[0].eval_steps == 3


def test_a_file_goes_before_the_defaults_of_studies(tmp_path):
    """It may say another type of products, or how much is evaluated."""
    (tmp_path / "mine.yaml").write_text("{compute: bfloat16, eval_interval: 7, eval_steps: 3}")
    config, _ = base_config(str(tmp_path / "mine.yaml"), [("eval_steps", 64, DEFAULT)], [])
    assert (config.compute, config.eval_interval, config.eval_steps) == ("bfloat16", 7, 3)


def test_a_study_records_every_step():
    """Losses are compared step by step, and a run with fewer lines would look like a short one."""
    with pytest.raises(BadInput, match=r"log_interval 5: a study compares .*: set it to 1"):
        base_config(None, [("log_interval", 5, DEFAULT)], [])


@pytest.mark.parametrize("where", ["file", "overrides"])
def test_observers_may_be_left_out_twice(where, tmp_path):
    """A study leaves out all of them, and a configuration for single runs some."""
    (tmp_path / "mine.yaml").write_text("no_plugins: [progress]")
    file = str(tmp_path / "mine.yaml") if where == "file" else None
    overrides = [] if file else [("no_plugins", ["progress"], DEFAULT)]
    config, _ = base_config(file, overrides, ["progress", "failure-report"])
    assert set(config.no_plugins) == {"progress", "failure-report"}


def test_a_pilot_warns_of_nothing(start):
    """Its few steps are nobody's run: they have no warm-up that could be too long."""
    with capture_logs() as told:
        check_arms(start.config(warmup_steps=30), [twin()])
    assert told == []


@pytest.mark.parametrize(
    "command", [("explain", "--format", "E4M3"), ("compare", "--formats", "E4M3")]
)
def test_the_log_of_a_study_is_not_its_answer(command, capsys, monkeypatch):
    """Warnings of its runs go to standard error; what is printed is the page, or JSON."""

    def warn(*_):
        structlog.get_logger("altcore").warning("planted")
        raise BadInput("enough")

    for name in ("run_explain", "run_compare"):
        monkeypatch.setattr(f"altcore.study.{name}", warn, raising=False)
    outcome = call(capsys, *command)
    assert (outcome.code, outcome.out) == (2, "")
    assert "planted" in outcome.err


def test_studies_run_in_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match=r"2 processes were started, .* without torchrun"):
        Options(None, [], seeds=2, within=0.1, budget=None, name=None)
