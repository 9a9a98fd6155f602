"""A function that was given is known by its code and the values in it, the same in any process."""

import functools
import json
import types

import pytest
import torch
from torch import nn
from torch.nn import functional

import altcore
from altcore import BadInput
from altcore.engine import identity_given, resuming
from altcore.runs import compare


def smooth(model, batch, smoothing=0.0, weights=None, **more):
    return functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=smoothing)


def doubled(model, batch, smoothing=0.0):
    return functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=smoothing) * 2


def closed(smoothing):
    def loss(model, batch):
        return functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=smoothing)

    return loss


def of_criterion(smoothing):
    return closed(nn.CrossEntropyLoss(label_smoothing=smoothing))


def of_default(smoothing):
    def loss(model, batch, smoothing=smoothing):
        return model(batch).sum() * smoothing

    return loss


def of_keyword(smoothing):
    def loss(model, batch, *, smoothing=smoothing):
        return model(batch).sum() * smoothing

    return loss


def of_global(smoothing):
    """As of a notebook, whose cells set it."""
    return types.FunctionType(by_global.__code__, {"SMOOTHING": smoothing, "smooth": smooth})


def by_global(model, batch):
    return smooth(model, batch, SMOOTHING)  # noqa: F821 # what `of_global` gives


class Smooth:
    """A loss that is an object, with much that its code does not name."""

    def __init__(self, smoothing, resume=False):
        self.smoothing, self.resume = smoothing, resume

    def loss(self, model, batch):
        return self._of(model(batch[0]), batch[1])

    __call__ = loss

    def _of(self, logits, targets):
        return functional.cross_entropy(logits, targets, label_smoothing=self.smoothing)


class Weighted(nn.Module):
    """A loss that is a module."""

    def __init__(self, weight=1.0, p=0.5):
        super().__init__()
        self.register_buffer("weight", torch.full((3,), weight))
        self.dropout = nn.Dropout(p)

    def forward(self, model, batch):
        return functional.cross_entropy(self.dropout(model(batch[0])), batch[1], self.weight)


def wrapped(function):
    @functools.wraps(function)
    def outer(*args):
        return function(*args)

    return outer


LAMBDAS = (lambda model, batch: model(batch).sum(), lambda model, batch: model(batch).mean())
BOUND = functools.partial(functools.partial, smooth)
LARGE = torch.zeros(2**17)
IS = "smooth (partial), given from Python, with smoothing="
OTHERS = {
    "a partial's function": (functools.partial, smooth, doubled, "smooth (partial), given"),
    "a partial's keyword": (lambda x: BOUND(smoothing=x), 0.1, 0.3, f"{IS}0.1 and is {IS}0.3"),
    "a keyword more": (lambda x: BOUND(**x), {}, {"z": 1}, "with z=none"),
    "a partial's arguments": (BOUND, 1, 2, "args=tuple(1)"),
    "a partial's functions": (lambda x: BOUND(f=x), torch.relu, torch.tanh, "with code "),
    "a list": (lambda x: BOUND(w=[1.0, x]), 2.0, 3.0, "w=list(1.0, 2.0)"),
    "tensors": (lambda x: BOUND(w={"a": x}), LARGE[:2], LARGE[:2] + 1, "w=dict('a': [2] "),
    "a large tensor": (lambda x: BOUND(w=x), LARGE, LARGE + 1, f"w=[{len(LARGE)}] "),
    "two lambdas": (lambda x: LAMBDAS[x], 0, 1, "<lambda>, given from Python, with code "),
    "a closure": (closed, 0.1, 0.3, "with smoothing=0.1 and is "),
    "a text": (closed, "mean", "sum", "with smoothing='mean' and is "),
    "a text that may be a secret": (closed, "hf_" + 20 * "a", "b", "with smoothing=str "),
    "a default": (of_default, 0.1, 0.3, "with smoothing=0.1 and is "),
    "a default of a keyword": (of_keyword, 0.1, 0.3, "with smoothing=0.1 and is "),
    "a global": (of_global, 0.1, 0.3, "with SMOOTHING=0.1 and is "),
    "a module": (of_criterion, 0.1, 0.3, "label_smoothing=0.1, reduction=mean) and is "),
    "a module among others": (lambda x: closed([None, nn.Dropout(x)]), 0.1, 0.3, "Dropout(p=0.1)"),
    "a part of a module": (lambda x: closed(nn.Sequential(x)), nn.ReLU(), nn.GELU(), "ReLU() as 0"),
    "a global module": (lambda x: of_global(nn.Dropout(x)), 0.1, 0.3, "SMOOTHING=Dropout(p=0.1)"),
    "within a decorator": (lambda x: wrapped(closed(x)), 0.1, 0.3, "with smoothing=0.1"),
    "an object": (Smooth, 0.1, 0.3, "Smooth, given from Python, with smoothing=0.1"),
    "a method": (lambda x: Smooth(x).loss, 0.1, 0.3, "with smoothing=0.1"),
    "a module's buffer": (Weighted, 1.0, 2.0, "Weighted, given from Python, with weight=[3] "),
    "a module's part": (lambda x: Weighted(p=x), 0.5, 0.1, "with Dropout(p=0.5) as dropout"),
}


def of_object(held):
    def loss(model, batch):
        return held

    return loss


SAME = {
    "another object of the same class": (of_object(object()), of_object(object())),
    "another place": (of_object("a/b"), of_object("/c/d")),
    "another device": (of_object("cpu"), of_object("cuda:0")),
    "another device of torch": (of_object(torch.device("cpu")), of_object(torch.device("meta"))),
    "another model": (of_object(nn.Linear(2, 2)), of_object(nn.Linear(2, 2))),
    "what the code does not name": (Smooth(0.1), Smooth(0.1, resume=True)),
    "a set in another order": (of_object({8, 0}), of_object({0, 8})),
}


def changed(one, two, part="loss"):
    """Return how two functions differ, as manifests hold them."""
    given = [identity_given(None, **{"batch": None, "loss": None, part: x}) for x in (one, two)]
    now = [{"plugin": json.loads(json.dumps(x))} for x in given]
    return [str(change) for change in compare(*now)]


@pytest.mark.parametrize("kind", OTHERS)
def test_other_code_and_other_values_are_named(kind):
    """Of a function of batches, too."""
    make, *values, told = OTHERS[kind]
    one, two = map(make, values)
    for part, name in (("loss", "loss"), ("batch", "data")):
        (change,) = changed(one, two, part)
        assert change.startswith(f"{name} was ")
        assert told in change
        assert changed(one, make(values[0]), part) == []


@pytest.mark.parametrize("kind", SAME)
def test_what_another_process_makes_anew_is_no_change(kind):
    assert changed(*SAME[kind]) == []


def test_the_code_of_another_version_of_python_is_not_compared():
    one, two = ({"plugin": identity_given(None, None, x)} for x in LAMBDAS)
    (code,) = one["plugin"]["loss"]["code"].values()
    one["plugin"]["loss"]["code"] = {"other": code}
    assert compare(one, two) == []
    assert compare({"plugin": {"loss": {"name": "<lambda>, given from Python"}}}, two) == []


def test_the_model_within_a_loss_is_known_by_itself():
    """Its weights change."""

    class Model(nn.Linear):
        def loss(self, model, batch):
            return model(batch).sum()

    model = Model(2, 2)
    before = identity_given(model, None, model.loss)
    nn.init.zeros_(model.weight)
    assert identity_given(model, None, model.loss) == before


class Counting:
    """A loss with state that no checkpoint has: in a number, a list and a tensor."""

    def __init__(self, smoothing):
        self.steps, self.seen, self.mean = 0, [], torch.zeros(2)
        self.smoothing = smoothing

    def __call__(self, model, batch):
        self.steps += 1
        self.seen.append(1)
        self.mean.add_(1)
        return model(batch[0]).float().square().mean() + self.smoothing


def test_a_run_goes_on_with_the_same_loss_alone(start):
    """Also as it is after some steps, in the same process: of its state a warning tells."""

    def go_on(steps, loss, *allowed):
        config = resuming.resumed("r", str(start.runs), max_steps=steps)
        return altcore.train(config, resume="r", loss=loss, allow_change=allowed)

    loss = Counting(0.1)
    altcore.train(start.config(name="r", format="none", max_steps=1), loss=loss)
    with pytest.raises(BadInput, match=r"smoothing=0\.1 and is .*=0\.3: --allow-change plugin"):
        go_on(2, Counting(0.3))
    assert go_on(2, loss).steps_completed == 2
    changes = go_on(3, Counting(0.3), "loss").summary["changes"]
    assert "loss" in [change["what"] for change in changes]
