"""Checkpoints of two loops of your own in one folder: which are whose, and that it is said."""

import json
import shutil

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn

import altcore
from altcore import CheckpointManager
from altcore.runs import list_checkpoints
from altcore.runs.manifest import encode_manifest


class Script:
    """A process with a loop: its model is its own."""

    def __init__(self):
        self.model = nn.Linear(3, 3)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)

    def save(self, folder, step):
        self.train()
        return altcore.save_checkpoint(folder, self.model, self.optimizer, None, step)

    def load(self, path):
        return altcore.load_checkpoint(path, self.model, self.optimizer, None)

    def train(self):
        self.optimizer.zero_grad()
        self.model(torch.ones(3)).square().sum().backward()
        self.optimizer.step()

    def manager(self, folder, **settings):
        return CheckpointManager(folder, self.model, self.optimizer, **settings)


def ids(folder):
    return {kept.manifest["loop_id"] for kept in list_checkpoints(folder)}


def told(logs):
    return [x["event"] for x in logs if "of two loops" in x["event"]]


@pytest.mark.parametrize("path", ["", "step-00000002"])
def test_a_loop_that_goes_on_stays_the_loop(tmp_path, path):
    """Whether it loads the folder or one of its checkpoints, or restores."""
    with capture_logs() as logs:
        Script().save(tmp_path, 1)
        Script().manager(tmp_path).restore()
        with (second := Script()).manager(tmp_path) as manager:
            manager.restore()
            second.train()
            manager.save(2)
        third = Script()
        third.load(tmp_path / path)
        third.save(tmp_path, 3)
        with (fourth := Script()).manager(tmp_path) as manager:
            manager.restore()
            for step in (4, 5):
                fourth.train()
                manager.save(step)
        assert manager.latest().name == "step-00000005"
    assert len(ids(tmp_path)) == 1
    assert told(logs) == []


def test_a_script_that_begins_anew_in_the_folder_is_told(tmp_path):
    """Once: it saves, and whoever loads afterwards is told as well."""
    (first := Script()).save(tmp_path, 10)
    first.save(tmp_path, 20)
    with capture_logs() as logs:
        (second := Script()).save(tmp_path, 10)
        second.save(tmp_path, 15)
    problem = f"{tmp_path} holds checkpoints of two loops: step-000000{{}} is of another one"
    assert told(logs) == [problem.format(20)]
    with capture_logs() as logs:
        assert Script().load(tmp_path) == 20
        assert Script().manager(tmp_path).latest().name == "step-00000020"
    assert told(logs) == [problem.format(15)]


def test_a_fine_tuned_model_is_another_loop_in_its_folder(tmp_path):
    """Two that begin with one checkpoint are two loops, and each has one id in each folder."""
    pretrained, fine = tmp_path / "pretrained", tmp_path / "fine"
    Script().save(pretrained, 1)
    loops = Script(), Script()
    with capture_logs() as logs:
        for step, loop in enumerate(loops, 5):
            loop.load(pretrained)
            loop.save(fine, step)
        loops[0].save(fine, 7)
    assert len(ids(fine)) == 2
    assert ids(pretrained).isdisjoint(ids(fine))
    assert told(logs) != []


def test_the_best_is_the_loops_own(tmp_path):
    """A better one of another loop, copied in, is named, passed by, and stays."""
    folder, other = tmp_path / "own", tmp_path / "other"
    with Script().manager(other) as manager:
        copied = manager.save(3, value=0.1)
    script = Script()
    with capture_logs() as logs, script.manager(folder, max_checkpoints=2) as manager:
        for step, value in ((1, 1.0), (5, 2.0), (6, 3.0)):
            script.train()
            manager.save(step, value=value)
            if step == 5:
                shutil.copytree(copied, folder / copied.name)
        assert manager.best().name == (folder / "best").read_text().strip() == "step-00000001"
    assert len(told(logs)) == 1
    assert {p.name[-1] for p in folder.glob("step-*")} == {"1", "3", "6"}
    with (again := Script()).manager(folder, max_checkpoints=1) as manager:
        assert manager.best().name == "step-00000001"
        manager.restore()
        again.train()
        manager.save(7)
    assert {p.name[-1] for p in folder.glob("step-*")} == {"3", "7"}


def test_checkpoints_of_earlier_versions_are_nobodys(tmp_path):
    """They have no id, and a loop that restores them goes on with one."""
    with Script().manager(tmp_path) as manager:
        path = manager.save(1, value=1.0)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["loop_id"]
    (path / "manifest.json").write_bytes(encode_manifest(manifest))
    with capture_logs() as logs, (script := Script()).manager(tmp_path) as manager:
        assert manager.restore() == 1
        script.train()
        manager.save(2, value=2.0)
        assert manager.best() == path
    assert told(logs) == []
