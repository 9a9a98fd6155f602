"""The optimizer's state is rounded, and its wrappers are seen through."""

import pytest
import torch
from helpers_quantization import STORED, build_net, is_on_grid, net, step_of

import altcore
from altcore import BadInput, get_format, quantize_model
from altcore.errors import InvalidCheckpoint
from altcore.numerics import scale_of
from altcore.quantization import check_moments, check_quantization_state
from altcore.recipes import read_recipe


class Eight(torch.optim.SGD):
    """Keeps its momentum in eight bits."""

    def step(self):
        for p in self.param_groups[0]["params"]:
            self.state[p]["momentum"] = torch.zeros_like(p, dtype=torch.uint8)


class Wrapper(torch.optim.Optimizer):
    """An optimizer by name, as accelerate's: it steps another one, and runs no hooks itself."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    state = property(lambda self: self.optimizer.state)

    def step(self):
        self.optimizer.step()


class Twin:
    """An optimizer's attributes under another name, as Lightning's wrapper has them."""

    def __init__(self, optimizer):
        self.__dict__ = dict(vars(optimizer))


def test_an_optimizer_stores_by_itself():
    """One line for loops that are somebody else's; a later ``q.store`` does nothing."""
    results = []
    for ways in ("by itself", "by hand", "both"):
        torch.manual_seed(0)
        model = build_net()
        optimizer = torch.optim.AdamW(model.parameters(), 0.05)
        recipe = {
            "stored_weight": {"format": "E3M4", "rounding": "stochastic"},
            "optimizer_state": {"format": "E5M2", "rounding": "stochastic"},
        }
        given = {} if ways == "by hand" else {"optimizer": optimizer}
        with quantize_model(model, recipe, **given) as q:
            for _ in range(5):
                optimizer.zero_grad()
                model(torch.ones(4, 8)).square().sum().backward()
                optimizer.step()
                if ways != "by itself":
                    q.store(optimizer)
            assert q.context.clock.step == 5
            assert q.counters.stored_moves is not None
            moments = [optimizer.state[p]["exp_avg"].clone() for p in model.parameters()]
        results.append([*model.parameters(), *moments])
    for a, b, c in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    optimizer.step()
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("stores", [True, False])
def test_recipe_full_without_an_optimizer_says_so(recwarn, stores):
    """At `store`, or, if that is never called, when the next step begins; once."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    with quantize_model(model, "full", format="E4M3") as q:
        for step in range(3):
            step_of(model, optimizer, step)
            if stores:
                q.store()
    told = [str(w.message) for w in recwarn if "altcore knows no optimizer" in str(w.message)]
    assert len(told) == 1


def test_recipe_full_with_another_models_optimizer_says_so():
    """As soon as it is given, and at `store`."""
    model, others = net(), torch.optim.AdamW(net().parameters())
    says = "optimizer: this AdamW steps none of the model's parameters"
    with pytest.warns(RuntimeWarning, match=says):
        quantize_model(model, "full", format="E4M3", optimizer=others).remove()
    with quantize_model(model, "full", format="E4M3") as q:
        step_of(model, torch.optim.AdamW(model.parameters()), 1)
        with pytest.warns(RuntimeWarning, match=says):
            q.store(others)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Eight, r"Eight keeps .* momentum of 0\.weight \(Tensor, torch\.uint8, \[8, 8\]\)"),
        (torch.optim.Adafactor, r"row_var of 0\.weight \(Tensor, torch\.float32, \[8, 1\]\)"),
    ],
)
def test_state_that_cannot_be_rounded_is_named(make, says):
    model = build_net()
    optimizer = make(model.parameters(), lr=0.1)
    with quantize_model(model, {"optimizer_state": "E5M2"}) as q:
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        with pytest.warns(RuntimeWarning, match=says):
            q.store(optimizer)


@pytest.mark.parametrize("wrap", [Wrapper, Twin])
def test_a_wrapper_steps_as_the_optimizer_in_it(wrap):
    """One step is one `store`, whichever of the two is followed or given."""
    for first in (Wrapper, lambda inner: inner):
        model = build_net()
        inner = torch.optim.SGD(model.parameters(), lr=0.5)
        q = quantize_model(model, STORED, optimizer=first(inner))
        for step in (1, 2):
            model(torch.randn(4, 8)).square().sum().backward()
            inner.step()
            q.store(wrap(inner))
            assert q.context.clock.step == step
            assert q.counters.stored_moves[:, 0].sum() > 0
            assert is_on_grid(model[0].weight)


@pytest.mark.parametrize("given", ["adam", [torch.optim.SGD([torch.zeros(1)])], Wrapper(None)])
def test_what_is_no_optimizer_is_refused_and_nothing_is_quantized(given):
    model = build_net()
    with pytest.raises(BadInput, match=r"optimizer: one of torch\.optim's is needed"):
        quantize_model(model, STORED, optimizer=given)
    with quantize_model(model, STORED) as q:
        for bad in ("adam", [1], model):
            with pytest.raises(BadInput, match="what stepped is needed"):
                q.store(bad)


@pytest.mark.parametrize("name", ["E4M3", "E7M0", "E2M1"])
@pytest.mark.parametrize("rounding", ["nearest-even", "stochastic"])
def test_optimizer_state_lives_on_the_grid_and_the_second_moment_is_never_zero(name, rounding):
    """Under it the next step would divide by nothing; the first moment may vanish."""
    fmt, model = get_format(name), net()
    q = quantize_model(model, {"optimizer_state": {"format": name, "rounding": rounding}})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    lost = 0
    for step in range(1, 6):
        q.begin_step(step)
        step_of(model, optimizer, step)
        plain = {n: {k: v.clone() for k, v in optimizer.state[p].items()}
                 for n, p in model.named_parameters()}  # fmt: skip
        q.store(optimizer)
        for n, p in model.named_parameters():
            first, second = (optimizer.state[p][k] for k in ("exp_avg", "exp_avg_sq"))
            if p.dim() < 2:
                assert torch.equal(first, plain[n]["exp_avg"]), "vectors have no role"
                continue
            assert torch.equal(optimizer.state[p]["step"], plain[n]["step"])
            s, _ = scale_of(plain[n]["exp_avg_sq"].abs().max(), fmt)
            positive = plain[n]["exp_avg_sq"] > 0
            assert bool((second[positive] > 0).all())
            assert bool((second[~positive] == 0).all())
            if rounding == "nearest-even":
                expected = altcore.fake_quantize(plain[n]["exp_avg"], fmt, scale="amax")
                assert torch.equal(first, expected)
                rounded = altcore.fake_quantize(plain[n]["exp_avg_sq"], fmt, scale="amax")
                kept = rounded != 0
                assert torch.equal(second[kept], rounded[kept])
                floor = fmt.smallest * s
                assert bool((second[positive & ~kept] == floor).all())
            lost += int((second[positive] == fmt.smallest * s).sum())
    assert lost > 0 or name == "E7M0", "something must have been held up"


def test_moments_stay_float32_without_a_role():
    """Recipe pure stores weights, not what the optimizer remembers."""
    model = net()
    q = quantize_model(model, read_recipe("pure", get_format("E4M3")))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step_of(model, optimizer, 1)
    plain = optimizer.state[model[0].weight]["exp_avg"].clone()
    q.store(optimizer)
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], plain)


@pytest.mark.parametrize("named", [False, True])
def test_an_optimizer_says_which_of_its_states_may_be_rounded(named):
    """A compensation holds what rounding lost: rounded, it is lost again."""

    class Kahan(torch.optim.SGD):
        if named:
            roundable_state = ("momentum",)

        def step(self):
            for p in self.param_groups[0]["params"]:
                for key in ("momentum", "compensation"):
                    self.state[p][key] = torch.full_like(p, 0.3)

    model = build_net()
    optimizer = Kahan(model.parameters(), 0.1)
    with quantize_model(model, {"optimizer_state": {"format": "E2M1", "scaling": "none"}}) as q:
        optimizer.step()
        q.store(optimizer)
    state = optimizer.state[model[0].weight]
    assert is_on_grid(state["momentum"], get_format("E2M1"))
    assert bool((state["compensation"] == torch.tensor(0.3)).all()) is named


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("momentum_buffer", "is 'momentum_buffer', not a tuple of names of its state"),
        (("momentum",), "names momentum: its state has momentum_buffer"),
    ],
)
def test_what_is_roundable_is_named_rightly(names, says):
    """Else nothing is rounded, in silence; in a loop of your own, too."""
    model = build_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    optimizer.roundable_state = names
    with quantize_model(model, {"optimizer_state": {"format": "E2M1", "scaling": "none"}}) as q:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        with pytest.raises(BadInput, match=f"^optimizer SGD: roundable_state {says}$"):
            q.store(optimizer)


SCALINGS = (
    {"scaling": "none"},
    {"scaling": "tensor"},
    {"scaling": "power-of-two"},
    {"scaling": {"kind": "rms"}},
    {"scaling": "tensor", "rounding": "stochastic"},
    {"scaling": "tensor", "rounding": "to-zero"},
)


@pytest.mark.parametrize("cast", SCALINGS, ids=str)
@pytest.mark.parametrize("name", ["E4M3", "NF4", "INT8", "posit8_1"])
def test_rounded_moments_pass_the_check_and_one_off_its_grid_does_not(name, cast):
    """At the scale that the state holds; after a change of recipe moments have no grid yet."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.05)
    recipe = {"optimizer_state": {"format": name, **cast}}
    with quantize_model(model, recipe, optimizer=optimizer) as q:
        for step in range(3):
            step_of(model, optimizer, step)
        state = q.state_dict()
        assert state["moments"]

        def check():
            check_quantization_state(q, state, model.state_dict())
            check_moments(q, state, optimizer.state.items())

        check()
        full, moment = next(
            (n, optimizer.state[p]["exp_avg"]) for n, p in model.named_parameters() if p.dim() > 1
        )
        scale = float(state["moments"][f"{full}/exp_avg"])
        moment.view(-1)[0] = 0.37 * get_format(name).smallest * scale
        with pytest.raises(InvalidCheckpoint, match=f"/exp_avg has .* off the grid of {name}"):
            check()
        q.change_recipe({"optimizer_state": "E3M2"})
        state = q.state_dict()
        assert state["moments"] == {}
        check()
