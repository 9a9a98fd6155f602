"""Random crops and mirror images, as torchvision defines them, for a whole batch at once.

Nothing here draws: each example brings its own row of uniform numbers, and what happens to it is a
function of that row alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ATTEMPTS = 10
RATIOS = (3 / 4, 4 / 3)
"""Width over height of a crop."""
DRAWS = 2 * ATTEMPTS + 3
"""Uniform numbers that an example needs: area and ratio of each attempt, place, mirror."""


def crop_boxes(draws: Tensor, size: int, least_scale: float) -> Tensor:
    """Return the crops of torchvision's RandomResizedCrop from square images.

    Args:
        draws: float64 (batch, DRAWS) in [0, 1).
        size: height and width of the images, in pixels.
        least_scale: smallest share of the area; the largest is 1.

    Returns:
        int64 (batch, 4): top, left, height and width. Of ten attempts at a uniform share of the
        area and a log-uniform ratio the first that fits counts; if none does, the whole image.
    """
    area = size * size * (least_scale + (1 - least_scale) * draws[:, 0 : 2 * ATTEMPTS : 2])
    low, high = map(math.log, RATIOS)
    ratio = (low + (high - low) * draws[:, 1 : 2 * ATTEMPTS : 2]).exp()
    widths = (area * ratio).sqrt().round()
    heights = (area / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= size) & (heights > 0) & (heights <= size)
    first = fits.int().argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    height, width = (
        torch.where(found, tried.gather(1, first).squeeze(1), float(size))
        for tried in (heights, widths)
    )
    top = (draws[:, 2 * ATTEMPTS] * (size - height + 1)).floor()
    left = (draws[:, 2 * ATTEMPTS + 1] * (size - width + 1)).floor()
    return torch.stack([top, left, height, width], dim=1).long()


def mirrored(draws: Tensor) -> Tensor:
    """Return which examples RandomHorizontalFlip mirrors: bool (batch,), each with chance 1/2."""
    return draws[:, -1] < 0.5


def crop_and_resize(images: Tensor, boxes: Tensor, mirror: Tensor) -> Tensor:
    """Return each crop at the images' own size, bilinear, mirrored where ``mirror`` says so.

    Args:
        images: (batch, channels, size, size), floating point.
        boxes: (batch, 4): top, left, height and width, on the same device.
        mirror: bool (batch,), on the same device.

    The value at an output pixel is that of ``torch.nn.functional.interpolate`` on the crop alone
    (``align_corners=False``); antialiasing changes nothing, as a crop is never made smaller.
    """
    size = images.shape[-1]
    top, left, height, width = boxes.unbind(1)
    above, below, down = _neighbours(top, height, size, images.dtype)
    before, after, right = _neighbours(left, width, size, images.dtype)
    # Mirroring reads the columns in the other order.
    before, after, right = (
        torch.where(mirror[:, None], x.flip(1), x) for x in (before, after, right)
    )
    rows = torch.lerp(_rows(images, above), _rows(images, below), down[:, None, :, None])
    return torch.lerp(_columns(rows, before), _columns(rows, after), right[:, None, None, :])


def _neighbours(
    start: Tensor, length: Tensor, size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two source pixels of each output pixel, and the share of the second."""
    pixels = torch.arange(size, device=start.device, dtype=torch.float64)
    place = ((pixels + 0.5) * (length[:, None].double() / size) - 0.5).clamp(min=0)
    first = place.floor().long()
    second = torch.minimum(first + 1, length[:, None] - 1)
    return start[:, None] + first, start[:, None] + second, (place - first).to(dtype)


def _rows(images: Tensor, which: Tensor) -> Tensor:
    batch, channels, _, width = images.shape
    return images.gather(2, which[:, None, :, None].expand(batch, channels, -1, width))


def _columns(images: Tensor, which: Tensor) -> Tensor:
    batch, channels, height, _ = images.shape
    return images.gather(3, which[:, None, None, :].expand(batch, channels, height, -1))
