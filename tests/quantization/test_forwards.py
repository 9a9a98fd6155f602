"""Modules that run a forward of their own: their products are quantized, and nothing is replaced.

The references round each operand with `altcore.fake_quantize` and multiply by plain torch.
"""

import functools
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import CheckpointError, checkpoint

import altcore
from altcore import BadInput

quantize_model = functools.partial(altcore.quantize_model, compute="float32")
UNSCALED = {"format": "E3M4", "scaling": "none"}
COARSE = {"weight": "E3M4", "activation": "E3M4", "gradient": "E3M4"}


def rounded(x):
    """A tensor as a product sees it, with a gradient that passes through."""
    return altcore.fake_quantize(x, "E3M4", scale="amax")


class RoundGradient(torch.autograd.Function):
    """Rounds the gradient of an output, as the backward products see it."""

    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, g):
        return altcore.fake_quantize(g, "E3M4", scale="amax")


def product(x, w):
    """``x @ w.mT`` with all six operands rounded."""
    return RoundGradient.apply(rounded(x) @ rounded(w).mT)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Lora(nn.Linear):
    """A Linear with an adapter in it, as loralib has it."""

    def __init__(self, width):
        super().__init__(width, width, bias=False)
        self.lora_a = nn.Parameter(torch.randn(2, width))
        self.lora_b = nn.Parameter(torch.randn(width, 2))

    def forward(self, x):
        return functional.linear(x, self.weight) + (x @ self.lora_a.T @ self.lora_b.T) * 0.5


def lora_reference(m, x):
    return product(x, m.weight) + product(product(x, m.lora_a), m.lora_b) * 0.5


class Router(nn.Linear):
    """A Linear that returns two things."""

    def forward(self, x):
        scores = super().forward(x)
        return scores, scores.softmax(-1)


class Looped(nn.Module):
    """Experts in one parameter, a matrix of which multiplies at a time."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 6, 4))

    def forward(self, x):
        return sum(functional.linear(x, self.experts[i]) for i in range(3))


class Batched(Looped):
    """The same in one batched product, transposed."""

    def forward(self, x):
        return torch.bmm(x.expand(3, *x.shape), self.experts.transpose(1, 2)).sum(0)


class Gathered(Looped):
    """Experts that are looked up and multiplied, the weight first."""

    def forward(self, x):
        chosen = self.experts[torch.arange(len(x)) % 3]
        return torch.bmm(chosen, x.unsqueeze(-1)).squeeze(-1)


class Einsum(Looped):
    def forward(self, x):
        return torch.einsum("ti,eoi->to", x, self.experts[1:2])


class Weird(nn.Linear):
    """Multiplies by what it computes of its weight alone."""

    def forward(self, x):
        w = self.weight - self.weight.mean(1, keepdim=True)
        return functional.linear(x, w / w.norm())


class Masked(nn.Linear):
    """Multiplies by its weight under a mask, as autoregressive networks do."""

    def __init__(self, width):
        super().__init__(width, width, bias=False)
        self.register_buffer("mask", torch.ones(width, width).tril())

    def forward(self, x):
        return functional.linear(x, self.weight * self.mask)


def weird_reference(m, x):
    w = m.weight - m.weight.mean(1, keepdim=True)
    return product(x, w / w.norm())


CASES = {
    "lora": (lambda: Lora(4), lora_reference),
    "router": (lambda: Router(4, 5, bias=False), lambda m, x: product(x, m.weight)),
    "looped": (Looped, lambda m, x: sum(product(x, w) for w in m.experts)),
    "batched": (Batched, lambda m, x: product(x.expand(3, *x.shape), m.experts).sum(0)),
    "gathered": (
        Gathered,
        lambda m, x: product(x[:, None], m.experts[torch.arange(len(x)) % 3]).squeeze(1),
    ),
    "einsum": (Einsum, lambda m, x: product(x, m.experts[1])),
    "computed": (lambda: Weird(4, 4, bias=False), weird_reference),
    "masked": (lambda: Masked(4), lambda m, x: product(x, m.weight * m.mask)),
    "bilinear": (
        lambda: Both(4),
        lambda m, x: product((x[:, :, None] * x[:, None, :]).flatten(1), m.b.weight.flatten(1)),
    ),
}


class Both(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.b = nn.Bilinear(width, width, 3, bias=False)

    def forward(self, x):
        return self.b(x, x)


@pytest.mark.parametrize("name", CASES)
def test_products_are_quantized_where_they_happen(name):
    """All operands are on the grid, in both directions, and every parameter learns."""
    build, reference = CASES[name]
    model = nn.Sequential(build())
    module, x = model[0], torch.randn(7, 4, requires_grad=True)
    expected = reference(module, x)
    wanted = [x, *module.parameters()]
    grads = torch.autograd.grad(expected.square().sum(), wanted)
    with quantize_model(model, COARSE, head=None) as q:
        y = model(x)
        y = y[0] if isinstance(y, tuple) else y
        found = torch.autograd.grad(y.square().sum(), wanted)
        rows = q.coverage().rows
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(found, grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert {"weight@fwd", "activation@fwd", "gradient@wgrad"} <= set(rows[-1].operands)


class Counting(nn.Linear):
    """Replaces a buffer, where in memory an activation may come to lie."""

    def __init__(self, width):
        super().__init__(width, width, bias=False)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count = self.count + 1
        inputs = [x * 1 for _ in range(20)]
        return torch.stack([functional.linear(x, self.weight) for x in inputs])


def test_no_activation_is_taken_for_a_buffer_that_is_gone():
    model, x = nn.Sequential(Counting(4)), torch.randn(7, 4)
    expected = product(x, model[0].weight).expand(20, 7, 4)
    with quantize_model(model, COARSE, head=None):
        for _ in range(40):  # whether it comes to lie there is a matter of luck
            torch.testing.assert_close(model(x), expected)


class Written(nn.Linear):
    """Writes to its weight between two products."""

    def forward(self, x):
        first = functional.linear(x, self.weight)
        with torch.no_grad():
            self.weight.view(-1).mul_(-1)
        return first + functional.linear(x, self.weight)


def test_a_weight_that_the_forward_writes_to_is_quantized_again():
    model = nn.Sequential(Written(4, 4, bias=False))
    with quantize_model(model, COARSE, head=None), torch.no_grad():
        assert torch.equal(model(torch.randn(7, 4)), torch.zeros(7, 4))


CONVOLUTIONS = {
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3, 2, output_padding=1), (2, 3, 5, 5)),
    "transposed, groups": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2, padding=1), (2, 4, 7)),
    "one sample": (lambda: nn.ConvTranspose1d(4, 6, 3), (4, 7)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("scaling", ["tensor", "none"])
def test_transposed_convolutions(name, scaling):
    """They are convolutions with operands of their own, and axes the other way about."""
    build, shape = CONVOLUTIONS[name]
    model, x = nn.Sequential(build()), torch.randn(shape, requires_grad=True)
    module = model[0]
    cast = {"format": "E3M4", "scaling": scaling}
    scale = "amax" if scaling == "tensor" else None
    plain = functional.conv_transpose1d if x.dim() < 4 else functional.conv_transpose2d
    own = module.stride, module.padding, module.output_padding, module.groups
    a, w = (altcore.fake_quantize(t, "E3M4", scale=scale) for t in (x, module.weight))
    y = plain(a, w, None, *own)
    g = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, module.weight), altcore.fake_quantize(g, "E3M4", scale))
    with quantize_model(model, dict.fromkeys(("weight", "activation", "gradient"), cast)):
        found = model(x)
        grads = torch.autograd.grad(found, (x, module.weight), g)
    shape = (-1, *(1,) * (y.dim() - (2 if x.dim() != 2 else 1)))
    torch.testing.assert_close(found - module.bias.reshape(shape), y, rtol=1e-4, atol=1e-5)
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_channel_scales_of_a_transposed_convolution():
    """Each output channel has the scale of its own weights, along axis 1."""
    model, x = nn.Sequential(nn.ConvTranspose1d(3, 4, 2, bias=False)), torch.randn(2, 3, 5)
    w = model[0].weight
    with torch.no_grad():
        w.mul_(torch.tensor([1.0, 8.0, 64.0, 512.0])[None, :, None])
    scales = w.detach().abs().amax((0, 2), keepdim=True) / altcore.get_format("E3M4").max
    expected = functional.conv_transpose1d(x, altcore.fake_quantize(w, "E3M4", scale=scales))
    cast = {"format": "E3M4", "scaling": "channel"}
    with quantize_model(model, {"weight": cast}):
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stored", [False, True])
def test_a_transposed_convolution_whose_weight_is_computed(stored):
    """A parametrization's result is met, whether or not its own parameters are stored."""
    module = nn.utils.parametrizations.weight_norm(nn.ConvTranspose1d(3, 4, 2, bias=False))
    x = torch.randn(2, 3, 5)
    recipe = COARSE | ({"stored_weight": "E3M4"} if stored else {})
    with quantize_model(nn.Sequential(module), recipe) as q:
        y = module(x)
        y.sum().backward()
        assert not [row.layer for row in q.coverage().rows if row.is_missed]
        expected = functional.conv_transpose1d(rounded(x), rounded(module.weight))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind):
    """Weights and states are on the grid at every step: in a grid of float32 nothing changes."""
    module = kind(4, 5, num_layers=2, bidirectional=True, batch_first=True)
    x = torch.randn(3, 6, 4)
    plain, _ = module(x)
    fine = {"format": altcore.float_format("E8M10", 8, 10), "scaling": "none"}
    recipe = dict.fromkeys(("weight", "activation", "gradient"), fine)
    with quantize_model(nn.Sequential(module), recipe) as q:
        y, _ = module(x)
        y.square().sum().backward()
        (row,) = q.coverage().rows
        assert q.coverage().parameter_share > 0.7  # all but the biases
    assert not torch.equal(y, plain)
    torch.testing.assert_close(y, plain, rtol=1e-2, atol=1e-2)
    assert {"weight@dgrad", "activation@wgrad", "gradient@dgrad"} <= set(row.operands)
    assert not row.is_missed


def test_a_recurrent_weight_is_quantized_once_a_forward():
    """However many steps it is multiplied in: its random bits are drawn once, too."""
    module = nn.RNN(4, 5)
    cast = {"format": "E3M4", "rounding": "stochastic"}
    with quantize_model(nn.Sequential(module), dict.fromkeys(("weight", "activation"), cast)) as q:
        module(torch.randn(6, 3, 4))
        counts = {r["parameter"]: r["elements"] for r in q.stats() if r["operand"] == "weight@fwd"}
    assert counts == {"weight_ih_l0": 20, "weight_hh_l0": 25}


# ------------------------------------------------------------------------- patched forwards


def patched(module, log):
    """What accelerate's hooks do: a forward on the instance, around the one before."""
    before = module.forward

    @functools.wraps(before)
    def forward(*args, **kwargs):
        log.append(1)
        return before(*args, **kwargs) * 2

    module.forward = forward
    return forward


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_patched_forward_runs(when):
    """And stays when the quantization is taken back."""
    model, x, log = nn.Sequential(nn.Linear(4, 4, bias=False)), torch.randn(3, 4), []
    layer = model[0]
    expected = 2 * functional.linear(rounded(x), rounded(layer.weight))
    forward = patched(layer, log) if when == "before" else None
    q = quantize_model(model, COARSE)
    forward = forward or patched(layer, log)
    torch.testing.assert_close(model(x), expected)
    assert log == [1]
    q.remove()
    assert layer.forward is forward
    assert torch.equal(model(x), 2 * functional.linear(x, layer.weight))
    with quantize_model(model, COARSE):
        torch.testing.assert_close(model(x), expected)


def test_a_forward_that_forgets_the_layer_is_told():
    """It was replaced after the model was quantized: its products are nobody's."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    x = torch.randn(3, 4)
    with quantize_model(model, COARSE, head=None) as q:
        model[0].forward = lambda x: functional.linear(x, model[0].weight)
        model(x).sum().backward()
        with pytest.warns(RuntimeWarning, match=r"layer 0 \(Linear\).* it never ran"):
            model(x)
        assert [row.why_not for row in q.coverage().rows] == ["it never ran", ""]


def test_a_model_patched_in_torch_itself_is_met(monkeypatch):
    """Some libraries replace the forward of torch's class: it runs."""
    monkeypatch.setattr(nn.Linear, "forward", lambda m, x: functional.linear(x, m.weight) + 1)
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4)
    with quantize_model(model, COARSE):
        y = model(x)
    torch.testing.assert_close(y, functional.linear(rounded(x), rounded(model[0].weight)) + 1)


# ------------------------------------------------------------------------ weights looked up


def test_an_embedding_keeps_its_norm_limit():
    """The rows that are looked up are shrunk in the parameter itself, then rounded."""
    module, plain = (nn.Embedding(8, 4, max_norm=1.0) for _ in range(2))
    plain.load_state_dict(module.state_dict())
    ids = torch.tensor([1, 3, 3])
    plain(ids)
    expected = rounded(plain.weight.detach())[ids]
    with quantize_model(nn.Sequential(module), {"layers": {"0": {"weight": "E3M4"}}}):
        assert torch.equal(module(ids), expected)
    assert torch.equal(module.weight, plain.weight)


class Position(nn.Embedding):
    """Hands out its weight, and calls nothing."""

    def forward(self, x):
        return self.weight[: x.shape[1]]


def test_a_weight_that_is_handed_out_is_rounded():
    module = Position(6, 4)
    with quantize_model(nn.Sequential(module), {"layers": {"0": {"weight": "E3M4"}}}):
        y = module(torch.zeros(2, 3))
        y.sum().backward()
    assert torch.equal(y, rounded(module.weight[:3]))
    assert module.weight.grad.sum() == 12


def test_threads_do_not_meet():
    """Each sees its own layers, and the parameters stay what they were."""
    model = nn.Sequential(nn.Embedding(16, 8), Lora(8), nn.Linear(8, 8))
    recipe = COARSE | {"layers": {"0": {"weight": "E3M4"}}}
    ids = [torch.randint(16, (32,)) for _ in range(8)]
    with quantize_model(model, recipe, head=None):
        model.eval()
        before = {n: p.clone() for n, p in model.named_parameters()}
        expected, found = [model(i) for i in ids], {}

        def run(k):
            found[k] = [torch.equal(model(ids[k]), expected[k]) for _ in range(30)]

        threads = [threading.Thread(target=run, args=(k,)) for k in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert all(all(found[k]) for k in range(8))
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


# ------------------------------------------------------------------ what cannot be gone through


LAYERS = {
    "linear": (lambda: nn.Linear(4, 4), torch.randn(2, 4)),
    "conv": (lambda: nn.Conv1d(4, 4, 1), torch.randn(2, 4, 3)),
    "own forward": (lambda: Lora(4), torch.randn(2, 4)),
}


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
    with quantize_model(model, COARSE) as q:
        with pytest.raises(BadInput, match=r"layer 0.*q\.off\(\)"):
            transform(model, x)
        with q.off():
            found = transform(model, x)
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    assert all(torch.equal(a, b) for a, b in pairs)


def subclass(x):
    """A tensor whose operations are its own."""

    class Own(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise AssertionError("a kernel would read its memory")

    return torch.Tensor._make_subclass(Own, x)


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
    with quantize_model(nn.Sequential(build()), COARSE) as q, refused:
        q.model(make(x))


def test_the_model_itself_has_a_name_where_it_is_a_layer():
    model = nn.Linear(8, 8)
    with quantize_model(model, {"weight": "E4M3"}) as q:
        with pytest.raises(BadInput, match=r"layer \(model\): input is"):
            model(torch.ones(2, 8, dtype=torch.int64))
        with pytest.raises(BadInput, match=r"layer \(model\) is Linear: it is quantized already"):
            quantize_model(model, "E4M3")
        assert "(model)" in str(q.coverage())


def test_a_weight_in_a_type_of_eight_bits_is_named():
    """Checkpoints in FP8 hold their weights so, and multiply them by a scale elsewhere."""
    model = nn.Sequential(nn.Linear(4, 4).to(torch.float8_e5m2))
    with pytest.raises(BadInput, match="layer 0: weight is a tensor of float8_e5m2"):
        quantize_model(model, COARSE, head=None)


def test_a_labelled_tensor_is_taken_for_what_it_holds():
    """Torchvision's images are such."""

    class Image(torch.Tensor):
        pass

    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)
    with quantize_model(model, COARSE):
        assert torch.equal(model(x.as_subclass(Image)), model(x))


@pytest.mark.filterwarnings("ignore")
def test_tracing_and_exporting_are_refused(tmp_path):
    """A traced model would have today's roundings in it as constants."""
    model, x = nn.Sequential(nn.Linear(4, 4), Lora(4)), torch.randn(2, 4)
    with quantize_model(model, COARSE, head=None) as q:
        for export in (
            lambda: torch.jit.trace(model, x),
            lambda: torch.export.export(model, (x,)),
            lambda: torch.export.export(model, (x,), strict=True),
            lambda: torch.jit.script(model),
            lambda: torch.onnx.export(model, (x,), str(tmp_path / "x.onnx"), dynamo=False),
            lambda: torch.fx.symbolic_trace(nn.Sequential(q.model)),
        ):
            with pytest.raises(Exception, match=r"cannot be traced, scripted or exported"):
                export()
    assert torch.jit.trace(model, x)(x).shape == (2, 4)


def test_models_that_are_not_ready_are_named():
    with pytest.raises(BadInput, match=r"model: 0 \(LazyLinear\) is lazy"):
        quantize_model(nn.Sequential(nn.LazyLinear(4)), COARSE)
    scripted = nn.Sequential(torch.jit.script(nn.Linear(4, 4)))
    with pytest.raises(BadInput, match=r"model: 0 is compiled by torch.jit"):
        quantize_model(scripted, COARSE)
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[1, 2] = float("inf")
    with pytest.raises(BadInput, match="layer 0: weight has elements that are not finite"):
        quantize_model(model, COARSE)


class Checkpointed(nn.Module):
    """Checkpoints a part of its own forward."""

    def __init__(self, reentrant):
        super().__init__()
        self.w, self.reentrant = nn.Parameter(torch.randn(4, 4)), reentrant

    def forward(self, x):
        return checkpoint(lambda x: functional.linear(x, self.w), x, use_reentrant=self.reentrant)


def test_a_module_that_checkpoints_a_part_of_itself_is_told():
    """That part is computed again when the forward is over, and nobody quantizes it."""
    x = torch.randn(3, 4, requires_grad=True)
    told = pytest.warns(RuntimeWarning, match=r"layer 0 \(Checkpointed\) multiplies without")
    with quantize_model(nn.Sequential(Checkpointed(True)), COARSE) as q, told:
        q.model(x)
    refused = pytest.raises(CheckpointError)
    with quantize_model(nn.Sequential(Checkpointed(False)), COARSE) as q, refused:
        q.model(x).sum().backward()
    outside = nn.Sequential(Lora(4))
    with quantize_model(outside, COARSE):
        expected = torch.autograd.grad(outside(x).sum(), x)
        for reentrant in (True, False):
            x.grad = None
            checkpoint(outside, x, use_reentrant=reentrant).sum().backward()
            assert torch.equal(x.grad, expected[0])


class CheckpointedAttention(nn.Module):
    """Attention that checkpoints its products."""

    def forward(self, x):
        return checkpoint(lambda x: (x @ x.mT).softmax(-1) @ x, x, use_reentrant=False)


CHECKPOINTED = {
    "products": (lambda: Checkpointed(False), {"weight": UNSCALED, "activation": UNSCALED}),
    "one operand": (lambda: Checkpointed(False), {"activation": UNSCALED}),
    "attention": (CheckpointedAttention, {"attention": UNSCALED}),
}


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_plain_products_are_not_taken_for_quantized_ones(name):
    """Where they save as many tensors, of the same shapes and types."""
    build, recipe = CHECKPOINTED[name]
    x = torch.randn(4, 4, 4)[slice(None) if name == "attention" else 0].requires_grad_()
    with quantize_model(nn.Sequential(build()), recipe) as q, pytest.raises(CheckpointError):
        q.model(x).sum().backward()


def test_the_grid_of_a_weight_is_its_own():
    """Of experts seen one by one, and of weights computed from others, there is none to tell."""
    model = nn.Sequential(Looped(), nn.Linear(6, 4), Weird(4, 4), Turned())
    fine = {"format": "E3M4", "scaling": "channel"}
    with quantize_model(model, {"weight": fine}, head=None) as q:
        q.begin_step(1, tracking=True)
        model(torch.randn(5, 4)).sum().backward()
        grids = [q.grid_of(p) for p in model.parameters() if p.dim() > 1]
        assert [grid is None for grid in grids] == [True, False, True, False]
        for grid, w in zip(grids[1::2], (model[1].weight, model[3].w), strict=True):
            sums = [0] if w is model[3].w else [1]  # the axis that the product sums over
            largest = w.detach().abs().amax(sums, keepdim=True)
            torch.testing.assert_close(grid.scale, largest / altcore.get_format("E3M4").max)
        q.measure_views()
        assert q.counters.view_layers == ["1", "3"]
        assert not q.counters.view_moves.any()


class Turned(nn.Module):
    """Multiplies by its weight from the right."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return x @ self.w


# ------------------------------------------------------------ weights that a forward changes


FACTORS = torch.linspace(1.1, 2.0, 8)


class Growing(nn.Linear):
    """Multiplies by its weight, and by what that is after a change."""

    def __init__(self, how):
        super().__init__(8, 8, bias=False)
        self.how = how

    def forward(self, x):
        w = self.weight.clone() if self.how == "copy" else self.weight
        y = functional.linear(x, w)
        if self.how == "data":
            self.weight.data = self.weight.data * FACTORS
        else:
            (w.data if self.how == "in data" else w).mul_(FACTORS)
        return y + functional.linear(x, w)


@pytest.mark.parametrize("how", ["copy", "in place", "data"])
def test_a_weight_that_the_forward_changes_is_quantized_again(how):
    model, x = nn.Sequential(Growing(how)), torch.randn(4, 8)
    w = model[0].weight.detach().clone()
    with torch.inference_mode(how == "copy"), torch.no_grad():
        with quantize_model(model, COARSE, head=None):
            y = model(x)
        expected = product(x, w) + product(x, w * FACTORS)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("how", ["copy", "in place", "data", "in data"])
def test_a_stored_weight_that_the_forward_changes_is_rounded_before_it_is_used(how):
    """Layers that hold the norm of their weight down do so in their forward."""
    model = nn.Sequential(Growing(how))
    recipe = {"stored_weight": "E2M1", "weight": "E2M1"}
    with torch.no_grad(), quantize_model(model, recipe, head=None):
        w = model[0].weight.detach().clone()
        seen = model(torch.eye(8)).T - w  # what the second product saw
    assert len(seen.unique()) <= 15  # those of E2M1
    assert not torch.equal(seen, w)


class OwnFunction(torch.autograd.Function):
    """A product with a backward pass of its own, as fused kernels have it."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.T @ x


class Fused(nn.Linear):
    def forward(self, x):
        return OwnFunction.apply(x, self.weight)


def test_a_backward_pass_of_its_own_is_told_of():
    model, x = nn.Sequential(Fused(8, 8, bias=False)), torch.randn(4, 8)
    with quantize_model(model, COARSE, head=None):
        with pytest.warns(RuntimeWarning, match=r"autograd\.Function of its own, the"):
            y = model(x)
        torch.testing.assert_close(y, product(x, model[0].weight))


class Gather(Looped):
    """Experts that are gathered, a matrix for each sample."""

    def forward(self, x):
        index = (torch.arange(len(x)) % 3)[:, None, None].expand(-1, 6, 4)
        return torch.bmm(torch.gather(self.experts, 0, index), x.unsqueeze(-1)).squeeze(-1)


def test_gathered_experts_are_weights():
    """As those that are indexed."""
    twins, x, found = (Gathered(), Gather()), torch.randn(7, 4), []
    twins[1].load_state_dict(twins[0].state_dict())
    for module in twins:
        with quantize_model(nn.Sequential(module), COARSE):
            y = module(x)
            found.append((y, *torch.autograd.grad(y.square().sum(), module.experts)))
    assert all(map(torch.equal, *found))
