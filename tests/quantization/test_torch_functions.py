"""What torch's functions do to a tensor, and copies of them that a mode sees into."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from altcore import quantize_model
from altcore.quantization.attention import AttentionCall
from altcore.quantization.convolution import CONVOLUTIONS
from altcore.quantization.recurrent import RECURRENT
from altcore.quantization.torch_functions import (
    CASTS,
    JOINS,
    VIEWS,
    is_in_place,
    is_metadata,
    unguarded,
)


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


ROWS = torch.tensor([5, 3, 4])
REARRANGED = {
    "H": lambda get, w: get(w),
    "T": lambda get, w: get(w),
    "__getitem__": lambda f, w: f(w, slice(1, 4)),
    "adjoint": lambda f, w: f(w),
    "broadcast_to": lambda f, w: f(w, (2, 6, 8)),
    "cat": lambda f, w: f((w[3:], w[:3])),
    "chunk": lambda f, w: f(w, 3),
    "clone": lambda f, w: f(w),
    "column_stack": lambda f, w: f((w[:, 4:], w[:, :4])),
    "concat": lambda f, w: f((w[3:], w[:3])),
    "concatenate": lambda f, w: f((w[3:], w[:3])),
    "contiguous": lambda f, w: f(w.t()),
    "data": lambda get, w: get(w),
    "detach": lambda f, w: f(w),
    "diagonal": lambda f, w: f(w, 1),
    "dsplit": lambda f, w: f(w.view(2, 6, 4), 2),
    "dstack": lambda f, w: f((w, w)),
    "expand": lambda f, w: f(w, (2, 6, 8)),
    "expand_as": lambda f, w: f(w, w.new_empty(2, 6, 8)),
    "flatten": lambda f, w: f(w),
    "flip": lambda f, w: f(w, (0, 1)),
    "fliplr": lambda f, w: f(w),
    "flipud": lambda f, w: f(w),
    "gather": lambda f, w: f(w, 0, ROWS[:, None].expand(3, 8)),
    "hsplit": lambda f, w: f(w, 2),
    "hstack": lambda f, w: f((w[:, 4:], w[:, :4])),
    "index_select": lambda f, w: f(w, 0, ROWS),
    "mH": lambda get, w: get(w),
    "mT": lambda get, w: get(w),
    "masked_select": lambda f, w: f(w, w > 0),
    "moveaxis": lambda f, w: f(w, 0, 1),
    "movedim": lambda f, w: f(w, 0, 1),
    "narrow": lambda f, w: f(w, 0, 1, 3),
    "narrow_copy": lambda f, w: f(w, 0, 1, 3),
    "permute": lambda f, w: f(w, (1, 0)),
    "ravel": lambda f, w: f(w.t()),
    "repeat": lambda f, w: f(w, (2, 1)),
    "repeat_interleave": lambda f, w: f(w, 2, 0),
    "reshape": lambda f, w: f(w.t(), (6, 8)),
    "reshape_as": lambda f, w: f(w.t(), w),
    "roll": lambda f, w: f(w, 1, 0),
    "rot90": lambda f, w: f(w, 1, (0, 1)),
    "row_stack": lambda f, w: f((w[3:], w[:3])),
    "select": lambda f, w: f(w, 0, 1),
    "split": lambda f, w: f(w, 3),
    "split_with_sizes": lambda f, w: f(w, [2, 4]),
    "squeeze": lambda f, w: f(w[None], 0),
    "stack": lambda f, w: f((w[3:], w[:3])),
    "swapaxes": lambda f, w: f(w, 0, 1),
    "swapdims": lambda f, w: f(w, 0, 1),
    "t": lambda f, w: f(w),
    "take": lambda f, w: f(w, ROWS),
    "take_along_dim": lambda f, w: f(w, ROWS[:, None], 0),
    "tensor_split": lambda f, w: f(w, 4),
    "tile": lambda f, w: f(w, (2, 1)),
    "transpose": lambda f, w: f(w, 0, 1),
    "unbind": lambda f, w: f(w),
    "unflatten": lambda f, w: f(w, 0, (2, 3)),
    "unfold": lambda f, w: f(w, 0, 2, 2),
    "unsafe_chunk": lambda f, w: f(w, 3),
    "unsafe_split": lambda f, w: f(w, 3),
    "unsafe_split_with_sizes": lambda f, w: f(w, [2, 4]),
    "unsqueeze": lambda f, w: f(w, 0),
    "view": lambda f, w: f(w, (8, 6)),
    "view_as": lambda f, w: f(w, w.new_empty(8, 6)),
    "vsplit": lambda f, w: f(w, 2),
    "vstack": lambda f, w: f((w[3:], w[:3])),
}
"""How each function of the lists is called on a weight, (6, 8)."""


def name_of(function):
    """The name of a function, or of the attribute that it gets."""
    own = function.__name__
    return function.__self__.__name__ if own == "__get__" else own


class Rearranging(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(6, 8))
        self.function, self.call = function, REARRANGED[name_of(function)]

    def forward(self, x):
        found = self.call(self.function, self.weight)
        part = found if isinstance(found, torch.Tensor) else found[0]
        rows = part.reshape(-1, part.shape[-1])
        return x[:, : rows.shape[1]] @ rows.T


@pytest.mark.parametrize("function", sorted(VIEWS | JOINS, key=name_of), ids=name_of)
def test_a_stored_weight_that_is_rearranged_is_not_quantized_again(function):
    """Each function of the lists: one without a case above fails."""
    torch.manual_seed(1)
    model, x = Rearranging(function), torch.randint(-8, 9, (5, 48)).float()
    unscaled = {"format": "E4M3", "scaling": "none"}  # no integer up to 8 is rounded
    recipe = {"weight": "E4M3", "stored_weight": "E4M3", "activation": unscaled}
    with quantize_model(model, recipe, head=None, compute="float32") as q:
        y = model(x)
        met = {row["operand"]: row["elements"] for row in q.stats()}
        assert met["activation@fwd"] > 0, "it is a product by the weight"
        with q.off():
            torch.testing.assert_close(y, model(x), rtol=1e-6, atol=1e-6)


def test_no_case_is_of_a_function_that_is_in_no_list():
    assert REARRANGED.keys() == {name_of(f) for f in VIEWS | JOINS}
