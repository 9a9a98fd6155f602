"""A run does not depend on the modes of torch that its caller is within."""

import torch

from altcore.engine import plain_modes


def test_modes_of_the_caller_are_left_and_entered_again():
    """No autocast is on, and torch clears its cache of cast weights after each new one."""
    x, weight = torch.ones(1, 1), torch.ones(1, 1, requires_grad=True)
    with torch.no_grad(), torch.autocast("cpu", torch.float16), torch.autocast("cpu"):
        assert torch.mm(x, weight).dtype == torch.float16
        with plain_modes():
            assert torch.mm(x, weight).requires_grad
            assert torch.mm(x, weight).dtype == torch.float32
            assert torch.get_autocast_dtype("cpu") == torch.bfloat16
            for value in (2, 3):
                weight.data.fill_(value)
                with torch.autocast("cpu"):
                    assert torch.mm(x, weight) == value
        assert torch.mm(x, weight) == 3
        assert torch.mm(x, weight).dtype == torch.float16
        assert not torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
