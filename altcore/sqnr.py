"""How well formats represent data: signal-to-quantization-noise ratio by scale.

The scale that minimises the error is not the one that brings the largest magnitude onto the
format's largest value: clipping a few values may pay. Both are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altcore.errors import BadInput, nearest
from altcore.formats import Format
from altcore.numerics import COUNTS, amax, round_to_grid, scale_of

SAMPLES = 1 << 18
STEPS_PER_BINADE = 8
BINADES_BELOW, BINADES_ABOVE = 12, 2
"""The scales searched, around that of amax."""


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


def samples(what: str, runs_dir: str = "runs") -> Tensor:
    """Return the data called ``what``: a distribution, a .npy file, or a run's weights.

    Of a run these are all parameters of two or more dimensions in its newest checkpoint.
    Returns a float32 or float64 vector; raises `BadInput` for what cannot be found or read.
    """
    if what in DISTRIBUTIONS:
        return DISTRIBUTIONS[what](torch.Generator().manual_seed(0))
    if what.endswith(".npy"):
        return _from_npy(Path(what))
    if (Path(runs_dir) / what / "config.yaml").is_file():
        from altcore.checkpoint import load_newest

        state, _, _ = load_newest(Path(runs_dir) / what / "checkpoints")
        return torch.cat([p.flatten() for p in state["model"].values() if p.dim() >= 2])
    raise BadInput(
        f"--on {what}: neither {', '.join(DISTRIBUTIONS)}, nor a .npy file, nor a run in "
        f"{runs_dir}{nearest(what, DISTRIBUTIONS)}"
    )


def _from_npy(path: Path) -> Tensor:
    try:
        import numpy as np
    except ImportError as error:
        raise BadInput(f"--on {path}: reading it needs numpy: pip install numpy") from error
    try:
        x = torch.from_numpy(np.load(path, allow_pickle=False)).flatten()
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"--on {path}: cannot be read: {error}") from error
    if not x.is_floating_point() or x.numel() == 0:
        raise BadInput(f"--on {path}: floating-point numbers are needed, not {x.dtype} {x.numel()}")
    if not bool(torch.isfinite(x).all()):
        raise BadInput(f"--on {path}: holds NaN or infinity")
    return x.double() if x.dtype == torch.float64 else x.float()


def compare(fmt: Format, x: Tensor) -> dict[str, Any]:
    """Return SQNR in dB at the error-minimising scale and at amax scale, and what is lost there.

    ``overflow`` and ``underflow`` are shares of elements: past the largest value, and nonzero
    but rounded to zero.
    """
    at_amax, _ = scale_of(amax(x), fmt)
    base = float(at_amax)
    exponents = range(-BINADES_BELOW * STEPS_PER_BINADE, BINADES_ABOVE * STEPS_PER_BINADE + 1)
    scales = [base * 2 ** (e / STEPS_PER_BINADE) for e in exponents]
    best = _quietest(fmt, x, scales)
    # Once more, within the step of that search.
    fine = [best * 2 ** (e / (16 * STEPS_PER_BINADE)) for e in range(-16, 17)]
    best = _quietest(fmt, x, fine)
    return {"best": measure(fmt, x, best), "amax": measure(fmt, x, base)}


def _quietest(fmt: Format, x: Tensor, scales: list[float]) -> float:
    return min(scales, key=lambda s: measure(fmt, x, s)["noise"])


def measure(fmt: Format, x: Tensor, scale: float) -> dict[str, float]:
    """Quantize ``x`` at one scale; returns scale, noise (mean square), SQNR and shares lost."""
    counts = torch.zeros(len(COUNTS), dtype=torch.int64)
    r = torch.tensor(1 / scale, dtype=x.dtype)
    q = round_to_grid(x, fmt, r=r, counts=counts)
    wide = x.double()
    noise = float((q.double() * scale - wide).square().mean())
    signal = float(wide.square().mean())
    seen: Mapping[str, int] = dict(zip(COUNTS, counts.tolist(), strict=True))
    return {
        "scale": scale,
        "noise": noise,
        "sqnr_db": 10 * math.log10(signal / noise) if noise and signal else math.inf,
        "overflow": seen["overflow"] / seen["elements"],
        "underflow": seen["flushed"] / seen["elements"],
    }
