"""Labelled images in memory: two splits, their digest, and how they come to one size."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from altcore.plugin import BadInput
from altcore_workloads.splits import SAME_SPLITS, entropy, held_out

KEY = "resnet18-cifar.data"
HELD_OUT = 5
"""One in so many images validates, if the source brings no validation split."""
NAMED = 10
"""Labels and files that a notice names."""
CHUNK = 1 << 12  # images scaled at a time
LUMA = (19595, 38470, 7471)  # of 2^16: ITU-R 601-2, as Pillow has it


@attrs.frozen
class Preset:
    """Settings that suit a kind of data, for those that are not given."""

    image_size: int
    width_mult: float
    flip: bool
    crop_scale: float
    batch_size: int


PHOTOS = Preset(image_size=32, width_mult=1.0, flip=True, crop_scale=0.08, batch_size=128)
IDX = Preset(image_size=32, width_mult=1.0, flip=False, crop_scale=0.8, batch_size=128)
DIGITS = Preset(image_size=16, width_mult=0.25, flip=False, crop_scale=0.8, batch_size=64)


@attrs.frozen(eq=False)
class Split:
    """Images, uint8 (n, channels, height, width), and their labels, int64 (n,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Split:
        return Split(self.images[rows], self.labels[rows])


@attrs.frozen(eq=False)
class Images:
    """The splits "train" and "val" of a data set, all images of one size."""

    source: str
    description: str
    train: Split
    val: Split
    classes: int
    sha256: str
    preset: Preset
    notice: str | None = None
    """A sentence for the user about what is left out or is not there."""

    @property
    def told(self) -> str:
        """Return the notice, and that both splits have the same images if they do."""
        is_same = torch.equal(self.train.images, self.val.images)
        return "; ".join(filter(None, (self.notice, is_same and SAME_SPLITS)))

    @property
    def channels(self) -> int:
        """Return how many values a pixel has."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """Return height and width of the images, in pixels."""
        return self.train.images.shape[-1]

    def to(self, device: torch.device) -> Images:
        """Return the data set with its tensors on a device."""
        return self._changed(lambda s: Split(s.images.to(device), s.labels.to(device)))

    def with_channels(self, channels: int) -> Images:
        """Return grey images as three equal channels, or colours as their luma.

        Raises BadInput for other numbers of channels.
        """
        have = self.channels
        if have == channels:
            return self
        if {have, channels} != {1, 3}:
            raise BadInput(
                f"{self.source} has {have}, which can be used as 1 or 3, not as {channels}",
                key="resnet18-cifar.in_channels",
            )
        change = _luma if channels == 1 else _grey_as_colour
        return self._changed(lambda s: Split(change(s.images), s.labels))

    def _changed(self, change: Callable[[Split], Split]) -> Images:
        return attrs.evolve(self, train=change(self.train), val=change(self.val))

    def moments(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel of the training split, in [0, 1].

        They come from counts of the 256 values, so that they are the same on every machine.
        """
        means, deviations = [], []
        values = torch.arange(256, dtype=torch.float64) / 255
        for channel in self.train.images.unbind(1):
            share = torch.bincount(channel.flatten().int(), minlength=256).double()
            share /= share.sum()
            mean = (share * values).sum()
            means.append(float(mean))
            deviations.append(float((share * (values - mean).square()).sum().sqrt()))
        return means, deviations

    def label_entropy(self) -> float:
        """Return the entropy of the training labels' frequencies, in nats.

        It is the loss of a model that knows the frequencies and does not look at the image.
        """
        return entropy(torch.bincount(self.train.labels))


def check_labels(train: Split, classes: int, source: str) -> str | None:
    """Return a sentence about the classes that no image trains, None if there is an image for each.

    Raises BadInput if all images are of one class: there is nothing to tell apart.
    """
    found = set(train.labels.tolist())
    if len(found) < 2:
        raise BadInput(
            f"{source} has one class to train on: the label of each image is {min(found)}", key=KEY
        )
    unused = [str(label) for label in range(classes) if label not in found]
    if not unused:
        return None
    names = ", ".join(unused[:NAMED]) + (" ..." if len(unused) > NAMED else "")
    return f"{len(unused)} of {classes} classes have no image to train on: {names}"


def with_validation(
    split: Split, where: str, keys: Sequence[bytes] | None = None
) -> tuple[Split, Split]:
    """Split off the images that validate, one in five, as `held_out` chooses them by ``keys``.

    A key is the image's content if none are given. Raises BadInput, naming ``where``, if the two
    splits cannot both have an image.
    """
    if keys is None:
        keys = [_bytes(image) for image in split.images]
    is_val = held_out(keys, HELD_OUT)
    if all(is_val):
        raise BadInput(f"{where} needs two different images, to train and to validate", key=KEY)
    chosen = torch.tensor(is_val)
    return split[~chosen], split[chosen]


def _bytes(values: Tensor) -> bytes:
    """Return the memory of a tensor; numpy, which could do it too, need not be installed."""
    values = values.contiguous()
    return ctypes.string_at(values.data_ptr(), values.nbytes)


def digest_of(splits: Mapping[str, Split]) -> str:
    """Return the SHA-256 of images and labels, before they are scaled."""
    digest = hashlib.sha256()
    for name, split in splits.items():
        digest.update(f"{name} {tuple(split.images.shape)}\n".encode())
        for part in (split.images, split.labels):
            digest.update(_bytes(part))
    return digest.hexdigest()


def from_arrays(
    train: Split,
    val: Split | None,
    *,
    source: str,
    description: str,
    preset: Preset,
    image_size: int | None,
    classes: int = 0,
) -> Images:
    """Return the data set of images that all have one size; val is taken from train if None.

    There are as many classes as the largest label needs, and at least ``classes``.
    """
    if val is None:
        train, val = with_validation(train, source)
    splits = {"train": train, "val": val}
    classes = max(classes, *(int(split.labels.max()) + 1 for split in splits.values()))
    notice = check_labels(train, classes, source)
    size = image_size or preset.image_size
    scaled = {name: Split(to_square(s.images, size), s.labels) for name, s in splits.items()}
    return Images(
        source=source,
        description=description,
        classes=classes,
        sha256=digest_of(splits),
        preset=preset,
        notice=notice,
        **scaled,
    )


def to_square(images: Tensor, size: int) -> Tensor:
    """Return uint8 images (n, channels, height, width) as (n, channels, size, size).

    The largest square in the middle is scaled, bilinear with antialiasing. In float64, so that
    machines that add in different orders round to the same bytes.
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images = images[..., top : top + side, left : left + side]
    if side == size:
        return images.contiguous()
    scaled = [
        functional.interpolate(
            chunk.double(), (size, size), mode="bilinear", antialias=True, align_corners=False
        )
        .round()
        .to(torch.uint8)
        for chunk in images.split(CHUNK)
    ]
    return torch.cat(scaled)


def _grey_as_colour(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1).contiguous()


def _luma(images: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, dtype=torch.int32)[:, None, None]
    chunks = [(chunk.int() * weights).sum(1, keepdim=True) for chunk in images.split(CHUNK)]
    return torch.cat([((chunk + (1 << 15)) >> 16).to(torch.uint8) for chunk in chunks])
