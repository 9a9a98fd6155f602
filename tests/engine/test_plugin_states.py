"""A plugin's state in a checkpoint is tried before anything changes; a wrong one is left."""

import shutil

import pytest
import torch
from attrs import define, field
from helpers import PluginShelf, Starter, events, forget_installed, state, text_file, weights_sha256
from helpers_cli import call
from structlog.testing import capture_logs

from altcore import BadInput, hookimpl
from altcore.engine.state_tensors import left_on_cpu, placed_states
from altcore.runs import checkpoint

BROKEN = []
"""Names of classes that refuse every state."""


@define(eq=False)
class Count:
    """Counts steps, and keeps what it saw."""

    count: int = field(default=0, init=False)
    seen: dict[str, float] = field(factory=dict, init=False)

    @hookimpl
    def pre_step(self, step):
        self.count += 1
        self.seen[str(step.index)] = 1.0

    def state_dict(self):
        return {"count": self.count, "seen": dict(self.seen)}

    def load_state_dict(self, state):
        if type(self).__name__ in BROKEN:
            raise SystemExit(3)
        self.count, self.seen = state["count"], dict(state["seen"])


@define(eq=False)
class Look(Count):
    """The same, as a diagnostic."""

    @hookimpl
    def pre_step(self, step):
        pass

    @hookimpl
    def post_backward(self, step):
        self.count += 1


NAMES = ("rollback", "count", "look")
KEYS = {"checkpoint_interval": 2, "min_lr_ratio": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with checkpoints after steps 0, 2 and 4, and one of six steps to compare with."""
    root = tmp_path_factory.mktemp("plugin-states")
    (root / "site").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / "site"))
        shelf = PluginShelf(root / "site", patch)
        shelf.install("intervention", "count", Count)
        shelf.install("diagnostic", "look", Look)
        start = Starter(root / "runs", text_file(root / "words.txt"))
        start(NAMES, name="whole", max_steps=6, **KEYS)
        start(NAMES, name="r", max_steps=4, **KEYS)
        yield start
    forget_installed()


@pytest.fixture
def start(folder, tmp_path):
    shutil.copytree(folder.runs, tmp_path / "runs")
    yield Starter(tmp_path / "runs", folder.corpus)
    BROKEN.clear()


def put(run, plugin, state, *names):
    """Write another state of a plugin into checkpoints, which vouch for it."""
    for name in names:
        found = checkpoint.load_checkpoint(run / "checkpoints" / name)
        found.state["ranks"][0]["plugins"][plugin] = state
        checkpoint.save_checkpoint(found.path.parent, found.state, found.manifest)


WRONG = {
    "no key": ("count", {}),
    "a key is missing": ("count", {"count": 1}),
    "text for a number": ("count", {"count": "1", "seen": {}}),
    "a list for a mapping": ("count", {"count": 1, "seen": [1]}),
    "a number for a mapping": ("count", {"count": 1, "seen": 3}),
    "no mapping": ("count", [1, 2]),
    "none of rollback": ("rollback", {}),
    "text in rollback": ("rollback", {"attempts": "x", "nonfinite": {"count": 0, "last_step": 0}}),
    "of a diagnostic": ("look", {"count": 1}),
}


@pytest.mark.parametrize(("plugin", "state"), WRONG.values(), ids=WRONG)
def test_a_wrong_state_of_a_plugin_falls_back_loudly(plugin, state, start):
    """The warning names plugin and checkpoint; the run ends as an uninterrupted one does."""
    run = start.runs / "r"
    put(run, plugin, state, "step-00000004")
    with capture_logs() as logs:
        again = start.resume("r", max_steps=6)
    (told,) = [entry for entry in logs if "going back" in entry["event"]]
    assert told["checkpoint"] == "step-00000004"
    assert f" {plugin} (" in told["error"]
    assert "cannot take its state: " in told["error"]
    assert events(run, "resume")[-1]["checkpoint"] == "step-00000002"
    assert again.summary["degraded"] == []
    assert weights_sha256(run) == weights_sha256(start.runs / "whole")


def test_if_a_plugin_refuses_every_state_nothing_is_touched(start, capsys):
    """Its error is the run's, with exit code 2; the seed alone is no place to go back to."""
    run = start.runs / "r"
    put(run, "count", {}, "step-00000002", "step-00000004")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    arguments = ("train", "--resume", "r", "--steps", "6", "--set", f"runs_dir={start.runs}")
    found = call(capsys, *arguments)
    assert found.code == 2
    assert "intervention count (acme-count 1.2.3) cannot take its state: KeyError: 'count'" in (
        found.message
    )
    assert "Traceback" not in found.err
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_an_observer_that_refuses_every_state_is_disabled(start):
    """The run goes on from its newest checkpoint; if strict, it does not."""
    run = start.runs / "r"
    BROKEN.append("Look")
    with pytest.raises(BadInput, match=r"look \(.*\) cannot take its state: SystemExit: 3"):
        start.resume("r", max_steps=6, strict=True)
    again = start.resume("r", max_steps=6)
    assert events(run, "resume")[-1]["checkpoint"] == "step-00000004"
    assert again.summary["degraded"] == ["look"]
    assert weights_sha256(run) == weights_sha256(start.runs / "whole")


def test_tensors_go_back_to_the_device_they_were_on():
    """A device that every machine has stands for a GPU; files are read into the CPU's memory."""
    gpu, cpu = torch.device("meta"), torch.device("cpu")
    on_gpu, on_cpu = torch.ones(2, device=gpu), torch.ones(2)
    states = {"a": {"mean": on_gpu, "n": 3, "drawn": [on_cpu, on_gpu]}, "b": {"losses": None}}
    kept = left_on_cpu(states, gpu)
    read = {"a": {"mean": on_cpu, "n": 3, "drawn": [on_cpu, on_cpu]}, "b": {"losses": None}}
    back = placed_states(read, kept, gpu)
    drawn = [t.device for t in back["a"]["drawn"]]
    assert (back["a"]["mean"].device, back["a"]["n"], drawn) == (gpu, 3, [cpu, gpu])
    assert back["b"] == {"losses": None}


def test_tensors_of_a_run_on_a_cpu_follow_it_to_another_device():
    """The bytes of a generator are on the CPU, wherever it draws."""
    states = {"a": {"mean": torch.ones(2), "drawn": torch.Generator().get_state()}}
    moved = placed_states(states, left_on_cpu(states, torch.device("cpu")), torch.device("meta"))
    assert moved["a"]["mean"].device.type == "meta"
    assert moved["a"]["drawn"].device.type == "cpu"


@define(eq=False)
class TakesApart(Count):
    """Its `load_state_dict` empties what it is given."""

    def load_state_dict(self, state):
        self.count, self.seen = state.pop("count", 0), state.pop("seen", {})


def test_a_state_is_tried_on_a_copy(shelf, tmp_path):
    name = shelf.install("intervention", "apart", TakesApart)
    start = Starter(tmp_path / "own", text_file(tmp_path / "words.txt"))
    start([name], name="r", max_steps=3)
    start.resume("r", max_steps=4)
    assert state(start.runs / "r")["ranks"][0]["plugins"][name]["count"] == 4
