"""Checkpoints: whole or not at all, digested, and the newest valid one found."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from altcore.errors import AltcoreError, BadInput, NoSpace
from altcore.runs import checkpoint

STATE = {"step": 3, "model": {"w": torch.arange(6.0)}, "note": "x", "numbers": [1, 2.5, None]}


def save(folder, name="step-00000003", **changes):
    """Write a small checkpoint."""
    return checkpoint.save_checkpoint(folder, name, {**STATE, **changes}, {"step": 3})


def test_what_is_saved_comes_back(tmp_path):
    """Tensors bit for bit, plain data as it was, and what the manifest says of it."""
    state, manifest = checkpoint.load_checkpoint(save(tmp_path))
    assert torch.equal(state.pop("model")["w"], STATE["model"]["w"])
    assert state == {k: v for k, v in STATE.items() if k != "model"}
    assert manifest["step"] == 3
    assert (
        manifest["files"]["state.pt"]["bytes"]
        == (tmp_path / "step-00000003/state.pt").stat().st_size
    )


def test_every_flipped_bit_of_the_state_is_found(tmp_path):
    """torch.load finds none of them; the digest finds each."""
    path = save(tmp_path)
    data = (path / "state.pt").read_bytes()
    for position in range(0, len(data), 13):
        bad = bytearray(data)
        bad[position] ^= 1 << (position % 8)
        (path / "state.pt").write_bytes(bad)
        with pytest.raises(AltcoreError, match="does not match its sha256"):
            checkpoint.load_checkpoint(path)


def test_no_flipped_bit_of_the_manifest_goes_unnoticed_or_crashes(tmp_path):
    """Whatever byte is hit, the checkpoint is refused, or its state is the one that was saved."""
    path = save(tmp_path)
    data = (path / "manifest.json").read_bytes()
    refused = 0
    for position in range(len(data)):
        for bit in {position % 8, 5}:
            bad = bytearray(data)
            bad[position] ^= 1 << bit
            (path / "manifest.json").write_bytes(bad)
            try:
                state, _ = checkpoint.load_checkpoint(path)
            except AltcoreError:
                refused += 1
            else:
                assert torch.equal(state["model"]["w"], STATE["model"]["w"])
    assert refused > len(data)


@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
def test_truncated_and_missing_files_are_found(tmp_path, file):
    """At whatever length the file ends."""
    path = save(tmp_path)
    data = (path / file).read_bytes()
    for length in (0, 1, len(data) // 2, len(data) - 1):
        (path / file).write_bytes(data[:length])
        with pytest.raises(AltcoreError):
            checkpoint.load_checkpoint(path)
    (path / file).unlink()
    with pytest.raises(AltcoreError):
        checkpoint.load_checkpoint(path)


def test_nothing_is_unpickled(tmp_path):
    """A state that would run code is refused although its digest is right."""

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "planted"),)

    path = save(tmp_path, evil=Payload())
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported"):
        checkpoint.load_checkpoint(path)
    assert not (tmp_path / "planted").exists()


def test_the_newest_valid_one_is_taken_loudly(tmp_path):
    """Torn and altered ones are told of by name, and the one before serves."""
    for step in (1, 2, 3, 4):
        save(tmp_path, f"step-{step:08d}", step=step)
    (tmp_path / "step-00000004" / "state.pt").write_bytes(b"torn")
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    (tmp_path / "step-00000009.tmp-ab12").mkdir()
    with capture_logs() as logs:
        state, _, path = checkpoint.load_newest(tmp_path)
    assert (state["step"], path.name) == (2, "step-00000002")
    assert [n for x in logs for n in ("04", "03") if f"step-000000{n}" in x["error"]] == [
        "04",
        "03",
    ]


def test_an_anomaly_is_never_taken_for_a_state_to_go_on_from(tmp_path):
    """Only regular checkpoints are resumed from."""
    save(tmp_path, "anomaly_9", step=9)
    with pytest.raises(BadInput, match="no valid checkpoint"):
        checkpoint.load_newest(tmp_path)
    save(tmp_path, "step-00000002", step=2)
    assert checkpoint.load_newest(tmp_path)[0]["step"] == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("at", ["mkdir", "write", "fsync", "rename"])
def test_a_full_disk_names_path_and_bytes_and_keeps_the_old(tmp_path, monkeypatch, number, at):
    """Nothing half written is left, and what was there before is whole."""
    save(tmp_path, "step-00000002", step=2)

    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    kind = type(tmp_path)
    if at == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(
            kind, {"mkdir": "mkdir", "write": "open", "rename": "replace"}[at], full
        )
    with pytest.raises(NoSpace, match=r"no space left to write .*step-00000003 \(\d\d+ bytes") as e:
        save(tmp_path)
    assert e.value.exit_code == 3
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]
    assert checkpoint.load_newest(tmp_path)[0]["step"] == 2


def test_other_errors_of_the_system_are_not_called_a_full_disk(tmp_path, monkeypatch):
    """A permission that is missing stays what it is."""

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "fsync", denied)
    with pytest.raises(PermissionError):
        save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_saving_twice_keeps_the_later_state(tmp_path):
    """A name that exists is replaced as a whole."""
    save(tmp_path, note="old")
    path = save(tmp_path, note="new")
    assert checkpoint.load_checkpoint(path)[0]["note"] == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


def test_everything_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    """Files and folder are on the disk before the rename, and the rename after it."""
    order = []
    fsync, replace = os.fsync, type(tmp_path).replace

    def synced(handle):
        order.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        return fsync(handle)

    def renamed(self, target):
        order.append(f"rename {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(type(tmp_path), "replace", renamed)
    save(tmp_path)
    state, manifest, folder, name, parent = order
    assert (state, manifest) == ("state.pt", "manifest.json")
    assert folder.startswith("step-00000003.tmp-")
    assert name == "rename step-00000003"
    assert parent == tmp_path.name


def test_pointers_are_replaced_whole(tmp_path):
    """A pointer names a checkpoint and leaves no temporary file."""
    checkpoint.point_to(tmp_path, "last", "step-00000001")
    checkpoint.point_to(tmp_path, "last", "step-00000002")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"last": "step-00000002"}


def test_pruning_keeps_the_newest_the_pointed_at_and_anomalies(tmp_path):
    """Of regular checkpoints only the oldest go."""
    for step in range(1, 7):
        save(tmp_path, f"step-{step:08d}")
    save(tmp_path, "anomaly_1")
    checkpoint.point_to(tmp_path, "best", "step-00000002")
    checkpoint.point_to(tmp_path, "last", "step-00000006")
    checkpoint.prune_checkpoints(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [
        "anomaly_1",
        "step-00000002",
        "step-00000005",
        "step-00000006",
    ]


def test_the_manifest_is_plain_json(tmp_path):
    """Anybody can check a checkpoint without altcore."""
    import hashlib

    path = save(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    digest = hashlib.sha256((path / "state.pt").read_bytes()).hexdigest()
    assert manifest["files"] == {
        "state.pt": {"sha256": digest, "bytes": (path / "state.pt").stat().st_size}
    }


@pytest.mark.parametrize("pointer", [b"\xff\xfe", b"", b"a\0b", b"step-00000099", b"../.."])
def test_a_pointer_that_names_nothing_removes_nothing(pointer, tmp_path):
    """Training goes on, and whatever was the best is still there."""
    for step in range(1, 6):
        save(tmp_path, f"step-{step:08d}")
    (tmp_path / "best").write_bytes(pointer)
    with capture_logs() as logs:
        checkpoint.prune_checkpoints(tmp_path, 2)
    assert len(list(tmp_path.glob("step-*"))) == 5
    assert [(x["log_level"], x["file"]) for x in logs] == [("warning", str(tmp_path / "best"))]


@pytest.mark.parametrize("data", [b"", b"no state", b"PK\x03\x04"])
def test_a_state_that_torch_cannot_read_is_passed_by_loudly(data, tmp_path):
    """Its digest may be right all the same."""
    save(tmp_path, "step-00000001", step=1)
    path = save(tmp_path, "step-00000002", step=2)
    (path / "state.pt").write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["state.pt"]["sha256"] = hashlib.sha256(data).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with capture_logs() as logs:
        assert checkpoint.load_newest(tmp_path)[0]["step"] == 1
    assert "step-00000002: state.pt cannot be read" in logs[0]["error"]
