"""CIFAR-10 as its authors publish it, in the binary or the Python version.

The Python version is a set of pickles, and a pickle is a program. The unpickler here knows only the
names that a numpy array is made of, and calls none of them: it records the arguments. Python 2
wrote the published ones; who loads and dumps them again in Python 3 names a few things otherwise.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altcore.plugin import BadInput
from altcore_workloads.images import KEY, PHOTOS, Images, Split, from_arrays

TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
VAL = "test_batch"
BINARY = ".bin"
WANTED = frozenset({name + suffix for name in (*TRAIN, VAL) for suffix in ("", BINARY)})
FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
CLASSES = 10
NAMES = frozenset(
    {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    }
)
"""All that pickled arrays name, of numpy 1 and 2; `_frombuffer` is protocol 5's."""
BYTES = ("_codecs", "encode")
"""What bytes are to Python 3 in protocol 2, which has none: text that is encoded as latin1."""


def is_source(path: Path) -> bool:
    """Return whether ``path`` is a tar archive, or a folder with CIFAR-10's batches."""
    return (
        _folder(path) is not None if path.is_dir() else path.is_file() and tarfile.is_tarfile(path)
    )


def read(path: Path, image_size: int | None) -> Images:
    """Return CIFAR-10; its test batch validates. Raises BadInput that names the file."""
    found = _files(path)
    is_binary = any(name.endswith(BINARY) for name in found)
    suffix, parse = (BINARY, _binary) if is_binary else ("", _pickled)
    missing = [name + suffix for name in (*TRAIN, VAL) if name + suffix not in found]
    if missing:
        raise BadInput(
            f"{path} has no {missing[0]}: {', '.join(TRAIN)} and {VAL} are needed, each "
            f"with the ending .bin in the binary version",
            key=KEY,
        )
    batches = [parse(found[name + suffix], path / (name + suffix)) for name in (*TRAIN, VAL)]
    *train, val = batches
    return from_arrays(
        Split(torch.cat([b.images for b in train]), torch.cat([b.labels for b in train])),
        val,
        source=str(path),
        description=f"CIFAR-10, {'binary' if is_binary else 'Python'} version",
        preset=PHOTOS,
        image_size=image_size,
        classes=CLASSES,
    )


def _folder(path: Path) -> Path | None:
    """Return the folder with the batches, at ``path`` or in it."""
    candidates = (path, *(path / name for name in FOLDERS))
    return next((c for c in candidates if any((c / n).is_file() for n in WANTED)), None)


def _files(path: Path) -> dict[str, bytes]:
    """Return the contents of the batches, by name; nothing is extracted to the disk."""
    if (folder := _folder(path)) is not None:
        return {name: (folder / name).read_bytes() for name in WANTED if (folder / name).is_file()}
    found = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if name in WANTED and (stream := archive.extractfile(member)) is not None:
                    found[name] = stream.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} is a broken archive: {error}", key=KEY) from error
    return found


def _binary(content: bytes, file: Path) -> Split:
    if not content or len(content) % (1 + PIXELS):
        raise BadInput(
            f"{file} has {len(content)} bytes; records of {1 + PIXELS} are needed, a label "
            "and 32 x 32 pixels in three colours",
            key=KEY,
        )
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, 1 + PIXELS)
    return _split(records[:, 1:], records[:, 0].tolist(), file)


def _pickled(content: bytes, file: Path) -> Split:
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    # A broken or hostile stream makes the unpickler raise nearly anything.
    except Exception as error:
        raise BadInput(f"{file} is not a batch of CIFAR-10: {error}", key=KEY) from error
    batch = found if isinstance(found, dict) else {}
    pixels, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    pixels = _pixels(pixels)
    if pixels is None or not isinstance(labels, list) or len(labels) != len(pixels):
        raise BadInput(
            f"{file} is not a batch of CIFAR-10: an array of bytes, 'data', with {PIXELS} "
            "in a row, and as many 'labels' are needed",
            key=KEY,
        )
    return _split(pixels, labels, file)


def _split(pixels: Tensor, labels: list[Any], file: Path) -> Split:
    for label in labels:
        if type(label) is not int or not 0 <= label < CLASSES:
            raise BadInput(
                f"{file} has the label {label!r}; 0 to {CLASSES - 1} are needed", key=KEY
            )
    return Split(pixels.reshape(-1, *SHAPE), torch.tensor(labels))


class _Named:
    """A name in a pickle, with the arguments and the state that it is given; nothing is called."""

    def __init__(self, name: str, args: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.args = args
        self.state: Any = None

    def __call__(self, *args: Any) -> _Named:
        return _Named(self.name, args)

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _latin1(text: str, encoding: str) -> bytes:
    if type(text) is not str or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("it encodes other text than latin1")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """An unpickler that can name parts of arrays, and do nothing with them."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a record of the name; UnpicklingError if CIFAR-10's files do not have it."""
        if (module, name) == BYTES:
            return _latin1
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not loaded")
        return _Named(name)


def _pixels(array: Any) -> Tensor | None:
    """Return the rows of a numpy array as the pickle describes it, if they are images in bytes."""
    match array:
        case _Named(name="_reconstruct", state=(1, (int(rows), int(columns)), kind, 0, raw)):
            pass
        case _Named(name="_frombuffer", args=(raw, kind, (int(rows), int(columns)), "C")):
            pass
        case _:
            return None
    match kind:
        case _Named(name="dtype", args=(b"u1" | "u1", *_)) if (
            columns == PIXELS
            and rows > 0
            and type(raw) in (bytes, bytearray)
            and len(raw) == rows * columns
        ):
            return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(rows, columns)
    return None
