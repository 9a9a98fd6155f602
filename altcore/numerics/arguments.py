"""What users may write for a format, a scale or an axis, turned into what functions work on."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from altcore.errors import BadInput, nearest
from altcore.formats import AnyFormat, BlockFormat, Format
from altcore.numerics.grids import check_floating
from altcore.numerics.native import number as single
from altcore.numerics.native import plain
from altcore.numerics.plan import FLOAT32, LAYOUTS, compute_dtype, to_single
from altcore.python_values import as_python

Scale = float | Tensor | None


def find(fmt: AnyFormat | str) -> AnyFormat:
    """Return ``fmt`` itself, or the installed format of that name; `BadInput` if unknown."""
    if isinstance(fmt, Format | BlockFormat):
        return fmt
    if not isinstance(fmt, str):
        raise BadInput(f"a format or its name is needed, not {type(fmt).__name__}")
    from altcore.formats import get_format  # only names need the installed plugins

    return get_format(fmt)


def find_coded(fmt: AnyFormat | str) -> Format:
    """`find` for what gives each number a code: `BadInput` for a block format, too."""
    found = find(fmt)
    if isinstance(found, BlockFormat):
        raise BadInput(
            f"format {found.name}: codes of a block format are worth nothing without its scales: "
            "use altcore.pack and altcore.unpack"
        )
    return found


def find_grid(fmt: AnyFormat | str) -> Format:
    """`find` for what looks at one grid: `BadInput` for a block format, too."""
    found = find(fmt)
    if isinstance(found, BlockFormat):
        raise BadInput(
            f"format {found.name} has another grid in each block: use its element format, "
            f"{found.element.name}, with a scale"
        )
    return found


def scale_pair(scale: Scale, x: Tensor, fmt: Format) -> tuple[Tensor | None, Tensor | None]:
    """The given scale as tensors ``s`` and ``r = fl(1 / s)`` in ``x``'s compute dtype.

    Raises `BadInput` for one that is not positive, or does not broadcast to ``x``.
    """
    if scale is None:
        return None, None
    scale, dtype = as_python(scale), compute_dtype(x.dtype, fmt)
    if isinstance(scale, Tensor):
        check_floating(scale, "scale")
        scale = scale.detach()
        # Looked at where that costs no transfer; the smallest one is NaN if any is.
        number = float(scale.min()) if plain(scale) and scale.numel() else 1.0
        s = scale.to(device=x.device, dtype=dtype)
    elif isinstance(scale, int | float) and not isinstance(scale, bool):
        number = float(scale) if dtype == torch.float64 else to_single(float(scale))
        if dtype == torch.float32 and 0 < number < math.inf and plain(x):
            return _pair_of(number)
        s = torch.full((), number, dtype=dtype, device=x.device)
    else:
        raise BadInput(f"scale: a scale is a number or a tensor, not {scale!r}")
    if not 0 < number < math.inf:
        raise BadInput(f"scale: a scale is a positive number in {dtype}, not {number}")
    if isinstance(scale, Tensor):
        check_spread(scale, x.shape)
    # Clamped as in scale_of, for scales whose inverse passes the largest number.
    largest = torch.full_like(s, LAYOUTS[dtype].largest)
    return s, torch.minimum(torch.ones_like(s) / s, largest)


@functools.lru_cache(maxsize=256)
def _pair_of(number: float) -> tuple[Tensor, Tensor]:
    """`scale_pair` of one float32 on the CPU, kept: making tensors takes longer than rounding.

    In float64 and rounded once more, a quotient of two float32s is rounded once.
    """
    return single(number), single(min(to_single(1 / number), FLOAT32.largest))


def key_for(x: Tensor, rounding: str, key: int | Tensor | None) -> int | Tensor | None:
    """Return ``key``, or one that torch draws if stochastic rounding has none.

    The default generator of ``x``'s device draws it, so that `torch.manual_seed` decides.
    """
    if key is not None or rounding != "stochastic":
        return key
    check_floating(x)
    try:
        return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=x.device)
    except RuntimeError as error:
        raise BadInput(
            "key: one is drawn under vmap if its randomness is 'same' or 'different': "
            "say so, or give one"
        ) from error


def check_spread(scale: Tensor, shape: Sequence[int]) -> None:
    """Raise `BadInput` unless ``scale`` broadcasts to a tensor of ``shape``."""
    missing = len(shape) - scale.ndim
    if missing < 0 or any(
        n not in (1, m) for n, m in zip(scale.shape, shape[missing:], strict=True)
    ):
        raise BadInput(
            f"scale: shape {list(scale.shape)} does not broadcast to {list(shape)}, that of the "
            "tensor: a scale for all of it has no dimension, one for each slice has size 1 along "
            "the other axes"
        )


def check_axis(x: Tensor, axis: int) -> int:
    """Return ``axis`` as an int; `BadInput` unless ``x`` has it."""
    axis = as_python(axis)
    if not isinstance(axis, int) or isinstance(axis, bool) or not -x.ndim <= axis < x.ndim:
        raise BadInput(f"axis: a tensor of {x.ndim} dimension(s) has no axis {axis!r}")
    return axis


def check_choice(what: str, value: str, known: Collection[str]) -> None:
    """Raise `BadInput` unless ``value`` is one of the known ones; the nearest is offered."""
    if value not in known:
        raise BadInput(
            f"unknown {what} {value!r:.60}",
            meant=nearest(value, known),
            hint=f"one of {', '.join(known)}",
        )
