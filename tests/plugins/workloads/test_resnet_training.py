"""The workload plugin ``resnet18-cifar``: it trains, quantized and not."""

import copy

import pytest
import torch
from helpers_images import small_resnet
from torch import nn
from torch.nn import functional

import altcore


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
    own = {"data": "generated", "image_size": 16, "width_mult": 0.125, "batch_size": 32}
    keys = {"workload": "resnet18-cifar", "format": "E4M3", "max_steps": 6}
    losses = {
        altcore.train(
            {**keys, "settings": {"resnet18-cifar": own}, "runs_dir": str(tmp_path), "name": name}
            | {"eval_interval": interval, "plugins": plugins}
        ).final_loss
        for name, interval, plugins in (("a", 100, []), ("b", 1, ["shadow"]))
    }
    assert len(losses) == 1


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
