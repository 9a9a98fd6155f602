"""What the tests of the command share: calling it, and distributions that lie on the path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from attrs import frozen

ROOT = Path(__file__).parents[1]
TINY = ("--set", "gpt.size=tiny", "--set", "gpt.n_layer=1", "--set", "gpt.block_size=16")
TINY += ("--set", "warmup_steps=0")
"""What makes a run of the workload gpt as small as it can be."""


@frozen
class Outcome:
    """What came of a call."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The last line on standard error: what went wrong."""
        return self.err.splitlines()[-1] if self.err else ""


def call(capsys: Any, *arguments: str | Path) -> Outcome:
    """Call the command in this process."""
    from altcore.cli import main

    capsys.readouterr()
    try:
        main([str(a) for a in arguments])
    except SystemExit as leaving:
        code = leaving.code
    finally:
        # The command points structlog to the standard error of this test.
        structlog.reset_defaults()
    out, err = capsys.readouterr()
    assert isinstance(code, int)
    return Outcome(code, out, err)


def environment(path: Sequence[Path] = ()) -> dict[str, str]:
    """Return this process's environment with ``path`` as PYTHONPATH."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "COV"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, path))}


def run(
    *arguments: str | Path, cwd: Path, path: Sequence[Path] = (), python: str = sys.executable
) -> Outcome:
    """Run the command as a process of its own."""
    done = subprocess.run(
        [python, "-m", "altcore", *map(str, arguments)],
        cwd=cwd,
        env=environment(path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def distribution(
    folder: Path,
    name: str,
    points: Mapping[str, Mapping[str, str]],
    version: str = "1.0",
    **modules: str,
) -> str:
    """Lay a distribution into ``folder``, as pip would: metadata, and modules by name.

    ``points`` are entry points, by kind and name. Returns its name.
    """
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.3\nName: {name}\nVersion: {version}\nSummary: {name} for a test\n"
        "Description-Content-Type: text/plain\n\nName: not-this\nVersion: 0\n"
    )
    lines = []
    for kind, entries in points.items():
        lines += [f"[altcore.{kind}s]", *(f"{k} = {v}" for k, v in entries.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(textwrap.dedent(text))
    return name


LOADED = """
from pathlib import Path
def is_foreign(module):
    file = getattr(module, "__file__", None) or ""
    return "site-packages" in file or "altcore" in file
found = {n.partition(".")[0] for n, m in sys.modules.items() if is_foreign(m)}
print(sorted(found), file=sys.stderr)
"""


def imports(code: str, cwd: Path) -> set[str]:
    """Return the packages that are not Python's own which a piece of code leaves imported."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{LOADED}"],
        cwd=cwd,
        env=environment([ROOT]),
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stderr.splitlines()[-1].replace("'", '"')))
