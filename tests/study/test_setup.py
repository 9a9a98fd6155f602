"""The configuration that the runs of a study share."""

from helpers_epochs import Points

from altcore.config import load_config
from altcore.errors import DEFAULT
from altcore.study.setup import base_config


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
