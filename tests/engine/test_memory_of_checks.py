"""No memory to check a whole checkpoint: nothing says that it is damaged."""

import pytest
import torch
from helpers import checkpoints

from altcore import CheckpointManager
from altcore.engine import kept_module, state_checks
from altcore.errors import UnreadableFile


def too_much(*_):
    torch.empty(1 << 50)


def test_a_run_keeps_its_newest_checkpoint(start, monkeypatch):
    start(name="r", max_steps=2, checkpoint_interval=1)
    before = checkpoints(start.runs / "r")
    with monkeypatch.context() as patched:
        patched.setattr(state_checks, "check_weights", too_much)
        with pytest.raises(UnreadableFile, match=r"for want of memory.*try again"):
            start.resume("r", max_steps=3)
    assert checkpoints(start.runs / "r") == before
    assert start.resume("r", max_steps=3).steps_completed == 3


def test_a_loop_keeps_its_newest_checkpoint(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    with CheckpointManager(tmp_path, model, torch.optim.SGD(model.parameters(), 0.1)) as manager:
        manager.save(1)
        manager.save(2)
        monkeypatch.setattr(kept_module, "check_weights", too_much)
        with pytest.raises(UnreadableFile, match="for want of memory"):
            manager.restore()
        monkeypatch.undo()
        assert manager.restore() == 2
