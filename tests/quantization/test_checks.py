"""Models, casts and operands that cannot be quantized are refused, and named."""

import math

import pytest
import torch
from helpers_quantization import E3M4_OPERANDS, Lora, TiedHead, embedder, quantize_in_float32
from torch import nn

from altcore import BadInput, quantize_model

LAYERS = {
    "linear": (lambda: nn.Linear(4, 4), torch.randn(2, 4)),
    "conv": (lambda: nn.Conv1d(4, 4, 1), torch.randn(2, 4, 3)),
    "own forward": (lambda: Lora(4), torch.randn(2, 4)),
}


def subclass(x):
    """A tensor whose operations are its own."""

    class Own(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise AssertionError("a kernel would read its memory")

    return torch.Tensor._make_subclass(Own, x)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
        lambda f, x: torch.func.vmap(f)(x[None]),
        lambda f, x: torch.func.jvp(f, (x,), (x,)),
        lambda f, x: torch.func.hessian(lambda x: f(x).sum())(x),
        lambda f, x: torch.autograd.functional.hessian(lambda x: f(x).square().sum(), x),
        lambda f, x: torch.autograd.functional.hvp(lambda x: f(x).sum(), x, x),
    ],
    ids=["grad", "vmap", "jvp", "func.hessian", "hessian", "hvp"],
)
def test_derivatives_that_a_layer_has_not(name, transform):
    """One error that names the layer and the way out, and under it the unquantized answer."""
    build, x = LAYERS[name]
    model = nn.Sequential(build())
    expected = transform(model, x)
    with quantize_in_float32(model, E3M4_OPERANDS) as q:
        with pytest.raises(BadInput, match=r"layer 0.*q\.off\(\)"):
            transform(model, x)
        with q.off():
            found = transform(model, x)
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda x: x.to(torch.int64), "a tensor of int64"),
        (lambda x: x.to_sparse(), "a sparse_coo tensor"),
        (lambda x: x.to("meta"), "a meta tensor"),
        (lambda x: x.bool(), "a tensor of bool"),
        (lambda x: x.to(torch.float8_e4m3fn), "a tensor of float8_e4m3fn"),
        (subclass, "an Own"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "a quantized tensor"),
        (lambda x: torch.nested.nested_tensor(list(x)), "a nested tensor"),
    ],
)
@pytest.mark.parametrize("name", ["linear", "own forward"])
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_dense_floating_point_tensor_is_named(name, make, says):
    build, x = LAYERS[name]
    refused = pytest.raises(BadInput, match=f"layer 0: input is {says}: .*q.off")
    with quantize_in_float32(nn.Sequential(build()), E3M4_OPERANDS) as q, refused:
        q.model(make(x))


def test_the_model_itself_has_a_name_where_it_is_a_layer():
    model = nn.Linear(8, 8)
    with quantize_in_float32(model, {"weight": "E4M3"}) as q:
        with pytest.raises(BadInput, match=r"layer \(model\): input is"):
            model(torch.ones(2, 8, dtype=torch.int64))
        with pytest.raises(BadInput, match=r"^model: layer \(model\) is Linear: .* already"):
            quantize_in_float32(model, "E4M3")
        assert "(model)" in str(q.coverage())


def test_a_weight_in_a_type_of_eight_bits_is_named():
    """Checkpoints in FP8 hold their weights so, and multiply them by a scale elsewhere."""
    model = nn.Sequential(nn.Linear(4, 4).to(torch.float8_e5m2))
    with pytest.raises(BadInput, match="layer 0: weight is a tensor of float8_e5m2"):
        quantize_in_float32(model, E3M4_OPERANDS, head=None)


def test_a_labelled_tensor_is_taken_for_what_it_holds():
    """Torchvision's images are such."""

    class Image(torch.Tensor):
        pass

    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)
    with quantize_in_float32(model, E3M4_OPERANDS):
        assert torch.equal(model(x.as_subclass(Image)), model(x))


def test_models_that_are_not_ready_are_named():
    with pytest.raises(BadInput, match=r"model: 0 \(LazyLinear\) is lazy"):
        quantize_in_float32(nn.Sequential(nn.LazyLinear(4)), E3M4_OPERANDS)
    scripted = nn.Sequential(torch.jit.script(nn.Linear(4, 4)))
    with pytest.raises(BadInput, match=r"model: 0 is compiled by torch.jit"):
        quantize_in_float32(scripted, E3M4_OPERANDS)
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[1, 2] = float("inf")
    with pytest.raises(BadInput, match="layer 0: weight has elements that are not finite"):
        quantize_in_float32(model, E3M4_OPERANDS)


@pytest.mark.parametrize(
    ("cast", "says"),
    [
        ({"hadamard": 16, "straight_through": "clipped"}, "after a Hadamard transform"),
        ({"scaling": {"margin": math.inf}}, "margin"),
        ({"scaling": {"margin": None}}, "scaling.margin: None has the wrong type"),
        ({"scaling": {"kind": "rms", "quantile": 0.5}}, "rms has no amax"),
        ({"scaling": {"kind": "none", "quantile": 0.5}}, "none has no amax"),
    ],
)
def test_what_a_cast_cannot_be(cast, says):
    """It is refused with the key's name, before anything runs."""
    recipe = {"layers": {"0": {"activation@fwd": {"format": "E4M3", **cast}}}}
    with pytest.raises(BadInput, match=rf"layers\.0: activation@fwd.*{says}"):
        quantize_model(nn.Sequential(nn.Linear(16, 16)), recipe)


def test_a_rule_that_reaches_nothing_is_an_error():
    """A role that none of the layers has would be left out without a word."""
    for pattern, role in (("<attention>", "weight"), ("1", "attention")):
        with pytest.raises(BadInput, match=f"'{pattern}' says {role}@"):
            quantize_model(embedder(), {"layers": {pattern: {role: "E4M3"}}})


def test_a_format_that_the_recipe_has_no_place_for():
    """It would be recorded as the run's, and used nowhere."""
    with pytest.raises(BadInput, match="format E5M2: only a recipe that says FORMAT takes one"):
        quantize_model(embedder(), {"weight": "E4M3"}, format="E5M2")


def test_hadamard_needs_both_operands():
    """On one operand alone it would change the product: refused, naming both."""
    recipe = {"layers": {"0": {"weight@fwd": {"format": "E4M3", "hadamard": 16}}}}
    with pytest.raises(BadInput, match="activation@fwd and weight@fwd are multiplied"):
        quantize_model(nn.Sequential(nn.Linear(16, 16)), recipe)


def test_stored_weights_refuse_blocks():
    """They have one scale for the whole tensor."""
    with pytest.raises(BadInput, match=r"stored_weight.*a single scale"):
        quantize_model(nn.Sequential(nn.Linear(32, 32)), {"stored_weight": "MXFP4"})


def test_two_casts_for_one_tied_weight_are_an_error():
    """Both layers are named."""
    recipe = {"layers": {"embed": {"stored_weight": "E3M4"}, "head": {"stored_weight": "E4M3"}}}
    with pytest.raises(
        BadInput, match=r"embed and head share the parameter embed\.weight.*stored_w"
    ):
        quantize_model(TiedHead(), recipe)
