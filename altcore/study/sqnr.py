"""The signal-to-quantization-noise ratio (SQNR) of formats on data.

The scale with the least error is not the one that maps the largest magnitude to the format's
largest value, since it may pay to clip a few values. Both are computed. Block formats compute their
own scales from the largest magnitude of each block.

Named distributions are evaluated exactly, by integrals (`altcore.study.expected_noise`), tensors by
rounding them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from altcore.errors import BadInput, nearest
from altcore.formats import AnyFormat, BlockFormat, Format
from altcore.numerics import COUNTS, Meters, amax, round_blocks, round_to_grid, scale_of
from altcore.study.distributions import NAMES, Distribution, named, of_elements
from altcore.study.expected_noise import Loss, best_scale, expected, expected_in_blocks

SMALLEST, LARGEST = 1e-140, 1e140
"""The largest magnitude of data of which squares, of errors, too, are float64's own numbers."""
Data: TypeAlias = Distribution | Tensor | Sequence[Tensor]


def read_data(what: str, runs_dir: str = "runs") -> Distribution | list[Tensor]:
    """Return the data named ``what``: a distribution, a .npy file, or a run's weights.

    A run's weights are all parameters of two or more dimensions in its newest checkpoint. Tensors
    are float32 or float64, in their own shapes. Raises `BadInput` if there is no such data, or it
    cannot be read.
    """
    if what in NAMES:
        return named(what)
    if what.endswith(".npy"):
        return [_from_npy(Path(what))]
    if (Path(runs_dir) / what / "config.yaml").is_file():
        from altcore.runs import load_newest

        state = load_newest(Path(runs_dir) / what / "checkpoints").state
        if state is None:
            raise BadInput("the run has made no step yet", key="--on", part=what)
        return [p for p in state["model"].values() if p.dim() >= 2]
    raise BadInput(
        f"neither {', '.join(NAMES)}, nor a .npy file, nor a run in {runs_dir}",
        key="--on",
        part=what,
        meant=nearest(what, NAMES),
    )


def _from_npy(path: Path) -> Tensor:
    try:
        import numpy as np
    except ImportError as error:
        raise BadInput(f"--on {path}: reading it needs numpy: pip install numpy") from error
    try:
        x = torch.from_numpy(np.load(path, allow_pickle=False))
    except OSError as error:
        raise BadInput(f"--on {path}: cannot be read: {error.strerror}") from error
    # For other files, numpy's message explains how to load them unsafely.
    except (EOFError, ValueError, TypeError) as error:
        raise BadInput(f"--on {path}: it is not a .npy file of numbers") from error
    if not x.is_floating_point() or x.numel() == 0:
        raise BadInput(f"--on {path}: floating-point numbers are needed, not {x.dtype} {x.numel()}")
    if not bool(torch.isfinite(x).all()):
        raise BadInput(f"--on {path}: holds NaN or infinity")
    largest = float(x.abs().max())
    if largest and not SMALLEST <= largest <= LARGEST:
        raise BadInput(
            f"--on {path}: its largest magnitude is {largest:.3g}, and one is needed from "
            f"{SMALLEST:g} to {LARGEST:g}, whose squares float64 has",
            hint="multiply the data by a power of two",
        )
    return x.double() if x.dtype == torch.float64 else x.float()


def sqnr_of(fmt: AnyFormat, data: Data) -> dict[str, Any]:
    """Return SQNR in dB and the shares lost, at the error-minimising scale and at amax scale.

    ``overflow`` and ``underflow`` are shares of elements: beyond the largest value, and nonzero
    but rounded to zero. The blocks of a block format lie along the last axis of each tensor. Its
    ``best`` is None, and its ``amax`` uses its own scales. Raises `BadInput` if blocks are square
    and a tensor has one dimension.

    The best scale of a named distribution takes all of its numbers into account, however large. At
    amax, and in blocks, the data is a tensor of 2**18 numbers whose largest magnitude is the median
    one. That may lose less, since no number in such a tensor is larger.
    """
    if isinstance(data, Distribution):
        return _compare_exactly(fmt, data)
    if isinstance(fmt, BlockFormat):
        return {"best": None, "amax": measure_blocks(fmt, data)}
    x = data.flatten() if isinstance(data, Tensor) else torch.cat([t.flatten() for t in data])
    base = float(scale_of(amax(x), fmt)[0])
    found = [measure(fmt, x, scale) for scale in (best_scale(fmt, of_elements(x)), base)]
    # Both, since scaled numbers are rounded to float32 first, of which the search knows nothing.
    return {"best": min(found, key=lambda m: m["noise"]), "amax": found[1]}


def _compare_exactly(fmt: AnyFormat, data: Distribution) -> dict[str, Any]:
    tensor = data.up_to_amax()
    if isinstance(fmt, BlockFormat):
        lost = expected_in_blocks(fmt, tensor)
        return {"best": None, "amax": {"scale": None, **_figures(lost, tensor.signal)}}
    best, base = best_scale(fmt, data), data.amax / fmt.max
    return {
        "best": {"scale": best, **_figures(expected(fmt, data, best), data.signal)},
        "amax": {"scale": base, **_figures(expected(fmt, tensor, base), tensor.signal)},
    }


def measure(fmt: Format, x: Tensor, scale: float) -> dict[str, float]:
    """Quantize ``x`` at one scale; return scale, noise (mean square), SQNR and shares lost."""
    counts = torch.zeros(len(COUNTS), dtype=torch.int64)
    r = torch.tensor(1 / scale, dtype=x.dtype)
    q = round_to_grid(x, fmt, r=r, meters=Meters(counts))
    wide = x.double()
    noise = float((q.double() * scale - wide).square().mean())
    signal = float(wide.square().mean())
    return {"scale": scale, **_figures(_loss(noise, counts), signal)}


def measure_blocks(fmt: BlockFormat, data: Tensor | Sequence[Tensor]) -> dict[str, Any]:
    """Quantize tensors to a block format; return the same as `measure`, with None as the scale."""
    counts = torch.zeros(len(COUNTS), dtype=torch.int64)
    noise = signal = 0.0
    for x in [data] if isinstance(data, Tensor) else data:
        if fmt.is_square and x.dim() < 2:
            raise BadInput(f"format {fmt.name}: its blocks are square, and the data is a vector")
        found = round_blocks(x, fmt, meters=Meters(counts))
        wide, q = x.double(), found.values.double()
        if found.scale is not None:
            q = q * found.scale.double()
        noise += float((q - wide).square().sum())
        signal += float(wide.square().sum())
    elements = int(counts[COUNTS.index("elements")])
    return {"scale": None, **_figures(_loss(noise / elements, counts), signal / elements)}


def _loss(noise: float, counts: Tensor) -> Loss:
    seen: Mapping[str, int] = dict(zip(COUNTS, counts.tolist(), strict=True))
    overflow, underflow = seen["overflow"], seen["flushed"]
    return Loss(noise, overflow / seen["elements"], underflow / seen["elements"])


def _figures(lost: Loss, signal: float) -> dict[str, float]:
    return {
        "noise": lost.noise,
        "sqnr_db": 10 * math.log10(signal / lost.noise) if lost.noise and signal else math.inf,
        "overflow": lost.overflow,
        "underflow": lost.underflow,
    }
