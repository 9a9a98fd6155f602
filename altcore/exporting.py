"""Weights of a run in a safetensors file, as values or in the codes of their formats."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from altcore.errors import BadInput, described, keyed, shown
from altcore.formats import (
    AnyFormat,
    BlockFormat,
    check_digests,
    digest,
    digests_of,
    get_format,
    origins_of,
    origins_recorded,
    saved,
)
from altcore.loading import LoadedRun
from altcore.output_files import write_output
from altcore.quantization import CodedWeight, weight_codes

VALUES, MASTERS, CODES = "values", "masters", "codes"
KINDS = {
    VALUES: "each weight as products see it: dequantized",
    MASTERS: "the weights that the optimizer moves",
    CODES: "weights on a grid as packed codes (NAME.codes), with their scales",
}
"""What an exported file holds."""


def export(loaded: LoadedRun, file: str | Path, kind: str = VALUES) -> dict[str, str]:
    """Write the weights into a safetensors file; returns why codes cannot hold some, by name.

    Args:
        loaded: what `load` returned.
        file: of safetensors, replaced at once if it is there.
        kind: of what: values, masters or codes (see `KINDS`). What is on no grid, or on one that
            the file cannot hold, is written as the model has it.

    Raises:
        BadInput: if safetensors is not installed, the kind is unknown, or the file cannot be
            written or is none, such as a link or a device.
        NoSpace: if the disk is full; what was there stays.
    """
    if not isinstance(loaded, LoadedRun):
        raise BadInput(f"what altcore.load returned is needed, not {shown(loaded)}", key="loaded")
    if not isinstance(file, str | PathLike):
        raise BadInput(f"a path is needed, not {shown(file)}", key="file")
    if kind not in KINDS:
        raise BadInput(f"there is no kind {shown(kind)}", hint=f"one of {', '.join(KINDS)}")
    _, encode = _safetensors()
    q = loaded.quantization
    coded, others = ({}, {}) if kind == MASTERS else weight_codes(q)
    by_weight = {id(q.weights.parameters[name]): weight for name, weight in coded.items()}
    every = dict(q.model.named_parameters(remove_duplicate=False))
    coded = {name: by_weight[id(p)] for name, p in every.items() if id(p) in by_weight}
    own = {} if kind == MASTERS else q.stored
    stored = {id(w.slot.parameter): w.as_seen(w.slot.parameter)[1] for w in own.values()}
    held = loaded.model.state_dict()
    held |= {name: stored[id(p)] for name, p in every.items() if name in held and id(p) in stored}
    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    for name, tensor in held.items():
        weight = coded.get(name)
        if weight is None:
            tensors[name] = tensor
        elif kind == VALUES:
            tensors[name] = weight.values().to(tensor.dtype)
        else:
            parts = {"codes": weight.codes, "scales": weight.scales, "scale": weight.scale}
            tensors |= {f"{name}.{key}": part for key, part in parts.items() if part is not None}
        if weight is not None:
            about[name] = {
                "format": weight.format.name,
                "shape": list(weight.shape),
                "bits": _element_bits(weight.format),
            }
    formats = [weight.format for weight in coded.values()]
    named = digests_of(formats)
    told = {
        "run": loaded.summary["name"],
        "checkpoint": loaded.checkpoint.name,
        "kind": kind,
        "weights": json.dumps(about),
        "formats": json.dumps(named),
        "origins": json.dumps(origins_of(named)),
        "definitions": json.dumps({f.name: saved(f) for f in formats if f.name not in named}),
    }
    # One tensor may have several names, which the file does not know of: each gets its own copy.
    whole = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    told["sha256"] = json.dumps({name: _sha256(t) for name, t in whole.items()})
    told["digest"] = digest(told)
    write_output(Path(file), encode(whole, metadata={"altcore": json.dumps(told)}))
    return others


def _safetensors() -> tuple[Callable[..., Any], Callable[..., bytes]]:
    """Return what opens a file of safetensors, and what makes its bytes."""
    try:
        from safetensors import safe_open
        from safetensors.torch import save
    except ImportError as error:
        problem = "safetensors is not installed"
        raise BadInput(problem, hint="pip install altcore[export]") from error
    return safe_open, save


def _sha256(tensor: Tensor) -> str:
    """Return the digest of a contiguous tensor's type, shape and bytes; numpy need not be there."""
    size = tensor.numel() * tensor.element_size()
    data = (ctypes.c_char * size).from_address(tensor.data_ptr()) if size else b""
    kind = f"{tensor.dtype} {list(tensor.shape)}\n".encode()
    return hashlib.sha256(kind + bytes(data)).hexdigest()


def _element_bits(fmt: AnyFormat) -> int:
    return int((fmt.element if isinstance(fmt, BlockFormat) else fmt).bits)


def read_export(file: str | Path) -> dict[str, Tensor]:
    """Return the tensors of an exported file by the names of the model's state, decoded.

    Formats that were installed must be so, with the values that they had; the file defines others.
    `BadInput` names one that is not, with the distribution and version that it came from, and a
    tensor that was altered. safetensors must be installed.
    """
    told, tensors = _read(Path(file))
    known = json.loads(told["sha256"])
    for name in {*known, *tensors}:
        if name not in tensors or _sha256(tensors[name]) != known.get(name):
            raise BadInput(f"{file}: {name} is not as it was exported")
    if told["kind"] != CODES:
        return tensors
    with keyed(str(file)), origins_recorded(json.loads(told.get("origins", "{}"))):
        return _decoded(told, tensors)


def _decoded(told: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an export, with the values of each weight in the place of its codes."""
    check_digests(json.loads(told["formats"]))
    definitions = json.loads(told["definitions"])
    for name, entry in json.loads(told["weights"]).items():
        parts = [tensors.pop(f"{name}.{key}", None) for key in ("codes", "scales", "scale")]
        codes, scales, scale = parts
        assert codes is not None
        named = entry["format"]
        fmt, shape = get_format(definitions.get(named, named)), tuple(entry["shape"])
        tensors[name] = CodedWeight(fmt, shape, codes, scales, scale).values()
    return tensors


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what an export says of itself, and its tensors; `BadInput` for any other file."""
    safe_open, _ = _safetensors()
    if not file.is_file():
        raise BadInput(f"{file} does not exist")
    try:
        with safe_open(str(file), framework="pt") as opened:
            told = json.loads((opened.metadata() or {})["altcore"])
            names = opened.keys()
            tensors = {name: opened.get_tensor(name) for name in names}
        if told.pop("digest") != digest(told):
            raise ValueError("its metadata was altered")
    # safetensors has errors of its own, and a damaged header may mean anything.
    except Exception as error:
        problem = f"{file} is not an export of altcore, or is damaged: {described(error)}"
        raise BadInput(problem) from error
    return told, tensors
