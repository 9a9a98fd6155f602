"""What a checkpoint holds of a model, and what is said when a resume could not restore it."""

import itertools
import random
import types
from decimal import Decimal
from fractions import Fraction
from typing import ClassVar

import numpy
import pytest
import torch
from attrs import define, field
from helpers import events, weights_sha256
from structlog.testing import capture_logs
from torch import nn

import altcore
from altcore import BadInput, Rollback, hookimpl, setting
from altcore.engine.as_built import AsBuilt, UnsavedBuffers
from altcore.engine.labels import MODEL, OPTIMIZER
from altcore.engine.returns import check_state
from altcore.errors import AltcoreError, PluginError


class Bytes(nn.Module):
    """Predicts bytes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(256, 8), nn.Linear(8, 256)

    def forward(self, ids):
        return self.head(self.embed(ids))


KEYS = {"checkpoint_interval": 2, "min_lr_ratio": 1.0, "warmup_steps": 0}


@pytest.fixture
def goes_on(start):
    """Return a function that says whether a resumed run ends with the weights of a whole one."""

    def check(model, plugins=(), **keys):
        def train(name, steps, **resume):
            config = start.config(plugins, name=name, max_steps=steps, **{**KEYS, **keys})
            altcore.train(config, model=model(), **resume)
            return weights_sha256(start.runs / name)

        whole = train("whole", 4)
        train("part", 2)
        return train("part", 4, resume="part") == whole

    return check


# --------------------------------------------------------------------------------- buffers


class Counting(Bytes):
    """Counts its steps in a buffer that is not persistent, and is another function in each."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, ids):
        self.seen += self.training
        return super().forward(ids) * (1 + 0.1 * self.seen)


class Lazy(Bytes):
    """Makes a buffer in its first step, and lets it grow."""

    def forward(self, ids):
        if self.training and not hasattr(self, "cache"):
            self.register_buffer("cache", torch.zeros(1))
        if self.training:
            self.cache = torch.cat([self.cache, self.cache[-1:] + 1])
        return super().forward(ids) * (1 + 0.1 * getattr(self, "cache", torch.zeros(1)).sum())


class Growing(Bytes):
    """Lets one buffer grow, and takes another away."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.ones(1))
        self.register_buffer("first", torch.ones(1))

    def forward(self, ids):
        if self.training:
            self.table, self.first = torch.cat([self.table, self.table[-1:] + 1]), None
        factor = 1 if self.first is None else 2
        return super().forward(ids) * (factor + 0.1 * self.table.sum())


class Omitting(Growing):
    """Has a state_dict without the buffer."""

    def state_dict(self, **keys):
        return {k: v for k, v in super().state_dict(**keys).items() if k != "table"}

    def load_state_dict(self, state, **_):
        return super().load_state_dict(state, strict=False)


class Shared(Growing):
    """Has its buffers under two names, and one that is expanded."""

    def __init__(self):
        super().__init__()
        self.other = nn.Module()
        self.other.register_buffer("wide", torch.ones(1).expand(4))
        self.again = self.other

    def forward(self, ids):
        if self.training:
            self.again.late = nn.Buffer(self.again.late + 1 if hasattr(self.again, "late") else ONE)
        return super().forward(ids) * self.other.wide.sum()


ONE = torch.ones(1)


@define(eq=False)
class Back:
    """Rolls back once."""

    needs = ("snapshots",)

    @hookimpl
    def pre_step(self, run, step):
        return Rollback(steps=2, reason="a test") if step.index == 4 else None


@pytest.mark.parametrize("model", [Counting, Lazy, Growing, Omitting, Shared])
def test_a_run_goes_on_with_the_buffers_that_came_and_grew(model, goes_on, start, shelf):
    """As one that was not interrupted, which rolled back to when they were smaller."""
    shelf.install("intervention", "back", Back)
    assert goes_on(model, ["back"], snapshot_interval=1, format="E4M3", recipe="pure")
    assert len(events(start.runs / "part", "rollback")) == 1
    loaded = altcore.load("part", "latest", runs_dir=start.runs, model=model()).model
    if model is Counting:
        assert loaded.seen == 2
    else:
        assert len(loaded.cache if model is Lazy else loaded.table) > 2


def test_a_buffer_of_another_model_is_not_taken(start):
    """Its form when it was built is kept beside the one to which it grew."""
    config = start.config(name="r", max_steps=2, **KEYS)
    altcore.train(config, model=Growing())
    other = Growing()
    other.table = torch.ones(2)
    with pytest.raises(BadInput, match=r"the shape of table is \[3\], and the model has \[2\]"):
        altcore.train(config.evolve(max_steps=4), model=other, resume="r")


def as_built(model, optimizer=torch.optim.SGD):
    return AsBuilt({MODEL: model}, {OPTIMIZER: optimizer(model.parameters(), lr=0.1)})


def test_only_buffers_that_changed_since_the_build_are_told():
    """Another build makes the others again."""
    model = nn.Linear(2, 2)
    for name in ("still", "counted", "replaced"):
        model.register_buffer(name, torch.zeros(1), persistent=False)
    built = UnsavedBuffers.of(model)
    model.counted += 1
    model.replaced = torch.ones(3)
    assert built.changed(model.state_dict()).keys() == {"counted", "replaced"}


# ------------------------------------------------------------- what a resume could not restore


def add_module(run):
    run.model.more = nn.Linear(2, 2)


def add_statistics(run):
    run.model.more = nn.BatchNorm1d(2, affine=False)


def add_group(run):
    weight = run.optimizer.param_groups[0]["params"].pop()
    run.optimizer.add_param_group({"params": [weight]})


def merge_groups(run):
    run.optimizer.param_groups[0]["params"] += run.optimizer.param_groups.pop()["params"]


def freeze(run):
    run.model.embed.weight.requires_grad_(False)


def hook(run):
    run.model.embed.register_forward_hook(lambda module, given, made: made / 2)


def hook_optimizer(run):
    run.optimizer.register_step_pre_hook(lambda *_: None)


def hide(run):
    run.optimizer.slow = [p.detach().clone() for p in run.model.parameters()]
    run.optimizer.count = 1


def dial(run):
    run.model.embed.max_norm = 1.0
    run.model.act = nn.GELU()
    run.model.head.forward = run.model.head.forward


def step_off_the_grid(run):
    with torch.no_grad():
        run.model.head.weight.mul_(1.001)


def round_state(run):
    state_dict = run.model.state_dict
    run.model.state_dict = lambda: {k: v.half() for k, v in state_dict().items()}


def delete_option(run):
    del run.optimizer.param_groups[0]["maximize"]


@define(eq=False)
class Change:
    """Changes the model or the optimizer once."""

    how: str = setting("", help="the function that does it")
    at: int = setting(1, help="step after which, or 0 as the run starts")
    is_done: bool = field(init=False, default=False)

    @hookimpl
    def run_start(self, run):
        if self.at == 0:
            globals()[self.how](run)

    @hookimpl
    def post_step(self, run, step):
        if self.at == step.index:
            globals()[self.how](run)


@pytest.fixture
def changing(shelf):
    """Install `Change` as an intervention."""
    shelf.install("intervention", "change", Change)


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("add_module", r"parameters .* were added since it was built \(more\.bias, more\.weight\)"),
        ("add_statistics", r"modules with buffers were added .* \(more\)"),
        ("add_group", r"group \d of the optimizer has other parameters than it had \(\w+\.\w+\)"),
        (
            "merge_groups",
            r"group 0 of the optimizer has other parameters than it had \(head\.bias\)",
        ),
        ("delete_option", "group 0 of the optimizer has no maximize any more"),
    ],
)
def test_what_a_resume_could_not_restore_is_named_when_it_is_saved(how, told, at, start, changing):
    """Not when the run is to go on: nothing of it could be mended then."""
    config = start.config(["change"], name="r", change__how=how, change__at=at, **KEYS)
    with pytest.raises(AltcoreError, match=f"^{told}: no run could go on from its checkpoints"):
        altcore.train(config, model=Bytes())
    assert not (start.runs / "r/checkpoints/step-00000002").exists()


def test_the_first_state_is_checked_as_a_resume_would(start, changing):
    """A weight off its grid, which no resume takes."""
    keys = {"format": "E4M3", "recipe": "pure", "change__how": "step_off_the_grid", **KEYS}
    config = start.config(["change"], change__at=2, **keys)
    with pytest.raises(AltcoreError, match=r"no run could go on .* off the grid of E4M3"):
        altcore.train(config, model=Bytes())


def test_a_state_dict_that_begins_to_round_is_named(start, changing):
    config = start.config(["change"], change__how="round_state", **KEYS)
    with pytest.raises(AltcoreError, match=r"has other numbers than the parameter embed\.weight"):
        altcore.train(config, model=Bytes())


def test_what_an_intervention_freezes_stays_frozen(goes_on, changing):
    """The intervention has done it, and does not do it again."""
    assert goes_on(Bytes, ["change"], change__how="freeze")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            "dial",
            "max_norm of module embed, forward of module head, approximate of module act, the",
        ),
        ("hook", "hooks were put on module embed while the run trained"),
        ("hook_optimizer", "hooks were put on the optimizer while the run trained"),
        (
            "hide",
            "slow of the optimizer, count of the optimizer: state of the run that",
        ),
    ],
)
def test_what_is_in_no_checkpoint_is_told_once(how, told, start, changing):
    """By the first checkpoint after it, and by no other; hooks of run_start are put there again."""
    keys = {**KEYS, "change__how": how, "checkpoint_interval": 1}
    run = altcore.train(start.config(["change"], **keys), model=Bytes()).run_directory
    (warning,) = events(run, "warning")
    assert (warning["step"], warning["cause"]) == (1, "unsaved")
    assert warning["message"].startswith(told)
    if how == "hook":
        keys |= {"change__at": 0, "name": "from-the-start"}
        run = altcore.train(start.config(["change"], **keys), model=Bytes()).run_directory
        assert not events(run, "warning")


@define
class Counter:
    """An object in the slots of which there is a number."""

    steps: int = 0


@define(eq=False)
class Forgetful:
    """Counts in fields that no checkpoint has, and in its class, and draws numbers."""

    total: ClassVar[int] = 0
    drawn: torch.Generator = field(init=False, factory=torch.Generator)
    python: random.Random = field(init=False, factory=random.Random)
    numpy: object = field(init=False, factory=numpy.random.default_rng)
    seen: int = field(init=False, default=0)
    counter: Counter = field(init=False, factory=Counter)
    started: int = field(init=False, default=0)
    _cache: int = field(init=False, default=0)
    run: object = field(init=False, default=None)

    @hookimpl
    def run_start(self, run):
        self.started, self.run = 1, run

    @hookimpl
    def pre_step(self, run, step):
        self.seen, self._cache, self.counter.steps = step.index, step.index, step.index
        type(self).total += 1
        torch.rand(1, generator=self.drawn)
        self.python.random()
        self.numpy.random()


NAMES = ("counter", "drawn", "numpy", "python", "seen", "total")
"""Where the state of a `Forgetful` is."""


class Stating(Forgetful):
    """Has a state, which is trusted."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def unstarted():
    yield from range(9)


# How a value of each kind is made, and changed.
HIDDEN = {
    "float": (lambda: 1.0, lambda x: x / 2),
    "complex": (lambda: 1j, lambda x: x * 2),
    "Fraction": (lambda: Fraction(1), lambda x: x * 9 / 10),
    "Decimal": (lambda: Decimal(1), lambda x: x / 2),
    "numpy.float64": (lambda: numpy.float64(1), lambda x: x / 2),
    "numpy.array": (lambda: numpy.zeros(4), lambda x: x.__iadd__(1)),
    "a large numpy.array": (lambda: numpy.zeros(2**21), lambda x: x.__iadd__(1)),
    "str": (lambda: "warm", lambda x: "hot"),
    "bool": (lambda: False, lambda x: True),
    "set": (lambda: set(), lambda x: {*x, 1}),
    "a set of strings": (lambda: {"a", "b"}, lambda x: {*x, "c"}),
    "frozenset": (lambda: frozenset({1}), lambda x: x | {2}),
    "deep": (lambda: {"a": {"b": {"n": 1.0}}}, lambda x: {"a": {"b": {"n": 0.5}}}),
    "itertools.count": (lambda: itertools.count(), lambda x: next(x) or x),
    "itertools.cycle": (lambda: itertools.cycle([0]), lambda x: next(x) or x),
    "list iterator": (lambda: iter([0, 1]), lambda x: next(x) or x),
    "generator": (lambda: unstarted(), lambda x: next(x) or x),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_state_of_any_kind_is_told(kind):
    """And nothing of it that stays as it was; of a cycle nobody can tell."""
    model = Bytes()
    make, change = HIDDEN[kind]
    model.kept = make()
    built = as_built(model)
    if kind != "itertools.cycle":
        assert built.hidden() == []
    model.kept = change(model.kept)
    assert built.hidden() == ["kept of the model"]


def test_state_in_fields_of_interventions_is_told(start, shelf):
    """Unless run_start sets it, or the plugin has a state_dict; of who only looks, none."""
    shelf.install("intervention", "forgetful", Forgetful)
    shelf.install("intervention", "stating", Stating)
    shelf.install("diagnostic", "looking", type("Looking", (Forgetful,), {}))
    plugins = ["forgetful", "stating", "looking"]
    run = altcore.train(start.config(plugins, **KEYS), model=Bytes()).run_directory
    (warning,) = events(run, "warning")
    told = ", ".join(f"{name} of intervention forgetful" for name in NAMES[:-1])
    assert (warning["step"], warning["cause"]) == (2, "unsaved")
    assert warning["message"].startswith(f"{told}, total of class Forgetful: state of")


class Annealing:
    """A workload that counts its batches, and draws from a generator that it seeds for each."""

    facts, items_per_batch, item = {}, 2, "bytes"

    def __init__(self):
        self.model, self.drawn = Bytes(), torch.Generator()
        self.batches = self._batches = 0

    def batch(self, split, step, micro):
        self.batches += 1
        self._batches += 1
        return torch.randint(256, (2,), generator=self.drawn.manual_seed(step))

    def loss(self, model, batch):
        return model(batch).square().mean()


def test_state_in_attributes_of_the_workload_is_told(start, shelf):
    @define
    class Settings:
        def build(self, seed, device):
            return Annealing()

    shelf.install("workload", "annealing", Settings)
    run = start(name="r", workload="annealing", **KEYS).run_directory
    (warning,) = events(run, "warning")
    told = "batches of the workload, _batches of the workload: state of the run that no"
    assert warning["message"].startswith(told)


class Remade(Bytes):
    """Keeps an auxiliary loss for whoever computes the loss; its class keeps a number, too."""

    not_state, last = ("aux", "last"), 0

    def forward(self, ids):
        y = super().forward(ids)
        Remade.last, self.aux = Remade.last + 1, y.square().mean()
        return y


class Named(Annealing):
    """A workload that says of all that it counts that it is no state."""

    not_state = ("batches", "_batches")


def test_what_is_said_to_be_no_state_is_not_told(start, shelf, tmp_path):
    """By a model, an optimizer, an intervention or a workload; of one object, or of its class."""
    said = type("Said", (Forgetful,), {"__slots__": (), "not_state": NAMES})
    shelf.install("intervention", "said", said)
    shelf.install("workload", "named", define(type("Maker", (), {"build": lambda *_: Named()})))
    run = start(["said"], name="r", workload="named", **KEYS).run_directory
    assert not events(run, "warning")
    model = Remade()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.not_state, optimizer.slow = "slow", None
    manager = altcore.CheckpointManager(tmp_path, model, optimizer)
    model(torch.zeros(1, dtype=torch.int64))
    optimizer.slow, model.other = torch.ones(1), 1
    with capture_logs() as logs:
        manager.save(1)
    (told,) = logs
    assert told["names"] == ["other of the model"]
    assert told["hint"].startswith("If each step writes other of the model before it reads it")
    assert told["hint"].endswith('the object or its class: not_state = ("other",)')


def test_state_in_settings_and_in_functions_is_told(start, shelf):
    """Of the workload's maker, and in the variables of the function that gives batches."""

    @define(slots=False)
    class Settings:
        made: list = field(factory=list, init=False)

        def build(self, seed, device):
            self.model = Bytes()
            return self

        facts, items_per_batch, item = {}, 2, "bytes"

        def batch(self, split, step, micro):
            raise NotImplementedError

        def loss(self, model, batch):
            self.made.append(1)
            return model(batch).square().mean()

    shelf.install("workload", "appending", Settings)
    batches = itertools.count()

    def data(split, step, micro):
        return torch.full((2,), next(batches) % 256)

    config = start.config(name="r", workload="appending", **KEYS)
    run = altcore.train(config, data=data).run_directory
    (warning,) = events(run, "warning")
    told = ("made of the settings of workload appending", "made of the workload")
    assert warning["message"].startswith(", ".join((*told, "batches of the function data")))


# ------------------------------------------------------------------- models that state another


class Remembering(Bytes):
    """Keeps what it is by in attributes, each in another one."""

    def __init__(self):
        super().__init__()
        self.count, self.mean, self.drawn = 0, torch.zeros(()), torch.Generator()
        self.python, self.numpy = random.Random(1), numpy.random.default_rng(1)
        self.held = types.SimpleNamespace(count=0)
        self.losses, self.constant, self.alias = [], torch.ones(1), self.head.weight[0]

    def forward(self, ids):
        if self.training:
            self.count, self.mean = self.count + 1, self.mean + 1
            self.losses.append(1.0)
            self.held.count += 1
            torch.rand(1, generator=self.drawn)
            self.python.random()
            self.numpy.random()
        return super().forward(ids)


def test_state_in_attributes_of_tensors_is_told():
    """As where a momentum is kept with its parameter."""
    model = Bytes()
    model.register_buffer("mask", torch.ones(1))
    built = as_built(model)
    model.head.weight.momentum, model.mask.seen = torch.ones(1), 1
    model.head.weight._dynamo_static_input_type = "unguarded"
    assert built.hidden() == [
        "seen of buffer mask of the model",
        "momentum of parameter weight of module head",
    ]
    model.head.weight.not_state = model.mask.not_state = ("momentum", "seen")
    assert built.hidden() == []


def test_state_in_the_class_of_an_optimizer_is_told():
    class Counting(torch.optim.SGD):
        steps = 0

        def step(self, closure=None):
            type(self).steps += 1
            return super().step(closure)

    model = Bytes()
    built = as_built(model, Counting)
    assert built.hidden() == []
    built.optimizers[OPTIMIZER].step()
    assert built.hidden() == ["steps of class Counting"]


def test_state_in_attributes_of_the_model_is_told(start):
    """Not what stays as it was, or is the model's own; who states more than torch, knows."""
    keys = {**KEYS, "checkpoint_interval": 1}
    run = altcore.train(start.config(name="r", **keys), model=Remembering()).run_directory
    (warning,) = events(run, "warning")
    assert warning["message"].startswith("count of the model, mean of the model, drawn of the mo")
    model = Remembering()
    built = as_built(model)
    with torch.no_grad():
        model.head.weight.mul_(2)
    assert built.hidden() == []
    model.train()(torch.zeros(1, dtype=torch.int64))
    names = [label.partition(" ")[0] for label in built.hidden()]
    assert names == ["count", "mean", "drawn", "python", "numpy", "held", "losses"]
    Remembering.get_extra_state = lambda self: {"count": self.count}
    try:
        assert built.hidden() == []
    finally:
        del Remembering.get_extra_state


class Halved(Bytes):
    """Rounds what it states."""

    def state_dict(self, **keys):
        return {k: v.half().float() for k, v in super().state_dict(**keys).items()}


class Dropping(Bytes):
    """Leaves out a weight."""

    def state_dict(self, **keys):
        return {k: v for k, v in super().state_dict(**keys).items() if k != "head.weight"}


class Renaming(Bytes):
    """States a weight by another name."""

    def state_dict(self, **keys):
        state = super().state_dict(**keys)
        return {k.replace("head.", "output."): v for k, v in state.items()}


STATED = [
    (Halved, "has other numbers than the parameter embed.weight"),
    (Dropping, "leaves out the parameter head.weight"),
    (Renaming, "leaves out the parameter head.weight"),
]


@pytest.mark.parametrize(("model", "told"), STATED)
def test_a_model_that_states_other_weights_is_refused(model, told, start, tmp_path):
    """Before a run has a directory, and when a loop saves; a frozen weight may be left out."""
    with pytest.raises(BadInput, match=f"^model: the state_dict of the model {told}"):
        altcore.train(start.config(), model=model())
    assert not start.runs.exists()
    made = model()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    with pytest.raises(BadInput, match=f"^model: the state_dict of the model {told}"):
        altcore.save_checkpoint(tmp_path, made, optimizer, None, 1)
    made.requires_grad_(False)
    assert altcore.save_checkpoint(tmp_path / "own", made, optimizer, None, 1).exists()


def test_a_workload_whose_model_states_other_weights_is_named(shelf, start):
    @define
    class Workload:
        def build(self, seed, device):
            return self

        model, facts, items_per_batch, item = Halved(), {}, 1, "bytes"

        def batch(self, split, step, micro):
            raise NotImplementedError

        loss = batch

    shelf.install("workload", "odd", Workload)
    with pytest.raises(PluginError, match=r"workload odd \(acme-odd 1.2.3\): the state_dict of"):
        start(workload="odd")


def test_a_model_on_meta_is_refused_with_what_to_do(start):
    """Instead of torch's own error."""
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(BadInput, match=r"^model: weight is on the device meta, .*to_empty"):
        altcore.train(start.config(), model=model)


def nested(levels):
    """Return mappings within one another."""
    made = {}
    for _ in range(levels):
        made = {"k": made}
    return made


class Extra(Bytes):
    """Has a state that no file of a checkpoint can hold."""

    def get_extra_state(self):
        return nested(3000)

    def set_extra_state(self, state):
        pass


def test_a_state_that_is_nested_too_deeply_is_named_with_its_place(start, tmp_path):
    """Not by a RecursionError; of a plugin as well."""
    told = r"is nested more than 100 levels deep, or holds itself: \['_extra_state'\]\['k'\]"
    model = Extra()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(BadInput, match=told):
        altcore.save_checkpoint(tmp_path, model, optimizer, None, 1)
    with pytest.raises(BadInput, match=told):
        altcore.train(start.config(), model=model)
    with pytest.raises(PluginError, match=r"^state is nested more than 100 levels .*: \['k'\]"):
        check_state(nested(101))
    assert check_state(nested(99))
