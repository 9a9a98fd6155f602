"""A loop of your own is told of hooks of the process, and of values that compare with none."""

import pytest
import torch
from structlog.testing import capture_logs
from torch.nn.modules import module as modules

import altcore


def double(module, args, result):
    """Change what every module returns."""
    return result * 2


@pytest.fixture
def loop():
    """A model that nobody trains, and its optimizer."""
    model = torch.nn.Linear(2, 2).requires_grad_(False)
    return model, torch.optim.SGD(model.parameters())


def saved(save):
    """Return the warnings of a save."""
    with capture_logs() as logs:
        save()
    return [x["event"] for x in logs if x["log_level"] == "warning"]


def test_hooks_of_all_modules_are_told_while_they_are_there(loop, tmp_path):
    """By a manager once, and again if they came back; by each single checkpoint."""
    with altcore.CheckpointManager(tmp_path / "many", *loop) as manager:
        assert saved(lambda: manager.save(1)) == []
        for step in (2, 5):
            handle = modules.register_module_forward_hook(double)
            try:
                (told,) = saved(lambda step=step: manager.save(step))
                assert saved(lambda step=step: manager.save(step + 1)) == []
                assert saved(lambda: altcore.save_checkpoint(tmp_path / "one", *loop, None, 1))
            finally:
                handle.remove()
            assert "no part of the checkpoint: forward hooks of all modules (double)" in told
            assert saved(lambda step=step: manager.save(step + 2)) == []


@pytest.mark.parametrize("value", [float("nan"), torch.tensor(float("inf"))])
def test_a_value_that_is_not_finite_is_told_once(value, loop, tmp_path):
    """By name: it is never the best."""
    with altcore.CheckpointManager(tmp_path / "many", *loop) as manager:
        (told,) = saved(lambda: manager.save(1, value=value))
        assert told == f"value is {float(value)}, by which no checkpoint is the best one"
        assert saved(lambda: manager.save(2, value=value)) == []
        assert saved(lambda: manager.save(3, value=1)) == []
        assert manager.best().name == "step-00000003"
    (again,) = saved(lambda: altcore.save_checkpoint(tmp_path / "one", *loop, None, 1, value=value))
    assert again == told
