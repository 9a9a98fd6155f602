"""Studies of a model, data and a loss of the caller's own."""

import shutil
import warnings

import pytest
import torch
from planted import plant
from torch import nn

import altcore
from altcore import BadInput
from altcore.config import TrainConfig
from altcore.runs import summary_of
from altcore.study import setup
from altcore.study.own import Own
from altcore.study.runner import Runner
from altcore.study.setup import check_seeds
from altcore.sweep.run_job import OWN, check_own


class Sums(nn.Module):
    """A model of a caller, which computes its loss itself."""

    def __init__(self, width=8):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, width), nn.Linear(width, 1)

    def forward(self, x, y):
        return (self.outer(self.inner(x).relu()) - y).square().mean()


def sums(split, step, micro, seed=0):
    """Return numbers and their sums."""
    x = torch.rand(4, 4, generator=torch.Generator().manual_seed(1000 * seed + step))
    return x, x.sum(1, keepdim=True)


def seeded():
    """Return a model that is the same with every seed."""
    torch.manual_seed(0)
    return Sums()


class Dropped(Sums):
    """A model that is another one with each seed by its dropout alone."""

    def forward(self, x, y):
        return super().forward(nn.functional.dropout(x, 0.5), y)


def same_sums(split, step, micro):
    """Return numbers that are the same with every seed."""
    return sums(split, step, micro)


def passed_on(model, batch):
    """Return the loss of a model that computes it."""
    return model(*batch)


@pytest.fixture
def study(shelf, start, tmp_path):
    """Return a function that compares E4M3 with its twin, in a workload that all is taken from."""
    plant(shelf, "regression")
    config = {"workload": "regression", "max_steps": 3, "device": "cpu"}
    options = {"seeds": 2, "rates": 1, "null": False, "name": "mine", "folder": tmp_path}

    def made(**own):
        return altcore.compare(["E4M3"], config=config, **{**options, **own})

    return made


def test_a_study_trains_what_was_passed_in(study, tmp_path):
    """With each seed its own weights and batches; a copy is trained, and the same call reads it."""
    model = Sums()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    answer = study(model=model, data=sums, loss=passed_on)
    assert answer.found["contenders"][0]["gap"]["n"] == 2
    trained = answer.found["about"]["workload"]
    assert trained == "model `Sums`, data `sums`, loss `passed_on`"
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    facts = summary_of(next((tmp_path / "mine/runs").iterdir()))["workload_facts"]
    assert facts["parameters"] == sum(p.numel() for p in Sums().parameters())
    jobs = sorted(path.name for path in (tmp_path / "mine").glob("jobs/*"))
    assert study(model=Sums(), data=sums, loss=passed_on).found == answer.found
    assert sorted(path.name for path in (tmp_path / "mine").glob("jobs/*")) == jobs


def test_a_model_of_other_modules_begins_new_runs(study, tmp_path):
    """Though its class, its weights and the number of them are the same."""

    def model(activation):
        return nn.Sequential(nn.Linear(4, 8), activation, nn.Linear(8, 1))

    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    counts = []
    for activation in (nn.ReLU(), nn.ReLU(inplace=True), nn.GELU()):
        study(model=model(activation), data=sums, loss=loss)
        counts.append(len(list((tmp_path / "mine/runs").iterdir())))
    assert counts[0] == counts[1] < counts[2]


def test_an_edited_loss_begins_new_runs(study, tmp_path):
    """By its code and by the values in it: the name says nothing of either."""

    def smoothed(s):
        def loss(model, batch):
            return model(*batch) + s

        return loss

    def other():
        def loss(model, batch):
            return model(*batch) * 2

        loss.__qualname__ = smoothed(0.0).__qualname__
        return loss

    counts = []
    for loss in (smoothed(0.1), smoothed(0.1), smoothed(0.3), other()):
        study(model=Sums, data=sums, loss=loss)
        counts.append(len(list((tmp_path / "mine/runs").iterdir())))
    assert counts == [counts[0] * n for n in (1, 1, 2, 3)]


def test_what_finished_runs_answer_is_not_tried(study, tmp_path, monkeypatch):
    """The short runs before a study: none if every run is there, and those alone that tell more."""
    tried, real = [], setup.train

    def train(config, **own):
        tried.append((config.seed, config.max_steps))
        return real(config, **own)

    def asked(**more):
        tried.clear()
        return study(model=Sums, data=sums, loss=passed_on, **more).found, list(tried)

    monkeypatch.setattr(setup, "train", train)
    seed = TrainConfig().seed
    seeds, cost = [(seed, 2), (seed + 1, 2)], [(seed, setup.PILOT_STEPS)] * 2
    first, made = asked()
    assert made == [(seed, 1), (seed, 1), *seeds, *cost]
    assert asked() == (first, [])
    assert asked(seeds=3)[1] == cost
    # The runs of one seed do not say whether another one is the same run.
    for run in (tmp_path / "mine/runs").iterdir():
        if f"-s{seed}-" not in run.name:
            shutil.rmtree(run)
    assert asked()[1] == [*seeds, *cost]


def test_a_model_is_made_with_the_random_states_of_its_seed():
    """The caller's own states go on as if nothing had been drawn. A run trains a copy."""
    own = Own(Sums, same_sums)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (own.parts(seed)["model"].inner.weight for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    net = Sums()
    assert Own(lambda: net, sums).parts(1)["model"] is not net
    assert own.names == {
        "model": "Sums, given from Python",
        "data": "same_sums, given from Python",
    }


class Normed(Sums):
    """A model with the old weight_norm, whose weights torch refuses to copy."""

    def __init__(self):
        super().__init__()
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            nn.utils.weight_norm(self.inner)


def test_a_model_that_cannot_be_copied_is_made_anew():
    """If its function makes another one at each call; otherwise what is wrong is said by name."""
    one, other = (Own(Normed, sums).parts(1)["model"] for _ in range(2))
    assert one is not other
    assert torch.equal(one.inner.weight_v, other.inner.weight_v)
    net = Normed()
    for given in (net, lambda: net, lambda: nn.Sequential(net)):
        with pytest.raises(BadInput, match=r"^model: each run trains a copy .* Only Tensors"):
            Own(given, sums).parts(1)


def test_data_may_follow_the_seed():
    """And are named as they are without it."""
    data = Own(Sums(), sums).parts(3)["data"]
    assert torch.equal(data("train", 1, 0)[0], sums("train", 1, 0, seed=3)[0])
    assert data.__qualname__ == "sums"


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (
            {"model": Sums(), "data": same_sums, "loss": passed_on},
            "seeds: every seed would be the same",
        ),
        (
            {"model": seeded, "data": same_sums, "loss": passed_on},
            "seeds: every seed would be the same",
        ),
        ({"model": 3}, "model: a function is needed, not 3"),
        ({"loss": "mse"}, "loss: a function is needed, not 'mse'"),
        (
            {"model": Sums, "executor": "local:2"},
            "executor local:2: a study of your own model makes its runs in this process",
        ),
    ],
)
def test_what_cannot_be_studied_is_refused(own, says, study):
    with pytest.raises(BadInput, match=says):
        study(**own)


def test_seeds_may_differ_by_dropout_alone(start, shelf):
    """What a step draws follows the seed, too."""
    plant(shelf, "regression")
    config = start.config(workload="regression")
    check_seeds(config, Own(Dropped(), same_sums, passed_on))


def test_a_command_cannot_make_such_a_run(start, tmp_path):
    """It has no model; the job says so before it would train the workload's own."""
    runner = Runner(tmp_path, start.config(), own=Own(Sums, loss=passed_on))
    identity = runner._identity(runner.base)
    assert set(identity[OWN]) == {"model", "loss"}
    job = type("Job", (), {"name": "j", "identity": identity})
    with pytest.raises(BadInput, match="j trains with its caller's own model, loss"):
        check_own(job, {})
    check_own(job, {"model": Sums(), "loss": passed_on})
