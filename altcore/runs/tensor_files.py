"""Files of tensors and plain data, with their hash and size as manifests record them.

Functions import torch: who lists runs waits for none of it.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from altcore import durable
from altcore.errors import AltcoreError, BadInput, InvalidCheckpoint, UnreadableFile


class _HashingFile(io.RawIOBase):
    """Writes to a descriptor, and hashes what it writes.

    After an error it only pretends to write: torch, which calls it from C++, must not meet one.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.size, self.sha256 = descriptor, 0, hashlib.sha256()
        self.error: OSError | None = None

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Write all of ``data``."""
        view = memoryview(data)
        if self.error is None:
            try:
                durable.write(self.descriptor, view)
            except OSError as error:
                self.error = error
            self.sha256.update(view)
            self.size += len(view)
        return len(view)


def check_readable(value: Any, key: str) -> None:
    """Raise `BadInput`, with the key, for what torch would write and refuse to read again."""
    import torch

    if type(value) in (dict, OrderedDict, Counter):
        for name, inner in value.items():
            where = f"{key}.{name}" if key else str(name)
            check_readable(name, where)
            check_readable(inner, where)
    elif type(value) in (list, tuple, set, torch.Size):
        for i, inner in enumerate(value):
            check_readable(inner, f"{key}.{i}")
    elif isinstance(value, torch.Tensor):
        kind = type(value)
        if kind not in (torch.Tensor, torch.nn.Parameter) and not _is_safe(kind):
            problem = f"no checkpoint with a tensor of class {kind.__name__} could be read again"
            raise BadInput(problem, key=key, hint="torch.serialization.add_safe_globals allows it")
        if value.is_mkldnn:
            raise BadInput("no file holds a tensor of oneDNN's", key=key, hint="use to_dense()")
        for name, inner in getattr(value, "__dict__", {}).items():
            check_readable(inner, f"{key}.{name}")
    elif not (type(value) in PLAIN or isinstance(value, torch.dtype | torch.device)):
        problem = f"{type(value).__name__} cannot be kept in a checkpoint"
        raise BadInput(problem, key=key, hint="tensors, numbers, text, lists and dicts can")


def _is_safe(kind: type) -> bool:
    """Whether torch reads objects of a class without running code that nobody allowed."""
    import torch

    allowed = torch.serialization.get_safe_globals()
    return any((one[0] if isinstance(one, tuple) else one) is kind for one in allowed)


PLAIN = (type(None), bool, int, float, complex, str, bytes)


def write_tensors(path: Path, value: Any) -> dict[str, Any]:
    """Write a file, durably; returns its hash and size. Nothing is copied in memory first.

    Raises:
        AltcoreError: if what is on the disk is not all that was to be written.
        BadInput: for what could not be read again, before anything is written.
    """
    import torch

    check_readable(value, "")
    descriptor = durable.open_to_write(path)
    try:
        raw = _HashingFile(descriptor)
        with io.BufferedWriter(raw, 1 << 20) as file:
            torch.save(value, file)
        if raw.error is not None:
            raise raw.error
        durable.fsync(descriptor)
        _check_written(path, os.fstat(descriptor).st_size, raw.size, value)
    finally:
        os.close(descriptor)
    return {"sha256": raw.sha256.hexdigest(), "bytes": raw.size}


def _check_written(path: Path, size: int, written: int, value: Any) -> None:
    """Raise `AltcoreError` for a file that lacks tensors: earlier ones are removed for it.

    Only the archive's list of parts is read. Other code can replace `torch.save` or `os.write`.
    """
    needed = sum({s.data_ptr(): s.nbytes() for s in _storages(value)}.values())
    with path.open("rb") as file:
        parts = _stored_parts(file, size) or []
    sizes = {part.filename.partition("/")[2]: part.file_size for part in parts}
    held = sum(part for name, part in sizes.items() if name.startswith("data/"))
    if size != written or "data.pkl" not in sizes or held < needed:
        problem = f"it has {held} of {needed} bytes of tensors, and {size} of {written} in all"
        raise AltcoreError(
            f"{path} was not written as it should be: {problem}: "
            "other code of this process may have replaced torch.save or os.write"
        )


def _storages(value: Any) -> Iterator[Any]:
    """Yield the memory of each plain tensor."""
    import torch

    if type(value) in (torch.Tensor, torch.nn.Parameter):
        if value.layout == torch.strided and value.device.type != "meta":
            yield value.untyped_storage()
    elif isinstance(value, Mapping | list | tuple | set):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _storages(inner)


def read_tensors(path: Path, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors and plain data.

    Raises:
        InvalidCheckpoint: if they are not as recorded.
        UnreadableFile: if they are, or may be, and cannot be read here and now.
    """
    import torch

    try:
        data = durable.read_file(path)
    except OSError as error:
        raise InvalidCheckpoint(f"{path} cannot be read: {error!r}") from error
    if hashlib.sha256(data).hexdigest() != recorded["sha256"]:
        raise InvalidCheckpoint(f"{path} does not match its sha256")
    try:
        if _stored_parts(io.BytesIO(data), len(data)) is None:
            raise InvalidCheckpoint(f"{path} is no archive of tensors as altcore writes it")
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except InvalidCheckpoint:
        raise
    except pickle.UnpicklingError as error:  # it names code to run
        raise InvalidCheckpoint(f"{path} cannot be read: {error!r:.200}") from error
    # Memory, an import, another version of torch: the bytes are those that were written.
    except Exception as error:
        problem = f"{path} is as it was written, and cannot be read here: {error!r:.200}"
        raise UnreadableFile(problem, hint="it stays as it is: try again") from error
    if not isinstance(state, dict):
        raise InvalidCheckpoint(f"{path} holds no state")
    return state


def _stored_parts(file: IO[bytes], size: int) -> list[zipfile.ZipInfo] | None:
    """Return the parts of an archive without compression: one that unpacks to its size at most.

    A few MB of another could unpack to more than the memory. None for anything else.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error):
        return None
    stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
    return parts if stored and sum(part.file_size for part in parts) <= size else None


def size_of(value: Any) -> int:
    """Return about how many bytes a file of tensors needs."""
    from torch import Tensor

    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(size_of, value.values()))
    return sum(map(size_of, value)) if isinstance(value, list | tuple) else 8
