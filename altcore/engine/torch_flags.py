"""Flags of torch that decide what it computes: how to read and set each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import _tensor_str
from torch.backends import cuda as cuda_products
from torch.backends import cudnn, mha, mkldnn, opt_einsum


class Flag(NamedTuple):
    """A setting of the whole process."""

    label: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _of(label: str, owner: Any, name: str) -> Flag:
    return Flag(label, lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _print_options() -> tuple[Any, ...]:
    return tuple(sorted(_tensor_str.get_printoptions().items()))


def _set_print_options(options: tuple[Any, ...]) -> None:
    given = dict(options)
    torch.set_printoptions(**given)


def _default_device() -> str:
    try:
        return str(torch.get_default_device())
    except AttributeError:  # torch 2.8, once a device that was set has been taken back
        return "cpu"


def _set_default_device(name: str) -> None:
    # A default device that is set costs every operation; "cpu" is what there is without one.
    torch.set_default_device(None if name == "cpu" else name)
    if name == "cpu":  # or torch 2.8 can no longer say which device is the default
        vars(torch._GLOBAL_DEVICE_CONTEXT).pop("device_context", None)


def _flushes_denormal() -> bool:
    # torch can set this, and not say it.
    return not bool(torch.full((1,), 1e-42, device="cpu").mul(1.0).ne(0))


LIBRARIES = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
"""Each has a precision of float32 of its own, beside that of all."""


def _precisions() -> Iterator[Flag]:
    """Yield what each library makes of float32, as far as this torch lets it be set."""
    for name in ("", *LIBRARIES):
        parts = ["backends", *filter(None, name.split("."))]
        owner: Any = torch
        for part in parts:
            owner = getattr(owner, part, None)
        if hasattr(owner, "fp32_precision"):
            yield _of(".".join(["torch", *parts, "fp32_precision"]), owner, "fp32_precision")


FLAGS = (
    # Of these first: while one of them is set, torch refuses to read some of the older ones.
    *_precisions(),
    Flag("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    Flag(
        "torch's deterministic algorithms",
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        _set_deterministic,
    ),
    Flag("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Flag("torch's default device", _default_device, _set_default_device),
    Flag("torch's print options", _print_options, _set_print_options),
    Flag(
        "torch's precision of float32 products",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    Flag("torch's flushing of denormals", _flushes_denormal, torch.set_flush_denormal),
    Flag("torch's anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    Flag(
        "torch's cache of autocast",
        torch.is_autocast_cache_enabled,
        torch.set_autocast_cache_enabled,
    ),
    *(
        _of(f"torch.backends.cudnn.{name}", cudnn, name)
        for name in ("enabled", "benchmark", "deterministic", "allow_tf32")
    ),
    *(
        _of(f"torch.backends.mkldnn.{name}", mkldnn, name)
        for name in ("enabled", "deterministic")
        if hasattr(mkldnn, name)
    ),
    *(
        _of(f"torch.backends.opt_einsum.{name}", opt_einsum, name)
        for name in ("enabled", "strategy")
    ),
    *(
        _of(f"torch.backends.cuda.matmul.{name}", cuda_products.matmul, name)
        for name in (
            "allow_tf32",
            "allow_fp16_reduced_precision_reduction",
            "allow_bf16_reduced_precision_reduction",
        )
    ),
    Flag(
        "torch's flash attention",
        cuda_products.flash_sdp_enabled,
        cuda_products.enable_flash_sdp,
    ),
    Flag(
        "torch's memory-efficient attention",
        cuda_products.mem_efficient_sdp_enabled,
        cuda_products.enable_mem_efficient_sdp,
    ),
    Flag(
        "torch's attention of cuDNN",
        cuda_products.cudnn_sdp_enabled,
        cuda_products.enable_cudnn_sdp,
    ),
    Flag(
        "torch's fast path of transformer layers",
        mha.get_fastpath_enabled,
        mha.set_fastpath_enabled,
    ),
    Flag("torch's plain attention", cuda_products.math_sdp_enabled, cuda_products.enable_math_sdp),
)
