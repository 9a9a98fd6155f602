"""Checkpoints: whole or not at all, digested, and the newest valid one found."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from helpers_checkpoints import manifest_of, rewrite_manifest, save
from structlog.testing import capture_logs

from altcore import durable
from altcore.errors import AltcoreError, BadInput, InvalidCheckpoint, NoSpace
from altcore.runs import checkpoint, manifest, tensor_files

STATE = {"model": {"w": torch.arange(6.0)}, "note": "x", "numbers": [1, 2.5, None]}


def test_what_is_saved_comes_back(tmp_path):
    """Tensors bit for bit, plain data as it was, and what the manifest says of it."""
    found = checkpoint.load_checkpoint(save(tmp_path, 3, **STATE))
    state = dict(found.state)
    assert torch.equal(state.pop("model")["w"], STATE["model"]["w"])
    assert state == {"step": 3, **{k: v for k, v in STATE.items() if k != "model"}}
    assert found.step == found.manifest["step"] == 3


def test_a_manifest_alone_has_no_state(tmp_path):
    """Of step 0, where the seed gives it."""
    path = checkpoint.save_checkpoint(tmp_path, None, manifest_of(0))
    assert [p.name for p in path.iterdir()] == ["manifest.json"]
    assert checkpoint.load_checkpoint(path).state is None


@pytest.mark.parametrize("file", ["state.pt", "weights.pt"])
def test_every_flipped_bit_of_the_state_is_found(tmp_path, file):
    """torch.load finds none of them; the digest finds each."""
    path = save(tmp_path)
    data = (path / file).read_bytes()
    for position in range(0, len(data), 13):
        bad = bytearray(data)
        bad[position] ^= 1 << (position % 8)
        (path / file).write_bytes(bad)
        with pytest.raises(InvalidCheckpoint, match="does not match its sha256"):
            checkpoint.load_checkpoint(path)


def test_every_flipped_bit_of_the_manifest_is_found_or_means_nothing(tmp_path):
    """It digests itself: whatever is read of it is what was written."""
    path = save(tmp_path, 3, evaluation={"val_loss": 2.5})
    written = manifest.read_manifest(path)
    data = (path / "manifest.json").read_bytes()
    refused = 0
    for position in range(len(data)):
        for bit in {position % 8, 5}:
            bad = bytearray(data)
            bad[position] ^= 1 << bit
            (path / "manifest.json").write_bytes(bad)
            try:
                assert manifest.read_manifest(path) == written
            except InvalidCheckpoint:
                refused += 1
    assert refused > 1.5 * len(data)


@pytest.mark.parametrize("file", ["state.pt", "weights.pt", "manifest.json"])
def test_truncated_and_missing_files_are_found(tmp_path, file):
    """At whatever length the file ends."""
    path = save(tmp_path)
    data = (path / file).read_bytes()
    for length in (0, 1, len(data) // 2, len(data) - 2):
        (path / file).write_bytes(data[:length])
        with pytest.raises(InvalidCheckpoint):
            checkpoint.load_checkpoint(path)
    (path / file).unlink()
    with pytest.raises(InvalidCheckpoint):
        checkpoint.load_checkpoint(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "other"},
        {"kind": "anomaly"},
        {"step": 4},
        {"step": "3"},
        {"files": {"../state.pt": {"sha256": "", "bytes": 1}}},
        {"files": {"state.pt": None}},
        {"logs": []},
        {"snapshots": [{"step": 1}]},
        {"snapshots": [{"step": "../1", "sha256": "", "bytes": 1}]},
        {"phase": None},
    ],
)
def test_a_manifest_with_a_right_digest_is_checked_all_the_same(tmp_path, changes):
    """Anybody can compute one."""
    path = save(tmp_path)
    rewrite_manifest(path, **changes)
    with pytest.raises(InvalidCheckpoint):
        checkpoint.load_checkpoint(path)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"digest"', "{}", '{"step": 3}'])
def test_what_is_no_manifest_is_called_so(text, tmp_path):
    path = save(tmp_path)
    (path / "manifest.json").write_text(text)
    with pytest.raises(InvalidCheckpoint, match=r"manifest\.json is no manifest: it holds "):
        checkpoint.load_checkpoint(path)


def test_a_checkpoint_under_another_name_is_refused(tmp_path):
    """A copy of an earlier one does not pass for a later one."""
    save(tmp_path, 3).rename(tmp_path / "step-00000009")
    with pytest.raises(InvalidCheckpoint, match="not that of this checkpoint"):
        checkpoint.load_checkpoint(tmp_path / "step-00000009")


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    """A state that would run code is refused although its digest is right."""

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "planted"),)

    monkeypatch.setattr(tensor_files, "check_readable", lambda value, key: None)
    path = save(tmp_path, evil=Payload())
    with pytest.raises(InvalidCheckpoint, match=r"(?i)weights.only|unsupported"):
        checkpoint.load_checkpoint(path)
    assert not (tmp_path / "planted").exists()


def test_no_link_is_followed(tmp_path):
    """A state that lies elsewhere is none of this checkpoint's, whatever its digest."""
    path = save(tmp_path / "own")
    (path / "state.pt").rename(tmp_path / "elsewhere.pt")
    (path / "state.pt").symlink_to(tmp_path / "elsewhere.pt")
    with pytest.raises(InvalidCheckpoint, match=r"state\.pt cannot be read"):
        checkpoint.load_checkpoint(path)


# ---------------------------------------------------------------------------- the newest


def test_the_newest_valid_one_is_taken_loudly(tmp_path):
    """Torn and altered ones are told of by name, and the one before serves."""
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    (tmp_path / "step-00000004" / "state.pt").write_bytes(b"torn")
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    (tmp_path / "step-00000009.tmp").mkdir()
    with capture_logs() as logs:
        found = checkpoint.load_newest(tmp_path)
    assert (found.step, found.path.name) == (2, "step-00000002")
    assert [n for x in logs for n in ("04", "03") if f"step-000000{n}" in x["error"]] == [
        "04",
        "03",
    ]


def test_steps_count_as_numbers(tmp_path):
    """Beyond eight digits, too."""
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step)
    assert checkpoint.load_newest(tmp_path).step == 100_000_000


def test_what_the_caller_refuses_is_passed_by(tmp_path):
    """One who looks closer at the state walks back in the same way; other errors are his own."""
    for step in (1, 2, 3):
        save(tmp_path, step)

    def accept(found):
        if found.step > 1:
            raise InvalidCheckpoint(f"no state of this model: {found.path.name}")

    with capture_logs() as logs:
        assert checkpoint.load_newest(tmp_path, accept).step == 1
    assert [x["error"][-1] for x in logs] == ["3", "2"]

    def refuse(found):
        raise BadInput("another format")

    with pytest.raises(BadInput, match="another format"):
        checkpoint.load_newest(tmp_path, refuse)


def test_an_anomaly_is_never_taken_for_a_state_to_go_on_from(tmp_path):
    """Only regular checkpoints are resumed from."""
    save(tmp_path, 9, kind="anomaly")
    save(tmp_path, 8, kind="weights")
    with pytest.raises(BadInput, match="no valid checkpoint"):
        checkpoint.load_newest(tmp_path)
    save(tmp_path, 2)
    assert checkpoint.load_newest(tmp_path).step == 2


@pytest.mark.parametrize("data", [b"", b"no state", b"PK\x03\x04", b"\x80\x02}."])
def test_a_state_that_torch_cannot_read_is_passed_by_loudly(data, tmp_path):
    """Its digest may be right all the same."""
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    (path / "state.pt").write_bytes(data)
    files = manifest.read_manifest(path)["files"]
    files["state.pt"]["sha256"] = hashlib.sha256(data).hexdigest()
    rewrite_manifest(path, files=files)
    with capture_logs() as logs:
        assert checkpoint.load_newest(tmp_path).step == 1
    assert "step-00000002" in logs[0]["error"]


# --------------------------------------------------------------------------- full disks


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("at", ["make_folder", "open_to_write", "write", "fsync", "rename"])
def test_a_full_disk_names_path_and_bytes_and_keeps_the_old(tmp_path, monkeypatch, number, at):
    """Nothing half written is left, and what was there before is whole."""
    save(tmp_path, 2)

    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durable, at, full)
    with pytest.raises(
        NoSpace, match=r"no space left .*to write .*step-00000003 \(\d\d+ bytes"
    ) as e:
        save(tmp_path, 3)
    assert e.value.exit_code == 3
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]
    assert checkpoint.load_newest(tmp_path).step == 2


@pytest.mark.parametrize("time", [1, 2])
def test_a_disk_that_is_full_when_one_is_replaced_keeps_the_old(tmp_path, monkeypatch, time):
    """Also between the two renames."""
    save(tmp_path, 3, note="old")
    rename, times = durable.rename, []

    def full(path, target):
        times.append(target)
        if len(times) == time:
            raise OSError(errno.ENOSPC, "full")
        rename(path, target)

    monkeypatch.setattr(durable, "rename", full)
    with pytest.raises(NoSpace):
        save(tmp_path, 3, note="new")
    assert checkpoint.load_newest(tmp_path).state["note"] == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


def test_other_errors_of_the_system_are_not_called_a_full_disk(tmp_path, monkeypatch):
    """A permission that is missing stays what it is, with the path that the system did not say."""

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(durable, "fsync", denied)
    with pytest.raises(AltcoreError, match=r"step-\d{8} cannot be written: no$") as caught:
        save(tmp_path)
    assert not isinstance(caught.value, NoSpace)
    assert list(tmp_path.iterdir()) == []


def test_saving_twice_keeps_the_later_state(tmp_path):
    """A name that exists is replaced as a whole."""
    save(tmp_path, 3, note="old")
    path = save(tmp_path, 3, note="new")
    assert checkpoint.load_checkpoint(path).state["note"] == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


def test_everything_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    """Files and folder are on the disk before the rename, and the rename after it."""
    order = []
    fsync, rename = durable.fsync, durable.rename

    def synced(handle):
        order.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        return fsync(handle)

    def renamed(path, target):
        order.append(f"rename {target.name}")
        return rename(path, target)

    monkeypatch.setattr(durable, "fsync", synced)
    monkeypatch.setattr(durable, "rename", renamed)
    save(tmp_path)
    weights, state, about, folder, name, parent = order
    assert (weights, state, about) == ("weights.pt", "state.pt", "manifest.json")
    assert folder == "step-00000003.tmp"
    assert name == "rename step-00000003"
    assert parent == tmp_path.name


def test_what_the_dead_left_is_tidied(tmp_path):
    """Temporary folders and files go; one that was being replaced gets its name back."""
    save(tmp_path, 1)
    save(tmp_path, 2, note="old").rename(tmp_path / "step-00000002.old")
    save(tmp_path, 1).rename(tmp_path / "step-00000001.old")
    save(tmp_path, 1)
    (tmp_path / "step-00000003.tmp").mkdir()
    (tmp_path / ".last.tmp").touch()
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / ".step-00000001.pt.tmp").touch()
    checkpoint.tidy(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "snapshots",
        "step-00000001",
        "step-00000002",
    ]
    assert list((tmp_path / "snapshots").iterdir()) == []
    assert checkpoint.load_newest(tmp_path).state["note"] == "old"


def test_the_manifest_is_plain_json(tmp_path):
    """Anybody can check a checkpoint without altcore."""
    path = save(tmp_path)
    about = json.loads((path / "manifest.json").read_text())
    for name, recorded in about["files"].items():
        data = (path / name).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        assert recorded == {"sha256": digest, "bytes": len(data)}
    digest = about.pop("digest")
    canonical = json.dumps(about, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(canonical.encode()).hexdigest() == digest


# ---------------------------------------------------------------------------- snapshots


def test_a_checkpoint_gives_its_snapshots_back(tmp_path):
    """They are beside it, each with its digest; a flipped bit makes the checkpoint invalid."""
    entries = [
        checkpoint.save_snapshot(tmp_path, {"step": n, "weights": {"w": torch.ones(n)}})
        for n in (1, 2)
    ]
    path = save(tmp_path, 3, snapshots=entries)
    found = checkpoint.load_checkpoint(path).snapshots
    assert [s["step"] for s in found] == [1, 2]
    assert torch.equal(found[1]["weights"]["w"], torch.ones(2))
    file = tmp_path / "snapshots" / entries[1]["file"]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(InvalidCheckpoint, match=r"step-00000002-\w+\.pt does not match"):
        checkpoint.load_checkpoint(path)


def test_a_snapshot_that_is_written_anew_replaces_none(tmp_path):
    """Older checkpoints refer to the one of the same step that was there before."""
    for step, value in ((2, 0.0), (3, 1.0)):
        entry = checkpoint.save_snapshot(tmp_path, {"step": 1, "weights": torch.full((2,), value)})
        save(tmp_path, step, snapshots=[entry])
    for step, value in ((2, 0.0), (3, 1.0)):
        found = checkpoint.load_checkpoint(tmp_path / f"step-{step:08d}").snapshots
        assert found[0]["weights"].tolist() == [value, value]


def test_checkpoints_that_nobody_goes_on_from_are_set_aside(tmp_path):
    """Under a name that says so; the weights alone of later steps are made again."""
    for step in (1, 2, 3):
        save(tmp_path, step)
        save(tmp_path, step, kind="weights")
    save(tmp_path, 3, kind="anomaly")
    checkpoint.set_aside(tmp_path, 2, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "anomaly_00000003",
        "damaged_step-00000003",
        "step-00000001",
        "step-00000002",
        "weights-00000001",
        "weights-00000002",
    ]


@pytest.mark.parametrize("file", ["state.pt", "weights.pt"])
def test_a_file_of_another_step_is_found_under_a_right_digest(file, tmp_path):
    """Weights of one step beside moments of another would train on without a word."""
    paths = [save(tmp_path, step=step, model={}, optimizer={}) for step in (1, 2)]
    told = manifest.read_manifest(paths[0])["files"][file]
    (paths[1] / file).write_bytes((paths[0] / file).read_bytes())
    files = {**manifest.read_manifest(paths[1])["files"], file: told}
    checkpoint.update_manifest(paths[1], files=files)
    with pytest.raises(InvalidCheckpoint, match=f"{file} is of step 1, not 2"):
        checkpoint.load_checkpoint(paths[1])


def write_nothing(*_, **__):
    """Stand in for `torch.save`."""


def write_no_tensors(_, file):
    """Write an archive that lacks them."""
    SAVE({"step": 4}, file)


SAVE = torch.save


@pytest.mark.parametrize(
    ("owner", "name", "instead"),
    [
        (torch, "save", write_nothing),
        (torch, "save", write_no_tensors),
        (os, "write", lambda _, data: len(data)),
    ],
)
def test_what_was_not_written_is_no_checkpoint(tmp_path, monkeypatch, owner, name, instead):
    """It is found before an older one is removed for it; nothing half written stays."""
    older = save(tmp_path, 3, **STATE)
    monkeypatch.setattr(owner, name, instead)
    with pytest.raises(AltcoreError, match=r"weights\.pt was not written as it should be"):
        save(tmp_path, 4, **STATE)
    assert [*tmp_path.iterdir()] == [older]


def test_a_manifest_that_was_not_written_is_named_at_once(tmp_path, monkeypatch):
    """As where other code of the process replaces `json.dumps`."""
    monkeypatch.setattr(json, "dumps", lambda *_, **__: "{}")
    with pytest.raises(InvalidCheckpoint, match=r"manifest\.json is no manifest"):
        save(tmp_path, 4, **STATE)


@pytest.mark.parametrize("instead", [2, 3])
def test_a_checkpoint_that_its_writer_removes_meanwhile_is_not_called_damaged(
    tmp_path, monkeypatch, instead
):
    """Nor one that it replaces: the newest is there all the time. The list names none either."""
    read = checkpoint.read_tensors
    path = save(tmp_path, 2, **STATE)

    def read_too_late(*given):
        monkeypatch.setattr(checkpoint, "read_tensors", read)
        save(tmp_path, instead, number=1)
        if instead == 3:
            checkpoint.drop(path)
        return read(*given)

    monkeypatch.setattr(checkpoint, "read_tensors", read_too_late)
    with capture_logs() as logs:
        found = checkpoint.load_newest(tmp_path)
    assert (found.step, found.state["number"], logs) == (instead, 1, [])
    assert [p.name for p in tmp_path.iterdir()] == [f"step-0000000{instead}"]


@pytest.mark.parametrize("where", ["os.unlink", "os.rmdir", "durable.rename"])
@pytest.mark.parametrize("dropped", [True, False])
def test_an_interrupt_leaves_no_half_of_a_checkpoint(where, dropped, tmp_path, monkeypatch):
    """Ctrl-C while one is removed, for room or for its successor: no later save would do that."""
    path = save(tmp_path, 3, **STATE)
    module = {"os": os, "durable": durable}[where.split(".")[0]]
    name = where.split(".")[1]
    usual, left = getattr(module, name), iter([KeyboardInterrupt])

    def interrupted(*given, **options):
        usual(*given, **options)
        if error := next(left, None):
            raise error

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.drop(path) if dropped else save(tmp_path, 3, **STATE)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == (set() if dropped else {path.name})
