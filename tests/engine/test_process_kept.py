"""A run leaves the process as it was, whatever its plugins do to it."""

import locale
import os
import resource
import signal
import sys
import warnings

import pytest
import torch
from torch.optim import optimizer as optimizers

from altcore.engine import process_kept

READS = {
    "threads": torch.get_num_threads,
    "oneDNN": lambda: torch.backends.mkldnn.enabled,
    "precision": torch.get_float32_matmul_precision,
    "determinism": torch.are_deterministic_algorithms_enabled,
    "fast path": torch.backends.mha.get_fastpath_enabled,
    "einsum": lambda: torch.backends.opt_einsum.strategy,
    "dtype": torch.get_default_dtype,
    "device": lambda: torch.empty(0).device,
    "denormals": lambda: float(torch.full((1,), 1e-42).mul(1.0)),
    "function modes": torch._C._len_torch_function_stack,
    "hooks": lambda: len(torch.nn.modules.module._global_forward_hooks),
    "hooks of steps": lambda: len(optimizers._global_optimizer_pre_hooks),
    "folder": os.getcwd,
    "open files": lambda: resource.getrlimit(resource.RLIMIT_NOFILE),
    "locale": lambda: locale.setlocale(locale.LC_ALL),
    "environment": lambda: dict(os.environ),
    "filters": lambda: list(warnings.filters),
    "handler": lambda: signal.getsignal(signal.SIGUSR2),
    "output": lambda: sys.stdout,
}
HAS_PRECISIONS = hasattr(torch.backends, "fp32_precision")  # torch 2.8 has one precision only
if HAS_PRECISIONS:
    READS["precision of all products"] = lambda: torch.backends.fp32_precision
    READS["precision of oneDNN"] = lambda: torch.backends.mkldnn.matmul.fp32_precision


def change(folder):
    """Change each of them, and fail."""
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.backends.mkldnn.enabled = False
    if HAS_PRECISIONS:
        torch.backends.fp32_precision = "tf32"
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled())
    torch.backends.mha.set_fastpath_enabled(not torch.backends.mha.get_fastpath_enabled())
    torch.backends.opt_einsum.strategy = "greedy"
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_flush_denormal(True)
    torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    optimizers.register_optimizer_step_pre_hook(lambda *_: None)
    os.chdir(folder)
    locale.setlocale(locale.LC_NUMERIC, "C.UTF-8")
    os.environ["OMP_NUM_THREADS"] = "7"
    os.environ["NEW_VARIABLE"] = "1"
    warnings.simplefilter("error")
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    sys.stdout = sys.stderr
    os.umask(0o077)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
    folder.rmdir()
    return 1 / 0


def test_what_is_changed_within_is_put_back(tmp_path):
    """Also after an error, and if the working directory that it moved to was removed."""
    gone = tmp_path / "gone"
    gone.mkdir()
    before = {name: read() for name, read in READS.items()}
    mask = os.umask(0o027)
    with pytest.raises(ZeroDivisionError), process_kept():
        change(gone)
    assert os.umask(mask) == 0o027
    assert {name: read() for name, read in READS.items()} == before
