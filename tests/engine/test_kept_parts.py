"""Modules and optimizers in ``also`` are held to the same as the model and the optimizer."""

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn
from torch.utils._pytree import tree_map_only

import altcore
from altcore import BadInput, CheckpointManager

X = torch.linspace(-1, 1, 12).reshape(4, 3)
WHERE = ["model", "also"]


class Masters(torch.optim.Optimizer):
    """Keeps float32 weights of others in bfloat16."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                master = self.state[p].setdefault("master", p.float().clone())
                p.copy_(master.sub_(p.grad.float(), alpha=group["lr"]))


class Averaging(nn.Linear):
    """Has a buffer that is not persistent, and one that grows."""

    def __init__(self):
        super().__init__(3, 3)
        self.register_buffer("mean", torch.zeros(3), persistent=False)
        self.register_buffer("past", torch.ones(1))

    def forward(self, x):
        self.mean = self.mean + x.mean(0) * self.past.sum()
        self.past = torch.cat([self.past, self.past[-1:] / 2])
        return super().forward(x - self.mean)


def plain():
    return nn.Sequential(nn.Linear(3, 3, bias=False), nn.Dropout(), nn.Linear(3, 3, bias=False))


def with_norm():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[0].weight.requires_grad_(requires_grad=False)
    return model


def adam(model):
    return torch.optim.Adam(model.parameters(), 0.01)


class Loop:
    """Trains one module; ``where`` it is among what a checkpoint has is all the same."""

    def __init__(self, where, build=plain, optimizer=adam, **quantized):
        torch.manual_seed(0)
        self.model, first = build(), plain()
        self.optimizer, first_optimizer = optimizer(self.model), adam(first)
        self.q = altcore.quantize_model(self.model, **quantized) if quantized else None
        self.given, self.also = (self.model, self.optimizer, self.q), {}
        self.label, self.optimizer_label = "the model", "the optimizer"
        if where == "also":
            self.given, self.also = (first, first_optimizer, None), {"D": self.model}
            self.also["opt"] = self.optimizer
            self.also |= {"q": self.q} if self.q else {}
            self.label, self.optimizer_label = "also.D", "also.opt"
        self.key, self.optimizer_key = (x.split()[-1] for x in (self.label, self.optimizer_label))
        self.suffix = "" if where == "model" else r" of also\.D"

    def train(self, steps=3, accumulated=1):
        for step in range(steps):
            x = X.to(next(self.model.parameters()).dtype)
            self.model(x).float().square().mean().backward()
            if step % accumulated == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()
        return [x.detach().clone() for x in (*self.model.parameters(), *self.model.buffers())]

    def save(self, folder):
        return altcore.save_checkpoint(folder, *self.given, 1, also=self.also)

    def load(self, folder):
        return altcore.load_checkpoint(folder, *self.given, also=self.also)


def half(optimizer):
    return {"build": lambda: nn.Linear(3, 3).bfloat16(), "optimizer": optimizer}


def partly_evaluated(loop):
    loop.model[1].eval()


GOES_ON = {
    "gradients": ({}, lambda loop: loop.train(3, accumulated=4)),
    "buffers": ({"build": Averaging}, Loop.train),
    "masters": (half(lambda model: Masters(model.parameters())), Loop.train),
    "modes": ({"build": with_norm}, partly_evaluated),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("case", GOES_ON)
def test_what_is_kept_goes_on_bit_for_bit(case, where, tmp_path):
    keys, change = GOES_ON[case]
    loop, again = Loop(where, **keys), Loop(where, **keys)
    manager = CheckpointManager(tmp_path, *loop.given, also=loop.also)
    change(loop)
    manager.save(1)
    expected = loop.train()
    manager.close()
    assert CheckpointManager(tmp_path, *again.given, also=again.also).restore() == 1
    # The random states are those of the save.
    assert all(map(torch.equal, again.train(), expected))


def of_parameters(*order):
    return lambda model: torch.optim.Adam([[*model.parameters()][i] for i in order], 0.01)


E4M3 = {"recipe": "pure", "format": "E4M3", "head": None}
NO_FIT = "the checkpoint does not fit the one that is given: "
ANOTHER = {
    "groups": ({"optimizer": of_parameters(0)}, "^{opt}: " + NO_FIT + ".*other groups"),
    "flags": (
        {"build": lambda: plain().requires_grad_(requires_grad=False)},
        r"^{key}: 0\.weight was trained when .* and is frozen",
    ),
    "shapes": (
        {"build": lambda: nn.Sequential(nn.Linear(3, 2, bias=False), plain()[1], nn.Linear(2, 3))},
        "^{key}: " + NO_FIT,
    ),
    "optimizer": (
        {"optimizer": lambda m: torch.optim.AdamW(m.parameters())},
        "^{opt}: the checkpoint is of Adam, and it is AdamW",
    ),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("case", ANOTHER)
def test_another_one_is_refused_before_anything_changes(case, where, tmp_path):
    keys, told = ANOTHER[case]
    loop, other = Loop(where), Loop(where, **keys)
    loop.train()
    loop.save(tmp_path)
    before = other.model[0].weight.clone()
    told = told.format(key=loop.key, opt=loop.optimizer_key, of=loop.suffix)
    with pytest.raises(BadInput, match=told):
        other.load(tmp_path)
    assert torch.equal(other.model[0].weight, before)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.LBFGS])
def test_the_order_of_parameters_within_a_group_is_that_of_the_checkpoint(kind, where, tmp_path):
    """An optimizer that takes them from a set has another one in each process."""

    def of(*order):
        return lambda model: kind([[*model.parameters()][i] for i in order], 0.01)

    def train(loop):
        def loss():
            loop.optimizer.zero_grad()
            value = loop.model(X).square().mean()
            value.backward()
            return value

        for _ in range(3):
            loop.optimizer.step(loss)
        return [x.detach().clone() for x in loop.model.parameters()]

    loop, again = Loop(where, optimizer=of(1, 0)), Loop(where, optimizer=of(0, 1))
    with CheckpointManager(tmp_path, *loop.given, also=loop.also) as manager:
        train(loop)
        manager.save(1)
    expected = train(loop)
    with CheckpointManager(tmp_path, *again.given, also=again.also) as manager:
        assert manager.restore() == 1
        assert all(map(torch.equal, train(again), expected))
        assert manager.save(2)


@pytest.mark.parametrize("where", WHERE)
def test_another_recipe_is_refused(where, tmp_path):
    """By the layer; the q of another model is one in also."""
    loop, other = Loop(where, **E4M3), Loop(where, **{**E4M3, "format": "E5M2"})
    loop.save(tmp_path)
    key = "q" if where == "model" else r"also\.(D|q)"
    with pytest.raises(BadInput, match=rf"^{key}: the checkpoint is of recipe pure in E4M3"):
        other.load(tmp_path)


@pytest.mark.parametrize("where", WHERE)
def test_a_wrapper_that_came_since_is_named_and_no_checkpoint_is_called_invalid(where, tmp_path):
    """It hides itself from the state of the model, and not from the names of the gradients."""
    loop, other = Loop(where), Loop(where, build=lambda: nn.Sequential(*map(Hiding, plain())))
    loop.train(2, accumulated=2)
    loop.save(tmp_path)
    with (
        capture_logs() as logs,
        pytest.raises(BadInput, match=rf"^{loop.key}: .*0\.weight, which has a gradient, is no"),
    ):
        other.load(tmp_path)
    assert not logs


class Hiding(nn.Module):
    """Wraps a module as torch's checkpoint_wrapper does: the state is that of the module."""

    def __init__(self, module):
        super().__init__()
        self.inner = module
        self._register_state_dict_hook(self.hide)

    def forward(self, x):
        return self.inner(x)

    @staticmethod
    def hide(module, state, prefix, _):
        for name in [name for name in state if name.startswith(f"{prefix}inner.")]:
            state[prefix + name.removeprefix(f"{prefix}inner.")] = state.pop(name)


class Counting(nn.Linear):
    """Counts its calls where no checkpoint looks."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Slow(torch.optim.SGD):
    """Keeps slow weights beside its state."""

    def __init__(self, parameters):
        super().__init__(parameters, 0.1)
        self.slow = [torch.zeros(1)]


def hook(loop):
    loop.model.register_forward_hook(lambda *_: None)


TOLD = {
    "attributes": ({"build": lambda: Counting(3, 3)}, Loop.train, "calls of {label}"),
    "slow": (
        {"optimizer": lambda m: Slow(m.parameters())},
        Loop.train,
        "slow of {optimizer_label}",
    ),
    "hooks": ({}, hook, "hooks of {label}"),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("case", TOLD)
def test_state_that_no_checkpoint_has_is_told(case, where, tmp_path):
    keys, change, told = TOLD[case]
    loop = Loop(where, **keys)
    with CheckpointManager(tmp_path, *loop.given, also=loop.also) as manager:
        change(loop)
        with capture_logs() as logs:
            manager.save(1)
    assert [x["names"] for x in logs] == [[told.format(**vars(loop))]]


@pytest.mark.parametrize("where", WHERE)
def test_other_modules_and_modes_are_told(where, tmp_path):
    """The weights fit both."""
    loop, other = Loop(where), Loop(where)
    loop.model.eval()
    loop.save(tmp_path)
    other.model[1] = nn.GELU()
    with capture_logs() as logs:
        other.load(tmp_path)
    told = ("the weights fit, but modules of {}", "{} was in evaluation mode when it was saved")
    assert len(logs) == 2
    for line, text in zip(logs, told, strict=True):
        assert line["event"].startswith(text.format(loop.label))


def test_a_tie_that_is_gone_is_told(tmp_path):
    """The state of both names fits two tensors."""
    model, again = (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD([model[0].weight], lr=0.1)
    altcore.save_checkpoint(tmp_path, model, optimizer, None, 1)
    optimizer = torch.optim.SGD([again[0].weight], lr=0.1)
    with capture_logs() as logs:
        altcore.load_checkpoint(tmp_path, again, optimizer, None)
    (line,) = logs
    assert line["modules"] == "1.weight was tied to 0.weight, and is none"


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_tie_of_what_the_optimizer_moves_is_refused_by_name(is_tied, tmp_path):
    """And not by its layers' formats, or by groups of the optimizer."""

    def built(is_tied):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        if is_tied:
            model[1].weight = model[0].weight
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, altcore.quantize_model(model, "E4M3", optimizer=optimizer)

    altcore.save_checkpoint(tmp_path, *built(is_tied), 1)
    says = r"^model: .*: 1\.weight was (tied to 0|a parameter of its own, and is tied to 0)\.weight"
    with pytest.raises(BadInput, match=says):
        altcore.load_checkpoint(tmp_path, *built(not is_tied))


def test_another_order_in_memory_is_told(tmp_path):
    """Sums are made in another order then."""
    model, again = (nn.Conv2d(2, 3, 3) for _ in range(2))
    model.to(memory_format=torch.channels_last)
    altcore.save_checkpoint(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.1), None, 1)
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
    with capture_logs() as logs:
        altcore.load_checkpoint(tmp_path, again, optimizer, None)
        again.to(memory_format=torch.channels_last)
        altcore.load_checkpoint(tmp_path, again, optimizer, None)
    (line,) = logs
    assert line["modules"] == "weight was strides [18, 1, 6, 2], and is none"


def test_a_second_optimizer_of_what_is_kept_is_named(tmp_path):
    """With a manager and without."""
    loop = Loop("also")
    critic = loop.also.pop("opt")
    with CheckpointManager(tmp_path / "a", *loop.given, also=loop.also) as manager:
        loop.train()
        with capture_logs() as logs:
            manager.save(1)
            loop.save(tmp_path / "b")
    told = f"the optimizer {type(critic).__name__} of 0.weight of also.D, 2.weight of also.D: name"
    assert len(logs) == 2
    assert all(line["names"][0].startswith(told) for line in logs)


class Omitting(nn.Linear):
    """Leaves its weight out of its state."""

    def state_dict(self, **keys):
        return {k: x for k, x in super().state_dict(**keys).items() if k != "weight"}


class Wrapping(torch.optim.SGD):
    """Lets another one do its work."""

    def __init__(self, model):
        super().__init__(model.parameters(), 0.1)
        self.base = torch.optim.AdamW(self.param_groups)


def on_meta():
    return nn.Linear(3, 3, device="meta")


def for_inference():
    with torch.inference_mode():
        return nn.Linear(3, 3)


def foreign(model):
    return torch.optim.SGD([*model.parameters(), nn.Parameter(torch.tensor(3.5))], 0.1)


NOT_SAVED = {
    "omitted": ({"build": lambda: Omitting(3, 3)}, "{key}: .*leaves out the parameter weight"),
    "meta": ({"build": on_meta}, "{key}: weight is on the device meta"),
    "lazy": ({"build": lambda: nn.LazyLinear(3)}, "{key}: weight has no shape yet"),
    "inference": ({"build": for_inference}, "{key}: it was made under torch.inference_mode"),
    "wrapping": ({"optimizer": Wrapping}, "{optimizer_key}: it keeps state in base"),
    "foreign": ({"optimizer": foreign}, "{optimizer_key}: its parameter 2 is not the model's"),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("case", NOT_SAVED)
def test_what_would_not_go_on_is_not_saved(case, where, tmp_path):
    keys, told = NOT_SAVED[case]
    loop = Loop(where, **keys)
    with pytest.raises(BadInput, match="^" + told.format(**vars(loop))):
        loop.save(tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("where", WHERE)
def test_a_weight_off_its_grid_is_not_saved(where, tmp_path):
    """And moments are looked at on theirs, whichever optimizer has them."""
    recipe = {"recipe": {"stored_weight": "E4M3", "optimizer_state": "BF16"}, "head": None}
    loop = Loop(where, **recipe)
    loop.train(1)
    loop.q.store(loop.optimizer)
    loop.save(tmp_path)
    loop.load(tmp_path)
    loop.model[0].weight.data.mul_(1.001)
    with pytest.raises(BadInput, match=f"could not be restored: .*off the grid.*{loop.suffix}"):
        loop.save(tmp_path)


@pytest.mark.parametrize("kept", ["scaler", "also"])
@pytest.mark.parametrize("where", WHERE)
def test_between_unscale_and_update_nothing_is_saved(where, kept, tmp_path):
    """Whichever optimizer it is, and wherever the scaler is named."""
    loop, scaler = Loop(where), torch.amp.GradScaler("cpu")
    keys = {"scaler": scaler, "also": loop.also}
    if kept == "also":
        keys = {"also": {**loop.also, "s": scaler}}
    scaler.scale(loop.model(X).square().mean()).backward()
    scaler.unscale_(loop.optimizer)
    key = "scaler" if kept == "scaler" else r"also\.s"
    with pytest.raises(BadInput, match=rf"^{key}: it has unscaled the gradients of this step"):
        altcore.save_checkpoint(tmp_path, *loop.given, 1, **keys)
    scaler.update()
    altcore.save_checkpoint(tmp_path, *loop.given, 1, **keys)


# ---------------------------------------------------------------- what states itself as it likes


class Shadow(nn.Module):
    """An average whose state comes with the first update, and has not the model's weights."""

    def __init__(self, model):
        super().__init__()
        self.online, self.shadow = model, {}

    def update(self):
        self.shadow = {name: p.detach().clone() for name, p in self.online.named_parameters()}

    def state_dict(self):
        return {"shadow": self.shadow}

    def load_state_dict(self, state):
        self.shadow = state["shadow"]


class Lookahead(torch.optim.SGD):
    """States its weights in a form of its own."""

    def state_dict(self):
        return {"slow": [self.param_groups[0]["params"][0].detach() * 2]}

    def load_state_dict(self, state):
        self.slow = state["slow"]


def lookahead(model):
    return Lookahead(model.parameters(), 0.1)


class Alpha:
    """A number that is trained, of no module."""

    def __init__(self, value):
        self.value = torch.tensor(value, requires_grad=True)

    def state_dict(self):
        return {"log": self.value.detach().clone()}

    def load_state_dict(self, state):
        self.value.data.copy_(state["log"])


def test_states_of_a_form_of_their_own_are_kept(tmp_path):
    """Of modules, of optimizers, and of what an optimizer moves."""

    def parts(value):
        model, alpha = plain(), Alpha(value)
        also = {"average": Shadow(model), "alpha": alpha, "slow": lookahead(nn.Linear(3, 3))}
        also["tuning"] = torch.optim.SGD([alpha.value], 0.1)
        also["slow_module"] = nn.ParameterList(also["slow"].param_groups[0]["params"])
        return model, also

    model, also = parts(2.0)
    also["average"].update()
    altcore.save_checkpoint(tmp_path, model, adam(model), None, 1, also=also)
    other, again = parts(1.0)
    altcore.load_checkpoint(tmp_path, other, adam(other), None, also=again)
    assert again["average"].shadow.keys() == dict(model.named_parameters()).keys()
    assert again["alpha"].value.item() == 2.0
    assert torch.equal(again["slow"].slow[0], also["slow_module"][0] * 2)
    also["slow"].param_groups[0]["params"].reverse()
    with pytest.raises(BadInput, match=r"^also\.slow: .*0 of also\.slow_module is where 1 of"):
        altcore.load_checkpoint(tmp_path, model, adam(model), None, also=also)


class Forgetting(torch.optim.AdamW):
    """Takes no state."""

    def load_state_dict(self, state):
        pass


class Refusing(Alpha):
    """Does not take what others take."""

    def load_state_dict(self, state):
        if state["log"] == 2:
            raise ArithmeticError("two")


def adamw(model):
    return torch.optim.AdamW(model.parameters())


def forgetting(model):
    return Forgetting(model.parameters())


@pytest.mark.parametrize(
    ("optimizer", "alpha", "told"),
    [
        (forgetting, Alpha, r"also\.opt: it did not take step of parameter 0"),
        (adamw, Refusing, r"also\.z: it did not take its state: ArithmeticError: two"),
    ],
)
def test_if_one_does_not_take_its_state_nothing_changes(optimizer, alpha, told, tmp_path):
    """What took its own before gets back what it had."""
    loop, again = (Loop("also", optimizer=optimizer) for _ in range(2))
    for made, number in ((loop, 2.0), (again, 1.0)):
        made.also |= {"a": Alpha(number), "z": alpha(number)}
    loop.train(1)
    loop.save(tmp_path)
    before = again.model[0].weight.clone()
    with pytest.raises(BadInput, match=f"^{told}"):
        again.load(tmp_path)
    assert torch.equal(again.model[0].weight, before)
    assert again.also["a"].value.item() == 1.0


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_part_of_the_model_in_also_is_the_model_s(tmp_path):
    """And one that torch.jit has traced is a module as any other one."""
    loop = Loop("model")
    also = {"head": loop.model[2], "traced": torch.jit.trace(nn.Linear(3, 3), X)}
    with CheckpointManager(tmp_path, *loop.given, also=also) as manager, capture_logs() as logs:
        loop.train()
        manager.save(1)
    assert logs == []
    assert altcore.load_checkpoint(tmp_path, *loop.given, also=also) == 1


class Picky(torch.optim.Adam):
    """Takes no state of the first step, but for half of it."""

    def load_state_dict(self, state):
        super().load_state_dict(state)
        if any(moments["step"] == 1 for moments in state["state"].values()):
            self.state.clear()
            raise ValueError("one")


class PickyLayer(nn.Linear):
    """Takes its bias, and then no weight whose first element is 1."""

    def load_state_dict(self, state, **keys):
        super().load_state_dict(state, **keys)
        if state["weight"][0, 0] == 1:
            raise ValueError("one")


def picky(model):
    return Picky(model.parameters(), 0.01)


def numbers_in(loop):
    parts = [x for x in (*loop.given, *loop.also.values()) if x is not None]
    gradients = [p.grad for p in loop.model.parameters()]
    states = [[x.state_dict() for x in parts], gradients]
    return tree_map_only(torch.Tensor, torch.Tensor.tolist, states)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(
    ("build", "optimizer", "key"),
    [(plain, picky, "optimizer_key"), (lambda: PickyLayer(3, 3), adam, "key")],
    ids=["optimizer", "model"],
)
def test_a_restore_that_fails_leaves_all_as_it_was(build, optimizer, key, where, tmp_path):
    """Whichever part does not take its state, once others have taken theirs."""
    loop = Loop(where, build=build, optimizer=optimizer)
    loop.train(1)
    with torch.no_grad():
        next(loop.model.parameters())[0, 0] = 1
    loop.save(tmp_path)
    loop.train(3, accumulated=2)
    before = numbers_in(loop)
    with pytest.raises(BadInput, match=f"^{getattr(loop, key)}: it did not take its state: Value"):
        loop.load(tmp_path)
    assert numbers_in(loop) == before
