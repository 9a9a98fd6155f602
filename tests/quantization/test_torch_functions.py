"""What torch's functions do to a tensor, and copies of them that a mode sees into."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from altcore.quantization.attention import AttentionCall
from altcore.quantization.convolution import CONVOLUTIONS
from altcore.quantization.recurrent import RECURRENT
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


CELLS = {f: handle for f, handle in RECURRENT.items() if f.__name__.endswith("_cell")}
READERS = {**CONVOLUTIONS, **CELLS, F.scaled_dot_product_attention: AttentionCall}
"""What reads the arguments of a function, and does not leave it a call that it cannot read."""


@pytest.mark.parametrize("function", READERS, ids=lambda f: f.__name__)
def test_calls_are_read_with_all_of_torchs_arguments(function):
    """By their names in torch, in their order."""
    own = [*inspect.signature(READERS[function]).parameters]
    for schema in torch._C._jit_get_schemas_for_operator(f"aten::{function.__name__}"):
        names = [argument.name for argument in schema.arguments]
        assert [name for name in own if name in names] == names
