"""What holds for images of every source; the digits and the generated ones."""

import builtins
import math

import pytest
import torch
from helpers_images import folder_of, noise, raw

from altcore import BadInput
from altcore_workloads.image_sources import load
from altcore_workloads.images import HELD_OUT, Split, to_square, with_validation


@pytest.mark.parametrize(
    ("path", "says"), [("", "empty; give a path"), ("~no-such-user/a", "cannot be a path")]
)
def test_what_cannot_be_a_path_is_refused(path, says):
    """An empty path is not the current folder; an unknown home does not crash."""
    with pytest.raises(BadInput, match=f"resnet18-cifar.data: .*{says}"):
        load(path)


def test_digits_are_the_default():
    """1797 real scans, a fifth of them to validate, by their content; nothing is downloaded."""
    found = load(None)
    assert len(found.train) + len(found.val) == 1797
    assert 0.15 < len(found.val) / 1797 < 0.25
    assert found.train.images.shape[1:] == (1, 16, 16)
    assert found.classes == 10
    assert found.sha256 == load("digits", 8).sha256
    assert int(load("digits", 8).train.images.max()) == 255


@pytest.mark.parametrize(
    ("package", "data", "extra"),
    [
        ("sklearn", lambda p: None, "digits"),
        ("PIL", lambda p: str(folder_of(p / "d")), "images"),
        ("datasets", lambda p: "cifar10", "datasets"),
    ],
)
def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch, package, data, extra):
    """Each is an extra, and imported only when it is used."""
    given = data(tmp_path)
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(BadInput, match=rf"pip install 'altcore-workloads\[{extra}\]'"):
        load(given)
    assert len(load("generated").train) == 320


def test_generated_images_are_always_the_same():
    """A digest written down here: every machine has it."""
    found = load("generated")
    assert found.sha256.startswith("aaabba90cc42868d")
    assert torch.bincount(found.train.labels).tolist() == [32] * 10


def test_scaling_takes_the_middle_square():
    """And an average over what becomes one pixel."""
    image = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    image[..., 2:4] = 200
    assert to_square(image, 4)[0, 0, 0].tolist() == [200, 200, 0, 0]
    assert to_square(image, 1).item() == pytest.approx(100, abs=15)
    assert to_square(noise(2, 3, 16, 16), 16).shape == (2, 3, 16, 16)


def test_equal_images_stay_together():
    """An image that comes twice does not validate what it has trained."""
    images = noise(50, 1, 4, 4).repeat(2, 1, 1, 1)
    train, val = with_validation(Split(images, torch.arange(100)), "here")
    assert not {raw(i) for i in train.images} & {raw(i) for i in val.images}
    assert len(val) == pytest.approx(100 / HELD_OUT, abs=10)
    with pytest.raises(BadInput, match="here needs two different images"):
        with_validation(Split(images[:1], torch.zeros(1)), "here")


def test_moments_and_entropy_are_those_of_the_training_split():
    """Against the definitions."""
    found = load("generated")
    mean, deviation = found.moments()
    values = found.train.images.double() / 255
    assert mean == pytest.approx(values.mean((0, 2, 3)).tolist())
    assert deviation == pytest.approx(values.std((0, 2, 3), correction=0).tolist())
    assert found.label_entropy() == pytest.approx(math.log(10))
