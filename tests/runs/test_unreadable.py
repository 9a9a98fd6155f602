"""A file that the system does not give out is not a damaged one: nothing is gone back to."""

import builtins
import errno
import os
from pathlib import Path

import pytest
import torch
from helpers_checkpoints import save
from structlog.testing import capture_logs
from torch import nn

from altcore import CheckpointManager, durable
from altcore.cli import main
from altcore.errors import BadInput, InvalidCheckpoint, UnreadableFile
from altcore.runs import RunDirectory, checkpoint, contents, list_runs, run_id
from altcore.runs.own_checkpoint import begins_as
from altcore.runs.retention import list_checkpoints, retain

CODES = (errno.EIO, errno.EACCES, errno.ESTALE)


def unreadable(monkeypatch, part, error):
    """Let whatever has ``part`` in its path raise ``error`` when it is opened."""
    opened, os_open = builtins.open, os.open

    def check(path):
        if not isinstance(path, int) and part in os.fspath(path):
            raise error

    def opening(path, *args, **keys):
        check(path)
        return os_open(path, *args, **keys)

    def path_open(self, *args, **keys):
        check(self)
        return opened(self, *args, **keys)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(Path, "open", path_open)


def loop():
    """Return a small model and its optimizer."""
    model = nn.Linear(2, 2)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


FILES = ("weights.pt", "state.pt", "manifest.json")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_a_checkpoint_that_cannot_be_read_is_not_gone_back_from(tmp_path, monkeypatch, file, code):
    """The error names the file and why, and the checkpoint keeps its name."""
    with CheckpointManager(tmp_path, *loop()) as manager:
        manager.save(1)
        manager.save(2)
    names = sorted(tmp_path.iterdir())
    unreadable(monkeypatch, f"step-00000002/{file}", OSError(code, os.strerror(code)))
    for read in ("restore", "latest"):
        with (
            pytest.raises(UnreadableFile, match=rf"{file} cannot be read: .*\(E[A-Z]+\)") as e,
            CheckpointManager(tmp_path, *loop()) as manager,
        ):
            getattr(manager, read)()
        assert e.value.exit_code == 2
    monkeypatch.undo()
    assert sorted(tmp_path.iterdir()) == names
    with CheckpointManager(tmp_path, *loop()) as manager:
        assert manager.restore() == 2


def test_a_file_that_is_missing_or_no_file_is_damage(tmp_path):
    """That is what the checkpoint is, and not what the system says of it now."""
    path = save(tmp_path, 3)
    (path / "state.pt").unlink()
    with pytest.raises(InvalidCheckpoint):
        checkpoint.load_checkpoint(path)
    (path / "state.pt").symlink_to(path / "weights.pt")
    with pytest.raises(InvalidCheckpoint):
        checkpoint.load_checkpoint(path)


@pytest.mark.parametrize(
    "error", [MemoryError(), ImportError("no"), LookupError("unknown encoding"), RuntimeError("x")]
)
def test_what_torch_cannot_read_here_is_as_it_was_written(tmp_path, monkeypatch, error):
    """If the digest is right, it is not the file that is wrong."""
    path = save(tmp_path, 3)

    def load(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(UnreadableFile, match=type(error).__name__):
        checkpoint.load_newest(tmp_path)
    assert path.is_dir()


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
    """Nor is a checkpoint that cannot be looked at none."""
    save(tmp_path, 3)

    def refuse(*_):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "iterdir", refuse)
    for look in (list_checkpoints, checkpoint.load_newest):
        with pytest.raises(UnreadableFile, match="EACCES"):
            look(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(UnreadableFile, match="step-00000003 cannot be read"):
        checkpoint.load_newest(tmp_path)


def test_nothing_is_removed_beside_a_checkpoint_that_cannot_be_read(tmp_path, monkeypatch):
    """Its snapshots may be needed."""
    for step in (1, 2, 3):
        save(tmp_path, step)
    snapshots = tmp_path / "snapshots"
    snapshots.mkdir()
    (snapshots / "step-00000001.pt").write_bytes(b"x")
    before = sorted(tmp_path.rglob("*"))
    unreadable(monkeypatch, "step-00000001/manifest", OSError(errno.EIO, "no"))
    retain(tmp_path, monitor="val_loss", mode="min", max_checkpoints=1, keep_best=0)
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.undo()
    retain(tmp_path, monitor="val_loss", mode="min", max_checkpoints=1, keep_best=0)
    assert [k.step for k in list_checkpoints(tmp_path)] == [3]


@pytest.mark.parametrize("name", ["step-00000001", "step-00000002", "anomaly_00000003"])
def test_a_loop_saves_beside_a_checkpoint_that_cannot_be_read(tmp_path, monkeypatch, name):
    """It is named, and nothing is removed until it can be read; a later one stands in the way."""
    with CheckpointManager(tmp_path, *loop(), max_checkpoints=1, keep_best=0) as manager:
        manager.save(1)
        (tmp_path / "step-00000001").rename(tmp_path / "aside")
        manager.save(2)
        (tmp_path / "aside").rename(tmp_path / "step-00000001")
        manager.save_on_anomaly(3)
        unreadable(monkeypatch, f"{name}/manifest", OSError(errno.EIO, "no"))
        with capture_logs() as logs:
            assert manager.save(4) == tmp_path / "step-00000004"
            assert manager.save_on_anomaly(4) is None
        told = [x["event"] for x in logs]
        assert told == [
            "a checkpoint cannot be read, and is left alone",
            "no old checkpoint is removed",
        ]
        assert all(name in x["error"] for x in logs)
        assert {kept.step for kept in list_checkpoints(tmp_path, strict=False)} == {1, 2, 3, 4}
        monkeypatch.undo()
        manager.save(5)
        assert [kept.step for kept in list_checkpoints(tmp_path)] == [2, 3, 5]
        unreadable(monkeypatch, "step-00000005/manifest", OSError(errno.EIO, "no"))
    with (
        CheckpointManager(tmp_path, *loop()) as other,
        pytest.raises(BadInput, match="there is a checkpoint of step 5"),
    ):
        other.save(4)


def test_a_record_that_cannot_be_read_is_not_another_one(tmp_path, monkeypatch):
    """Or the newest checkpoint would be taken for that of a copy; the id for lost."""
    (tmp_path / "events.jsonl").write_bytes(b"{}\n")
    (tmp_path / "environment.json").write_bytes(b"{}\n")
    unreadable(monkeypatch, str(tmp_path), OSError(errno.EIO, "no"))
    with pytest.raises(UnreadableFile, match=r"events\.jsonl cannot be read: no \(EIO\)"):
        begins_as(tmp_path / "events.jsonl", {"bytes": 3, "sha256": ""})
    with pytest.raises(UnreadableFile, match=r"environment\.json cannot be read"):
        run_id.id_in_environment(tmp_path)


def test_verify_says_that_it_cannot_read(tmp_path, monkeypatch, capsys):
    """And not that the checkpoint is invalid."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/r/checkpoints")
    folder.mkdir(parents=True)
    (folder.parent / "config.yaml").write_text("a: 1\n")
    save(folder, 3)
    unreadable(monkeypatch, "state.pt", OSError(errno.EIO, "no"))
    with pytest.raises(SystemExit) as left:
        main(["checkpoints", "verify", "r"])
    out = capsys.readouterr().out
    assert left.value.code == 2
    assert "step-00000003  unreadable: " in out
    assert "state.pt cannot be read: no (EIO)" in out


def test_a_run_that_nobody_may_look_into_hides_no_other_one(tmp_path, monkeypatch, capsys):
    """It is named: by itself with exit code 2, and among others in a warning."""
    for name in ("mine", "private"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text("a: 1\n")
    stat = os.stat

    def refuse(path, *args, **keys):
        if "private/" in os.fspath(path):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return stat(path, *args, **keys)

    monkeypatch.setattr(os, "stat", refuse)
    with capture_logs() as logs:
        assert [path.name for path in list_runs(str(tmp_path / "runs"))] == ["mine"]
    assert "private/config.yaml cannot be read: Permission denied (EACCES)" in logs[0]["event"]
    with pytest.raises(SystemExit) as left:
        main(["runs", "show", "private", "--runs-dir", str(tmp_path / "runs")])
    assert left.value.code == 2
    assert "private/config.yaml cannot be read" in capsys.readouterr().err


def test_a_folder_of_data_has_no_digest_without_all_of_it(tmp_path, monkeypatch):
    """One that cannot be listed would be left out, and the data be called others."""
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "x").write_text("1")
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("part"):
            raise PermissionError(errno.EACCES, "no", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        contents(tmp_path)


@pytest.mark.parametrize("denied", [".", ".lock", "checkpoints", "metrics.jsonl"])
def test_a_run_of_another_user_is_refused_by_name(tmp_path, monkeypatch, denied):
    """Before anything of it is touched."""
    (tmp_path / "checkpoints").mkdir()
    for name in (".lock", "metrics.jsonl"):
        (tmp_path / name).touch()
    place, access = tmp_path / denied, os.access
    deny = lambda path, right: path != place and access(path, right)  # noqa: E731
    monkeypatch.setattr(os, "access", deny)
    with pytest.raises(UnreadableFile, match=r"may not be read or written.*EACCES.*mode \d+") as e:
        RunDirectory.open(tmp_path)
    assert str(place) in str(e.value)
    assert not (tmp_path / "reports").exists()


def test_only_a_reason_of_the_file_itself_stays_an_error_of_the_system(tmp_path):
    """So that readers may still tell a missing file from one that nobody gives out."""
    with pytest.raises(FileNotFoundError):
        durable.read_file(tmp_path / "x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        durable.read_file(tmp_path / "pipe")
