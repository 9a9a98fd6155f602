"""Where the images of the workload ``resnet18-cifar`` come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from altcore.plugin import BadInput
from altcore_workloads import cifar, idx, pictures
from altcore_workloads.images import DIGITS, KEY, PHOTOS, Images, Split, from_arrays

GENERATED = (320, 80)
"""Images that train and that validate in ``generated``."""
GENERATED_CLASSES = 10


def load(data: str | None, image_size: int | None = None) -> Images:
    """Return the images that ``data`` names, scaled to ``image_size`` or what suits them.

    ``digits`` (also for None) and ``generated`` are names, as are ``cifar10`` and
    ``datasets:NAME_OR_FOLDER``, which the datasets library reads. All else is a path: CIFAR-10's
    archive or its folder, a folder of idx files, or one of labelled images. Raises BadInput that
    names the path and what is wrong with it.
    """
    if data is None or data in NAMED:
        return NAMED[data or "digits"](image_size)
    if pictures.is_dataset(data):
        return pictures.read_dataset(data, image_size)
    if not data:
        raise BadInput("empty; give a path, or null for scikit-learn's digits", key=KEY)
    try:
        path = Path(data).expanduser()
    except RuntimeError as error:  # the home of an unknown user
        raise BadInput(f"{data!r} cannot be a path: {error}", key=KEY) from error
    try:
        if not path.exists():
            raise BadInput(f"{path} does not exist", key=KEY)
        return _reader(path)(path, image_size)
    except OSError as error:
        where = error.filename or path
        raise BadInput(f"cannot read {where}: {error.strerror or error}", key=KEY) from error


def _reader(path: Path) -> Callable[[Path, int | None], Images]:
    if cifar.is_source(path):
        return cifar.read
    if not path.is_dir():
        raise BadInput(
            f"{path} is not an archive of CIFAR-10 (cifar-10-binary.tar.gz or "
            "cifar-10-python.tar.gz); idx files and images are given by their folder",
            key=KEY,
        )
    return idx.read if idx.is_source(path) else pictures.read_folder


def _digits(image_size: int | None) -> Images:
    """Return scikit-learn's digits: 1797 scans of 8 by 8 pixels (UCI ML hand-written digits)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise BadInput(
            "digits needs scikit-learn: pip install 'altcore-workloads[digits]', or give "
            "other data",
            key=KEY,
        ) from error
    found = load_digits()
    grey = torch.from_numpy(found.images) * (255 / 16)  # from whole numbers up to 16
    split = Split(grey.round().to(torch.uint8)[:, None], torch.from_numpy(found.target).long())
    return from_arrays(
        split,
        None,
        source="digits",
        description="scikit-learn's digits",
        preset=DIGITS,
        image_size=image_size,
    )


def _generated(image_size: int | None) -> Images:
    """Return random images that are the same everywhere: a pattern of blocks a class, and noise."""
    count = sum(GENERATED)
    patterns = _bytes("pattern", GENERATED_CLASSES, 3, 4, 4).repeat_interleave(8, 2)
    patterns = patterns.repeat_interleave(8, 3)
    labels = torch.arange(count) % GENERATED_CLASSES
    noise = _bytes("noise", count, 3, 32, 32)
    mixed = (patterns[labels].int() + noise.int()) // 2
    split = Split(mixed.to(torch.uint8), labels)
    cut = GENERATED[0]
    return from_arrays(
        split[:cut],
        split[cut:],
        source="generated",
        description="generated patterns",
        preset=PHOTOS,
        image_size=image_size,
    )


def _bytes(name: str, *shape: int) -> torch.Tensor:
    stream = hashlib.shake_128(f"altcore-resnet18/{name}".encode())
    length = torch.Size(shape).numel()
    return torch.frombuffer(bytearray(stream.digest(length)), dtype=torch.uint8).view(shape)


NAMED: dict[str, Callable[[int | None], Images]] = {"digits": _digits, "generated": _generated}
