"""The workload plugin ``resnet18-cifar``: it trains, quantized and not."""

import copy

import pytest
import torch
from helpers_images import small_resnet
from planted import check_resumes_alike
from torch import nn
from torch.nn import functional

import altcore
from altcore.registry import entries
from altcore.runs import read_lines

SMALL = {"data": "generated", "image_size": 16, "width_mult": 0.125, "batch_size": 32}


@pytest.mark.parametrize(
    ("recipe", "number_format"),
    [("master", "E4M3"), ("pure", "E4M3"), ("full", "E4M3"), ("mxfp8", None)],
)
def test_every_product_but_the_heads_is_quantized(recipe, number_format):
    """Convolutions, the stem and projections too."""
    built = small_resnet()
    with altcore.quantize_model(built.model, recipe, format=number_format) as q:
        q.count_flops(lambda: built.loss(built.model, built.batch("train", 1, 0))[0].backward())
        coverage = q.coverage()
    assert coverage.flop_share > 0.999
    assert "head: fc; left out: nothing" in str(coverage)


@pytest.mark.parametrize(
    "recipe",
    ["master", "pure", "full", "original", "mxfp8", "nvfp4"],
)
def test_it_trains_under_every_recipe(recipe):
    """The loss of one batch falls, and stays finite."""
    built = small_resnet()
    model = copy.deepcopy(built.model)
    number_format = "E4M3" if recipe in ("master", "pure", "full", "original") else None
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    with altcore.quantize_model(model, recipe, format=number_format) as q:
        for _ in range(8):
            loss, _ = built.loss(model, built.batch("val", 0, 0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            q.store(optimizer)
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_evaluating_changes_nothing(tmp_path):
    """Not even the statistics of batch norm."""
    keys = {"workload": "resnet18-cifar", "format": "E4M3", "max_steps": 6}
    losses = {
        altcore.train(
            {**keys, "settings": {"resnet18-cifar": SMALL}, "runs_dir": str(tmp_path), "name": name}
            | {"eval_interval": interval, "plugins": plugins}
        ).final_loss
        for name, interval, plugins in (("a", 100, []), ("b", 1, ["shadow"]))
    }
    assert len(losses) == 1


def test_every_diagnostic_takes_a_loss_with_measures(start):
    """Those that run the model themselves, too: none is disabled."""
    names = [e.name for e in entries() if e.distribution == "altcore-diagnostics"]
    of_their_own = ("flips", "loss-slope", "noise")  # which have no interval of that name
    settings = {f"{name}__interval": 1 for name in names if name not in of_their_own}
    own = {f"resnet18-cifar__{key}": value for key, value in SMALL.items()}
    keys = {"workload": "resnet18-cifar", "format": "E4M3", "max_steps": 2}
    run = start(names, **keys, **own, **settings)
    assert run.summary["degraded"] == []
    assert "accuracy" in run.metrics_history[0]


def test_it_resumes_in_the_middle_of_an_epoch(shelf, start):
    """The same order, crops and statistics: the same bits."""
    own = {f"resnet18-cifar__{key}": value for key, value in SMALL.items()}
    keys = {"workload": "resnet18-cifar", "format": "E4M3", **own}
    counted = {"epochs": 1.2, "evals_per_epoch": 3, "max_steps": None, "eval_interval": None}
    whole = check_resumes_alike(shelf, start, [], **keys, **counted)
    assert whole.steps_completed == 12
    assert [line["epoch"] for line in whole.metrics_history][4:8] == [0.5, 0.6, 0.7, 0.8]


@pytest.mark.parametrize("norm_type", ["batch", "none"])
def test_it_learns_with_and_without_norm(norm_type):
    """Images that it has not seen, after a few epochs of the generated ones."""
    built = small_resnet(norm_type=norm_type, crop_scale=0.8, flip=False, batch_size=32)
    model = built.model
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    for n in range(1, 4 * built.steps_per_epoch + 1):
        loss, _ = built.loss(model, built.batch("train", n, 0))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        images, labels = built.batch("val", 0, 0)
        accuracy = (model(images).argmax(1) == labels).float().mean()
        assert functional.cross_entropy(model(images), labels) < 1.0
    assert accuracy > 0.8


@pytest.mark.slow
def test_digits_reach_their_accuracy(tmp_path):
    """97 % in 15 epochs with altcore's defaults, validated four times in each."""
    pytest.importorskip("sklearn")
    keys = {"workload": "resnet18-cifar", "epochs": 15, "evals_per_epoch": 4}
    run = altcore.train({**keys, "runs_dir": str(tmp_path)})
    lines = read_lines(run.run_directory / "metrics.jsonl")
    evaluations = [line for line in lines if "val_accuracy" in line]
    assert len(evaluations) == 60
    assert evaluations[-1]["val_accuracy"] >= 0.97
