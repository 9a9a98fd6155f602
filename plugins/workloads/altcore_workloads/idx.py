"""idx files: the format of MNIST, Fashion-MNIST and their kin (yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path

import torch
from torch import Tensor

from altcore.plugin import BadInput, open_to_read
from altcore_workloads.images import IDX, KEY, Images, Split, from_arrays

IMAGES = re.compile(r"(?P<prefix>.*)images(?P<dot>[-.])idx3-ubyte(?P<gz>\.gz)?")
UBYTE = 0x08


def is_source(path: Path) -> bool:
    """Return whether the folder holds idx files of images."""
    return any(IMAGES.fullmatch(file.name) for file in path.iterdir())


def read(path: Path, image_size: int | None) -> Images:
    """Return the images of ``train-images-idx3-ubyte`` and its like, with their labels.

    A second pair of files (``t10k-``, ``test-``, ``val-``) validates; without one, a fifth of the
    images do. Any file may be a .gz. Raises BadInput that names the file.
    """
    pairs = _pairs(path)
    train = [prefix for prefix in pairs if "train" in prefix]
    if len(train) != 1 or len(pairs) > 2:
        names = ", ".join(file.name for file, _ in pairs.values())
        raise BadInput(
            f"{path} holds {names}: one pair of files to train on, with 'train' in its "
            "name, and at most one other to validate are needed",
            key=KEY,
        )
    splits = {prefix: _split(*files) for prefix, files in pairs.items()}
    first = splits.pop(train[0])
    second = next(iter(splits.values()), None)
    if second is not None and second.images.shape[1:] != first.images.shape[1:]:
        raise BadInput(f"{path}: the images that train and that validate differ in size", key=KEY)
    return from_arrays(
        first,
        second,
        source=str(path),
        description=f"idx files in folder {path.resolve().name}",
        preset=IDX,
        image_size=image_size,
    )


def _pairs(path: Path) -> dict[str, tuple[Path, Path]]:
    """Return the files of images and of labels, by what their names begin with."""
    pairs: dict[str, tuple[Path, Path]] = {}
    # A file beside its own .gz comes first, and is taken.
    for file in sorted(path.iterdir()):
        match = IMAGES.fullmatch(file.name)
        if match is None or match["prefix"] in pairs:
            continue
        name = f"{match['prefix']}labels{match['dot']}idx1-ubyte"
        labels = next((p for p in (path / name, path / f"{name}.gz") if p.exists()), None)
        if labels is None:
            raise BadInput(f"{file} has no labels beside it: {name} is needed", key=KEY)
        pairs[match["prefix"]] = file, labels
    return pairs


def _split(images: Path, labels: Path) -> Split:
    pixels, classes = _array(images, 3), _array(labels, 1)
    if len(pixels) != len(classes):
        raise BadInput(
            f"{images} has {len(pixels)} images, and {labels} has {len(classes)} labels", key=KEY
        )
    return Split(pixels[:, None], classes.long())


def _array(file: Path, dimensions: int) -> Tensor:
    """Return what an idx file holds: magic number, sizes (big-endian), bytes."""
    try:
        with open_to_read(file) as stream:
            content = stream.read()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(f"{file} is a broken .gz file: {error}", key=KEY) from error
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, UBYTE, dimensions]):
        raise BadInput(
            f"{file} is not an idx file of bytes in {dimensions} dimensions: it begins with "
            f"{content[:4].hex(' ') or 'nothing'}, not {bytes([0, 0, UBYTE, dimensions]).hex(' ')}",
            key=KEY,
        )
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    wanted = math.prod(shape)
    if not wanted:
        raise BadInput(f"{file} is empty: it holds {' x '.join(map(str, shape))} bytes", key=KEY)
    if len(content) - start != wanted:
        raise BadInput(
            f"{file} says that it holds {' x '.join(map(str, shape))} bytes, and has "
            f"{len(content) - start}",
            key=KEY,
        )
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(shape)
