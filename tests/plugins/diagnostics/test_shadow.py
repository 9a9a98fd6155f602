"""The diagnostic ``shadow``: known errors and angles, and a run that does not notice it."""

import math
from types import SimpleNamespace

import pytest
import torch
from attrs import define
from helpers import weights_sha256
from helpers_diagnostics import NoHostRead
from torch import nn
from torch.nn import functional

import altcore
from altcore import hookimpl
from altcore.config import TrainConfig
from altcore.engine import Run, Step
from altcore_diagnostics import shadow_gradients
from altcore_diagnostics.shadow import Shadow, gradient_measures
from altcore_diagnostics.shadow_gradients import GradientPair, gradient_pair, sums_by_layer


def run_of(model, recipe, loss=lambda model, batch: model(batch).square().mean(), seed=0):
    """A Run of a model of the test's own under a recipe."""
    return Run(
        config=TrainConfig(device="cpu"),
        directory=None,
        device=torch.device("cpu"),
        workload=SimpleNamespace(model=model, loss=loss),
        model=model,
        optimizer=None,
        quantization=altcore.quantize_model(model, recipe, seed=seed),
        on_event=None,
    )


def shadow(run, batch):
    """The measures of one step on a batch, as numbers."""
    run.quantization.begin_step(1)
    step = Step(1, batch=batch)
    found = Shadow().post_backward(run, step)
    return None if found is None else {key: float(value) for key, value in found.items()}


def linear(rows, bias=False):
    """A Linear with these weights."""
    weight = torch.tensor(rows)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


# Angles and norms of pure functions ------------------------------------------------------------


def compare(quantized, exact):
    """The measures of two gradients, by parameter name."""
    as_tensors = [
        {n: torch.tensor(g) for n, g in gradients.items()} for gradients in (quantized, exact)
    ]
    pair = GradientPair(*as_tensors, torch.zeros(()), torch.zeros(()))
    return {key: float(value) for key, value in gradient_measures(sums_by_layer(pair)).items()}


def test_angles_by_hand():
    """The same direction is 1, the opposite one -1, a right angle 0; 3-4-5 is 0.6."""
    exact = {f"{n}.weight": [[3.0, 4.0]] for n in "abcd"}
    quantized = {
        "a.weight": [[6.0, 8.0]],
        "b.weight": [[-3.0, -4.0]],
        "c.weight": [[4.0, -3.0]],
        "d.weight": [[5.0, 0.0]],
    }
    found = compare(quantized, exact)
    assert [found[f"cosine/{n}"] for n in "abcd"] == pytest.approx([1.0, -1.0, 0.0, 0.6])
    assert [found[f"norm_ratio/{n}"] for n in "abcd"] == [2.0, 1.0, 1.0, 1.0]
    assert found["cosine_mean"] == pytest.approx(0.15)
    assert found["cosine_min"] == pytest.approx(-1.0)
    assert found["norm_ratio"] == pytest.approx(math.sqrt(175 / 100))


def test_a_layer_of_several_matrices_is_one_vector():
    """Both matrices of a layer count together."""
    found = compare({"r.a": [[3.0]], "r.b": [[4.0]]}, {"r.a": [[3.0]], "r.b": [[-4.0]]})
    assert found["cosine/r"] == pytest.approx((9 - 16) / 25)


def test_a_gradient_of_zero():
    """One that quantization took away has cosine 0; where there is none at all, there is none."""
    found = compare(
        {"a.weight": [[0.0]], "b.weight": [[0.0]], "c.weight": [[1.0]]},
        {"a.weight": [[2.0]], "b.weight": [[0.0]], "c.weight": [[1.0]]},
    )
    assert (found["cosine/a"], found["cosine/c"], found["norm_ratio/a"]) == (0.0, 1.0, 0.0)
    assert math.isnan(found["cosine/b"])
    assert (found["cosine_mean"], found["cosine_min"]) == (0.5, 0.0)


def test_what_is_not_finite_is_seen():
    """A lost gradient makes the aggregates NaN."""
    found = compare(
        {"a.weight": [[math.nan]], "b.weight": [[1.0]]},
        {"a.weight": [[1.0]], "b.weight": [[1.0]]},
    )
    assert math.isnan(found["cosine_min"])
    assert math.isnan(found["cosine_mean"])
    assert found["cosine/b"] == 1.0


# Errors of layers ------------------------------------------------------------------------------


def test_a_known_rounding_error():
    """A weight of 1.25 grid steps is rounded to one: every output is off by a fifth."""
    recipe = {"layers": {"0": {"weight": {"format": "INT8", "scaling": "none"}}}}
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    fmt = altcore.get_format("INT8")
    unit = next(v for v in fmt.values if v > 0)
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2) * 1.25 * unit)
    found = shadow(run_of(model, recipe), torch.tensor([[1.0, 3.0], [-2.0, 5.0]]))
    assert found["injected/0"] == found["accumulated/0"] == pytest.approx(0.2)
    assert found["injected_max"] == found["injected/0"]
    # The loss is the mean of squares: 1 instead of 1.25² of them.
    exact = (1.25 * unit) ** 2 * 39 / 4
    assert found["loss_gap"] == pytest.approx(exact * (1 / 1.25**2 - 1), rel=1e-5)


def test_injected_takes_exact_inputs_and_accumulated_the_runs_own():
    """Each of three layers loses its own share on exact inputs, and the product of all together."""
    torch.manual_seed(0)
    cast = {"format": "E2M1", "scaling": "none"}
    weights = [1.25, 1.125, 1.0]  # 1.25 is a tie to 1; 1.125 is 1; the last layer is exact
    model = nn.Sequential(*[linear([[w, 0.0], [0.0, w]]) for w in weights])
    recipe = {"layers": {str(i): {"weight": cast} for i in range(3)}}
    found = shadow(run_of(model, recipe), torch.randn(5, 2))
    own = [1 - 1 / w for w in weights]
    assert [found[f"injected/{i}"] for i in range(3)] == pytest.approx(own, abs=1e-6)
    together = [1 - 1 / 1.25, 1 - 1 / (1.25 * 1.125), 1 - 1 / (1.25 * 1.125)]
    assert [found[f"accumulated/{i}"] for i in range(3)] == pytest.approx(together)
    assert found["injected/0"] == found["accumulated/0"] == found["injected_max"]
    assert found["accumulated_max"] == found["accumulated/2"]


@pytest.mark.parametrize("rounding", ["nearest-even", "stochastic"])
def test_the_first_layers_errors_are_the_same(rounding):
    """Its inputs are exact in any case, and a probe's random bits the same in every pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    cast = {"format": "E3M4", "rounding": rounding}
    run = run_of(model, {"weight": cast, "activation": cast, "gradient": cast})
    found = shadow(run, torch.randn(8, 16))
    assert found["injected/0"] == found["accumulated/0"] > 0
    assert found["injected/2"] != found["accumulated/2"]


def test_what_goes_on_in_place_is_compared_as_it_was():
    """An activation that overwrites the layer's output changes no error."""
    torch.manual_seed(0)
    layers = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 2, 1)
    batch, found = torch.randn(3, 4, 5), []
    for relu in (nn.ReLU(), nn.ReLU(inplace=True)):
        run = run_of(nn.Sequential(layers[0], relu, layers[1]), {"weight": "E2M1"})
        found.append(shadow(run, batch))
        run.quantization.remove()
    assert found[0] == found[1]
    assert found[0]["injected/0"] > 0


def test_against_a_model_quantized_by_hand():
    """The gradients and losses are those of the same model with and without its recipe."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))
    twin = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))
    twin.load_state_dict(model.state_dict())
    batch = torch.randn(6, 12)
    run = run_of(model, {"weight": "E2M1", "activation": "E3M4", "gradient": "E2M1"})
    found = shadow(run, batch)
    losses = [m(batch).square().mean() for m in (model, twin)]
    for loss in losses:
        loss.backward()
    assert found["loss_gap"] == pytest.approx(float((losses[0] - losses[1]).detach()), rel=1e-4)
    cosines = []
    for i in (0, 2):
        a, b = model[i].weight.grad.flatten(), twin[i].weight.grad.flatten()
        cosines.append(float(functional.cosine_similarity(a, b, dim=0)))
        assert found[f"cosine/{i}"] == pytest.approx(cosines[-1], abs=1e-6)
        assert found[f"norm_ratio/{i}"] == pytest.approx(float(a.norm() / b.norm()), rel=1e-5)
    assert min(cosines) < 0.999
    assert found["cosine_min"] == pytest.approx(min(cosines), abs=1e-6)
    assert found["cosine_mean"] == pytest.approx(sum(cosines) / 2, abs=1e-6)


def test_a_quantized_weight_gradient_is_in_the_one_and_not_in_the_other():
    """The role weight_gradient rounds by a hook of the weight, which the shadow does not pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8))
    run = run_of(model, {"weight_gradient": "E2M1"})
    batch = torch.randn(4, 8)
    pair = gradient_pair(run, Step(1, batch=batch))
    model(batch).square().mean().backward()
    on_grid = altcore.fake_quantize(pair.exact["0.weight"], "E2M1", "amax")
    assert torch.equal(pair.quantized["0.weight"], on_grid)
    assert torch.equal(pair.quantized["0.weight"], model[0].weight.grad)
    assert not torch.equal(pair.exact["0.weight"], on_grid)


def test_a_layer_that_is_called_twice_or_never():
    """The squares of its calls add up; one that the forward pass leaves out has no error."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.never = linear([[1.25]]), linear([[1.25]])

        def forward(self, x):
            return self.twice(x) + self.twice(2 * x)

    recipe = {"layers": {"*": {"weight": {"format": "E2M1", "scaling": "none"}}}}
    found = shadow(run_of(Model(), recipe), torch.ones(3, 1))
    assert found["injected/twice"] == found["accumulated/twice"] == pytest.approx(0.2)
    assert "injected/never" not in found
    assert "cosine/never" not in found


class Attention(nn.Module):
    """One head, with dropout inside and a quantized layer on each side."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        q, k, v = self.inside(x).chunk(3, -1)
        return self.dropout(self.out(functional.scaled_dot_product_attention(q, k, v)))


def test_attention_is_charged_for_its_own_operands_only():
    """Its injected error is that of the products, without dropout and with exact layers inside."""
    torch.manual_seed(0)
    model = nn.Sequential(Attention())
    coarse = {"weight": "E2M1", "activation": "E2M1"}
    alone = {"layers": {"0": {"attention": "E3M4"}}}
    both = {"layers": {"0": {"attention": "E3M4"}, "0.*": coarse}}
    x = torch.randn(2, 6, 8)
    found = []
    for recipe in (alone, both):
        run = run_of(model, recipe)
        found.append(shadow(run, x))
        run.quantization.remove()
    assert found[0]["injected/0"] == found[1]["injected/0"]
    assert 0 < found[0]["injected/0"] < 0.1
    assert found[1]["injected/0.inside"] > found[1]["injected/0"]


def test_dropout_drops_the_same_elements_in_both():
    """With a recipe whose format is fine enough, the two are the same up to rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.5), nn.Linear(32, 8))
    run = run_of(model, {"weight": "TF32", "activation": "TF32"})
    found = shadow(run, torch.randn(16, 32))
    assert found["cosine_min"] > 0.9999
    assert abs(found["loss_gap"]) < 1e-3


def test_without_quantization_there_is_nothing_to_compare():
    """No measure, rather than zeros."""
    assert shadow(run_of(nn.Sequential(nn.Linear(2, 2)), {}), torch.ones(1, 2)) is None


def test_it_stays_on_the_device_and_leaves_no_trace():
    """No host read; gradients, buffers, modes, hooks and counters are as they were."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 8))
    cast = {"format": "E4M3", "scaling": "delayed"}
    run = run_of(model, {"weight": cast, "activation": cast, "gradient": "E5M2"})
    batch = torch.randn(4, 8)
    run.quantization.begin_step(1)
    run.workload.loss(model, batch).backward()

    def everything():
        state = [p.grad for p in model.parameters()] + list(model.buffers())
        state += [run.quantization.counters.counts, torch.get_rng_state()]
        state += [q.history for q in run.quantization.quantizers if q.history is not None]
        return [t.clone() for t in state]

    before = everything()
    with NoHostRead():
        Shadow().post_backward(run, Step(1, batch=batch))
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not run.quantization.context.is_off


def own_pass(run, batch):
    """The measures of a step whose own pass was watched, and how often the loss was asked for."""
    asked, own = [], run.workload.loss
    run.workload.loss = lambda *given: asked.append(1) or own(*given)
    run.quantization.begin_step(1)
    step, plugin = Step(1, batch=batch), Shadow()
    with plugin.watch_forward(run, step):
        step.loss = run.workload.loss(run.model, batch)
    step.loss.backward()
    found = plugin.post_backward(run, step)
    return {key: float(value) for key, value in found.items()}, len(asked)


class InPlace(nn.Module):
    """Goes on in place, or not, in what a quantized layer took, or in what it returned."""

    def __init__(self, where):
        super().__init__()
        torch.manual_seed(0)
        self.where = where
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.requires_grad_(False)  # else autograd wants its input as it was

    def forward(self, x):
        x = self.first(x)
        y = self.second(x)
        if self.where == "input":
            x = x.detach()
            x += 1.0
            y = y + x
        elif self.where == "output":
            y += x.detach() + 1.0
        else:
            y = y + (x.detach() + 1.0)
        return self.third(y)


@pytest.mark.parametrize("where", ["nowhere", "input", "output"])
@pytest.mark.parametrize("is_own", [True, False], ids=["own", "anew"])
def test_a_model_may_go_on_in_place(where, is_own):
    """What it writes to is looked at as it was; that takes passes of its own."""
    recipe, batch = {"weight": "E2M1", "activation": "E2M1"}, torch.randn(5, 8)
    made = [own_pass(run_of(InPlace(w), recipe), batch) for w in ("nowhere", where)]
    (expected, few), (found, number) = made
    if not is_own:
        found = shadow(run_of(InPlace(where), recipe), batch)
    errors = [k for k in expected if k.startswith(("injected", "accumulated"))]
    assert [found[k] for k in errors] == [expected[k] for k in errors]
    assert few == 2
    assert (number > 2) == (where != "nowhere")


def test_gradients_are_computed_once_a_step():
    """Who asks again on the same step gets the same pair, on the next one a new one."""
    run = run_of(nn.Sequential(nn.Linear(2, 2)), {"weight": "E4M3"})
    step, batch = Step(1, batch=torch.ones(1, 2)), torch.ones(1, 2)
    pair = gradient_pair(run, step)
    assert gradient_pair(run, step) is pair
    assert gradient_pair(run, Step(2, batch=batch)) is not pair


def passes_of(monkeypatch, start, plugins=("shadow",), others=(), **keys):
    """How many backward passes of its own a due step makes, and what is measured."""
    made = []
    own = shadow_gradients._gradients
    with monkeypatch.context() as patch:
        patch.setattr(shadow_gradients, "_gradients", lambda *a: made.append(1) or own(*a))
        due = {f"{name}.interval": 2 for name in plugins}
        result = start([*others, *plugins], max_steps=2, **keys, **due)
    return len(made) / len(result.diagnostics_history), result.diagnostics_history


WITH_GRADIENTS = {"weight": "E4M3", "gradient": "E5M2", "weight_gradient": "E5M2"}


@pytest.mark.parametrize(
    "recipe", ["pure", "master", WITH_GRADIENTS], ids=["pure", "master", "own"]
)
def test_the_steps_own_gradients_are_those_of_another_pass(monkeypatch, start, recipe):
    """Where nothing is left to chance one pass is saved, and all measures are the same."""
    keys = {"format": "E4M3" if isinstance(recipe, str) else None, "recipe": recipe}
    saved, found = passes_of(monkeypatch, start, **keys)
    with monkeypatch.context() as patch:
        patch.setattr(shadow_gradients, "_is_repeatable", lambda run: False)
        made, again = passes_of(monkeypatch, start, **keys)
    assert (saved, made) == (1, 2)
    assert found == again


@pytest.mark.parametrize(
    "keys",
    [
        {"gpt__dropout": 0.1},
        {"gradient_accumulation_steps": 2},
        {"recipe": {"weight": {"format": "E4M3", "rounding": "stochastic"}}, "format": None},
        {"recipe": {"weight": {"format": "E4M3", "scaling": "delayed"}}, "format": None},
    ],
    ids=["dropout", "accumulation", "stochastic", "delayed"],
)
def test_where_the_steps_gradients_are_others_a_pass_is_made(monkeypatch, start, keys):
    made, _ = passes_of(monkeypatch, start, **{"format": "E4M3", **keys})
    assert made == 2


@pytest.mark.parametrize("attribute", ["loss", "loss_scale"])
def test_a_loss_that_was_replaced_is_not_the_workloads(monkeypatch, shelf, start, attribute):
    """Nor is a loss scale in its gradients: they are computed anew, and are the same as ever."""

    @define(eq=False)
    class Doubler:
        @hookimpl
        def pre_backward(self, run, step):
            setattr(step, attribute, getattr(step, attribute) * 2)

    shelf.install("intervention", "doubler", Doubler)
    keys = {"format": "E4M3", "learning_rate": 1e-30}
    saved, plain = passes_of(monkeypatch, start, **keys)
    made, found = passes_of(monkeypatch, start, others=["doubler"], **keys)
    assert (saved, made) == (1, 2)
    assert found == plain


def test_all_who_look_at_a_step_share_its_passes(monkeypatch, start):
    """In any order: a due step costs two forward passes, and each measures as it does alone."""
    names = ["attention-logits", "shadow", "noise-floor"]
    keys = {"format": "E4M3", "gpt__dropout": 0.1}
    alone = {}
    for name in names:
        _, (*_, line) = passes_of(monkeypatch, start, [name], **keys)
        alone |= {k: v for k, v in line.items() if k.startswith(f"{name}/")}
    for first in names:
        order = sorted(names, key=lambda name: name != first)
        _, (*_, together) = passes_of(monkeypatch, start, order, **keys)
        assert {k: v for k, v in together.items() if k.startswith((*names,))} == alone


RECIPES = {
    "stored, stochastic": {
        "weight": "E4M3",
        "activation": {"format": "E4M3", "rounding": "stochastic"},
        "gradient": {"format": "E5M2", "rounding": "stochastic"},
        "stored_weight": {"format": "E4M3", "rounding": "stochastic"},
    },
    "delayed, attention, weight gradients": {
        "weight": {"format": "E4M3", "scaling": "delayed"},
        "activation": {"format": "E4M3", "scaling": "delayed"},
        "gradient": {"format": "E5M2", "scaling": "delayed"},
        "weight_gradient": "E5M2",
        "layers": {"<attention>": {"attention": "E4M3"}},
    },
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_in_a_run(start, recipe):
    """It is measured when due, and changes no number, dropout and two micro-batches included."""
    keys = {"recipe": recipe, "gpt__dropout": 0.2, "gradient_accumulation_steps": 2}
    plain = start(name="plain", **keys)
    measured = start(["shadow"], name="measured", shadow__interval=2, **keys)
    assert weights_sha256(measured.run_directory) == weights_sha256(plain.run_directory)
    assert [line["step"] for line in measured.diagnostics_history] == [1, 2]
    for a, b in zip(plain.metrics_history, measured.metrics_history, strict=True):
        assert a == {k: v for k, v in b.items() if not k.startswith("shadow/")}
    line = measured.diagnostics_history[0]
    assert 0 < line["shadow/cosine_min"] <= line["shadow/cosine_mean"] <= 1
    layer = "transformer.h.0.attn.c_attn"
    assert 0 < line[f"shadow/injected/{layer}"] <= line["shadow/injected_max"]
    assert f"shadow/cosine/{layer}" in line


@pytest.mark.slow
def test_in_a_compiled_run(start):
    """Its passes run eagerly: hooks are called, and no graph is compiled anew."""
    keys = {"format": "E4M3", "gpt__dropout": 0.2, "compile": True}
    plain = start(name="plain", **keys)
    measured = start(["shadow"], name="measured", shadow__interval=2, **keys)
    assert weights_sha256(measured.run_directory) == weights_sha256(plain.run_directory)
    line = measured.diagnostics_history[0]
    assert line["shadow/injected/transformer.h.0.mlp.c_fc"] > 0


def test_random_states_of_devices_are_compared():
    """Each GPU has one, in a list."""
    one, other = torch.tensor([1, 2]), torch.tensor([1, 3])
    assert shadow_gradients._equal([one, other], [one.clone(), other.clone()])
    assert not shadow_gradients._equal([one, one], [one, other])
    assert not shadow_gradients._equal([one], [one, one])
