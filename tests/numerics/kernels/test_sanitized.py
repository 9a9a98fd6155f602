"""The kernels' C code under AddressSanitizer and UndefinedBehaviorSanitizer.

A library that checks each of its accesses takes the place of the compiled one, in a process of its
own, in which the tests of the kernels run. Tensors' memory is checked, too: the sanitizer, loaded
first, is what torch gets it from.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from altcore.numerics.kernels import build

pytestmark = pytest.mark.exhaustive

ROOT = Path(__file__).parents[3]
FILES = (
    *("test_memory", "test_epilogue", "test_reductions", "test_ordinals", "test_flips"),
    *("kernels/test_rounding", "kernels/test_blocks"),
)
SOURCE = Path(build.__file__).with_name("kernels.c")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
FLAGS = ("-std=c11", "-fPIC", "-shared", "-fopenmp", "-march=native", "-ffp-contract=off")
START = """
import pathlib, sys
from altcore.numerics.kernels import build
library = build._load(pathlib.Path(sys.argv[1]))
build._library = lambda: library
"""
RUN = """
import pytest
options = ["-x", "-q", "-p", "no:cacheprovider", "-k", "not compiler and not built"]
sys.exit(pytest.main([*options, sys.argv[2]]))
"""
PLANT = """
import torch
x = torch.ones(1000)
most = torch.zeros(())
library.altcore_amax(x.data_ptr(), 1000, 0, 1, most.data_ptr())
assert most == 1
library.altcore_amax({call}, 0, 1, most.data_ptr())
print("nobody noticed")
"""


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """The checked library, and the environment in which it can be loaded."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    asan = _library_of(compiler, "libasan.so") if compiler else None
    if asan is None:
        pytest.skip("no C compiler with an AddressSanitizer that can be loaded first")
    library = tmp_path_factory.mktemp("sanitized") / "kernels.so"
    command = [compiler, *FLAGS, *SANITIZERS, str(SOURCE), "-o", str(library)]
    subprocess.run(command, check=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(asan),
        "PYTHONMALLOC": "malloc",  # Python's own blocks are none that a sanitizer knows,
        "ASAN_OPTIONS": "detect_leaks=0",  # and it does not free all of them
    }
    return library, environment


def _library_of(compiler: str, name: str) -> Path | None:
    """Where a compiler has a library of its own, if it has."""
    command = [compiler, f"-print-file-name={name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = Path(done.stdout.strip())
    return found if found.is_absolute() else None


def _run(sanitized, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    library, environment = sanitized
    command = [sys.executable, "-c", START + code, str(library), *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("x.data_ptr(), 1001", "heap-buffer-overflow"),
        ("x.data_ptr() - 4, 1000", "heap-buffer-overflow"),
        ("x.data_ptr() + 1, 900", "misaligned address"),
        ("None, 1", "null pointer"),
    ],
)
def test_what_is_planted_is_found(sanitized, call, says):
    """One element past a tensor's end, one before it, and addresses where no float can be."""
    done = _run(sanitized, PLANT.format(call=call))
    assert done.returncode != 0
    assert says in done.stderr
    assert "nobody noticed" not in done.stdout


@pytest.mark.parametrize("file", FILES)
def test_the_kernels_are_clean(sanitized, file):
    """In all that their own tests make them do."""
    done = _run(sanitized, RUN, f"tests/numerics/{file}.py")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
