"""Having the compiled kernels: compiled once, kept where only this user writes, checked first."""

import ctypes
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from altcore.numerics.kernels import build, compiler, structs
from altcore.numerics.kernels import cache as kernel_cache

available = pytest.mark.skipif(build.library() is None, reason="no C compiler")

OWN = f"altcore-{os.geteuid()}"  # this user's folder among temporary ones

# Rounds 1.1 to E3M4, and says whether a kernel did, and what was warned of.
ROUND = """
import sys, torch, warnings
from altcore.formats import float_format
from altcore.numerics import round_to_grid
from altcore.numerics.kernels import build
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(3):
        q = round_to_grid(torch.tensor([1.1]), float_format("E3M4", 3, 4))
print(q.item(), build.library() is not None, [str(w.message) for w in seen])
"""


def environment(home: Path, **others: str) -> dict[str, str]:
    """A process's environment whose caches lie below ``home``, the temporary one too."""
    (home / "tmp").mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if k != build.SWITCH}
    return {**kept, "XDG_CACHE_HOME": str(home), "TMPDIR": str(home / "tmp"), **others}


def run(home: Path, code: str = ROUND, **others: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(home, **others),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.strip()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, for this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "altcore"


@pytest.fixture
def copied(cache, monkeypatch):
    """Return a list of how often something was compiled: only copied from what is loaded, here."""
    calls = []

    def copy(self, scratch):
        calls.append(scratch)
        return Path(shutil.copy(build.library()._name, scratch / "kernels.so"))

    monkeypatch.setattr(compiler.Compiler, "compile", copy)
    return calls


def kept(folder: Path) -> Path:
    (path,) = folder.glob("*.so")
    return path


def loaded_from(handle: ctypes.CDLL) -> Path:
    return Path(handle._name).parent


@available
def test_built_once(cache, copied):
    """A second process finds the file; other sources or flags would have another name."""
    assert loaded_from(build._first_that_loads()) == cache
    first = kept(cache)
    made = first.stat().st_mtime_ns
    assert loaded_from(build._first_that_loads()) == cache
    assert kept(cache) == first
    assert first.stat().st_mtime_ns == made
    assert len(copied) == 1
    assert {p.suffix for p in cache.iterdir()} == {".so", ".lock"}
    assert stat.S_IMODE(cache.stat().st_mode) == stat.S_IMODE(first.stat().st_mode) == 0o700


def spoil(path: Path, contents: bytes) -> None:
    """Put another file in its place: this process may have loaded the one that was there."""
    path.unlink()
    path.write_bytes(contents)
    path.chmod(0o700)


@available
@pytest.mark.parametrize("size", [0, 100, 5000, -1])
def test_a_broken_library_is_built_again(cache, copied, size):
    """However much of it is there, and if only its last byte is another."""
    build._first_that_loads()
    path = kept(cache)
    whole = path.read_bytes()
    changed = whole[:-1] + bytes([whole[-1] ^ 1])
    for number, contents in enumerate((whole[:size], changed), 2):
        spoil(path, contents)
        build._first_that_loads()
        assert kept(cache).read_bytes() == whole
        assert len(copied) == number


@available
def test_a_truncated_library_ends_no_process(tmp_path, cache, counting, monkeypatch):
    """To load part of a file would."""
    path, compilations = counting
    monkeypatch.setenv("PATH", path)
    found = compiler.find_compiler()
    with kernel_cache.fetch(cache, f"kernels-{found.digest}", found.compile).open("r+b") as file:
        file.truncate(5000)
    assert run(tmp_path) == "1.125 True []"
    assert compilations() == 2
    assert kept(cache).stat().st_size > 5000


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """A library that is none of altcore's, which cannot be loaded as such."""
    source = tmp_path_factory.mktemp("planted") / "planted.c"
    source.write_text("int planted;")
    made = source.with_suffix(".so")
    subprocess.run([compiler.find_compiler().path, "-shared", "-o", made, source], check=True)
    return made


@pytest.fixture
def plant(cache, planted):
    """Return a function that puts such a library in the kernels' place, with the right names."""

    def place() -> Path:
        cache.mkdir(mode=0o700, exist_ok=True)
        name = f"kernels-{compiler.find_compiler().digest}"
        path = cache / kernel_cache._file_name(name, planted)
        path.unlink(missing_ok=True)  # this process may have loaded the one that was there
        return Path(shutil.copy(planted, path))

    return place


@available
def test_what_others_may_have_written(cache, copied, plant):
    """A library that is open to them, and any in a folder that is."""
    plant().chmod(0o755)  # this user's alone, and so loaded; as it is not altcore's, left alone
    assert loaded_from(build._first_that_loads()) == cache.parent / "tmp" / OWN
    plant().chmod(0o775)
    assert loaded_from(build._first_that_loads()) == cache
    for mode in (0o775, 0o777, 0o1777):
        plant().chmod(0o755)
        cache.chmod(mode)
        assert loaded_from(build._first_that_loads()) == cache.parent / "tmp" / OWN
    assert len(copied) == 2


@available
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_belongs_to_somebody_else(cache, copied, plant):
    """Whatever its mode is."""
    os.chown(plant(), 12345, 12345)
    assert loaded_from(build._first_that_loads()) == cache
    plant()
    os.chown(cache, 12345, 12345)
    assert loaded_from(build._first_that_loads()) == cache.parent / "tmp" / OWN


@available
def test_a_link_is_no_library(cache, copied, tmp_path):
    """Its target might be exchanged; a folder may be one."""
    build._first_that_loads()
    path = kept(cache)
    elsewhere = path.rename(tmp_path / "elsewhere.so")
    path.symlink_to(elsewhere)
    build._first_that_loads()
    assert not kept(cache).is_symlink()
    cache.rename(tmp_path / "real")
    cache.symlink_to(tmp_path / "real")
    build._first_that_loads()
    assert len(copied) == 2


@available
def test_where_nothing_may_be_executed(cache, copied, monkeypatch):
    """The next folder is taken, and found again."""
    real = ctypes.CDLL

    def refuse(name, *rest):
        if Path(name).parent == cache:
            raise OSError(f"{name}: failed to map segment from shared object")
        return real(name, *rest)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    other = cache.parent / "tmp" / OWN
    assert loaded_from(build._first_that_loads()) == other
    assert loaded_from(build._first_that_loads()) == other
    assert len(copied) == 2


@available
def test_where_there_is_no_room(cache, copied, monkeypatch):
    """Nothing is compiled there: a compiler would try all its flags in vain, at every start."""
    real = shutil.disk_usage

    def full(folder):
        return real(folder)._replace(free=4096) if Path(folder) == cache else real(folder)

    monkeypatch.setattr(shutil, "disk_usage", full)
    other = cache.parent / "tmp" / OWN
    assert loaded_from(build._first_that_loads()) == other
    assert len(copied) == 1


@available
def test_no_folder_that_lasts(cache, copied):
    """A private one is taken, and removed: a file where the first should be, no /tmp of ours."""
    cache.touch()
    (cache.parent / "tmp" / OWN).touch()
    handle = build._first_that_loads()
    assert structs.mismatch(handle) == ""
    assert [p.name for p in (cache.parent / "tmp").iterdir()] == [OWN]


@available
def test_a_user_without_a_home(tmp_path, copied, monkeypatch):
    """The temporary folder serves."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    expected = tmp_path / "tmp" / OWN
    assert loaded_from(build._first_that_loads()) == expected


@available
def test_no_folder_at_all(cache, monkeypatch):
    """One warning names each folder's fault."""
    monkeypatch.setattr(kernel_cache, "folders", lambda: [Path("/proc/a"), Path("/proc/b")])
    with pytest.warns(RuntimeWarning, match=r"not available \(.*/proc/a.*/proc/b.*torch") as seen:
        assert build._library.__wrapped__() is None
    assert len(seen) == 1


# ------------------------------------------------------------------------ threads and processes


@pytest.fixture
def counting(tmp_path):
    """Return the PATH on which ``cc`` notes each call, and hurries; and what counts them."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    wrapper = folder / "cc"
    real = compiler.find_compiler().path
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {real} "$@" -O1\n')
    wrapper.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return path, lambda: sum(" -c " in line for line in log.read_text().splitlines())


THREADS = """
import threading, torch
from altcore.numerics.kernels import build
gate, found = threading.Barrier(8), []
def work():
    gate.wait()
    found.append(build.library())
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
print(len(found), None in found, len(set(map(id, found))))
"""


@available
def test_eight_threads_compile_once(tmp_path, counting):
    """The first one does; the others wait for it."""
    path, compilations = counting
    assert run(tmp_path, THREADS, PATH=path) == "8 False 1"
    assert compilations() == 1


@available
def test_four_processes_compile_once(tmp_path, counting):
    """All of them have kernels, and say nothing."""
    path, compilations = counting
    forked = f"import os, torch\nos.fork(), os.fork()\n{ROUND}"
    told = run(tmp_path, forked, PATH=path, PYTHONUNBUFFERED="")  # or their lines would mingle
    assert told.splitlines() == ["1.125 True []"] * 4
    assert compilations() == 1


@available
def test_a_compilation_that_does_not_end(cache, copied, monkeypatch):
    """Another process's is waited for, for a time; then torch operations do it, and one warning."""
    monkeypatch.setattr(kernel_cache, "PATIENCE", 0.2)
    cache.mkdir()
    with (cache / f"kernels-{compiler.find_compiler().digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.warns(RuntimeWarning, match=r"another process has .* 0.2 s") as seen:
            assert build._library.__wrapped__() is None
    assert len(seen) == 1
    assert not copied
    assert build._library.__wrapped__() is not None  # and a process that died holds no lock


@available
def test_a_child_forked_meanwhile():
    """Does not wait for a thread that it has not got."""
    code = (
        "import os, torch\n"
        "from altcore.numerics.kernels import build\n"
        "with build._LOCK:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os._exit(build.library() is None)\n"
        "    print(os.waitpid(child, 0)[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "0\n"


# ------------------------------------------------------------------------------- the compiler


@available
def test_compilers_without_threads_or_cpu_flags(tmp_path, monkeypatch):
    """What the compiler cannot do is left out."""
    monkeypatch.setattr(compiler, "_NATIVE", ("-march=no-such-cpu", "-O1"))
    found = compiler.Compiler(compiler.find_compiler().path, tmp_path / "libgomp-none.so")
    handle = build._load(found.compile(tmp_path))
    assert structs.mismatch(handle) == ""


def test_without_a_compiler(tmp_path):
    """Everything works by torch operations, and one warning says so."""
    (tmp_path / "bin").mkdir()
    text = run(tmp_path, PATH=str(tmp_path / "bin"))
    assert text.startswith("1.125 False [\"altcore's compiled CPU kernels are not available (no C")
    assert text.count("not available") == 1


def test_a_broken_compiler(cache, tmp_path, monkeypatch):
    """Its first words are in the warning."""
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho out of cheese >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(build, "find_compiler", lambda: compiler.Compiler(str(broken), None))
    with pytest.warns(RuntimeWarning, match="out of cheese"):
        assert build._library.__wrapped__() is None


@available
def test_the_compiler_is_the_one_that_cc_names(tmp_path, monkeypatch):
    """With its options; a library is that of its own compiler, so another CC makes another."""
    usual = compiler.find_compiler()
    log, mine = tmp_path / "calls", tmp_path / "my cc"
    mine.write_text(f'#!/bin/sh\nshift\necho "$@" >> {log}\nexec {usual.path} "$@" -O1\n')
    mine.chmod(0o700)
    monkeypatch.setenv("CC", f"'{mine}' --launched")
    found = compiler.find_compiler()
    assert (found.path, found.options) == (str(mine), ("--launched",))
    assert found.digest != usual.digest
    assert found.compile(tmp_path).exists()
    assert "-shared" in log.read_text()


def test_a_cc_that_is_not_there_is_named(cache, monkeypatch):
    """And no other compiler is taken for it."""
    monkeypatch.setenv("CC", "no-such-cc -O2")
    with pytest.warns(RuntimeWarning, match="CC is 'no-such-cc -O2', and there is no no-such-cc"):
        assert build._library.__wrapped__() is None


def test_a_misspelt_variable_is_named_once(monkeypatch):
    monkeypatch.setenv("ALTCORE_KERNEL", "off")
    build.library.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"is not known \(did you mean ALTCORE_K") as seen:
        assert build.library() is build.library()
    assert len(seen) == 1
