"""What ranks compare before a run begins, in one process that is each of them in turn."""

import copy
from functools import partial

import pytest
from torch import nn

from altcore.config import TrainConfig
from altcore.engine import identity_given
from altcore.engine.rank_checks import about_unlike, agreed_identity, check_alike, check_model
from altcore.engine.ranks import Ranks
from altcore.errors import BadInput


class Taking(Ranks):
    """Ranks that gather one after the other: the last one sees all."""

    def __init__(self):
        self.sent = []

    def gather(self, own):
        self.rank = len(self.sent)
        self.sent.append(own)
        return self.sent


def in_turn(check, *owns):
    ranks = Taking()
    return [check(own, ranks) for own in owns][-1]


def refused(check, one, other, told):
    """Check that the same is accepted, and two others are refused, with what is told."""
    in_turn(check, one, one)
    with pytest.raises(BadInput) as error:
        in_turn(check, one, other)
    assert told in str(error.value)
    assert str(error.value).endswith("one model, loss and code, and the same data")


class Scaled(nn.Linear):
    def __init__(self, factor):
        super().__init__(2, 2)
        if factor > 1:
            self.forward = lambda x: super(Scaled, self).forward(x) * 3

    def forward(self, x):
        return super().forward(x) * 2


def losses_of(factor):
    return lambda model, batch: model(batch).sum() * factor


ONE, OTHER = (lambda model, batch: model(batch).sum(), lambda model, batch: model(batch).mean())
MODEL = nn.Sequential(nn.Linear(2, 2), nn.ReLU())


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (
            {"model": MODEL},
            {"model": nn.Sequential(nn.Linear(2, 2), nn.GELU())},
            "model: Sequential, given from Python, with GELU(approximate='none') as 1 on rank 1, "
            "Sequential, given from Python, with ReLU() as 1 on rank 0",
        ),
        ({"model": MODEL}, {}, "model: none on rank 1, Sequential, given from Python on rank 0"),
        ({"model": Scaled(1)}, {"model": Scaled(2)}, "model, forward of Scaled: its code is not"),
        (
            {"loss": ONE},
            {"loss": losses_of},
            "loss: losses_of, given from Python on rank 1, <lambda>",
        ),
        ({"loss": ONE}, {"loss": OTHER}, "loss: its code is not the same on rank 1 and rank 0"),
        ({"loss": partial(ONE)}, {"loss": partial(OTHER)}, "loss: its code is not the same"),
        ({"batch": ONE}, {}, "data: none on rank 1, <lambda>, given from Python on rank 0"),
    ],
)
def test_another_model_or_loss_is_refused_by_name(one, other, told):
    """By the class of a module, the name of a function, and the code of both."""

    def check(given, ranks):
        names = identity_given(given.get("model"), given.get("batch"), given.get("loss"))
        check_alike(TrainConfig(), ranks, names, given.get("model"), given.get("loss"))

    refused(check, one, other, told)


def config_of(interval=None, **given):
    settings = {"flips": {"report_interval": 25}, "rollback": {"steps": 1}}
    if interval is not None:
        settings["ulp-stats"] = {"interval": interval}
    plugins = ("flips", "rollback", "ulp-stats")
    return TrainConfig(plugins=plugins, settings=settings, **given)


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (config_of(float("nan")), config_of(7), "ulp-stats.interval: 7 on rank 1, nan on rank 0"),
        (config_of(5), config_of(7), "ulp-stats.interval: 7 on rank 1, 5 on rank 0"),
        (config_of(), config_of(7), "ulp-stats: {'interval': 7} on rank 1, not given on rank 0"),
        (config_of(5), config_of(5, seed=3), "seed: 3 on rank 1, 42 on rank 0"),
        (
            config_of(no_plugins=("progress", "page")),
            config_of(no_plugins=("progress", "csv")),
            "no_plugins[1]: 'csv' on rank 1, 'page' on rank 0",
        ),
    ],
)
def test_another_configuration_is_refused_by_its_key(one, other, told):
    """However deep it is, so that what is told of the two differs."""

    def check(config, ranks):
        check_alike(config, ranks, {})

    in_turn(check, one, copy.deepcopy(one))
    with pytest.raises(BadInput) as error:
        in_turn(check, one, other)
    assert str(error.value) == f"{told}: processes of one run have one configuration"


def test_a_loss_may_know_its_rank():
    """Its variables are its own."""
    one, other = losses_of(1), losses_of(2)
    for given in (one, other), (partial(ONE, 1), partial(ONE, 2)), (len, len):
        in_turn(lambda loss, ranks: check_alike(TrainConfig(), ranks, {}, None, loss), *given)


def frozen(model):
    model[0].bias.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            frozen(copy.deepcopy(MODEL)),
            "model: 0.bias (float32 [2], frozen) on rank 1, 0.bias (float32 [2], trained) on",
        ),
        (nn.Sequential(nn.Linear(3, 2)), "0.weight (float32 [2, 3], trained) on rank 1"),
        (nn.Sequential(nn.Linear(2, 2, bias=False)), "no more tensors on rank 1, 0.bias"),
        (nn.Sequential(*MODEL, nn.BatchNorm1d(2)), "2.weight (float32 [2], trained) on rank 1"),
        (nn.Sequential(nn.LazyLinear(2)), "0.weight (float32 without a shape yet, trained)"),
    ],
)
def test_other_parameters_are_refused_by_name(other, told):
    """Before torch's DDP counts them."""
    refused(check_model, MODEL, other, told)


def test_numbers_may_differ():
    in_turn(check_model, MODEL, nn.Sequential(nn.Linear(2, 2)))


IDENTITY = {
    "data": {"sha256": 64 * "a", "of": "workload"},
    "plugin": {"gpt": {"name": "gpt", "distribution": "d", "version": "1", "sha256": "a"}},
    "platform": {"altcore": "0.1, files a", "threads": 1},
}


@pytest.mark.parametrize(
    ("part", "key", "value", "told"),
    [
        ("data", "sha256", 64 * "b", "data: aaaaaaaaaaaa on rank 0, bbbbbbbbbbbb on rank 1"),
        ("data", "gpt.tokenizer", "b", "gpt.tokenizer: none on rank 0, b on rank 1"),
        (
            "plugin",
            "gpt",
            {**IDENTITY["plugin"]["gpt"], "sha256": "b"},
            "gpt (d 1, files a) on rank 0, gpt (d 1, files b) on rank 1",
        ),
        ("platform", "altcore", "0.1, files b", "altcore: 0.1, files a on rank 0, 0.1, files b"),
    ],
)
def test_other_data_and_other_code_are_refused(part, key, value, told):
    refused(agreed_identity, IDENTITY, {**IDENTITY, part: {**IDENTITY[part], key: value}}, told)


def test_the_run_is_what_it_is_on_rank_0():
    """A rank may have another machine, and of a workload that shares itself another first batch."""
    one = {**IDENTITY, "data": {"sha256": 64 * "a", "of": "first batch"}}
    other = {**one, "data": {"sha256": 64 * "b", "of": "first batch"}}
    other["platform"] = {**IDENTITY["platform"], "threads": 2}
    assert in_turn(agreed_identity, one, other) == one


def test_another_platform_is_told_with_the_ranks_that_have_it():
    """It may make replicas differ; if they do, it is the likely cause."""
    ranks = Taking()
    assert about_unlike(ranks) == []
    assert ranks.why("a plugin") == "; a plugin"
    for instructions, threads in (("AVX2", 1), ("DEFAULT", 1), ("DEFAULT", 2)):
        where = {"instructions of the CPU": instructions, "threads": threads}
        agreed_identity({**IDENTITY, "platform": {**IDENTITY["platform"], **where}}, ranks)
    unlike = "instructions of the CPU: AVX2 on rank 0, DEFAULT on rank 1, 2; "
    unlike += "threads: 1 on rank 0, 2 on rank 2"
    told = "the ranks are not alike, and their weights may come to differ"
    assert about_unlike(ranks) == [f"{told}: {unlike}"]
    assert ranks.why("a plugin") == f", probably because they are not alike: {unlike}"


def test_another_platform_is_refused_by_strict():
    """As a resume refuses it."""
    there = {**IDENTITY, "platform": {**IDENTITY["platform"], "torch": "2"}}
    check = partial(agreed_identity, strict=True)
    in_turn(check, IDENTITY, IDENTITY)
    with pytest.raises(BadInput, match=r"--strict: .* alike: torch: none on rank 0, 2 on rank 1"):
        in_turn(check, IDENTITY, there)
