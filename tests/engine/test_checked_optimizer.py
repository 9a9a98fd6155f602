"""An optimizer trains the model, its state comes back, and it says rightly what may be rounded."""

import pytest
import torch
from attrs import define
from helpers import events, state

from altcore import get_format
from altcore.errors import PluginError

WHO = r"^optimizer own \(acme-own 1.5\): "
RECIPE = {"optimizer_state": {"format": "E2M1", "scaling": "none"}}


class Kahan(torch.optim.SGD):
    """Its state is 0.3 everywhere, which E2M1 has not, and whatever ``more`` makes of it."""

    more = staticmethod(lambda p: {})

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            for name in ("momentum", "compensation"):
                self.state[p][name] = torch.full_like(p, 0.3)
            self.state[p].update(self.more(p))


@pytest.fixture
def own(shelf):
    """Return a function that installs an optimizer, with attributes of it and of its settings."""

    def install(inner=None, outer=None, parameters=lambda named: [p for _, p in named]):
        cls = type("Own", (Kahan,), inner or {})

        @define(eq=False)
        class Settings:
            def build(self, named_parameters, grid_of):
                return cls(parameters(named_parameters), 0.1)

        for name, value in (outer or {}).items():
            setattr(Settings, name, value)
        shelf.install("optimizer", "own", Settings, "acme-own", "1.5")

    return install


MOMENTUM = {"roundable_state": ("momentum",)}


@pytest.mark.parametrize(
    ("inner", "outer", "rounded"),
    [
        (None, None, ["compensation", "momentum"]),
        (MOMENTUM, None, ["momentum"]),
        (None, MOMENTUM, ["momentum"]),
        (None, {"roundable_state": ["momentum"]}, ["momentum"]),
        (MOMENTUM, {"roundable_state": ("compensation",)}, ["momentum"]),
        (None, {"roundable_state": ()}, []),
    ],
)
def test_optimizer_or_settings_say_what_may_be_rounded(own, start, inner, outer, rounded):
    """Who wraps torch's own optimizer has only the settings to say it in."""
    own(inner, outer)
    run = start(optimizer="own", recipe=RECIPE, format=None)
    kept = state(run.run_directory)["optimizer"]["state"][0]
    grid = set(get_format("E2M1").values)
    assert [k for k in sorted(kept) if set(kept[k].flatten().tolist()) <= grid] == rounded


@pytest.mark.parametrize("where", ["inner", "outer"])
@pytest.mark.parametrize("value", ["momentum", 3, {"momentum": 1}, (1,), True])
def test_roundable_state_is_a_tuple_of_names(own, start, where, value):
    """A text was once searched for the names."""
    own(**{where: {"roundable_state": value}})
    with pytest.raises(PluginError, match=rf"{WHO}roundable_state is .*, not a tuple of names"):
        start(optimizer="own", name="r")
    assert not (start.runs / "r").exists()


def test_roundable_state_names_what_is_there(own, start):
    """A misspelt name would round nothing, in silence; found at the first step."""
    own(outer={"roundable_state": ("momentum", "typo")})
    says = rf"{WHO}roundable_state names typo: its state has compensation, momentum"
    with pytest.raises(PluginError, match=says):
        start(optimizer="own", max_steps=5, name="r")
    assert events(start.runs / "r", "end")[0]["step"] == 1


def test_an_optimizer_without_the_models_parameters_is_refused(own, start):
    """It would train nothing, and the run would say that nothing was learned."""
    own(parameters=lambda named: [torch.nn.Parameter(p.detach().clone()) for _, p in named])
    with pytest.raises(PluginError, match=rf"{WHO}it has none of the model's parameters that are"):
        start(optimizer="own", name="r")
    assert not (start.runs / "r").exists()


def test_an_optimizer_may_move_no_parameter_outside_the_model(own, start):
    """Its moments would come back in a resume, and its value would not."""
    own(parameters=lambda named: [*(p for _, p in named), torch.nn.Parameter(torch.ones(1))])
    told = r"its parameter \d+ is not the model's, and no checkpoint would hold it: make it a "
    with pytest.raises(PluginError, match=WHO + told):
        start(optimizer="own", name="r")
    assert not (start.runs / "r").exists()


def test_parameters_that_an_optimizer_leaves_out_are_told(own, start):
    """By name."""
    own(parameters=lambda named: [p for n, p in named if "wte" not in n])
    run = start(optimizer="own", name="some")
    (warning,) = events(run.run_directory, "warning")
    assert "parameters are not in the optimizer, and stay as they are: " in warning["message"]
    assert "wte.weight" in warning["message"]


def test_frozen_parameters_are_left_out_on_purpose(own, start):
    own(parameters=lambda named: [p for _, p in named if p.requires_grad])
    frozen = start(optimizer="own", name="frozen", freeze=["transformer.h.0.mlp.c_fc"])
    assert events(frozen.run_directory, "warning") == []


@pytest.mark.parametrize("view", [lambda p: p, lambda p: p.detach().view(-1)[1:], lambda p: p.T])
def test_a_state_that_shares_memory_with_a_parameter_is_refused(own, start, view):
    """After a resume it would be a copy, and follow the parameter no more."""
    own({"more": staticmethod(lambda p: {"x": [view(p.data)]})})
    with pytest.raises(PluginError, match=rf"{WHO}optimizer\['state'\]\[0\]\['x'\]\[0\] shares"):
        start(optimizer="own")


def test_a_state_that_torch_cannot_save_is_refused(own, start):
    """At the first step, and not by the first checkpoint."""
    own({"more": staticmethod(lambda p: {"x": torch.ones(2).to_mkldnn()})})
    with pytest.raises(PluginError, match=rf"{WHO}no checkpoint can hold its state: .*'x'"):
        start(optimizer="own")


def test_a_sparse_state_comes_back(own, start):
    own({"more": staticmethod(lambda p: {"x": torch.eye(2).to_sparse(), "y": p.clone()})})
    kept = state(start(optimizer="own").run_directory)["optimizer"]["state"][0]
    assert torch.equal(kept["x"].to_dense(), torch.eye(2))
