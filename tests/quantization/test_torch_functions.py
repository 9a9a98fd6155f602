"""What torch's functions do to a tensor, and copies of them that a mode sees into."""

import pytest
import torch
import torch.nn.functional as F

from altcore.quantization.torch_functions import CASTS, VIEWS, is_in_place, is_metadata, unguarded


def test_unguarded_copies_are_made_once():
    copy = unguarded(F.multi_head_attention_forward)
    assert copy is unguarded(F.multi_head_attention_forward)
    assert copy.__kwdefaults__ == F.multi_head_attention_forward.__kwdefaults__


@pytest.mark.parametrize(
    ("function", "is_written"),
    [
        (torch.Tensor.add_, True),
        (torch.Tensor.__setitem__, True),
        (torch.Tensor.data.__set__, True),
        (torch.Tensor.add, False),
        (torch.Tensor.__add__, False),
    ],
)
def test_functions_that_write_are_told_by_their_names(function, is_written):
    assert is_in_place(function) is is_written


def test_looking_at_a_tensor_is_not_using_its_values():
    assert all(map(is_metadata, (torch.Tensor.size, torch.Tensor.shape.__get__)))
    assert not any(map(is_metadata, (torch.Tensor.mT.__get__, torch.Tensor.add)))
    assert {torch.Tensor.mT.__get__, torch.Tensor.reshape} <= VIEWS
    assert {torch.Tensor.float, F.dropout} <= CASTS
