"""Images in files: folders with a sub-folder a class, and what the datasets library reads."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altcore.plugin import BadInput
from altcore_workloads.datasets_library import datasets_library
from altcore_workloads.images import (
    KEY,
    NAMED,
    PHOTOS,
    Images,
    Split,
    check_labels,
    from_arrays,
    to_square,
    with_validation,
)

TRAIN = ("train", "training")
VAL = ("val", "valid", "validation", "test", "testing")
"""Names of splits, the first that is there counts."""
SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
GREY = frozenset({"1", "L", "LA"})
COLOUR = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})
HUB = {"cifar10": "uoft-cs/cifar10"}
"""Data sets that have a short name."""
PREFIX = "datasets:"


# -------------------------------------------------------------------------------- folders


def read_folder(path: Path, image_size: int | None) -> Images:
    """Return the images of a folder that has a sub-folder for each class.

    Below ``train`` and ``val`` (or ``test``), if there are such folders; else one image in five
    validates, by its name. Every image is scaled when it is read. Raises BadInput that names the
    file or the folder.
    """
    classes, files = _survey(path)
    others = _others(path, [file for labelled in files.values() for file, _ in labelled])
    digest = hashlib.sha256()
    splits = {
        name: _read_files(labelled, path, digest.update, image_size or PHOTOS.image_size)
        for name, labelled in files.items()
    }
    if "val" in splits:
        train, val = splits["train"], splits["val"]
    else:
        names = [os.fsencode(file.relative_to(path)) for file, _ in files["train"]]
        train, val = with_validation(splits["train"], str(path), names)
    train, val = _alike(train, val)
    check_labels(train, len(classes), str(path))
    return Images(
        source=str(path),
        description=f"images in folder {path.resolve().name}",
        train=train,
        val=val,
        classes=len(classes),
        sha256=digest.hexdigest(),
        preset=PHOTOS,
        notice=others,
    )


def _survey(path: Path) -> tuple[list[str], dict[str, list[tuple[Path, int]]]]:
    """Return the classes, and the files of each split with their labels."""
    train, val = ([path / n for n in names if (path / n).is_dir()] for names in (TRAIN, VAL))
    if bool(train) != bool(val):
        have, lack = (train[0].name, VAL[0]) if train else (val[0].name, TRAIN[0])
        raise BadInput(f"{path} has a folder {have} but no {lack}; give both, or neither", key=KEY)
    root = train[0] if train else path
    classes = _sub_folders(root)
    if len(classes) < 2:
        raise BadInput(
            f"{root} has {len(classes)} sub-folders; a sub-folder with images for each of "
            "two or more classes is needed",
            key=KEY,
        )
    files = {"train": _labelled(root, classes)}
    labels = {label for _, label in files["train"]}
    empty = next((name for i, name in enumerate(classes) if i not in labels), None)
    if empty is not None:
        raise _without_images(root / empty)
    if not val:
        return classes, files
    unknown = sorted(set(_sub_folders(val[0])) - set(classes))
    if unknown:
        raise BadInput(f"{val[0] / unknown[0]} is a class that {root} does not have", key=KEY)
    files["val"] = _labelled(val[0], classes)
    if not files["val"]:
        raise _without_images(val[0])
    return classes, files


def _without_images(folder: Path) -> BadInput:
    known = ", ".join(sorted(SUFFIXES))
    return BadInput(
        f"{folder} holds no image, and a sub-folder is a class: {known} are read", key=KEY
    )


def _read_files(
    files: list[tuple[Path, int]], root: Path, update: Callable[[bytes], object], size: int
) -> Split:
    images = []
    for file, _ in files:
        content = file.read_bytes()
        update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode())
        update(content)
        images.append(to_square(_decode(content, file)[None], size)[0])
    return Split(_stack(images), torch.tensor([label for _, label in files]))


def _sub_folders(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _labelled(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Return the image files below each class's folder, in the order of their names."""
    return [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((root / name).rglob("*"))
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    ]


def _others(root: Path, images: list[Path]) -> str | None:
    """Return a sentence that names the files that are left out, None if there are none."""
    others = {p.relative_to(root) for p in root.rglob("*") if p.is_file()}
    others -= {image.relative_to(root) for image in images}
    shown = sorted(str(p) for p in others if not any(part.startswith(".") for part in p.parts))
    if not shown:
        return None
    names = ", ".join(shown[:NAMED]) + (" ..." if len(shown) > NAMED else "")
    return f"files in {root} that are no images of a class are left out: {names}"


# ---------------------------------------------------------------------- datasets library


def is_dataset(data: str) -> bool:
    """Return whether ``data`` names something for the datasets library, and no path."""
    return data in HUB or data.startswith(PREFIX)


def read_dataset(data: str, image_size: int | None) -> Images:
    """Return a labelled data set of the Hugging Face Hub, or of a folder it was saved to.

    Its split ``train`` trains; ``validation`` or ``test`` validates, or else one image in five.
    Raises BadInput that names it.
    """
    size = image_size or PHOTOS.image_size
    found = _load(data)
    train, val = (next((found[n] for n in names if n in found), None) for names in (TRAIN, VAL))
    if train is None:
        raise BadInput(f"{data} has the splits {', '.join(found)}; 'train' is needed", key=KEY)
    first, classes = _rows(data, train, size)
    if val is None:
        first, second = with_validation(first, data)
    else:
        second, _ = _rows(data, val, size)
    first, second = _alike(first, second)
    return from_arrays(
        first,
        second,
        source=data,
        description=f"{HUB.get(data, data.removeprefix(PREFIX))}, through the datasets library",
        preset=PHOTOS,
        image_size=size,
        classes=classes,
    )


def _load(data: str) -> Mapping[str, Any]:
    """Return the splits, by name, as the datasets library gives them."""
    name = HUB.get(data, data.removeprefix(PREFIX))
    folder = Path(name).expanduser()
    hint = f"; without a network, give {PREFIX}FOLDER, with a folder that save_to_disk has written"
    with datasets_library(data, extra="datasets", key=KEY, hint=hint) as datasets:
        is_saved = folder.is_dir()
        found = datasets.load_from_disk(str(folder)) if is_saved else datasets.load_dataset(name)
    return found if isinstance(found, Mapping) else {"train": found}


def _rows(data: str, rows: Any, size: int) -> tuple[Split, int]:
    """Return the images and labels of a split, and how many classes it knows."""
    kinds = {name: type(feature).__name__ for name, feature in rows.features.items()}
    pictures = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    labels = labels or [name for name in ("label", "labels") if name in kinds]
    if not pictures or not labels or not len(rows):
        raise BadInput(
            f"{data} has {len(rows)} rows with {', '.join(kinds)}; images and a 'label' are needed",
            key=KEY,
        )
    image, label = pictures[0], labels[0]
    wrong = next((v for v in rows[label] if type(v) is not int or v < 0), None)
    if wrong is not None:
        raise BadInput(
            f"{data} has the {label} {wrong!r}; whole numbers from 0 are needed", key=KEY
        )
    images = []
    for i, row in enumerate(rows):
        pixels = _pixels(row[image], f"{data}, row {i}")
        images.append(to_square(pixels[None], size)[0])
    return Split(_stack(images), torch.tensor(rows[label])), getattr(
        rows.features[label], "num_classes", 0
    )


# ------------------------------------------------------------------------------- decoding


def _decode(content: bytes, file: Path) -> Tensor:
    """Return the pixels of an image file: uint8, 1 or 3 channels."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise BadInput(
            f"{file} needs Pillow: pip install 'altcore-workloads[images]'", key=KEY
        ) from error
    if not content:
        raise BadInput(f"{file} is empty", key=KEY)
    try:
        picture = Image.open(io.BytesIO(content))
        picture.load()
    except UnidentifiedImageError as error:  # whose text is an address
        raise BadInput(f"{file} cannot be read as an image: of no known kind", key=KEY) from error
    # Pillow's readers raise these of broken files, and refuse those that are too large.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadInput(f"{file} cannot be read as an image: {error}", key=KEY) from error
    return _pixels(picture, str(file))


def _pixels(picture: Any, where: str) -> Tensor:
    """Return a Pillow image as uint8 (1 or 3, height, width), without its transparency."""
    if picture.mode not in GREY | COLOUR:
        raise BadInput(
            f"{where} has pixels of the kind {picture.mode}; 8 bits a channel are needed", key=KEY
        )
    mode = "L" if picture.mode in GREY else "RGB"
    plain = picture.convert(mode)
    pixels = torch.frombuffer(bytearray(plain.tobytes()), dtype=torch.uint8)
    return pixels.view(plain.height, plain.width, len(mode)).permute(2, 0, 1)


def _stack(images: list[Tensor]) -> Tensor:
    """Return images of one size as one tensor; grey ones among coloured ones become coloured."""
    channels = max(image.shape[0] for image in images)
    return torch.stack([image.expand(channels, -1, -1) for image in images])


def _alike(train: Split, val: Split) -> tuple[Split, Split]:
    """Return both splits with the channels of the one that has more."""
    channels = max(train.images.shape[1], val.images.shape[1])
    first, second = (
        Split(split.images.expand(-1, channels, -1, -1), split.labels) for split in (train, val)
    )
    return first, second
