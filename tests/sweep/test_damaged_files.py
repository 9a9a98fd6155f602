"""Whatever a file of a sweep holds, commands say it of one job, and tell of all others."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers_sweeps import complete, fail, ledger_of

from altcore.cli.sweep_status import print_end, print_status
from altcore.errors import BadInput
from altcore.runs import ENVIRONMENT
from altcore.study.record import held
from altcore.sweep import (
    Progress,
    State,
    Status,
    Watch,
    begin_sweep,
    changes_of,
    collect,
    estimate_of,
    export,
    keep_checked,
    open_sweep,
    placing_of,
    status_of,
    verify,
)

LINES = [{"step": i, "loss": 1.0, "val_loss": 1.0, "epoch": float(i)} for i in range(1, 7)]
WRONG: list[Any] = [None, "x", "12", -1, 1e30, math.inf, 10**400, True, "\ud800"]
WRONG += [[], [[1]], {}, {"a": None}]
"""What stands in place of a value."""
AT_ONCE = 4
"""Files that are damaged before a look."""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The folder of a sweep: jobs completed at once, or with a change, given up, and running."""
    ledger = ledger_of(
        tmp_path_factory.mktemp("damaged"),
        base={"gpt.size": "tiny", "gpt.batch_size": 64, "max_steps": 6},
        seeds=5,
        checks={"val_loss": [0, 10], "final_loss": [0, 10]},
        columns=["final_loss", "val_loss", "workload_facts.sha256"],
        series={"loss": "loss"},
        alerts={"minutes": 1, "epochs": 5},
        requires=["val_loss"],
    )
    first, second, third, fourth, fifth = ledger.jobs()
    fail(ledger, second, "MemoryError")
    for job, changed in ((first, {}), (second, {"gpt.batch_size": 16})):
        known = {"final_loss": 1.0, "max_steps": 6, "workload_facts": {"sha256": "a" * 64}}
        known["val_loss"] = 1.0
        complete(ledger, job, changed=changed, lines=LINES, seconds=90.0, **known)
        (ledger.run_of(job.name) / ENVIRONMENT).write_text(json.dumps({"altcore": "0"}))
    for error in ("no such thing", "MemoryError"):
        fail(ledger, third, error)
        ledger.standing(third.name).last.follow({"learning_rate": 0.1})
    fail(ledger, third, "MemoryError")
    fail(ledger, fourth, "no such thing")
    held = ledger.take(fifth, Watch(60))
    (held.attempt.folder / "heartbeat").write_text("3")
    (ledger.standing(first.name).last.folder / "exit.json").unlink()  # its worker was killed
    keep_checked(ledger, {"base": {"seconds": 1.0, "peak_memory_bytes": 1e8}})
    look(ledger.folder)
    return ledger.folder


def look(folder: Path) -> Status:
    """Do what the commands do that look at a sweep, and what a command that runs one does first."""
    asked, ledger = open_sweep(folder.name, str(folder.parent))
    jobs, _ = ledger.read_jobs()
    estimate_of(ledger, jobs)
    changes_of(ledger, jobs)
    Progress(ledger, str).look(at_once=True)
    placing = placing_of(asked, ledger, "local", str)
    placing.left(), placing.attempts()
    watch = Watch(60)
    for job in jobs:
        last = ledger.standing(job.name).last
        if ledger.standing(job.name).state is State.RUNNING:
            watch.is_lost(last)
    found = status_of(asked, ledger)
    json.dumps(found.to_plain())
    print_status("toy", found, show_failed=True)
    print_end("toy", found, 1.0)
    verify(ledger, jobs, asked.measures)
    export(asked, ledger, folder / "export")
    collect(asked, ledger, folder / "archive")
    return found


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def cut(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def no_text(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"\xb5" * 3)


def folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path, chance: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path, chance: random.Random) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def value(path: Path, chance: random.Random) -> None:
    """Replace a value at any depth of a file of JSON, or a key."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        whole: Any = lines
    except ValueError:
        try:
            lines, whole = [], json.loads(path.read_text())
        except ValueError:
            return flip(path, chance)
    at: Any = whole
    while True:
        keys = [*at] if isinstance(at, dict) else range(len(at))
        if not keys:
            return None
        key = chance.choice(list(keys))
        if not isinstance(at[key], dict | list) or not at[key] or chance.random() < 0.2:
            break
        at = at[key]
    if isinstance(at, dict) and chance.random() < 0.2:
        at["other"] = at.pop(key)
    else:
        at[key] = chance.choice(WRONG)
    path.write_text("\n".join(map(json.dumps, lines)) + "\n" if lines else json.dumps(whole))
    return None


DAMAGE: list[Callable[[Path, random.Random], None]] = [
    *(flip, cut, no_text, folder, pipe, link),
    *[value] * 6,
]


def owner_of(path: Path) -> str | None:
    """Return the job that a file belongs to; None of a file that belongs to none."""
    return path.parts[1] if path.parts[0] in ("jobs", "runs") else None


def states(found: Status) -> dict[str, State]:
    return {row.name: row.state for row in found.rows}


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(25), marks=pytest.mark.faults(25 * AT_ONCE)),
        pytest.param(range(25, 500), marks=[pytest.mark.faults(475 * AT_ONCE), pytest.mark.slow]),
    ],
)
def test_damaged_files_stop_no_command(sweep, tmp_path, seeds):
    """All jobs that they do not belong to are told as they were."""
    own = ("jobs/**/*", "runs/**/*", "cache/*")
    files = sorted(p.relative_to(sweep) for of in own for p in sweep.glob(of) if p.is_file())
    before = states(look(sweep))
    for seed in seeds:
        chance = random.Random(seed)
        made = tmp_path / str(seed) / "toy"
        shutil.copytree(sweep, made)
        if chance.random() < 0.5:
            shutil.rmtree(made / "cache")
        damaged = [path for path in chance.sample(files, AT_ONCE) if (made / path).exists()]
        told = [f"by {seed}"]
        for path in damaged:
            damage = chance.choice(DAMAGE)
            told.append(f"{damage.__name__} {path}")
            damage(made / path, chance)
        try:
            after = states(look(made))
        except BaseException as error:
            error.add_note(", ".join(told))
            raise
        others = before.keys() - set(map(owner_of, damaged))
        assert {n: after[n] for n in others} == {n: before[n] for n in others}, told
        shutil.rmtree(made.parent)


WRONG_USE = {"status": "failed", "used": {"cpu_seconds": "x", "peak_memory_bytes": None}}


def test_what_no_sweep_writes_is_told_of_its_job_alone(sweep, tmp_path):
    """Values of another type, and names that no sweep makes."""
    made = tmp_path / "toy"
    shutil.copytree(sweep, made)
    before = states(look(sweep))
    done, changed, retried, failed, running = before
    jobs = made / "jobs"
    (jobs / "README").write_text("")
    (made / "runs/README").write_text("")
    (jobs / retried / "attempts/²").mkdir()
    (jobs / retried / "attempts/README").write_text("")
    (jobs / failed / "attempts/001/exit.json").write_text(json.dumps(WRONG_USE))
    (jobs / running / "attempts/001/heartbeat").write_bytes(b"\xb5")
    (made / "runs" / done / ENVIRONMENT).write_text("[]")
    (made / "runs" / changed / "config.yaml").unlink()
    os.mkfifo(made / "runs" / changed / "config.yaml")
    (made / "check.json").write_text('{"base": {"seconds": "x"}}')
    found = look(made)
    assert states(found) == {**before, "README": State.DAMAGED, failed: State.DAMAGED}
    why = {row.name: row.why for row in found.failed}
    assert f"{jobs}/README/attempts cannot be read" in why["README"]
    assert why[failed].startswith(f"{jobs}/{failed}/attempts/001/exit.json")
    asked, ledger = open_sweep("toy", str(tmp_path))
    assert ENVIRONMENT in export(asked, ledger, tmp_path / "export").problems[done]


def test_a_cache_that_was_changed_is_thrown_away(sweep, tmp_path):
    """Even if it can be read: nothing that it says is believed."""
    made = tmp_path / "toy"
    shutil.copytree(sweep, made)
    before = states(look(made))
    rows = made / "cache/rows.json"
    rows.write_text(rows.read_text().replace("finished", "collapsed"))
    found = look(made)
    assert states(found) == before
    assert not found.collapsed
    assert "collapsed" not in rows.read_text()


@pytest.mark.parametrize(
    "name", ["", "sweep.yaml", "runbook.md", "jobs", "runs", "tables", "retired"]
)
def test_what_belongs_to_no_job_is_refused_by_name(sweep, tmp_path, name):
    """If it is of another kind: a pipe, for one, would be waited for."""
    made = tmp_path / "toy"
    shutil.copytree(sweep, made)
    asked, ledger = open_sweep("toy", str(tmp_path))
    jobs = ledger.jobs()
    if (made / name).exists():
        shutil.move(made / name, tmp_path / "aside")
    os.mkfifo(made / name)
    for read in (
        lambda: open_sweep("toy", str(tmp_path)),
        lambda: begin_sweep(asked, jobs, str(tmp_path)),
        lambda: held(made).__enter__(),
    ):
        with pytest.raises(BadInput, match=rf"{made / name} (is not a|cannot be written)"):
            read()
