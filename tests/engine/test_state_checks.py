"""A checkpoint's state is checked against the model before it is loaded; a wrong one is left."""

import io
import zipfile
from contextlib import suppress
from hashlib import sha256

import pytest
import torch
from helpers import Starter, checkpoints, events, text_file, weights_sha256
from helpers_checkpoints import rewrite_manifest
from structlog.testing import capture_logs

from altcore import BadInput
from altcore.runs import checkpoint, manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with two checkpoints, and what a run of five steps ends with."""
    root = tmp_path_factory.mktemp("states")
    start = Starter(root / "runs", text_file(root / "words.txt"))
    recipe = {
        "weight": "FORMAT",
        "activation": "FORMAT",
        "gradient": "FORMAT",
        "stored_weight": "FORMAT",
        "optimizer_state": {"format": "E5M3", "scaling": "tensor"},
    }
    keys = {"format": "E3M4", "recipe": recipe, "checkpoint_interval": 2, "min_lr_ratio": 1.0}
    start(name="whole", max_steps=5, **keys)
    start(name="r", max_steps=4, **keys)
    return start


@pytest.fixture
def start(folder, tmp_path):
    """The same run, in a folder of the test's own."""
    import shutil

    shutil.copytree(folder.runs, tmp_path / "runs")
    return Starter(tmp_path / "runs", folder.corpus)


def write(path, data):
    """Write a state with a manifest that vouches for it."""
    (path / "state.pt").write_bytes(data)
    files = manifest.read_manifest(path)["files"]
    files["state.pt"] = {"sha256": sha256(data).hexdigest(), "bytes": len(data)}
    rewrite_manifest(path, files=files)


def change(run, alter, name="step-00000004"):
    """Alter the state of a checkpoint."""
    found = checkpoint.load_checkpoint(run / "checkpoints" / name)
    if found.state is not None:
        alter(found.state)
        checkpoint.save_checkpoint(found.path.parent, found.state, found.manifest)


def shorter(state, key):
    entry = state["optimizer"]["state"][2]
    entry[key] = entry[key].flatten()[:1].clone()


def first_matrix(state):
    return next(name for name, w in state["model"].items() if w.dim() == 2)


def put(state, value, *path):
    """Set what lies at a path of keys; a callable gets what is there."""
    for key in path[:-1]:
        state = state[key]
    state[path[-1]] = value(state[path[-1]]) if callable(value) else value


def off_grid(state):
    state["model"][first_matrix(state)][0, 0] *= 1.001


def not_finite(state):
    state["model"][first_matrix(state)][0, 0] = torch.nan


def scale(value):
    def alter(state):
        name = next(iter(state["quantization"]["stored"]))
        state["quantization"]["stored"][name]["scale"] = torch.tensor(value)

    return alter


def moment_scale(state, value):
    state["quantization"]["moments"][f"{first_matrix(state)}/exp_avg"] = value


WRONG = {
    "a weight is missing": lambda s: s["model"].pop(first_matrix(s)),
    "a weight more": lambda s: put(s, torch.ones(2), "model", "more"),
    "another shape": lambda s: put(s, lambda w: w[:-1].clone(), "model", first_matrix(s)),
    "another type": lambda s: put(s, lambda w: w.double(), "model", first_matrix(s)),
    "no tensor": lambda s: put(s, "x", "model", first_matrix(s)),
    "not finite": not_finite,
    "off the grid": off_grid,
    "no scale": lambda s: s["quantization"]["stored"].popitem(),
    "scale 0": scale(0.0),
    "scale below 0": scale(-1.0),
    "scale nan": scale(float("nan")),
    "scales": scale([1.0, 2.0]),
    "a plan of other layers": lambda s: s["quantization"]["plan"].popitem(),
    "no plan": lambda s: put(s, {}, "quantization", "plan"),
    "a plan of nonsense": lambda s: put(
        s, lambda p: {k: {"weight@fwd": {"format": 7}} for k in p}, "quantization", "plan"
    ),
    "a short moment": lambda s: shorter(s, "exp_avg"),
    "a short second moment": lambda s: shorter(s, "exp_avg_sq"),
    "a large moment": lambda s: put(
        s, lambda m: torch.cat([m, m]), "optimizer", "state", 2, "exp_avg"
    ),
    "an empty moment": lambda s: put(s, torch.empty(0), "optimizer", "state", 2, "exp_avg"),
    "a moment of another shape": lambda s: put(
        s, lambda m: m.flatten(), "optimizer", "state", 0, "exp_avg"
    ),
    "a sparse moment": lambda s: put(
        s, lambda m: m.to_sparse(), "optimizer", "state", 0, "exp_avg"
    ),
    "a moment that is one number": lambda s: put(
        s, lambda m: torch.zeros(1, 1).expand(m.shape), "optimizer", "state", 0, "exp_avg"
    ),
    "a number for a moment": lambda s: put(
        s, torch.tensor(1.0), "optimizer", "state", 0, "exp_avg"
    ),
    "a moment is missing": lambda s: s["optimizer"]["state"][0].pop("exp_avg"),
    "a negative second moment": lambda s: put(
        s, lambda m: m - 1, "optimizer", "state", 0, "exp_avg_sq"
    ),
    "a moment off its grid": lambda s: put(
        s, lambda m: m * torch.linspace(1, 1.01, m.numel()).view(m.shape),
        "optimizer", "state", 2, "exp_avg",
    ),
    "a moment of scale 0": lambda s: moment_scale(s, torch.tensor(0.0)),
    "a moment of a negative scale": lambda s: moment_scale(s, -1.0),
    "a scale of no moment": lambda s: put(s, 1.0, "quantization", "moments", "unheard/exp_avg"),
    "scales as text": lambda s: put(s, "x", "quantization", "moments"),
    "steps": lambda s: put(s, torch.ones(3), "optimizer", "state", 0, "step"),
    "a step below 0": lambda s: put(s, torch.tensor(-1.0), "optimizer", "state", 0, "step"),
    "a moment of no parameter": lambda s: put(s, {}, "optimizer", "state", 999),
    "fewer groups": lambda s: s["optimizer"]["param_groups"].pop(),
    "a parameter fewer": lambda s: s["optimizer"]["param_groups"][0]["params"].pop(),
    "an option as text": lambda s: put(s, "x", "optimizer", "param_groups", 0, "eps"),
    "an option is missing": lambda s: s["optimizer"]["param_groups"][0].pop("betas"),
    "optimizer": lambda s: put(s, [], "optimizer"),
    "no model": lambda s: s.pop("model"),
    "step": lambda s: put(s, "4", "step"),
    "lr_scale": lambda s: put(s, -1.0, "lr_scale"),
    "random": lambda s: put(s, torch.zeros(3, dtype=torch.uint8), "ranks", 0, "random", "cpu"),
    "detector": lambda s: put(s, {}, "detector"),
    "dead steps": lambda s: put(s, torch.zeros(1, dtype=torch.int64), "dead_steps"),
    "shifts": lambda s: put(s, [3], "shifts"),
    "reports": lambda s: put(s, [None], "reports"),
    "history": lambda s: put(s, 1, "history", "unheard of"),
}  # fmt: skip


@pytest.mark.parametrize("alter", WRONG.values(), ids=WRONG)
def test_a_wrong_state_falls_back_loudly(alter, start):
    """To the checkpoint before; the run then ends as an uninterrupted one does."""
    run = start.runs / "r"
    change(run, alter)
    with capture_logs() as logs:
        start.resume("r", max_steps=5)
    told = [x for x in logs if "not valid" in x["event"]]
    assert len(told) == 1
    assert told[0]["error"]
    assert events(run, "resume")[-1]["checkpoint"] == "step-00000002"
    assert weights_sha256(run) == weights_sha256(start.runs / "whole")


class Payload:
    """Runs a command when it is unpickled by the plain unpickler."""

    def __reduce__(self):
        return print, ("executed",)


def packed():
    """An archive that unpacks to a hundred times its size."""
    buffer, made = io.BytesIO(), io.BytesIO()
    torch.save({"step": 4, "model": torch.zeros(1_000_000)}, buffer)
    with (
        zipfile.ZipFile(buffer) as archive,
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as again,
    ):
        for part in archive.infolist():
            again.writestr(part.filename, archive.read(part))
    return made.getvalue()


def pickled():
    buffer = io.BytesIO()
    torch.save({"step": 4, "model": Payload()}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80", b"PK\x03\x04", b"x" * 1000, pickled(), packed()],
    ids=["empty", "one byte", "zip", "text", "payload", "packed"],
)
def test_what_unpickling_refuses_falls_back(data, start, capfd):
    """Nothing is executed, and an empty file is no interrupt."""
    run = start.runs / "r"
    write(run / "checkpoints/step-00000004", data)
    start.resume("r", max_steps=5)
    assert events(run, "resume")[-1]["checkpoint"] == "step-00000002"
    assert "executed" not in capfd.readouterr().out


def test_if_no_state_fits_nothing_is_touched(start):
    """Not even by beginning again from the seed, which step 0 would do."""
    run = start.runs / "r"
    for name in checkpoints(run):
        change(run, lambda s: shorter(s, "exp_avg"), name)
    names = checkpoints(run)
    files = ("metrics.jsonl", "config.yaml", "summary.json", "events.jsonl")
    before = [(run / file).read_bytes() for file in files]
    with pytest.raises(BadInput, match=r"no checkpoint has a state that it can go on .*exp_avg"):
        start.resume("r", max_steps=6)
    assert [(run / file).read_bytes() for file in files] == before
    assert checkpoints(run) == names


@pytest.mark.parametrize("optimizer", ["sgd", "lion", "manifold-adamw", "grid"])
def test_the_states_of_all_optimizers_pass(optimizer, start):
    """And a moment of another shape is found."""
    keys = {"optimizer": optimizer, "checkpoint_interval": 2, "format": "E3M4", "recipe": "pure"}
    run = start(name="own", max_steps=4, **keys).run_directory
    start.resume("own", max_steps=5)
    assert events(run, "resume")[-1]["checkpoint"] == "step-00000004"

    def alter(state):
        for entry in state["optimizer"]["state"].values():
            for key, value in entry.items():
                if isinstance(value, torch.Tensor) and value.dim() == 2:
                    entry[key] = value[:1].clone()
                    return

    change(run, alter, "step-00000005")
    with suppress(BadInput):
        start.resume("own", max_steps=6)
    assert events(run, "resume")[-1]["checkpoint"] == "step-00000004"
