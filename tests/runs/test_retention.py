"""Which checkpoints stay, and what last and best name: all by what manifests say."""

import errno
import os

import pytest
from helpers_checkpoints import save
from structlog.testing import capture_logs

from altcore.runs import checkpoint, list_checkpoints, retain

RULES = {"monitor": "val_loss", "mode": "min", "max_checkpoints": 3, "keep_best": 0}


def names(folder):
    """Return the names of the checkpoints in a folder."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name != "snapshots")


def pointers(folder):
    """Return what last and best name."""
    return {p.name: p.read_text() for p in folder.iterdir() if p.is_file()}


def evaluated(folder, values, **rules):
    """Save a checkpoint a step with these validation losses, and keep what the rules say."""
    for step, value in enumerate(values, 1):
        save(folder, step, evaluation=None if value is None else {"val_loss": value})
        retain(folder, **{**RULES, **rules})


def test_the_best_and_the_newest_stay(tmp_path):
    """Together they are max_checkpoints."""
    evaluated(tmp_path, [3.0, 1.0, None, 2.0, None, 4.0])
    assert names(tmp_path) == ["step-00000002", "step-00000005", "step-00000006"]
    assert pointers(tmp_path) == {"last": "step-00000006", "best": "step-00000002"}


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("min", [2.0, 1.0, 1.0, "nan"], 2),
        ("max", [2.0, 3.0, 1.0, "inf"], 2),
        ("min", [None, "nan", None], None),
    ],
)
def test_the_best_is_the_first_of_the_best_values(tmp_path, mode, values, best):
    """A value that is not finite never is, and without any there is no best."""
    evaluated(tmp_path, values, mode=mode, max_checkpoints=9)
    assert pointers(tmp_path).get("best") == (best and f"step-{best:08d}")


def test_an_evaluation_whose_loss_is_not_finite_is_never_the_best(tmp_path):
    """Whatever its measures say; those of somebody's own loop have no such loss."""
    for step, loss in ((1, 2.0), (2, "nan")):
        save(tmp_path, step, evaluation={"val_accuracy": step / 2, "val_loss": loss})
    retain(tmp_path, **{**RULES, "monitor": "val_accuracy", "mode": "max"})
    assert pointers(tmp_path)["best"] == "step-00000001"
    save(tmp_path, 3, evaluation={"value": 1.0})
    retain(tmp_path, **{**RULES, "monitor": "value"})
    assert pointers(tmp_path)["best"] == "step-00000003"


@pytest.mark.parametrize("pointer", [b"\xff\xfe", b"", b"a\0b", b"step-00000099", b"../..", None])
def test_a_pointer_is_rebuilt(pointer, tmp_path):
    """Whatever it names, and if it is gone: it decides nothing."""
    evaluated(tmp_path, [1.0, 2.0, 3.0])
    for name in ("best", "last"):
        (tmp_path / name).unlink()
        if pointer is not None:
            (tmp_path / name).write_bytes(pointer)
    evaluated(tmp_path, [1.0, 2.0, 3.0, 4.0])
    assert names(tmp_path) == ["step-00000001", "step-00000003", "step-00000004"]
    assert pointers(tmp_path) == {"last": "step-00000004", "best": "step-00000001"}


def test_the_first_anomaly_and_the_last_healthy_one_before_it_stay(tmp_path):
    """They show what broke; they are counted among no others."""
    for step in range(1, 4):
        save(tmp_path, step)
        retain(tmp_path, **RULES)
    save(tmp_path, 4, kind="anomaly")
    for step in range(5, 10):
        save(tmp_path, step)
        retain(tmp_path, **RULES)
    assert names(tmp_path) == [
        "anomaly_00000004",
        "step-00000003",
        *(f"step-0000000{n}" for n in (7, 8, 9)),
    ]
    assert pointers(tmp_path) == {"last": "step-00000009"}


@pytest.mark.parametrize(("keep", "light"), [(0, []), (1, [3]), (2, [3, 5]), (9, [1, 2, 3, 4, 5])])
def test_the_next_best_stay_as_weights_only(tmp_path, keep, light):
    """With the same weights, and without the rest of the state."""
    evaluated(tmp_path, [9.0, 8.0, 2.0, 7.0, 3.0, 1.0, None, None], keep_best=keep)
    regular = [f"step-0000000{n}" for n in (6, 7, 8)]
    assert names(tmp_path) == [*regular, *(f"weights-0000000{n}" for n in light)]
    for step in light:
        found = checkpoint.load_checkpoint(tmp_path / f"weights-0000000{step}")
        assert set(found.state) == {"step", "model"}
        assert found.manifest["kind"] == "weights"


def test_a_manifest_alone_stays(tmp_path):
    """Step 0 costs nothing, and is there when all others are damaged."""
    from helpers_checkpoints import manifest_of

    checkpoint.save_checkpoint(tmp_path, None, manifest_of(0))
    evaluated(tmp_path, [None] * 6)
    assert names(tmp_path) == ["step-00000000", *(f"step-0000000{n}" for n in (4, 5, 6))]


def test_a_damaged_checkpoint_is_left_alone_and_counts_for_none(tmp_path):
    """Nothing says what it is."""
    evaluated(tmp_path, [1.0, 2.0])
    (tmp_path / "step-00000001" / "manifest.json").write_text("{")
    evaluated_after = [save(tmp_path, step) for step in range(3, 8)]
    retain(tmp_path, **RULES)
    assert "step-00000001" in names(tmp_path)
    assert pointers(tmp_path) == {"last": "step-00000007", "best": "step-00000002"}
    assert [kept.step for kept in list_checkpoints(tmp_path)] == [2, 6, 7]
    assert evaluated_after[-1].is_dir()


def test_one_that_cannot_be_removed_wholly_is_not_called_damaged(tmp_path, monkeypatch):
    """NFS keeps what another process reads: that is told once, and goes later."""

    def refuse(*_, **__):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    monkeypatch.setattr(os, "rmdir", refuse)
    with capture_logs() as logs:
        evaluated(tmp_path, [None] * 4, max_checkpoints=1)
    assert ["could not be removed wholly" in x["event"] for x in logs] == [True]
    assert [kept.step for kept in list_checkpoints(tmp_path)] == [4]
    monkeypatch.undo()
    assert len(names(tmp_path)) == 4
    checkpoint.tidy(tmp_path)
    assert names(tmp_path) == ["step-00000004"]


def test_snapshots_stay_while_a_checkpoint_refers_to_them(tmp_path):
    """Each is stored once."""
    entries = {n: checkpoint.save_snapshot(tmp_path, {"step": n}) for n in range(1, 7)}
    for step in range(1, 7):
        save(tmp_path, step, snapshots=[entries[n] for n in (step - 1, step) if n])
    retain(tmp_path, **RULES)
    left = {p.name for p in (tmp_path / "snapshots").iterdir()}
    assert left == {entries[n]["file"] for n in (3, 4, 5, 6)}


def test_weights_that_are_kept_half_are_removed_at_once(tmp_path, monkeypatch):
    """As by Ctrl-C: the checkpoint that they are of stays until the next save."""

    def interrupted(*_):
        raise KeyboardInterrupt

    evaluated(tmp_path, [1.0, 2.0, 3.0])
    save(tmp_path, 4, evaluation={"val_loss": 4.0})
    monkeypatch.setattr(checkpoint.durable, "link", interrupted)
    with pytest.raises(KeyboardInterrupt):
        retain(tmp_path, **{**RULES, "keep_best": 1})
    assert names(tmp_path) == [f"step-0000000{step}" for step in (1, 2, 3, 4)]
