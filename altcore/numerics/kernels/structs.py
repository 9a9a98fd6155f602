"""The structs of the C code, field by field, and the arguments of its functions.

The library lists its own structs (`layouts.h`), and `mismatch` compares the two.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

POINTER, INT32, INT64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
UINT32, UINT64, FLOAT = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_float


class Job(ctypes.Structure):
    """``struct job`` of rounding.h."""

    _fields_ = (
        ("x", POINTER),
        ("out", POINTER),
        ("n", INT64),
        ("r", POINTER),
        ("s", POINTER),
        ("row", INT64),
        ("counts", POINTER),
        ("errors", POINTER),
        ("key", UINT64),
        ("is_half", INT32),
        ("to_half", INT32),
        ("is_fake", INT32),
        ("threads", INT32),
        ("scaling", INT32),
        ("margin", FLOAT),
        ("meets", FLOAT),
        ("few", POINTER),
        ("magics", POINTER),
        ("entries", POINTER),
        ("thresholds", POINTER),
        ("payloads", POINTER),
        ("ends", POINTER),
        ("threshold_count", INT64),
        ("buckets", INT64),
        ("bucket_low", UINT32),
        ("bucket_high", UINT32),
        ("bucket_shift", UINT32),
        ("centre", UINT32),
        ("mirrored", UINT32),
        ("bottom", FLOAT),
        ("top", FLOAT),
        ("min_normal", UINT32),
        ("cut", UINT32),
        ("flip", UINT32),
        ("to_magic", UINT32),
        ("gapped", UINT32),
        ("magic", FLOAT),
        ("max", FLOAT),
        ("unit", FLOAT),
        ("random_bits", UINT32),
        ("has_few_bits", UINT32),
        ("half", FLOAT),
        ("smallest", FLOAT),
        ("lowest", FLOAT),
        ("highest", FLOAT),
        ("over_bits", UINT32),
        ("rounding", INT32),
        ("is_table", INT32),
        ("saturates", INT32),
        ("bounded", INT32),
    )


CALL = struct.Struct("PPqPPqPPQiiiiiff4x")
"""The fields of a job that differ from call to call: those before ``few``, padding included."""


class BlockJob(ctypes.Structure):
    """``struct block_job`` of blocks.h."""

    _fields_ = (
        ("job", Job),
        ("scale_job", POINTER),
        ("most", POINTER),
        ("scales", POINTER),
        ("inverses", POINTER),
        ("outer", INT64),
        ("height", INT64),
        ("width", INT64),
        ("block_height", INT64),
        ("block_width", INT64),
        ("rule", INT32),
        ("top", INT32),
        ("threshold", INT32),
        ("lowest_power", INT32),
        ("highest_power", INT32),
        ("power_of_zero", INT32),
        ("largest", FLOAT),
        ("whole", FLOAT),
        ("g", FLOAT),
    )


class Epilogue(ctypes.Structure):
    """``struct epilogue`` of epilogue.h."""

    _fields_ = (
        ("y", POINTER),
        ("out", POINTER),
        ("scales", POINTER * 2),
        ("bias", POINTER),
        ("rows", INT64),
        ("columns", INT64),
        ("is_half", INT32),
        ("to_half", INT32),
        ("by_row", INT32 * 2),
        ("threads", INT32),
    )


class FlipsJob(ctypes.Structure):
    """``struct flips`` of flips.h."""

    _fields_ = (
        ("before", POINTER),
        ("after", POINTER),
        ("earlier", POINTER),
        ("flipped_at", POINTER),
        ("found", POINTER),
        ("n", INT64),
        ("step", INT32),
        ("since", INT32),
        ("is_half", INT32),
        ("threads", INT32),
    )


class Ordinals(ctypes.Structure):
    """``struct ordinals`` of ordinals.h."""

    _fields_ = (
        ("q", POINTER),
        ("out", POINTER),
        ("n", INT64),
        ("least", FLOAT),
        ("min_normal", INT32),
        ("cut", INT32),
        ("omitted", INT32),
        ("middle", INT32),
        ("threads", INT32),
    )


class Reduction(ctypes.Structure):
    """``struct reduction`` of reductions.h."""

    _fields_ = (
        ("x", POINTER),
        ("y", POINTER),
        ("r", POINTER),
        ("n", INT64),
        ("least", FLOAT),
        ("is_half", INT32 * 2),
        ("threads", INT32),
    )


MIRRORS: dict[str, type[ctypes.Structure]] = {
    "job": Job,
    "block_job": BlockJob,
    "epilogue": Epilogue,
    "flips": FlipsJob,
    "ordinals": Ordinals,
    "reduction": Reduction,
}
"""By their names in C."""

FUNCTIONS: dict[str, tuple[list[Any], Any]] = {
    "round": ([POINTER, POINTER], None),
    "round_blocks": ([POINTER], None),
    "amax": ([POINTER, INT64, INT32, INT32, POINTER], None),
    "block_amax": ([POINTER], FLOAT),
    "scale_output": ([POINTER], None),
    "follow_flips": ([POINTER], None),
    "find_ordinals": ([POINTER], None),
    "inner_products": ([POINTER, POINTER], None),
    "moments": ([POINTER, POINTER], None),
    "count_small": ([POINTER, POINTER], None),
}
"""Arguments and result of each function, by its name without ``altcore_``."""

_KINDS = {INT32: "i", INT64: "q", UINT32: "I", UINT64: "Q", FLOAT: "f"}
"""A field's type as `layouts.h` writes it; ``P`` for pointers, arrays and structs."""


class _Field(ctypes.Structure):
    """``struct field`` of layouts.h."""

    _fields_ = (
        ("struct_name", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("kind", INT32),
        ("offset", INT32),
        ("size", INT32),
        ("struct_size", INT32),
    )


Layout = dict[str, tuple[str, int, int]]
"""Kind, offset and size of each field, in order."""


def mismatch(library: ctypes.CDLL) -> str:
    """Return the first difference between the library's structs and `MIRRORS`; empty if none."""
    in_c, sizes = _layouts_of(library)
    for name, mirror in MIRRORS.items():
        ours, theirs = _layout_of(mirror), in_c.get(name, {})
        for field in dict.fromkeys([*theirs, *ours]):
            if ours.get(field) != theirs.get(field):
                pair = f"{theirs.get(field)} in C and {ours.get(field)} in Python"
                return f"struct {name}, field {field}: {pair} (kind, offset, size)"
        if ctypes.sizeof(mirror) != sizes[name]:
            return f"struct {name} has {sizes[name]} bytes in C, {ctypes.sizeof(mirror)} in Python"
    return ""


def _layouts_of(library: ctypes.CDLL) -> tuple[dict[str, Layout], dict[str, int]]:
    """The layouts of the structs as the C compiler has them, and their sizes."""
    library.altcore_fields.restype = ctypes.POINTER(_Field)
    library.altcore_field_count.restype = INT64
    fields = library.altcore_fields()
    layouts: dict[str, Layout] = {}
    sizes: dict[str, int] = {}
    for i in range(library.altcore_field_count()):
        f = fields[i]
        name = f.struct_name.decode()
        sizes[name] = f.struct_size
        layouts.setdefault(name, {})[f.name.decode()] = chr(f.kind), f.offset, f.size
    return layouts, sizes


def _layout_of(mirror: type[ctypes.Structure]) -> Layout:
    layout: Layout = {}
    for name, kind, *_ in mirror._fields_:
        at = getattr(mirror, name)
        layout[name] = _KINDS.get(kind, "P"), at.offset, at.size
    return layout
