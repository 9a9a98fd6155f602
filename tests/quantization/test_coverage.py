"""What is covered is told: shares, operands, the head, and what was left out and why."""

import functools
import warnings

import pytest
import torch
from helpers_quantization import E3M4_OPERANDS, model_of, only, quantize_in_float32
from torch import nn
from torch.nn import functional

import altcore
from altcore import BadInput, quantize_model
from altcore.quantization.flops import count_flops
from altcore.runs import EVENTS, read_lines


class Reader(nn.Module):
    """Reads a weight of a layer that never runs, and has one that never runs at all."""

    def __init__(self):
        super().__init__()
        self.read, self.idle, self.runs = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.parts = nn.ParameterList([torch.randn(4, 4)])

    def forward(self, x):
        return self.runs(x) @ self.read.weight @ self.parts[0]


class InPlace(nn.Linear):
    """Multiplies by its weight in a way that altcore does not see."""

    def forward(self, x):
        return x.new_zeros(len(x), self.out_features).addmm_(x, self.weight.t())


class Chained(nn.Module):
    """Owns weights, and multiplies by them in a way that altcore does not see."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return torch.linalg.multi_dot([x, self.a, self.b])


class Wrapped(nn.Module):
    """A layer with something beside it, as adapters have."""

    def __init__(self, base):
        super().__init__()
        self.base_layer, self.beside = base, nn.Linear(8, 8)

    def forward(self, x):
        return self.base_layer(x) + self.beside(x)


def one_step(model, x):
    torch.autograd.grad(model(x).sum(), list(model.parameters()))


def total(y):
    return (y if isinstance(y, torch.Tensor) else y[0]).sum()


def hand_computed():
    """Embedding (256, 8), Linear (8, 12), head (12, 256), with biases."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(256, 8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 256))


EMBED, INNER, HEAD = 256 * 8, 8 * 12, 12 * 256
TOTAL = EMBED + INNER + 12 + HEAD + 256


def test_what_never_runs_is_named():
    """After the first step, once, and in the table."""
    model, x = Reader(), torch.randn(3, 4)
    with quantize_model(model, "E4M3", head=None) as q:
        model(x).sum().backward()
        model.zero_grad()
        with pytest.warns(RuntimeWarning) as told:
            model(x)
        assert sum("never ran" in str(w.message) for w in told) == len(told) == 3
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(x)
        rows = {row.layer: row for row in q.coverage().rows}
    assert rows["idle"].why_not == "it never ran"
    assert rows["runs"].operands
    assert not rows["runs"].why_not
    assert not rows["parts"].operands
    assert q.coverage().parameter_share < 0.5


@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize("recipe", ["master", "full"])
def test_a_micro_batch_is_no_step(recipe, is_given):
    """A layer may run in another one of the step, whose optimizer has not stepped yet."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    given = {"optimizer": optimizer} if is_given else {}
    with quantize_model(model, recipe, format="E4M3", head=None, **given) as q:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(2):
                for layers in (model[:2], model[::2], model[:2]):
                    layers(x).square().sum().backward()
                optimizer.step()
                q.store(optimizer)
        model(x)


@pytest.mark.parametrize("step", ["moves", "clears"])
def test_an_optimizer_that_altcore_does_not_know_steps(step):
    """It moves weights, or clears gradients: then the first step is over."""
    model, x = nn.ModuleDict({"runs": nn.Linear(4, 4), "idle": nn.Linear(4, 4)}), torch.randn(3, 4)
    with quantize_model(model, "E4M3", head=None):
        model["runs"](x).sum().backward()
        if step == "moves":
            torch.optim.SGD(model.parameters(), lr=0.1).step()
        else:
            model.zero_grad()
        with pytest.warns(RuntimeWarning, match="layer idle .* it never ran"):
            model["runs"](x)


def test_a_model_without_any_quantized_product_is_told():
    """There is no backward pass of a quantized layer to wait for."""
    model, x = nn.Sequential(InPlace(4, 4), nn.Tanh(), InPlace(4, 4)), torch.randn(3, 4)
    with quantize_model(model, "E4M3", head=None):
        model(x).sum().backward()
        model.zero_grad()
        with pytest.warns(RuntimeWarning, match="layer 0 .* its weights were in no product"):
            model(x)


@pytest.mark.parametrize(("pattern", "is_told"), [("1", True), ("*", False)])
def test_what_a_recipe_asks_for_by_name_is_told(pattern, is_told):
    """A module that may own tables alone is told of only if a rule names it."""
    model, x = nn.Sequential(nn.Linear(4, 4), Chained()), torch.randn(3, 4)
    recipe = {"layers": {"0": {"weight": "E4M3"}, pattern: {"activation": "E4M3"}}}
    with quantize_model(model, recipe) as q:
        model(x).sum().backward()
        model.zero_grad()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model(x)
        assert [r.layer for r in q.coverage().rows if r.is_missed] == ["1"] * is_told
    assert [" its weights were in no product" in str(w.message) for w in told] == [True] * is_told


@pytest.mark.filterwarnings("ignore:layer 1 .* the model has lost it")
@pytest.mark.parametrize("recipe", ["E2M1", {"weight": "E2M1", "stored_weight": "E2M1"}])
def test_modules_that_come_and_go_are_told(recipe):
    """What replaces a layer is not quantized before the recipe is taken again."""
    model, x = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))), torch.randn(4, 8)
    plain = {name: m.forward for name, m in model.named_children()}
    with quantize_model(model, recipe, head=None) as q:
        model(x).sum().backward()
        model[0], model[1] = Wrapped(model[0]), nn.Linear(8, 8)
        model(x).sum().backward()
        rows = {row.layer: row for row in q.coverage().rows}
        assert rows["0"].operands
        assert rows["2"].operands
        assert rows["1"].is_missed
        assert rows["1"].why_not == "the model has lost it since it was quantized"
        assert not rows["1"].operands
        assert "got it after" in rows["0.beside"].why_not
        assert q.coverage().parameter_share == pytest.approx(2 * 64 / (4 * 72))
        q.change_recipe(recipe)
        model(x).sum().backward()
        assert all(row.operands for row in q.coverage().rows)
        assert [row.layer for row in q.coverage().rows] == ["0.base_layer", "0.beside", "1", "2"]
        assert set(q.stored) in (set(), {f"{row.layer}.weight" for row in q.coverage().rows})
        if q.stored:
            model[1].weight.data.mul_(1.3)
            q.store()
            assert len(model[1].weight.unique()) <= 15  # those of E2M1
    assert model[0].base_layer.forward == plain["0"]


def test_the_table_and_the_line():
    """Every layer is in it; the line has the shares and the head."""
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9))
    with quantize_model(model, "E4M3") as q:
        share = q.count_flops(lambda: model(torch.arange(4)).sum().backward())
        coverage = q.coverage()
        assert share == pytest.approx(64 / (64 + 72))
        assert coverage.line == (
            "quantized: 28.4% of parameters, 47.1% of FLOPs; head: 2; left out: 1 embedding"
        )
        table = str(coverage).splitlines()
        assert table[0].split() == ["layer", "module", "parameters", "quantized", "why", "not"]
        assert "weight, activation, gradient" in table[2]
        assert table[1].endswith("looked up, not multiplied: its role is weight@lookup")
        assert table[3].endswith("the output head")
        assert len(repr(q)) < 300
        assert str(q) == repr(q)


def test_what_a_module_multiplies_by_is_unknown_before_it_runs():
    """It is then not said to be left out."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4)), torch.randn(3, 4)
    with quantize_model(model, "E4M3", head=None) as q:
        line, (_, row) = q.coverage().line, q.coverage().rows
        assert line.endswith("left out: nothing; known after the first step: 1 other")
        assert row.why_not == "its products show when it runs"
        assert not row.is_missed
        model(x)[0].sum().backward()
        assert q.coverage().line.endswith("left out: nothing")
        assert not q.coverage().rows[1].why_not


def test_a_layer_without_a_backward_pass_says_no_more_than_that():
    """Not that it is frozen: it was evaluated, or its output is in no loss."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(3, 4)
    with quantize_model(model, "E4M3", head=None) as q:
        with torch.no_grad():
            model(x)
        whys = {row.why_not for row in q.coverage().rows}
        assert whys == {"no gradient reached it"}
        model[0](x).sum().backward()
        assert [row.why_not for row in q.coverage().rows] == ["", "no gradient reached it"]


def test_the_line_has_the_formats_of_now():
    """Not those of a recipe that there was before."""
    with quantize_model(nn.Linear(4, 4), "E4M3") as q:
        q.change_recipe("E5M2")
        assert "recipe master in E5M2;" in repr(q)


def test_counting_changes_nothing():
    """Neither counters nor random bits nor what delayed scaling has seen."""
    cast = {"format": "E4M3", "rounding": "stochastic", "scaling": "delayed"}
    recipe = dict.fromkeys(("weight", "activation", "gradient"), cast)
    results = []
    for counts in (False, True):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), torch.randn(4, 8)
        with quantize_model(model, recipe) as q:
            for _ in range(3):
                if counts:
                    loss = functools.partial(one_step, model, x)
                    q.count_flops(loss)
                model(x).square().sum().backward()
            results.append([p.grad for p in model.parameters()] + [q.counters.counts])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Conv2d(6, 6, 3, groups=6, padding=1), (2, 6, 5, 5)),
        (lambda: nn.Conv1d(4, 8, 3, groups=2), (2, 4, 9)),
        (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5)),
        (lambda: nn.Linear(4, 5), (3, 4)),
        (lambda: nn.LSTM(4, 5, num_layers=2), (7, 3, 4)),
        (lambda: nn.MultiheadAttention(4, 2), (5, 3, 4)),
    ],
)
@pytest.mark.parametrize("recipe", ["E4M3", "nvfp4"])
def test_a_layer_that_is_quantized_whole_says_so(build, shape, recipe):
    """All FLOPs, whatever the layer; a Hadamard transform is no product of the model's."""
    module, x = build(), torch.randn(shape, requires_grad=True)
    model = nn.Sequential(module)
    given = (x, x, x) if isinstance(module, nn.MultiheadAttention) else (x,)
    options = {"head": None}
    named = {"nvfp4": dict.fromkeys(("weight", "activation", "gradient"), "NVFP4")}
    roles = named.get(recipe, dict.fromkeys(("weight", "activation", "gradient"), "E4M3"))
    hadamard = {"format": "E4M3", "hadamard": 4} if isinstance(module, nn.Linear) else "E4M3"
    roles = {**roles, "activation@wgrad": hadamard, "gradient@wgrad": hadamard}
    if isinstance(module, nn.MultiheadAttention):
        roles["attention"] = "E4M3"
    plain = count_flops(lambda: total(module(*given)).backward())
    with quantize_model(model, roles, **options) as q:
        share = q.count_flops(lambda: total(module(*given)).backward())
        # The first recurrent step of a fused network has no product for its state's gradient.
        assert q.flops.total == pytest.approx(plain, rel=0 if "LSTM" not in repr(module) else 0.1)
    # Attention's backward products are not quantized.
    assert share == pytest.approx(1.0) or isinstance(module, nn.MultiheadAttention)
    assert share > 0.7


def test_the_head_is_the_callers_to_name():
    """By name, none, or found."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    for head, left in (("auto", {"2"}), (None, set()), ("1", {"1"})):
        with quantize_model(model, "E4M3", head=head) as q:
            coverage = q.coverage()
        assert {row.layer for row in coverage.rows if not row.operands} == left
        assert coverage.head == (left or {None}).pop()
    with pytest.raises(BadInput, match="head: the model has no module 'head'"):
        quantize_model(model, "E4M3", head="head")


def test_nvfp4_takes_convolutions():
    """Their weights' blocks lie along what their products sum over; Hadamard is left out, told."""
    model = nn.Sequential(
        nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 8), nn.Linear(8, 4)
    )
    x = torch.randn(2, 32, 5, 5)
    recipe = {
        "weight": "NVFP4-square",
        "activation": "NVFP4",
        "activation@wgrad": {"format": "NVFP4", "hadamard": 16},
        "gradient": "NVFP4",
        "gradient@wgrad": {"format": "NVFP4", "hadamard": 16},
    }
    with quantize_model(model, recipe) as q:
        model(x.requires_grad_()).sum().backward()
        assert q.plan["3"]["gradient@wgrad"].hadamard == 16
        assert q.plan["0"]["gradient@wgrad"].hadamard == 0
        rows = {row.layer: row.why_not for row in q.coverage().rows}
        assert rows["0"] == "no Hadamard transform (a convolution sums along several axes)"


def test_square_blocks_of_a_convolution():
    """They span output and input channels, each position of the kernel for itself."""
    module, x = nn.Conv2d(32, 16, 3, bias=False), torch.randn(1, 32, 6, 6)
    with torch.no_grad():
        module.weight.mul_(torch.logspace(-3, 3, 9).reshape(3, 3))  # positions of unlike size
    with quantize_model(nn.Sequential(module), {"weight": "MXFP4"}, compute="float32"):
        blocks = module(x)
    with quantize_model(nn.Sequential(module), {"weight": "NVFP4-square"}, compute="float32"):
        square = module(x)
    plain = module(x)
    for y in (blocks, square):
        assert (y - plain).norm() < 0.15 * plain.norm()


def test_a_role_that_no_layer_has_is_told():
    """Of a recipe with several roles the others are there, and nobody would know."""
    model, x = nn.Sequential(nn.Conv1d(4, 4, 1)), torch.randn(2, 4, 3)
    with quantize_model(model, {"weight": "E4M3", "attention": "E4M3"}) as q:
        model(x).sum().backward()
        model.zero_grad()
        with pytest.warns(RuntimeWarning, match="role attention reaches no layer of the model"):
            model(x)
    with quantize_model(model, {"weight": "E4M3"}) as q:
        model(x).sum().backward()
        assert q.missed() == []


def test_a_forward_that_forgets_the_layer_is_told():
    """It was replaced after the model was quantized: its products are nobody's."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    x = torch.randn(3, 4)
    with quantize_in_float32(model, E3M4_OPERANDS, head=None) as q:
        model[0].forward = lambda x: functional.linear(x, model[0].weight)
        model(x).sum().backward()
        model.zero_grad()
        with pytest.warns(RuntimeWarning, match=r"layer 0 \(Linear\).* it never ran"):
            model(x)
        assert [row.why_not for row in q.coverage().rows] == ["it never ran", ""]


@pytest.mark.parametrize(
    ("recipe", "parameters", "flops"),
    [
        ("master", INNER, INNER / (INNER + HEAD)),
        ("pure", EMBED + INNER + HEAD, INNER / (INNER + HEAD)),
        ("original", EMBED + INNER + HEAD, 0.0),
        ({"weight": "E4M3", "activation@fwd": "E4M3"}, INNER + HEAD, 1 / 3),
        ({"activation": "E4M3", "gradient": "E4M3"}, 0, 1 / 3),
        ({"weight": "E4M3", "activation": "E4M3", "gradient": "E4M3"}, INNER + HEAD, 1.0),
        ({"stored_weight": "E4M3", "skip": ["<embedding>"]}, INNER + HEAD, 0.0),
        ({}, 0, 0.0),
    ],
)
def test_shares_by_hand(start, recipe, parameters, flops):
    """Parameters on a grid, and FLOPs of products with both operands on one.

    Each Linear has three products of the same size here, since the embedding wants its gradient.
    """
    fmt = "E4M3" if isinstance(recipe, str) else "none"
    run = altcore.train(start.config(recipe=recipe, format=fmt, max_steps=1), model=hand_computed())
    assert run.summary["parameter_share"] == pytest.approx(parameters / TOTAL)
    assert run.summary["flop_share"] == pytest.approx(flops)


def test_operands_of_unequal_roles_do_not_count_as_quantized_flops():
    """A product counts only when both of its operands are on a grid."""
    model = model_of(lambda *shape: torch.ones(*shape))
    q = quantize_model(model, only({"weight": "E4M3"}))
    assert q.count_flops(lambda: model(torch.ones(2, 7)).sum().backward()) == 0
    shares = q.coverage().flop_share_by_operand
    # The first layer has no product for its input's gradient: two of 35, and three of 15.
    assert shares == pytest.approx({"weight@fwd": 35 / (2 * 35 + 3 * 15)})


def test_a_resumed_run_tells_what_it_misses_once(start):
    """The run did so when it began; only news is told again."""

    def warnings():
        found = [e["message"] for e in read_lines(path / EVENTS) if e["event"] == "warning"]
        return [message for message in found if "schedule" not in message]

    recipe = {"weight": "E4M3", "attention": "E4M3", "skip": ["*attn*"]}
    path = start(recipe=recipe, max_steps=2, name="missed").run_directory
    told = warnings()
    assert any("role attention reaches no layer" in message for message in told)
    start.resume("missed", max_steps=4)
    assert warnings() == told
