"""Other people's ways to round a tensor to a format and back, for `quantize.py`.

Their speed is what is compared. Not all of them round alike: qtorch's and pychop's E4M3 is another
grid (no code is kept for NaN; largest value 240), torch's casts do not saturate in every version.
A peer that is not installed, or whose compiled part cannot be built, costs a line of text only,
and so does one that takes no tensors on a GPU.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

Call = Callable[[Tensor], object]
Peer = dict[str, tuple[Call, float]]
"""For each operation a call, and the share of the tensor that it takes: slow ones get a part."""


def part(x: Tensor, share: float) -> Tensor:
    """The first rows of ``x``, one at least, and the share of it that they are."""
    return x[: max(int(len(x) * share), 1)]


def torch_casts(x: Tensor) -> Peer:
    """Torch's own dtypes, there and back."""

    def cast(dtype: torch.dtype) -> tuple[Call, float]:
        return lambda x: x.to(dtype).to(x.dtype), 1

    return {
        "E4M3 nearest": cast(torch.float8_e4m3fn),
        "E5M2 nearest": cast(torch.float8_e5m2),
        "BF16 nearest": cast(torch.bfloat16),
    }


def ml_dtypes(x: Tensor) -> Peer:
    """NumPy dtypes, of which most frameworks' tests make their expectations."""
    import ml_dtypes
    import numpy as np

    array = x.numpy()

    def cast(dtype: type) -> tuple[Call, float]:
        return lambda _: array.astype(dtype).astype(np.float32), 1

    return {
        "E4M3 nearest": cast(ml_dtypes.float8_e4m3fn),
        "E5M2 nearest": cast(ml_dtypes.float8_e5m2),
        "BF16 nearest": cast(ml_dtypes.bfloat16),
    }


def gfloat(x: Tensor) -> Peer:
    """The library of the IEEE P3109 working group's formats."""
    import gfloat
    import numpy as np
    from gfloat.formats import format_info_ocp_e4m3, format_info_ocp_e5m2

    array = part(x, 1 / 64).numpy()
    share = array.size / x.numel()
    draw = np.random.default_rng(0).integers

    def nearest(info: gfloat.FormatInfo) -> tuple[Call, float]:
        return lambda _: gfloat.round_ndarray(info, array, sat=True), share

    def stochastic(_: Tensor) -> object:
        bits, mode = draw(0, 2**16, array.shape), gfloat.RoundMode.Stochastic
        return gfloat.round_ndarray(format_info_ocp_e4m3, array, mode, True, bits, 16)

    return {
        "E4M3 nearest": nearest(format_info_ocp_e4m3),
        "E5M2 nearest": nearest(format_info_ocp_e5m2),
        "E4M3 stochastic": (stochastic, share),
    }


def pychop(x: Tensor) -> Peer:
    """Chop's torch backend, and its MX formats."""
    os.environ["chop_backend"] = "torch"  # noqa: SIM112 # its name is in small letters
    from pychop import Chop, mx_quantize

    few, fewer = part(x, 1 / 16), part(x, 1 / 256)
    nearest, stochastic, wide = Chop(4, 3), Chop(4, 3, rmode=5), Chop(5, 2)
    share, less = few.numel() / x.numel(), fewer.numel() / x.numel()
    return {
        "E4M3 nearest": (lambda _: nearest(few), share),
        "E5M2 nearest": (lambda _: wide(few), share),
        "E4M3 stochastic": (lambda _: stochastic(few), share),
        "MXFP8-E4M3 there and back": (lambda _: mx_quantize(fewer, "mxfp8_e4m3"), less),
        "MXFP4 there and back": (lambda _: mx_quantize(fewer, "mxfp4_e2m1"), less),
    }


def qtorch(x: Tensor) -> Peer:
    """QPyTorch, whose import compiles C++; the first one takes a minute."""
    float_quantize = load_qtorch().float_quantize

    def cast(exp: int, man: int, rounding: str) -> tuple[Call, float]:
        return lambda x: float_quantize(x, exp, man, rounding), 1

    return {
        "E4M3 nearest": cast(4, 3, "nearest"),
        "E5M2 nearest": cast(5, 2, "nearest"),
        "BF16 nearest": cast(8, 7, "nearest"),
        "E4M3 stochastic": cast(4, 3, "stochastic"),
    }


def load_qtorch() -> ModuleType:
    """Import `qtorch.quant`."""
    # torch looks for ninja on the path, and pip puts it beside a python that may not be there.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    import qtorch.quant

    return qtorch.quant


def torchao(x: Tensor) -> Peer:
    """PyTorch's own MX and NVFP4 tensors, made and read back."""
    with _silent():
        from torchao.prototype.mx_formats.mx_tensor import MXTensor
        from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    def mx(dtype: torch.dtype) -> tuple[Call, float]:
        return lambda x: MXTensor.to_mx(x, dtype, 32).dequantize(), 1

    def nvfp4(x: Tensor) -> Tensor:
        scale = per_tensor_amax_to_scale(x.abs().amax())
        return NVFP4Tensor.to_nvfp4(x, per_tensor_scale=scale).dequantize()

    return {
        "MXFP8-E4M3 there and back": mx(torch.float8_e4m3fn),
        "MXFP4 there and back": mx(torch.float4_e2m1fn_x2),
        "NVFP4 there and back": (nvfp4, 1),
    }


PEERS: dict[str, Callable[[Tensor], Peer]] = {
    "torch cast": torch_casts,
    "torchao": torchao,
    "ml_dtypes": ml_dtypes,
    "qtorch": qtorch,
    "pychop": pychop,
    "gfloat": gfloat,
}
ON_GPU = ("torch cast", "torchao", "qtorch")
"""Those that round a tensor where it lies, and fast enough."""


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Inside, nothing below an error is logged: torchao warns of what only GPUs need."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def reason(error: Exception, problem: str = "cannot be built here") -> str:
    """Why a peer is left out, in one line that names no folder of this machine."""
    if isinstance(error, ModuleNotFoundError):
        return f"not installed ({error.name}); make bench installs it"
    # Compilers' and loaders' errors come as RuntimeError and ImportError.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{problem}: " + re.sub(r"(/[\w.+-]+)+/", "", lines[0])


def available(x: Tensor) -> tuple[dict[str, Peer], dict[str, str]]:
    """Every peer's calls, and for those that are not to be had, why."""
    found, missing = {}, {}
    for name, calls in PEERS.items():
        try:
            if x.is_cuda and name not in ON_GPU:
                missing[name] = "measured on CPUs only"
                continue
            found[name] = calls(x)
        except Exception as error:  # whatever somebody's import or compiler may raise
            missing[name] = reason(error)
    return found, missing
