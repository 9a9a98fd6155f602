"""How well formats represent data: signal-to-quantization-noise ratio by scale.

The scale that minimises the error is not the one that brings the largest magnitude onto the
format's largest value: clipping a few values may pay. Both are given. Block formats make their
scales themselves, of the largest magnitude of each block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altcore.blocks import AnyFormat, BlockFormat
from altcore.errors import BadInput, nearest
from altcore.formats import Format
from altcore.numerics import COUNTS, amax, round_to_grid, scale_of
from altcore.numerics.blocks import round_blocks

SAMPLES = 1 << 18
COLUMNS = 1 << 9
"""The samples of a distribution are a matrix of so many columns, for blocks to lie in."""
STEPS_PER_BINADE = 8
BINADES_BELOW, BINADES_ABOVE = 12, 2
"""The scales searched, around that of amax."""
FEW = 1 << 14
"""Elements on which scales far from that of amax are tried."""


def _student_t(generator: torch.Generator) -> Tensor:
    # Normal over the root of chi-squared / 5, drawn as a sum of squares.
    normal = torch.randn(SAMPLES, generator=generator)
    chi = torch.randn(SAMPLES, 5, generator=generator).square().sum(1)
    return normal / (chi / 5).sqrt()


def _laplace(generator: torch.Generator) -> Tensor:
    uniform = torch.rand(SAMPLES, generator=generator, dtype=torch.float64) - 0.5
    return (-uniform.sign() * torch.log1p(-2 * uniform.abs())).float()


DISTRIBUTIONS = {
    "normal": lambda g: torch.randn(SAMPLES, generator=g),
    "uniform": lambda g: torch.rand(SAMPLES, generator=g) * 2 - 1,
    "laplace": _laplace,
    "t5": _student_t,
}
"""Samples, float32, drawn with a fixed seed; t5 is Student's t with 5 degrees of freedom."""


def tensors(what: str, runs_dir: str = "runs") -> list[Tensor]:
    """Return the data called ``what``: a distribution, a .npy file, or a run's weights.

    Of a run these are all parameters of two or more dimensions in its newest checkpoint.
    Returns float32 or float64 tensors in their own shapes; raises `BadInput` for what cannot be
    found or read.
    """
    if what in DISTRIBUTIONS:
        return [DISTRIBUTIONS[what](torch.Generator().manual_seed(0)).reshape(-1, COLUMNS)]
    if what.endswith(".npy"):
        return [_from_npy(Path(what))]
    if (Path(runs_dir) / what / "config.yaml").is_file():
        from altcore.checkpoint import load_newest

        state, _, _ = load_newest(Path(runs_dir) / what / "checkpoints")
        return [p for p in state["model"].values() if p.dim() >= 2]
    raise BadInput(
        f"--on {what}: neither {', '.join(DISTRIBUTIONS)}, nor a .npy file, nor a run in "
        f"{runs_dir}{nearest(what, DISTRIBUTIONS)}"
    )


def samples(what: str, runs_dir: str = "runs") -> Tensor:
    """Return `tensors` as one vector."""
    return _vector(tensors(what, runs_dir))


def _vector(data: Tensor | Sequence[Tensor]) -> Tensor:
    return data.flatten() if isinstance(data, Tensor) else torch.cat([x.flatten() for x in data])


def _from_npy(path: Path) -> Tensor:
    try:
        import numpy as np
    except ImportError as error:
        raise BadInput(f"--on {path}: reading it needs numpy: pip install numpy") from error
    try:
        x = torch.from_numpy(np.load(path, allow_pickle=False))
    except OSError as error:
        raise BadInput(f"--on {path}: cannot be read: {error.strerror}") from error
    # What numpy says of other files is how to load them unsafely.
    except (EOFError, ValueError, TypeError) as error:
        raise BadInput(f"--on {path}: is no .npy file of numbers") from error
    if not x.is_floating_point() or x.numel() == 0:
        raise BadInput(f"--on {path}: floating-point numbers are needed, not {x.dtype} {x.numel()}")
    if not bool(torch.isfinite(x).all()):
        raise BadInput(f"--on {path}: holds NaN or infinity")
    return x.double() if x.dtype == torch.float64 else x.float()


def compare(fmt: AnyFormat, data: Tensor | Sequence[Tensor]) -> dict[str, Any]:
    """Return SQNR in dB at the error-minimising scale and at amax scale, and what is lost there.

    ``overflow`` and ``underflow`` are shares of elements: past the largest value, and nonzero
    but rounded to zero. For a block format, whose blocks lie along the last axis of each tensor,
    ``best`` is None and ``amax`` is under its own scales; `BadInput` where blocks are square and
    a tensor has one dimension.
    """
    if isinstance(fmt, BlockFormat):
        return {"best": None, "amax": measure_blocks(fmt, data)}
    x = _vector(data)
    at_amax, _ = scale_of(amax(x), fmt)
    base = float(at_amax)
    exponents = range(-BINADES_BELOW * STEPS_PER_BINADE, BINADES_ABOVE * STEPS_PER_BINADE + 1)
    scales = [base * 2 ** (e / STEPS_PER_BINADE) for e in exponents]
    best = _quietest(fmt, x, scales)
    far = _far_above(fmt, x, base)
    if _noise(fmt, x, far) < _noise(fmt, x, best):
        steps = range(-STEPS_PER_BINADE, STEPS_PER_BINADE + 1)
        best = _quietest(fmt, x, [far * 2 ** (e / STEPS_PER_BINADE) for e in steps])
    # Once more, within the step of that search.
    fine = [best * 2 ** (e / (16 * STEPS_PER_BINADE)) for e in range(-16, 17)]
    best = _quietest(fmt, x, fine)
    return {"best": measure(fmt, x, best), "amax": measure(fmt, x, base)}


def _far_above(fmt: Format, x: Tensor, base: float) -> float:
    """The best power of two times ``base``, up to where all is flushed, by a part of ``x``.

    Posits are densest at 1, which may be many binades below their largest value.
    """
    binades = max(1, math.ceil(math.log2(fmt.max / fmt.smallest)))
    part = x[:: max(1, x.numel() // FEW)]
    return _quietest(fmt, part, [base * 2.0**e for e in range(1, binades + 1)])


def _quietest(fmt: Format, x: Tensor, scales: list[float]) -> float:
    return min(scales, key=lambda s: _noise(fmt, x, s))


def _noise(fmt: Format, x: Tensor, scale: float) -> float:
    noise = measure(fmt, x, scale)["noise"]
    return math.inf if math.isnan(noise) else noise  # the inverse of a tiny scale is infinite


def measure(fmt: Format, x: Tensor, scale: float) -> dict[str, float]:
    """Quantize ``x`` at one scale; returns scale, noise (mean square), SQNR and shares lost."""
    counts = torch.zeros(len(COUNTS), dtype=torch.int64)
    r = torch.tensor(1 / scale, dtype=x.dtype)
    q = round_to_grid(x, fmt, r=r, counts=counts)
    wide = x.double()
    noise = float((q.double() * scale - wide).square().mean())
    signal = float(wide.square().mean())
    return {"scale": scale, **_figures(noise, signal, counts)}


def measure_blocks(fmt: BlockFormat, data: Tensor | Sequence[Tensor]) -> dict[str, Any]:
    """Quantize tensors to a block format; returns what `measure` does, with None for the scale."""
    counts = torch.zeros(len(COUNTS), dtype=torch.int64)
    noise = signal = 0.0
    for x in [data] if isinstance(data, Tensor) else data:
        if fmt.is_square and x.dim() < 2:
            raise BadInput(f"format {fmt.name}: its blocks are square, and the data is a vector")
        found = round_blocks(x, fmt, counts=counts)
        wide, q = x.double(), found.values.double()
        if found.scale is not None:
            q = q * found.scale.double()
        noise += float((q - wide).square().sum())
        signal += float(wide.square().sum())
    elements = int(counts[COUNTS.index("elements")])
    return {"scale": None, **_figures(noise / elements, signal / elements, counts)}


def _figures(noise: float, signal: float, counts: Tensor) -> dict[str, float]:
    seen: Mapping[str, int] = dict(zip(COUNTS, counts.tolist(), strict=True))
    return {
        "noise": noise,
        "sqnr_db": 10 * math.log10(signal / noise) if noise and signal else math.inf,
        "overflow": seen["overflow"] / seen["elements"],
        "underflow": seen["flushed"] / seen["elements"],
    }
