"""Crops and mirror images against torchvision's definitions, written out example by example."""

import math

import pytest
import torch
from torch.nn import functional

from altcore_workloads.augment import (
    ATTEMPTS,
    DRAWS,
    RATIOS,
    crop_and_resize,
    crop_boxes,
    mirrored,
)


def draws_of(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, DRAWS, dtype=torch.float64, generator=generator)


def slow_box(row, height, width, least_scale):
    """Return what RandomResizedCrop.get_params of torchvision draws, from ``row``."""
    draws = iter(row.tolist())
    area = height * width
    found = None
    for _ in range(ATTEMPTS):
        target_area = area * (least_scale + (1 - least_scale) * next(draws))
        low, high = (math.log(r) for r in RATIOS)
        aspect_ratio = math.exp(low + (high - low) * next(draws))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if found is None and 0 < w <= width and 0 < h <= height:
            found = h, w
    # Its fallback is the largest crop whose ratio is allowed: of a square, all of it.
    h, w = found or (height, width)
    top, left = int(next(draws) * (height - h + 1)), int(next(draws) * (width - w + 1))
    return top, left, h, w


def slow_crop(image, box, mirror):
    """Return what torchvision's resized_crop and hflip make of one image."""
    top, left, height, width = box
    size = image.shape[-2:]
    crop = image[:, top : top + height, left : left + width][None]
    crop = functional.interpolate(crop, size, mode="bilinear", align_corners=False, antialias=True)[
        0
    ]
    return crop.flip(-1) if mirror else crop


@pytest.mark.parametrize("least_scale", [0.08, 0.8, 1.0])
@pytest.mark.parametrize("size", [9, 16, 32])
def test_boxes_are_those_of_the_definition(size, least_scale):
    """For 500 images of each size; crops that fit at no attempt are whole images."""
    draws = draws_of(500)
    boxes = crop_boxes(draws, size, least_scale).tolist()
    expected = [list(slow_box(row, size, size, least_scale)) for row in draws]
    assert boxes == expected


def test_whole_images_where_no_attempt_fits():
    """An aspect that is never square, at full area, fits nowhere."""
    draws = torch.full((1, DRAWS), 0.999, dtype=torch.float64)
    assert crop_boxes(draws, 32, 1.0).tolist() == [[0, 0, 32, 32]]


def test_crops_are_inside_and_of_every_size():
    """Area and ratio reach both their ends, places every pixel."""
    top, left, height, width = crop_boxes(draws_of(20000), 32, 0.08).unbind(1)
    assert int(top.min()) == int(left.min()) == 0
    assert int((top + height).max()) == int((left + width).max()) == 32
    assert bool(((top + height <= 32) & (left + width <= 32)).all())
    area = (height * width).double() / 32**2
    assert 0.07 < area.min() < 0.09
    assert area.max() == 1
    assert 0.45 < area.mean() < 0.54  # large ones fit less often


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [9, 32])
def test_crop_and_mirror_are_those_of_the_definition(size, channels):
    """Image by image, in float64 to the last digits."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(200, channels, size, size, dtype=torch.float64, generator=generator)
    draws = draws_of(200, seed=2)
    boxes, mirror = crop_boxes(draws, size, 0.08), mirrored(draws)
    found = crop_and_resize(images, boxes, mirror)
    for image, box, flip, got in zip(images, boxes.tolist(), mirror, found, strict=True):
        assert torch.allclose(got, slow_crop(image, box, flip), rtol=0, atol=1e-12)
    assert 60 < int(mirror.sum()) < 140


def test_a_whole_image_is_left_as_it_is():
    """Bit for bit: a crop of the full size does not blur."""
    images = torch.randint(0, 256, (4, 3, 16, 16)).float()
    boxes = torch.tensor([[0, 0, 16, 16]] * 4)
    mirror = torch.tensor([False, True, False, True])
    found = crop_and_resize(images, boxes, mirror)
    assert torch.equal(found[::2], images[::2])
    assert torch.equal(found[1::2], images[1::2].flip(-1))


def test_what_happens_to_an_image_depends_on_its_row_alone():
    """Neither the others of its batch nor its place among them count."""
    images, draws = torch.rand(10, 3, 16, 16), draws_of(10)

    def augmented(rows):
        boxes = crop_boxes(draws[rows], 16, 0.08)
        return crop_and_resize(images[rows], boxes, mirrored(draws[rows]))

    assert torch.equal(augmented([7, 2]), augmented(list(range(10)))[[7, 2]])
