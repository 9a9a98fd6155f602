"""What people do to a quantized model that nobody planned for: copies, masks, torch's fast paths.

References are written out here, in float64 or by plain torch.
"""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import altcore
from altcore import BadInput, get_format, quantize_model
from altcore.recipes import Scaling, change

COARSE = {"weight": "E2M1", "activation": "E2M1", "gradient": "E2M1"}
EVERYWHERE = {"layers": {"*": COARSE}}


@pytest.fixture(autouse=True)
def seeded():
    """Weights and inputs are the same in every run."""
    torch.manual_seed(0)


def is_plain(module):
    """Whether a Linear computes what torch's function does."""
    x = torch.randn(5, module.in_features)
    return torch.equal(module(x), functional.linear(x, module.weight, module.bias))


# --------------------------------------------------------------------------- copies of a model


def test_a_deep_copy_has_its_own_weights():
    """It is a plain model: neither the original's weights nor its quantization act in it."""
    model = nn.Sequential(nn.Linear(4, 4))
    with quantize_model(model, EVERYWHERE):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin[0].weight.mul_(3)
        assert is_plain(twin[0])
        assert not is_plain(model[0])
        with quantize_model(twin, EVERYWHERE):
            assert not is_plain(twin[0])
        assert is_plain(twin[0])


def test_a_quantized_model_can_be_pickled():
    """What comes back is the plain model with the same weights."""
    model = nn.Sequential(nn.Linear(4, 4))
    with quantize_model(model, EVERYWHERE):
        file = io.BytesIO()
        torch.save(model, file)
    file.seek(0)
    back = torch.load(file, weights_only=False)
    assert is_plain(back[0])
    assert torch.equal(back[0].weight, model[0].weight)


def test_a_layer_is_quantized_once():
    """Two at once would undo each other in the wrong order; layers apart do not meet."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with quantize_model(model, {"layers": {"0": COARSE}}):
        with pytest.raises(BadInput, match=r"layer 0 is Linear: it is quantized already"):
            quantize_model(model, EVERYWHERE)
        with quantize_model(model, {"layers": {"1": COARSE}}):
            assert not is_plain(model[1])
        assert is_plain(model[1])
        assert not is_plain(model[0])
    assert is_plain(model[0])


# ------------------------------------------------------------------------------------- autograd


@pytest.mark.parametrize("loss", [torch.sum, lambda y: y.square().sum()])
@pytest.mark.parametrize("layer", [lambda: nn.Linear(4, 4), lambda: nn.Conv1d(4, 4, 1)])
def test_a_second_derivative_is_refused(layer, loss):
    """A gradient penalty would be without effect, and nobody would know."""
    layer, x = layer(), torch.randn(4, 4, requires_grad=True)
    with quantize_model(nn.Sequential(layer), EVERYWHERE) as q:
        with pytest.raises(BadInput, match=r"layer 0: .* no second derivative .*q\.off\(\)"):
            torch.autograd.grad(loss(layer(x)), x, create_graph=True)
        with q.off():
            (g,) = torch.autograd.grad(loss(layer(x)), x, create_graph=True)
        assert g.requires_grad


def test_a_weight_changed_before_the_backward_pass_is_noticed():
    """As in plain torch: the gradient would be that of another weight."""
    layer, x = nn.Linear(4, 4), torch.randn(2, 4, requires_grad=True)
    with quantize_model(nn.Sequential(layer), {"layers": {"0": {"activation": "E4M3"}}}):
        y = layer(x)
        with torch.no_grad():
            layer.weight.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("frozen", ["", "weight", "input"])
@pytest.mark.parametrize("layer", [lambda: nn.Linear(6, 5), lambda: nn.Conv1d(6, 5, 1)])
def test_only_what_the_backward_pass_needs_is_kept(layer, frozen):
    """By way of autograd, so that it is freed there, and can be offloaded."""
    layer = layer()
    x = torch.randn(6, 6, requires_grad=frozen != "input")
    layer.weight.requires_grad_(frozen != "weight")
    shapes = []
    with quantize_model(nn.Sequential(layer), EVERYWHERE):
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t
        )
        with hooks:
            y = layer(x)
        y.sum().backward()
    # A lone sample of a convolution has gained an axis.
    kept = [s for s in shapes if math.prod(s) > 1]
    assert (math.prod(x.shape) in map(math.prod, kept)) == (frozen != "weight")
    assert (tuple(layer.weight.shape) in kept) == (frozen != "input")


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient(reentrant):
    """The forward pass is computed again: with nothing random in it, it comes out the same."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    x = torch.randn(3, 8, requires_grad=True)
    with quantize_model(model, EVERYWHERE):
        model(x).sum().backward()
        expected = [p.grad for p in model.parameters()] + [x.grad]
        model.zero_grad()
        x.grad = None
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
        found = [p.grad for p in model.parameters()] + [x.grad]
    assert all(map(torch.equal, found, expected))


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize(("inner", "outer"), [(0, 4), (4, 0)])
def test_layers_of_no_features(inner, outer):
    """They are legal in torch, and here."""
    layer, x = nn.Linear(inner, outer), torch.randn(3, inner, requires_grad=True)
    with quantize_model(nn.Sequential(layer), EVERYWHERE):
        y = layer(x)
        y.sum().backward()
    assert y.shape == (3, outer)
    assert x.grad.shape == x.shape
    assert layer.weight.grad.shape == (outer, inner)


# --------------------------------------------------------------------------------- wrong numbers


@pytest.mark.parametrize("width", [32, 24])
def test_a_hadamard_transform_of_stored_weights(width):
    """Both operands are transformed, though the weight is on the grid before: they cancel."""
    layer, x = nn.Linear(width, 16, bias=False), torch.randn(5, width)
    cast = {"format": "E4M3", "hadamard": 16}
    casts = {"weight@fwd": cast, "activation@fwd": cast, "stored_weight": "E4M3"}
    with quantize_model(nn.Sequential(layer), {"layers": {"0": casts}}):
        y = layer(x)
        plain = functional.linear(x, layer.weight)
    assert (y - plain).norm() < 0.06 * plain.norm()


def test_delayed_scaling_gets_over_an_infinity():
    """One bad step must not make the next sixteen NaN, nor the scale another kind of scale."""
    layer, x = nn.Linear(6, 4), torch.randn(3, 6)
    bad = x.clone()
    bad[0, 0] = math.inf
    casts = {"activation": {"format": "E4M3", "scaling": "delayed"}}
    with quantize_model(nn.Sequential(layer), {"layers": {"0": casts}}) as q:
        layer(x)
        layer(bad)
        layer(bad * math.nan)
        assert layer(x / 8).isfinite().all()
        scale = float(q.quantizers[0].last_scale)
    assert scale == pytest.approx(float(x.abs().max()) / 448)


class Attention(nn.Module):
    """Calls torch's function."""

    def forward(self, q, k, v, mask=None):
        return functional.scaled_dot_product_attention(q, k, v, mask)


@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_a_position_that_attends_to_nothing(kind):
    """Padding on the left does that: zeros, as in torch, and no NaN in the scale or a gradient."""
    model = nn.Sequential(Attention())
    given = [torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3)]
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    mask[0] = False
    if kind == "additive":
        mask = torch.zeros(4, 4).masked_fill(~mask, -math.inf)
    results = []
    for recipe in ({}, {"attention": "TF32"}):
        with quantize_model(model, recipe):
            y = model[0](*given, mask)
            results.append([y, *torch.autograd.grad(y.square().sum(), given)])
    for plain, found in zip(*results, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "autocast"])
def test_attention_in_sixteen_bits(kind):
    """Operands are those that their scales make, and large scores no infinity."""
    model = nn.Sequential(Attention())
    dtype = torch.float32 if kind == "autocast" else getattr(torch, kind)
    size = 60 if kind == "float16" else 1
    given = [(torch.randn(2, 2, 64, 32) * size).to(dtype) for _ in range(3)]

    def rounded(x):
        q, s = altcore.quantize(x, "E4M3")
        return q.double() * s.double()

    q, k, v = map(rounded, given)
    expected = rounded((q @ k.mT / math.sqrt(32)).softmax(-1).float()) @ v
    with (
        quantize_model(model, {"attention": "E4M3"}),
        torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"),
    ):
        y = model[0](*given)
    assert y.dtype == (torch.float16 if kind == "float16" else torch.bfloat16)
    assert (y.double() - expected).norm() < 3e-3 * expected.norm()


class AttentionByHand(nn.Module):
    """Keeps the scores, and mixes values by them."""

    def forward(self, q, k, v):
        self.scores = q @ k.mT
        return self.scores.softmax(-1) @ v


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "autocast"])
def test_operands_of_attention_by_hand_are_rounded_once(kind):
    """16 bits round what comes out; they cannot hold q times its scale."""
    model = nn.Sequential(AttentionByHand())
    dtype = torch.float32 if kind == "autocast" else getattr(torch, kind)
    given = [torch.randn(2, 16, 32).to(dtype) for _ in range(3)]
    q, k = (q.double() * s.double() for q, s in (altcore.quantize(x, "E4M3") for x in given[:2]))
    with (
        quantize_model(model, {"attention": "E4M3"}),
        torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"),
    ):
        y = model[0](*given)
    assert y.dtype == model[0].scores.dtype == (dtype if kind == "float16" else torch.bfloat16)
    ulp = torch.finfo(y.dtype).eps
    assert ((model[0].scores.double() - q @ k.mT).abs() <= ulp * (q @ k.mT).abs() / 2 + 1e-4).all()


# --------------------------------------------------------------------------- modules of all kinds


class Products(nn.Linear):
    def forward(self, x):
        return torch.einsum("bi,oi->bo", x, self.weight)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (lambda: nn.Linear(8, 8), 1),
        (lambda: nn.Linear(8, 8).double(), 1),
        (lambda: Products(8, 8), 1),
        (lambda: nn.Conv1d(8, 8, 1), 1),
        (lambda: nn.ConvTranspose1d(8, 8, 1), 1),
        (lambda: nn.Bilinear(8, 8, 8), 2),
    ],
)
@pytest.mark.parametrize("recipe", ["E4M3", {"weight": "E4M3"}, {"gradient": "E5M2"}])
def test_autocast_decides_the_type_of_results(layer, inputs, recipe):
    """What follows may count on it; gradients are of their tensors' types."""
    model = nn.Sequential(layer())
    x = [torch.randn(8, 8, dtype=model[0].weight.dtype, requires_grad=True)] * inputs
    with torch.autocast("cpu", torch.bfloat16):
        plain = model[0](*x)
        with quantize_model(model, recipe, head=None):
            y = model[0](*x)
    assert y.dtype == plain.dtype
    y.sum().backward()
    assert all(t.grad.dtype == t.dtype for t in (x[0], model[0].weight))
    assert (y - plain).norm() < 0.1 * plain.norm()


def encoder():
    """Two of torch's encoder layers, which fuse themselves for inference."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("recipe", [COARSE, {"layers": {"<any>": {"weight": "E2M1"}}}])
@pytest.mark.parametrize("padded", [False, True])
def test_torchs_encoder_is_quantized_in_evaluation_too(recipe, padded):
    """Its fused kernel would pass by the layers; afterwards it may be taken again."""
    model, x = encoder().eval(), torch.randn(2, 5, 8)
    padding = torch.tensor([[0, 0, 0, 1, 1], [0] * 5]).bool() if padded else None
    with torch.no_grad():
        plain = model(x, src_key_padding_mask=padding)
    with quantize_model(model, recipe):
        expected = model(x, src_key_padding_mask=padding).detach()
        with torch.no_grad():
            found = model(x, src_key_padding_mask=padding)
    valid = slice(None) if padding is None else ~padding
    torch.testing.assert_close(found[valid], expected[valid])
    assert not torch.allclose(found[valid], plain[valid], atol=1e-3)
    assert model.use_nested_tensor
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_projections_of_torchs_attention_are_products():
    """Its weights are read by MultiheadAttention, whatever module they belong to."""
    model, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 5, 8)
    casts = COARSE | {"stored_weight": "E4M3"}
    with quantize_model(model, casts, head=None) as q:
        model(x, x, x)[0].sum().backward()
        rows = {row.layer: row for row in q.coverage().rows}
        assert "activation@fwd" in rows["out_proj"].operands
        assert {"weight@fwd", "gradient@wgrad"} <= set(rows[""].operands)
        assert not any(row.is_missed for row in rows.values())


@pytest.mark.parametrize(("normed", "stored"), [("weight_norm", "E2M1"), ("spectral_norm", "E4M3")])
def test_a_linear_whose_weight_is_computed(normed, stored):
    """It is a Linear like another, and what its product sees is rounded, stored or not."""
    build = getattr(parametrizations, normed)
    model = nn.Sequential(build(nn.Linear(8, 8, bias=False)), nn.Linear(8, 2))
    casts = {"weight": "E2M1", "stored_weight": stored}
    with quantize_model(model, casts) as q:
        q.begin_step(1, tracking=True)
        model.eval()
        seen = model[0](torch.eye(8)).T
        expected = altcore.fake_quantize(model[0].weight, "E2M1", "amax")
        model.train()
        model(torch.randn(3, 8)).sum().backward()
        q.measure_views()
    torch.testing.assert_close(seen, expected)
    assert all(p.grad is not None for p in model.parameters())


def test_a_recorded_step_with_the_old_weight_norm():
    """Its weight is no parameter: there is no master whose view could be kept."""
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(8, 8))
    with quantize_model(nn.Sequential(layer), EVERYWHERE) as q:
        q.begin_step(1, tracking=True)
        layer(torch.randn(2, 8)).sum().backward()
        q.measure_views()
        assert q.counters.view_moves is None


# ------------------------------------------------------------------------------ changes of recipe


def embedder():
    """An embedding, a Linear, attention and a head."""
    return nn.Sequential(nn.Embedding(8, 32), nn.Linear(32, 32), Attention(), nn.Linear(32, 8))


def test_what_is_no_model_and_no_plan_is_named():
    with pytest.raises(BadInput, match=r"model: a torch\.nn\.Module is needed, not 3"):
        quantize_model(3, "E4M3")
    for wrong, said in (
        ({"seed": 1.5}, r"seed: a whole number is needed, not 1\.5"),
        ({"seed": None}, "seed: a whole number is needed, not None"),
        ({"head": ["1"]}, r"head: the name of a module is needed, or None, not \['1'\]"),
        ({"head": nn.Identity()}, r"head: the name of a module .* not Identity\(\)"),
        ({"optimizer": "adamw"}, r"optimizer: one of torch\.optim's is needed, .* not str"),
        ({"recipe": "purr"}, r"unknown recipe 'purr' \(did you mean pure\?\): one of full,"),
        ({"recipe": "pur", "format": "E4M3"}, r"takes one \(did you mean pure\?\)"),
    ):
        with pytest.raises(BadInput, match=said):
            quantize_model(nn.Linear(2, 2), **{"recipe": "E4M3"} | wrong)
    q = quantize_model(nn.Sequential(nn.Linear(2, 2)), "E4M3")
    with pytest.raises(BadInput, match="a plan is needed, not 'E7M0'; change_recipe takes"):
        q.change("E7M0")


def test_a_change_that_is_refused_changes_nothing():
    """Neither the plan nor the hooks on gradients."""
    recipe = {"weight": "E4M3", "weight_gradient": "E2M1", "stored_weight": "E4M3"}
    model = embedder()
    with quantize_model(model, recipe) as q:
        before, stored = q.plan, dict(q.stored)
        with pytest.raises(BadInput, match="stored_weight has one scale"):
            q.change(change(q.plan, ["*"], [], format=get_format("MXFP4")))
        assert q.plan is before
        assert q.stored == stored
        model[1](model[0](torch.arange(4))).square().sum().backward()
        grad = model[1].weight.grad
        assert len((grad / grad.abs().max()).unique()) <= 15


def test_a_change_leaves_out_what_lies_elsewhere():
    """Attention's roles reach attention, those of products the others, as in a recipe."""
    with quantize_model(embedder(), {"weight": "E4M3"}) as q:
        q.change(change(q.plan, ["*"], ["attention"], format=get_format("E5M2")))
        assert {n for n, casts in q.plan.items() if casts["attention@query"]} == {"2"}
        q.change(change(q.plan, ["*"], ["weight"], format=get_format("E5M2")))
        assert not q.plan["2"]["weight@fwd"]
        with pytest.raises(BadInput, match="no layer has what the change asks for"):
            q.change(change(q.plan, ["1"], ["attention"], format=get_format("E4M3")))


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"layers": {"1": {"weight": "MXFP4"}}}, "format MXFP4 brings its own"),
        ({"stored_weight": "E4M3"}, "stored_weight has one scale of its own"),
    ],
)
def test_a_change_of_scaling_is_held_to_what_a_recipe_may_say(recipe, says):
    """Otherwise a run could not be resumed, or would report a scaling that it has not."""
    with quantize_model(embedder(), recipe) as q, pytest.raises(BadInput, match=says):
        q.change(change(q.plan, ["*"], [], scaling=Scaling("channel")))


# ---------------------------------------------------------------------------------------- recipes


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


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv1d(4, 4, 3, padding=1)])
def test_what_follows_may_work_in_place(layer):
    """``ReLU(inplace=True)`` behind a quantized layer, as ResNets have it."""
    model = nn.Sequential(layer, nn.ReLU(inplace=True))
    twin = nn.Sequential(copy.deepcopy(layer), nn.ReLU())
    found = []
    for each in (model, twin):
        torch.manual_seed(0)
        x = torch.randn(2, 4, 8, requires_grad=True)
        with quantize_model(each, {"weight": "E4M3", "activation": "E4M3", "gradient": "E5M2"}):
            each(x).square().sum().backward()
        found.append((x.grad, each[0].weight.grad))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_off_is_off_for_weight_gradients():
    """Within ``off()`` a gradient comes out as the plain model's."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(4, 8)
    model(x).square().sum().backward()
    plain = model[0].weight.grad.clone()
    with quantize_model(model, {"weight_gradient": "E2M1"}) as q:
        model.zero_grad()
        with q.off():
            model(x).square().sum().backward()
        assert torch.equal(model[0].weight.grad, plain)
        model.zero_grad()
        model(x).square().sum().backward()
        assert not torch.equal(model[0].weight.grad, plain)


def test_a_lone_layer_is_no_head():
    """A model of one Linear is quantized; one that has nothing to quantize is refused."""
    with quantize_model(nn.Linear(4, 4), "E4M3") as q:
        assert len(q.quantizers) == 3
    with pytest.raises(BadInput, match="no layer that it quantizes"):
        quantize_model(nn.Sequential(nn.ReLU()), "E4M3")
