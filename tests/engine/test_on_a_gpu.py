"""Runs on a GPU, where work is queued, memory is the device's, and a fault can end the device.

`ALTCORE_TEST_DEVICE=cuda` lets the other tests of runs train there, too.
"""

import os
import re
import socket
import subprocess
import sys
import time
import warnings
from typing import ClassVar

import pytest
import torch
from attrs import define, field
from helpers import checkpoints, events, metrics_bytes, weights_sha256
from helpers_cli import ROOT, distribution, environment
from structlog.testing import capture_logs
from torch import nn

import altcore
from altcore import BadInput, CheckpointManager, hookimpl
from altcore.engine import Step
from altcore.errors import OutOfMemory

pytestmark = pytest.mark.cuda

LAYER = "transformer.h.0.mlp.c_fc"
STOCHASTIC = {"format": "E3M4", "rounding": "stochastic"}
ROLES = ("weight", "activation", "gradient", "weight_gradient", "stored_weight", "optimizer_state")
EVERYTHING = dict.fromkeys(ROLES, STOCHASTIC)
RECIPES = [
    {},
    {"format": "E4M3"},
    {"format": "E7M0", "recipe": "pure"},
    {"recipe": "mxfp8"},
    {"recipe": EVERYTHING},
]


@pytest.fixture
def start(start):
    start.keys = {"device": "cuda", "gpt.dropout": 0.1, "max_steps": 6}
    return start


# ------------------------------------------------------------------------- the queue


def waits(work):
    """Return where ``work`` makes the host wait for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [w for w in seen if "synchronizing CUDA operation" in str(w.message)]


@pytest.mark.parametrize("plugins", [[], ["ulp-stats"]], ids=["alone", "with ulp-stats"])
@pytest.mark.parametrize("keys", RECIPES, ids=str)
def test_a_step_waits_for_the_device_once(start, keys, plugins):
    """Whatever the recipe; a diagnostic that measures every tenth step adds nothing between."""
    engine = start.engine(plugins, max_steps=40, log_interval=10, **keys)
    for index in range(1, 5):  # compiles, fills caches
        engine.train_step(Step(index))
    for index in range(5, 9):
        found = waits(lambda index=index: engine.train_step(Step(index)))
        assert len(found) == 1, [f"{w.filename}:{w.lineno}" for w in found]


# -------------------------------------------------------------------------- the bits


@pytest.mark.parametrize("keys", RECIPES, ids=str)
def test_the_same_seed_gives_the_same_bits(start, keys):
    """With dropout and random rounding, whose numbers the device draws."""
    one, other = start(name="a", **keys), start(name="b", **keys)
    assert weights_sha256(one.run_directory) == weights_sha256(other.run_directory)
    assert metrics_bytes(one.run_directory) == metrics_bytes(other.run_directory)


@pytest.mark.parametrize(("one", "other"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_another_device(start, one, other):
    """One line says that the bits may differ; who is strict is refused."""
    start(name="moved", device=one, max_steps=3, checkpoint_interval=3, format="E4M3")
    with pytest.raises(BadInput, match="device"):
        start.resume("moved", max_steps=6, device=other, strict=True)
    with capture_logs() as logs:
        result = start.resume("moved", max_steps=6, device=other)
    assert result.summary["steps"] == 6
    told = [x["event"] for x in logs if "bits may differ" in x["event"]]
    assert len(told) == 1, logs
    assert "NVIDIA" in told[0]
    assert "cpu" in told[0]


def test_a_gpu_run_is_read_where_there_is_none(start, tmp_path):
    """Its model and its states hold no trace of the device."""
    result = start(name="far", checkpoint_interval=3, format="E4M3", recipe="pure")
    code = (
        "import sys, torch, altcore; assert not torch.cuda.is_available(); "
        "found = altcore.load(sys.argv[1]); "
        "print(next(found.model.parameters()).device, found.summary['steps'])"
    )
    done = python(tmp_path, "-c", code, str(result.run_directory), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["cpu", "6"]


class Draws:
    """Draws a number of the device in a place where only looking is allowed."""

    @hookimpl
    def post_backward(self, run, step):
        torch.rand(3, device=run.device)


class Writes:
    """Changes a weight from a stream of its own."""

    @hookimpl
    def post_step(self, run, step):
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            next(run.model.parameters()).mul_(2)


@pytest.mark.parametrize(("cls", "what"), [(Draws, "random"), (Writes, "weight")])
def test_an_observer_that_touches_the_device_is_named(shelf, start, cls, what):
    name = shelf.install("diagnostic", "touches", define(eq=False)(cls))
    with capture_logs() as logs:
        result = start([name], check_observers=True)
    assert result.summary["degraded"] == ["touches"]
    (told,) = [x["error"] for x in logs if "plugin disabled" in x["event"]]
    assert what in told


# ------------------------------------------------------------------------ the faults


def at_step_four(run, work):
    """Let ``work`` be done in the forward pass of step 4, if a file says so."""

    def forward(_, inputs):
        if run.step == 4 and run.model.training and os.path.exists("fault"):  # noqa: PTH110
            work(inputs[0])

    run.model.get_submodule(LAYER).register_forward_pre_hook(forward)


@define(eq=False)
class Hungry:
    """Asks for more memory than there is, in the model's own forward pass."""

    @hookimpl
    def run_start(self, run):
        at_step_four(run, lambda x: torch.empty(2**45, device=x.device))


@pytest.mark.parametrize("keys", RECIPES, ids=str)
def test_memory_runs_out(shelf, start, tmp_path, monkeypatch, keys):
    """The layer is named, and the run goes on from its last checkpoint to the same bits."""
    monkeypatch.chdir(tmp_path)
    name = shelf.install("intervention", "hungry", Hungry)
    whole = start([name], name="whole", checkpoint_interval=3, **keys)
    (tmp_path / "fault").touch()
    with pytest.raises(OutOfMemory, match=re.escape(LAYER)):
        start([name], name="cut", checkpoint_interval=3, **keys)
    (tmp_path / "fault").unlink()
    assert checkpoints(start.runs / "cut")
    start.resume("cut")
    assert metrics_bytes(start.runs / "cut") == metrics_bytes(whole.run_directory)
    assert weights_sha256(start.runs / "cut") == weights_sha256(whole.run_directory)


ASSERTS = """
import os, sys
import altcore, torch
from altcore import hookimpl
from attrs import define, field

@define(eq=False)
class Breaks:
    @hookimpl
    def run_start(self, run):
        def forward(_, inputs):
            if run.step == 4 and run.model.training and os.path.exists("fault"):
                table = torch.ones(3, device=run.device)
                table[torch.tensor([5, 2**20], device=run.device)]
        run.model.get_submodule("transformer.h.0.mlp.c_fc").register_forward_pre_hook(forward)
"""


def python(folder, *arguments, **given):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**environment([folder, ROOT, *sorted(ROOT.glob("plugins/*"))]), **given},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def command(folder, *arguments, **given):
    return python(folder, "-m", "altcore", *arguments, **given)


def sets(**keys):
    given = [f"{key.replace('__', '.')}={value}" for key, value in keys.items()]
    return [word for setting in given for word in ("--set", setting)]


def tiny(corpus, name, **keys):
    """Arguments of ``altcore train`` for a run of six steps on the GPU."""
    given = {
        "gpt__size": "tiny", "gpt__n_layer": 1, "gpt__block_size": 16, "gpt__batch_size": 4,
        "gpt__dropout": 0.1, "warmup_steps": 1, "checkpoint_interval": 3, "eval_interval": 0,
        "eval_steps": 1, "name": name, **keys,
    }  # fmt: skip
    return ["train", "--device", "cuda", "--data", str(corpus), "--steps", "6", *sets(**given)]


def test_an_assertion_on_the_device(tmp_path, corpus):
    """CUDA computes nothing more in this process, which ends soon; the last checkpoint is whole."""
    site = tmp_path / "site"
    points = {"intervention": {"breaks": "acme_breaks:Breaks"}}
    distribution(site, "acme-breaks", points, acme_breaks=ASSERTS)
    given = {"PYTHONPATH": os.pathsep.join(map(str, [site, ROOT, *ROOT.glob("plugins/*")]))}
    plugin = ("--plugin", "breaks")
    whole = command(tmp_path, *tiny(corpus, "whole"), *plugin, **given)
    assert whole.returncode == 0, whole.stderr
    (tmp_path / "fault").touch()
    began = time.monotonic()
    done = command(tmp_path, *tiny(corpus, "cut"), *plugin, **given)
    took = time.monotonic() - began
    assert done.returncode not in (0, 2), done.stderr
    assert "device-side assert" in done.stderr
    assert "Traceback" not in done.stderr
    assert took < 100, took
    cut = tmp_path / "runs" / "cut"
    checked = command(tmp_path, "checkpoints", "verify", str(cut))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (tmp_path / "fault").unlink()
    resumed = command(tmp_path, "train", "--resume", "cut", **given)
    assert resumed.returncode == 0, resumed.stderr
    assert weights_sha256(cut) == weights_sha256(tmp_path / "runs" / "whole")
    assert events(cut)


# ------------------------------------------------------------- what knows no device


class Points:
    """A model and batches that are on the CPU."""

    item, items_per_batch = "rows", 4
    facts: ClassVar = {}

    def __init__(self):
        self.model = nn.Linear(3, 1)

    def batch(self, split, step, micro):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        return x, x.sum(1, keepdim=True)

    def loss(self, model, batch):
        x, y = batch
        assert x.is_cuda
        return (model(x) - y).square().mean()


@define(eq=False)
class ForgetsDevice:
    """A workload that builds on the CPU, whatever it is told."""

    def build(self, seed, device):
        torch.manual_seed(seed)
        return Points()


class Measures:
    """Returns a measure on each of two devices."""

    @hookimpl
    def post_step(self, run, step):
        return {"here": torch.tensor(3.0), "there": torch.tensor(4.0, device=run.device)}


def test_a_workload_that_knows_no_device_trains_on_it(shelf, start):
    """And goes on there, with measures that are on the CPU."""
    name = shelf.install("workload", "points", ForgetsDevice)
    plugin = shelf.install("diagnostic", "measures", define(eq=False)(Measures))
    keys = {"workload": name, "checkpoint_interval": 2, "gpt.dropout": None}
    start([plugin], name="r", max_steps=2, **keys)
    resumed = start.resume("r", max_steps=4)
    last = resumed.diagnostics_history[-1]
    assert (last["measures/here"], last["measures/there"]) == (3, 4)


@define(eq=False)
class Averages:
    """Keeps a mean on the device, and numbers that it draws on the CPU."""

    mean: torch.Tensor | None = field(init=False, default=None)
    drawn: torch.Tensor = field(init=False, factory=lambda: torch.zeros(()))

    @hookimpl
    def post_step(self, step):
        self.drawn += torch.ones(())
        before = step.mean_loss if self.mean is None else self.mean
        self.mean = torch.lerp(before, step.mean_loss, 0.1)
        return {"mean": self.mean, "drawn": self.drawn}

    def state_dict(self):
        return {"mean": self.mean, "drawn": self.drawn}

    def load_state_dict(self, state):
        self.mean, self.drawn = state["mean"], state["drawn"]


def test_a_plugins_state_comes_back_on_the_devices_it_was_on(shelf, start):
    names = [shelf.install("diagnostic", "averages", Averages), "noise"]
    keys = {"strict": True, "noise.report_interval": 3, "min_lr_ratio": 1.0}
    whole = start(names, name="whole", **keys)
    start(names, name="r", max_steps=4, **keys)
    resumed = start.resume("r", max_steps=6)
    assert resumed.summary["degraded"] == []
    assert resumed.diagnostics_history == whole.diagnostics_history


def test_measures_of_an_evaluation_may_be_on_the_cpu(start):
    def loss(model, batch):
        return model(batch).mean(), {"there": torch.ones(())}

    keys = start.config(gpt__dropout=None)
    run = altcore.train(keys, model=nn.Linear(3, 1), data=lambda *at: torch.ones(4, 3), loss=loss)
    assert run.summary["evaluation"]["val_there"] == 1


def test_batches_of_ones_own_are_moved(start):
    model = nn.Linear(3, 1)
    rows = Points()
    altcore.train(start.config(gpt__dropout=None), model=model, data=rows.batch, loss=rows.loss)
    assert model.weight.is_cuda


# ------------------------------------------------------------------------- own loops


class Loop:
    """A loop of one's own: half precision with a scaler, dropout, quantized layers."""

    def __init__(self, device="cuda"):
        torch.manual_seed(0)
        self.device = device
        self.model = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.2), nn.Linear(32, 4)).to(device)
        self.q = altcore.quantize_model(
            self.model, {"weight": STOCHASTIC, "activation": "E4M3", "gradient": "E5M2"}
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scaler = torch.amp.GradScaler(device)

    def kept(self, folder):
        return CheckpointManager(folder, self.model, self.optimizer, self.q, scaler=self.scaler)

    def train(self, steps):
        for _ in range(steps):
            x = torch.randn(8, 16, device=self.device)
            with torch.autocast(self.device, torch.float16):
                loss = self.model(x).square().mean()
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.q.store(self.optimizer)
        return [p.detach().cpu().clone() for p in self.model.parameters()]


def test_a_loop_goes_on_with_the_same_bits(tmp_path):
    one = Loop()
    with one.kept(tmp_path) as manager:
        one.train(3)
        manager.save(3)
        wanted = one.train(3)
    other = Loop()
    other.train(1)
    with other.kept(tmp_path) as manager:
        assert manager.restore() == 3
        found = other.train(3)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_loop_goes_on_on_the_other_device(tmp_path):
    """Its states go where its parameters are."""
    one = Loop()
    with one.kept(tmp_path) as manager:
        one.train(3)
        manager.save(3)
        before = one.train(0)
    other = Loop("cpu")
    with other.kept(tmp_path) as manager, capture_logs() as logs:
        assert manager.restore() == 3
        assert all(torch.equal(a, b) for a, b in zip(other.train(0), before, strict=True))
        other.train(1)
    assert any("bits may differ" in x["event"] for x in logs), logs


# ------------------------------------------------------------------ several processes


def torchrun(folder, count, *arguments, **given):
    with socket.socket() as free:  # other tests may have processes of torchrun, too
        free.bind(("", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={count}", f"--master-port={port}"]
    return python(
        folder, *launch, "-m", "altcore", *arguments, **{"GLOO_SOCKET_IFNAME": "lo", **given}
    )


def test_one_process_of_nccl_makes_the_run_that_none_makes(tmp_path, corpus):
    """And goes on with it."""
    done = torchrun(tmp_path, 1, *tiny(corpus, "one"))
    assert done.returncode == 0, done.stderr
    resumed = torchrun(tmp_path, 1, "train", "--resume", "one", "--steps", "8")
    assert resumed.returncode == 0, resumed.stderr
    command(tmp_path, *tiny(corpus, "alone"))
    alone = command(tmp_path, "train", "--resume", "alone", "--steps", "8")
    assert alone.returncode == 0, alone.stderr
    assert weights_sha256(tmp_path / "runs" / "one") == weights_sha256(tmp_path / "runs" / "alone")


def test_more_processes_than_gpus(tmp_path, corpus):
    """Every rank ends soon, with one that has no GPU saying so."""
    count = torch.cuda.device_count()
    began = time.monotonic()
    done = torchrun(tmp_path, count + 1, *tiny(corpus, "many"))
    took = time.monotonic() - began
    assert done.returncode != 0
    assert f"cuda:{count} is not here ({count} CUDA devices)" in done.stderr
    assert took < 60, took
