"""What somebody bound anew in torch is named, and torch's own changes are not."""

import torch

from altcore.engine import lasting_changes


def test_what_torch_binds_itself_is_left_out(monkeypatch):
    """As it does when it compiles for the first time."""
    found = []
    with lasting_changes(found):
        monkeypatch.setattr(torch, "manual_seed", torch.random.seed)
        monkeypatch.setattr(torch.nn.Module, "__init__", torch.nn.functional.relu)
        monkeypatch.setattr(torch, "tanh", lambda x: x)
    assert found == ["torch.tanh"]
