"""What torch's functions do to a tensor, and copies of them that a mode sees into."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from altcore import quantize_model
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


REARRANGED = {
    "flip": lambda w: w.flip(0),
    "fliplr": lambda w: w.fliplr(),
    "flipud": lambda w: torch.flipud(w),
    "roll": lambda w: w.roll(1, 0),
    "rot90": lambda w: w.rot90(2),
    "repeat": lambda w: w.repeat(2, 1),
    "tile": lambda w: w.tile(2, 1),
    "repeat_interleave": lambda w: w.repeat_interleave(2, 0),
    "vsplit": lambda w: w.vsplit(2)[0],
    "hsplit": lambda w: w.hsplit(2)[0].repeat(1, 2),
    "split_with_sizes": lambda w: w.split_with_sizes([2, 4])[0],
    "unfold": lambda w: w.unfold(0, 2, 2)[..., 0],
    "masked_select": lambda w: w.masked_select(torch.ones(6, 8, dtype=torch.bool)).view(6, 8),
    "cat": lambda w: torch.cat(w.split(3)[::-1]),
    "stack": lambda w: torch.stack([w, w], 1).flatten(0, 1),
    "hstack": lambda w: torch.hstack([w[:, 4:], w[:, :4]]),
}


class Rearranging(torch.nn.Module):
    def __init__(self, rearrange):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(6, 8))
        self.rearrange = rearrange

    def forward(self, x):
        return x @ self.rearrange(self.weight).T


@pytest.mark.parametrize("rearrange", REARRANGED.values(), ids=REARRANGED)
def test_a_stored_weight_that_is_rearranged_is_not_quantized_again(rearrange):
    torch.manual_seed(0)
    model, x = Rearranging(rearrange), torch.randn(5, 8)
    recipe = {"weight": "E4M3", "stored_weight": "E4M3"}
    with quantize_model(model, recipe, head=None, compute="float32") as q:
        y = model(x)
        with q.off():
            torch.testing.assert_close(y, model(x), rtol=1e-6, atol=1e-6)
