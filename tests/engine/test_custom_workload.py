"""A model or data of the caller's own: nothing is recorded that holds of other ones."""

import copy
import json
import math
from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from attrs import define
from helpers_cli import call
from planted import Regression, plant
from structlog.testing import capture_logs
from torch import nn
from torch.utils._pytree import tree_leaves

import altcore
from altcore import BadInput
from altcore.engine import resuming
from altcore.engine.batch_digests import digest_of_weights
from altcore.engine.custom_workload import CustomWorkload
from altcore.errors import PluginError
from altcore.runs import compare, read_lines


def coins(split, step, micro):
    """Return tokens that nobody can predict: 0 or 1, in three sequences of 8."""
    key = 1000 * step + (split == "val")
    tokens = torch.randint(2, (3, 9), generator=torch.Generator().manual_seed(key))
    return tokens[:, :-1], tokens[:, 1:]


def test_data_of_my_own_bring_their_own_facts(start):
    """Those of the corpus go, and no entropy of other data is the measure."""
    keys = {"max_steps": 60, "eval_steps": 4}
    run = altcore.train(start.config(**keys), data=coins)
    parameters = run.summary["workload_facts"]["parameters"]
    facts = {"data": "a function that was given", "parameters": parameters}
    assert run.summary["workload_facts"] == facts
    assert run.summary["val_loss"] == pytest.approx(math.log(2), abs=0.1)
    # It learned that there are two tokens.
    assert run.summary["first_evaluation"]["step"] == 0
    assert run.summary["learned"]


def test_batches_of_my_own_are_counted(start):
    """As the workload counts its own, in tokens."""
    run = altcore.train(start.config(eval_steps=4), data=coins)
    assert run.summary["evaluation"]["val_items"] == 4 * 3 * 8
    line = read_lines(run.run_directory / "timings.jsonl")[0]
    tokens = line["items_per_second"] * line["step_time_ms"] / 1e3
    assert tokens == pytest.approx(3 * 8)
    assert run.summary["item"] == "tokens"


def test_data_that_return_nothing_are_named_with_the_batch(start):
    """The workload is not to blame for it. A loss of one's own may need no batch."""

    def data(split, step, micro):
        return None if (split, step) == ("train", 2) else coins(split, step, micro)

    told = r"^the function data that was given returned None for batch \('train', 2, 0\)"
    with pytest.raises(PluginError, match=told):
        altcore.train(start.config(max_steps=2), data=data)


def test_where_the_workload_counts_no_batches_rows_are_counted(shelf, start):
    """They are called examples: what its items are is not known of them."""
    plant(shelf, "regression")

    def rows(split, step, micro):
        return {0: torch.ones(5, 16), 1: torch.ones(5, 16)}

    run = altcore.train(start.config(workload="regression", eval_steps=2), data=rows)
    assert run.summary["evaluation"]["val_items"] == 2 * 5
    assert run.summary["item"] == "examples"
    assert start(workload="regression").summary["item"] == "samples"


@pytest.mark.parametrize("batch", [3, "text", [], {"a": [torch.tensor(1.0)]}])
def test_a_batch_without_rows_is_one_example(batch):
    """Whatever it is."""
    base = SimpleNamespace(model=None, counts_items=False, device=torch.device("cpu"))
    assert CustomWorkload(base, base.model, lambda *_: batch).items_per_batch == 1


def test_a_model_of_my_own_has_its_own_number_of_parameters(shelf, start):
    """If the workload tells that of its own."""

    @define(eq=False)
    class Counting(Regression):
        def build(self, seed, device):
            built = Regression.build(self, seed, device)
            built.facts = {"parameters": 2048, "kind": "linear"}
            return built

    shelf.install("workload", "counting", Counting)
    config = start.config(workload="counting")
    run = altcore.train(config, model=nn.Linear(16, 16))
    assert run.summary["workload_facts"] == {"parameters": 16 * 17, "kind": "linear"}


class Unsized(nn.Linear):
    """A model whose length is an error, as of a compiled one."""

    def __len__(self):
        raise TypeError


def test_a_model_of_my_own_is_not_asked_for_its_length(shelf, start):
    plant(shelf, "regression")
    config = start.config(workload="regression")
    assert altcore.train(config, model=Unsized(16, 16)).steps_completed


@pytest.mark.parametrize(
    ("loss", "error", "says"),
    [
        (3, BadInput, r"loss: a function \(model, batch\) is needed, not 3"),
        (lambda model, batch: None, PluginError, "the function loss that was given: loss ret"),
    ],
)
def test_a_loss_of_my_own_is_named_in_its_errors(loss, error, says, start):
    with pytest.raises(error, match=says):
        altcore.train(start.config(), loss=loss)


def test_a_loss_of_my_own_may_be_in_another_unit(start):
    """What the workload knows of its own loss is not said of it."""

    def in_bits(model, batch):
        logits = model(batch[0])
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten()) / math.log(2)

    own, bits = start(), altcore.train(start.config(), loss=in_bits)
    first, second = (run.metrics_history[0]["loss"] for run in (own, bits))
    assert second == pytest.approx(first / math.log(2), rel=1e-5)
    assert own.summary["workload_facts"].keys() - bits.summary["workload_facts"].keys() == {
        "unigram_entropy"
    }


# ------------------------------------------------------------------------------------------ resume


class Own(nn.Module):
    """A model of a caller, of some width."""

    def __init__(self, width=8):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, width), nn.Linear(width, 1)

    def forward(self, x, y):
        return (self.outer(self.inner(x).relu()) - y).square().mean()


def sums(split, step, micro):
    """Return numbers and their sums."""
    x = torch.rand(4, 4, generator=torch.Generator().manual_seed(step))
    return x, x.sum(1, keepdim=True)


def passed_on(model, batch):
    """Return the loss of a model that computes it."""
    return model(*batch), {"mean": batch[1].mean()}


OWN = {"model": Own(), "data": sums, "loss": passed_on}


@pytest.fixture
def own_run(shelf, start):
    """A run of a model, data and loss of the caller's own, which no workload can use alone."""
    plant(shelf, "regression")
    config = start.config(workload="regression", name="r", checkpoint_interval=1)
    altcore.train(config, **OWN)
    return resuming.resumed("r", str(start.runs), max_steps=4)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"data": sums, "loss": passed_on},
            r"r: it trained a model of your own, Own.*: pass it again: .*model=",
        ),
        (
            {"model": Own(), "loss": passed_on},
            r"r: it trained data of your own, sums.*: pass them again: .*data=",
        ),
        (
            {"model": Own(), "data": sums},
            r"r: it trained a loss of your own, passed_on.*: pass it again: .*loss=",
        ),
        ({}, "--resume r: it trained a model of your own"),
    ],
)
def test_what_is_forgotten_at_a_resume_is_asked_for(own_run, given, says):
    """Before the workload's own, in their place, fail."""
    with pytest.raises(BadInput, match=says):
        altcore.train(own_run, resume="r", **given)
    assert altcore.train(own_run, resume="r", **OWN).steps_completed == 4


def test_a_model_of_another_shape_is_no_reason_to_go_back(own_run):
    """No checkpoint is blamed for it, and the first difference is named."""
    says = "--resume r: the model passed in is not the one that was trained: the shape of inner"
    with capture_logs() as logs, pytest.raises(BadInput, match=says):
        altcore.train(own_run, resume="r", **{**OWN, "model": Own(9)})
    assert not [line for line in logs if "not valid" in line["event"]]


class Swapped(nn.Sequential):
    """A model of which other modules have the same weights."""

    def __init__(self, activation):
        super().__init__(nn.Linear(4, 8), activation, nn.Linear(8, 1))

    def forward(self, x, y):
        return (super().forward(x) - y).square().mean()


def test_other_modules_with_the_same_weights_are_refused_until_allowed(shelf, start):
    """Both are named, and recorded once they are allowed; the same ones in another build go on."""
    plant(shelf, "regression")
    own = {"data": sums, "loss": passed_on}
    keys = {"workload": "regression", "format": "E4M3", "schedule": "constant"}
    config = start.config(name="r", max_steps=2, **keys)
    altcore.train(config, model=Swapped(nn.ReLU()), **own)
    steps = iter(range(3, 6))

    def resume(model, **keys):
        again = resuming.resumed("r", str(start.runs), max_steps=next(steps))
        return altcore.train(again, resume="r", model=model, **own, **keys)

    assert not resume(Swapped(nn.ReLU(inplace=True))).summary["changes"]
    says = r"model was Swapped, .*with ReLU\(\) as 1 and is .*with GELU\(.*--allow-change plugin"
    with pytest.raises(BadInput, match=says):
        resume(Swapped(nn.GELU()))
    (change,) = resume(Swapped(nn.GELU()), allow_change=["model"]).summary["changes"]
    assert change["what"] == "model"
    assert "ReLU() as 1" in change["before"]
    assert "GELU(approximate='none') as 1" in change["now"]


LAYER = {"d_model": 4, "nhead": 2, "dim_feedforward": 8, "dropout": 0.0, "batch_first": True}


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"norm_first": True}, "norm_first=False.*norm_first=True"),
        ({"activation": "gelu"}, "activation=relu.*activation=gelu"),
        ({"nhead": 4}, "num_heads=2.*num_heads=4"),
    ],
)
def test_options_that_modules_of_torch_do_not_tell_are_compared(shelf, start, option, says):
    plant(shelf, "regression")

    def layer(**options):
        return nn.TransformerEncoderLayer(**(LAYER | options))

    def loss(model, batch):
        x, y = batch
        return (model(x.unsqueeze(1)).sum((1, 2)) - y.flatten()).square().mean()

    own = {"data": sums, "loss": loss}
    keys = {"workload": "regression", "format": "E4M3", "schedule": "constant"}
    altcore.train(start.config(name="r", max_steps=2, **keys), model=layer(), **own)
    again = resuming.resumed("r", str(start.runs), max_steps=3)
    with pytest.raises(BadInput, match=says):
        altcore.train(again, resume="r", model=layer(**option), **own)
    assert altcore.train(again, resume="r", model=layer(), **own).steps_completed == 3


class Twice(nn.Sequential):
    """A model of two layers, which may have one weight."""

    def __init__(self, *, is_tied):
        super().__init__(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1))
        if is_tied:
            self[1].weight = self[0].weight

    def forward(self, x, y):
        return (super().forward(x) - y).square().mean()


@pytest.mark.parametrize(
    ("is_tied", "says"),
    [
        (True, "1.weight was tied to 0.weight, and is a parameter of its own now"),
        (False, "1.weight was a parameter of its own, and is tied to 0.weight now"),
    ],
)
def test_a_tie_that_came_or_went_is_refused_by_name(is_tied, says, shelf, start):
    """It is nothing of the recipe, and nobody can allow it: the optimizer has other moments."""
    plant(shelf, "regression")
    own = {"data": sums, "loss": passed_on}
    keys = {"workload": "regression", "format": "E4M3", "recipe": "pure"}
    altcore.train(start.config(name="r", max_steps=1, **keys), model=Twice(is_tied=is_tied), **own)
    again = resuming.resumed("r", str(start.runs), max_steps=2)
    for allowed in ([], ["model"]):
        own |= {"resume": "r", "allow_change": allowed, "model": Twice(is_tied=not is_tied)}
        with pytest.raises(BadInput, match=f"^--resume r: the model passed in .*: {says}$"):
            altcore.train(again, **own)


def test_the_weights_with_which_a_model_came_are_compared(shelf, start, capsys):
    """A cell of a notebook that trains one object twice; a resume may bring any weights."""
    plant(shelf, "regression")
    own = {"data": sums, "loss": passed_on}
    torch.manual_seed(0)
    model = Swapped(nn.ReLU())
    fresh = copy.deepcopy(model)
    for name, given in {"first": model, "second": model, "third": fresh}.items():
        keys = {"workload": "regression", "name": name, "format": "E4M3", "max_steps": 2}
        altcore.train(start.config(**keys), model=given, **own)
    file = start.runs / "third/environment.json"
    known = json.loads(file.read_text())["initial_weights"]
    again = resuming.resumed("third", str(start.runs), max_steps=3)
    altcore.train(again, resume="third", model=model, **own)
    assert json.loads(file.read_text())["initial_weights"] == known

    def told(*names):
        return call(capsys, "runs", "compare", *names, "--runs-dir", start.runs).out

    assert "environment do not differ; initial weights do" in told("first", "second")
    (row,) = (x.split() for x in told("first", "third").splitlines() if x.startswith("initial"))
    assert row == ["initial", "weights", known[:12], known[:12]]


def test_a_model_without_numbers_is_digested_all_the_same():
    """It is refused later, with what is wrong."""
    for model in (nn.LazyLinear(2), nn.Linear(2, 2, device="meta")):
        assert len(digest_of_weights(model)) == 64


def test_a_run_that_has_no_record_of_its_modules_goes_on():
    """As one of an earlier altcore; and so does a damaged one."""
    known = {"model": {"name": "Net", "modules": {"": "Net()"}}}
    for before in ({"model": {"name": "Net"}}, {"model": {"name": "Net", "modules": {}}}):
        assert not compare({"plugin": before}, {"plugin": known})
    (change,) = compare({"plugin": {"model": 3}}, {"plugin": known})
    assert str(change) == "model was none and is Net"


def test_a_model_that_was_thawed_is_no_reason_to_call_checkpoints_invalid(shelf, start):
    """They are whole, and it is the model that does not fit: the refusal alone is told."""
    frozen = Own()
    next(frozen.parameters()).requires_grad_(False)
    plant(shelf, "regression")
    config = start.config(workload="regression", name="r", checkpoint_interval=1)
    altcore.train(config, **{**OWN, "model": frozen})
    says = "no checkpoint has a state that it can go on with: the optimizer has other groups"
    more = resuming.resumed("r", str(start.runs), max_steps=4)
    with capture_logs() as logs, pytest.raises(BadInput, match=says):
        altcore.train(more, resume="r", **OWN)
    assert not [line for line in logs if "not valid" in line["event"]]


@dataclass
class Pair:
    """A batch of a class."""

    x: object
    y: object

    def to(self, device):
        return Pair(self.x.to(device), self.y)


class Held(UserDict):
    """A container that torch does not know."""

    def to(self, device):
        return Held(x=self["x"].to(device))


@pytest.mark.parametrize("hold", [lambda x: x, lambda x: [{"x": x}], lambda x: Held(x=x)])
def test_a_buffer_that_is_filled_anew_for_each_micro_batch(hold, shelf, start):
    """As some loaders do: a step draws all of its micro-batches before it learns from the first."""
    plant(shelf, "regression")
    buffer = torch.empty(4, 8)

    def drawn(step, micro):
        return torch.randn(4, 8, generator=torch.Generator().manual_seed(9 * step + micro))

    def loss(model, batch):
        (x,) = tree_leaves(batch["x"] if isinstance(batch, Held) else batch)
        return model(x).square().mean()

    losses = []
    for data in (
        lambda split, step, micro: hold(drawn(step, micro)),
        lambda split, step, micro: hold(buffer.copy_(drawn(step, micro))),
    ):
        torch.manual_seed(0)
        keys = {"workload": "regression", "max_steps": 3, "gradient_accumulation_steps": 3}
        config = start.config(**keys, name=f"r{len(losses)}")
        run = altcore.train(config, model=nn.Linear(8, 2), data=data, loss=loss)
        lines = read_lines(run.run_directory / "metrics.jsonl")
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "hold", [lambda x: x, lambda x: {"x": x}, lambda x: x.numpy(), lambda x: Pair(x, 1)]
)
def test_batches_of_a_loss_of_ones_own_count_by_their_rows(hold, start):
    """The workload, which gpt is if nobody names one, would read something else in them."""

    def data(split, step, micro):
        rows = (8, 2)[step % 2] if split == "val" else 4
        return hold(torch.full((rows, 3), float(rows)))

    def loss(model, batch):
        x = getattr(batch, "x", batch["x"] if isinstance(batch, dict) else batch)
        return model(torch.as_tensor(x).to(model.weight)).square().mean() * 0 + float(len(x))

    config = start.config(name="r", max_steps=1, format="none", eval_steps=2)
    run = altcore.train(config, model=nn.Linear(3, 3), data=data, loss=loss)
    (found,) = [x for x in read_lines(run.run_directory / "metrics.jsonl") if "val_loss" in x]
    assert found["val_items"] == 10
    assert found["val_loss"] == pytest.approx((8 * 8 + 2 * 2) / 10)
    assert run.summary["item"] == "examples"
