"""Runs loaded back, and their weights exported."""

import json
import re
import shutil
import sys
from functools import partial, wraps

import pytest
import torch
import yaml
from attrs import define, evolve
from helpers import Starter, as_killed, text_file
from helpers_cli import call
from helpers_epochs import Points
from safetensors import safe_open
from structlog.testing import capture_logs

import altcore
from altcore import BadInput, loading, setting
from altcore.errors import InvalidCheckpoint
from altcore_workloads.gpt import Gpt

RECIPES = {
    "pure": {"format": "E4M3", "recipe": "pure"},
    "master": {"format": "E5M2", "recipe": "master"},
    "none": {"format": "none"},
    "mxfp8": {"recipe": "mxfp8"},
    "nvfp4": {"recipe": "nvfp4"},
    "delayed": {
        "format": "E5M2",
        "recipe": {"weight": {"format": "FORMAT", "scaling": "delayed"}},
    },
    "channel": {
        "format": "E3M4",
        "recipe": {"weight": {"format": "FORMAT", "scaling": "channel"}},
    },
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Runs of six steps."""
    root = tmp_path_factory.mktemp("loading")
    made = Starter(root / "runs", text_file(root / "words.txt"))
    for name, keys in RECIPES.items():
        made(name=name, max_steps=6, checkpoint_interval=2, eval_interval=3, **keys)
    return made


def test_the_loaded_model_evaluates_as_the_run_did(start):
    """To the last bit, with the run's own validation batches."""
    for name in ("pure", "master", "none"):
        loaded = altcore.load(name, "latest", runs_dir=start.runs)
        with torch.no_grad():
            losses = [
                float(loaded.workload.loss(loaded.model, loaded.workload.batch("val", i, 0)))
                for i in range(loaded.config.eval_steps)
            ]
        assert sum(losses) / len(losses) == pytest.approx(loaded.summary["val_loss"], rel=1e-6)
        assert loaded.step == 6
        assert not loaded.model.training


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_the_modes_of_the_caller_change_no_loss(compute, start):
    """What is loaded runs in the autocast of its run, and can be differentiated."""
    name = f"in-{compute}"
    start(name=name, max_steps=1, eval_steps=1, format="none", compute=compute)
    with torch.inference_mode(), torch.autocast("cpu"):
        loaded = altcore.load(name, "latest", runs_dir=start.runs)
        batch = loaded.workload.batch("val", 0, 0)
        loss = float(loaded.workload.loss(loaded.model, batch))
        assert torch.is_autocast_enabled("cpu")
    assert loss == loaded.summary["val_loss"]
    again = loaded.workload.loss(loaded.model, loaded.workload.batch("val", 0, 0))
    assert again.item() == loss
    assert again.requires_grad
    assert not any(p.is_inference() for p in loaded.model.parameters())


def test_the_next_best_is_loaded_if_the_run_removes_one_meanwhile(start, monkeypatch):
    """It trains on, and has a better one."""
    find = loading.find_checkpoint

    def find_too_early(run, _):
        monkeypatch.undo()
        return run / "checkpoints/step-00000001"

    monkeypatch.setattr(loading, "find_checkpoint", find_too_early)
    best = altcore.load("none", runs_dir=start.runs)
    assert best.checkpoint == find(start.runs / "none", "best")


def test_a_checkpoint_is_chosen_by_name_best_or_latest(start):
    """And an unknown one is refused with the names that there are."""
    assert altcore.load("pure", "step-00000004", runs_dir=start.runs).step == 4
    assert altcore.load(start.runs / "pure", "latest").step == 6
    torch.manual_seed(1)
    before = torch.get_rng_state()
    best = altcore.load("pure", runs_dir=start.runs)
    assert torch.equal(torch.get_rng_state(), before)
    assert best.step == best.summary["best_step"]
    with pytest.raises(BadInput, match=r"no checkpoint 'lates'.*did you mean latest"):
        altcore.load("pure", "lates", runs_dir=start.runs)
    with pytest.raises(BadInput, match="no run"):
        altcore.load("pur", runs_dir=start.runs)


def test_step_0_is_what_the_seed_builds(start):
    """Its checkpoint is a manifest alone."""
    loaded = altcore.load("pure", "step-00000000", runs_dir=start.runs)
    assert loaded.step == 0
    assert loaded.quantization.stored


def test_loading_changes_nothing_of_the_run(start):
    """Not a file is written."""
    run = start.runs / "master"
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    altcore.load("master", runs_dir=start.runs)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_other_data_than_the_run_had_are_named(start, tmp_path):
    """With both digests; if they are gone, the refusal says where the weights are."""
    run = tmp_path / "runs/none"
    shutil.copytree(start.runs / "none", run)
    words = text_file(tmp_path / "words.txt")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["settings"]["gpt"]["data"] = str(words)
    (run / "config.yaml").write_text(yaml.safe_dump(config))

    def told():
        with capture_logs() as logs:
            loaded = altcore.load("none", "latest", runs_dir=run.parent)
        said = [x for x in logs if x["event"].startswith("the data were changed since the run")]
        return loaded, [(x["recorded"], x["now"]) for x in said]

    loaded, same = told()
    assert not same
    words.write_text(words.read_text().swapcase())
    _, ((recorded, now),) = told()
    assert recorded == loaded.workload.facts["sha256"] != now
    words.unlink()
    with pytest.raises(BadInput, match=r"gpt.data: .*words.txt does not exist: .*weights.pt") as e:
        told()
    file = re.search(r"torch.load\('(.*)'\)\['model'\]", str(e.value))[1]
    alone, own = torch.load(file)["model"], loaded.model.state_dict()
    assert alone.keys() == own.keys()
    assert all(torch.equal(alone[key], own[key]) for key in own)


def test_a_workload_of_another_source_is_named(start, monkeypatch):
    """Its model may compute other values than the run's did."""

    def told():
        with capture_logs() as logs:
            altcore.load("none", runs_dir=start.runs)
        return [x["event"] for x in logs if x["event"].startswith("workload gpt was")]

    assert told() == []
    monkeypatch.setattr("altcore.loading.plugin_digest", lambda _: "b" * 64)
    (event,) = told()
    assert re.fullmatch(r"workload gpt was (.+) \(\w{12}\) and is \1 \(b{12}\)", event)


def test_files_that_are_a_workloads_defaults_are_compared(start, shelf, tmp_path):
    """The run's configuration does not name them, and its checkpoint does."""
    file = tmp_path / "points"
    file.write_text("one")

    @define(eq=False)
    class Filed(Points):
        files: list[str] = setting(factory=lambda: [str(file)], help="files")

        def build(self, seed, device):
            return evolve(super().build(seed, device), facts={"numbers": 20})

    shelf.install("workload", "filed", Filed)
    altcore.train(start.config(workload="filed", name="filed", max_steps=1))
    for text, places in (("one", []), ("two", ["filed.files[0]"])):
        file.write_text(text)
        with capture_logs() as logs:
            altcore.load("filed", "latest", runs_dir=start.runs)
        assert [x["what"] for x in logs if x["event"].startswith("the data were")] == places


EDITED = [
    ({"compute": "bfloat16"}, "compute was auto and is bfloat16"),
    ({"format": "E4M3"}, "format was E5M2 and is E4M3"),
    ({"recipe": "pure"}, "recipe was master and is pure"),
    ({"settings": {"gpt": {"dropout": 0.5}}}, "gpt.dropout was 0.0 and is 0.5"),
    ({"settings": {"gpt": {"batch_size": None}}}, "gpt.batch_size was 4 and is "),
]


@pytest.mark.parametrize(("edit", "said"), EDITED)
def test_an_edited_configuration_is_named(start, tmp_path, edit, said):
    """Of a run that was killed, too, whose summary would have its digest."""
    shutil.copytree(start.runs / "master", tmp_path / "master")
    config = tmp_path / "master/config.yaml"
    as_killed(tmp_path / "master")
    with capture_logs() as logs:
        altcore.load("master", "latest", runs_dir=tmp_path)
    assert logs == []
    written = yaml.safe_load(config.read_text())
    own = {**written["settings"]["gpt"], **edit.get("settings", {}).get("gpt", {})}
    settings = {**written["settings"], "gpt": {k: v for k, v in own.items() if v is not None}}
    config.write_text(yaml.safe_dump({**written, **edit, "settings": settings}))
    with capture_logs() as logs:
        altcore.load("master", "latest", runs_dir=tmp_path, with_data=False)
    (warning,) = (log for log in logs if "config.yaml" in log["event"])
    assert said in warning["event"]
    assert "altcore runs restore master brings it back" in str(warning)


def sums(split, step, micro):
    """Return tokens that a seed draws, in place of the workload's."""
    tokens = torch.randint(0, 200, (2, 9), generator=torch.Generator().manual_seed(step))
    return tokens[:, :-1], tokens[:, 1:]


def own_loss(model, batch):
    """Return another loss than the workload's."""
    return model(batch[0]).float().square().mean()


class Tokens(torch.nn.Sequential):
    """A model of a caller, which may have another activation with the same weights."""

    def __init__(self, activation):
        super().__init__(torch.nn.Embedding(200, 8), activation, torch.nn.Linear(8, 8))


def test_what_came_from_python_is_compared(start):
    """By the same digest, names and modules as at a resume; what is the same is no news."""
    own = {"model": Tokens(torch.nn.ReLU()), "data": sums, "loss": own_loss}
    altcore.train(start.config(name="own", max_steps=1), **own)

    def told(**given):
        with capture_logs() as logs:
            loaded = altcore.load("own", "latest", runs_dir=start.runs, **{**own, **given})
        return loaded, [x for x in logs if x["log_level"] == "warning"]

    loaded, news = told(model=Tokens(torch.nn.ReLU()))
    assert not news
    batch = loaded.workload.batch("val", 0, 0)
    assert torch.equal(batch[0], sums("val", 0, 0)[0])
    assert loaded.workload.loss(loaded.model, batch) == own_loss(loaded.model, batch)
    _, (changed, named) = told(data=lambda split, step, micro: sums(split, step + 1, micro))
    assert changed["event"].startswith("the data were changed since the run")
    assert len(changed["recorded"]) == len(changed["now"]) == 64
    assert "data was sums, given from Python and is " in named["event"]
    _, (missing,) = told(data=None)
    assert missing["event"].startswith("data was sums, given from Python and is none")
    assert "data=..." in missing["hint"]
    _, (missing,) = told(loss=None)
    assert missing["event"].startswith("loss was own_loss, given from Python and is none")
    _, (other,) = told(loss=wraps(own_loss)(lambda model, batch: model(batch[0]).sum()))
    assert "loss was own_loss, given from Python, with code " in other["event"]
    _, (other,) = told(model=Tokens(torch.nn.GELU()))
    assert "with ReLU() as 1 and is Tokens" in other["event"]
    alone, news = told(with_data=False, data=None, loss=None)
    assert not news
    assert torch.equal(alone.model[2].weight, loaded.model[2].weight)


@pytest.mark.parametrize("checkpoint", ["latest", "step-00000000"])
def test_the_weights_need_no_data(checkpoint, start, tmp_path, capsys, monkeypatch):
    """The model is built by what the run recorded; where it cannot be, the reason is said."""
    shutil.copytree(start.runs / "pure", tmp_path / "runs/pure")
    config = tmp_path / "runs/pure/config.yaml"
    gone = str(tmp_path / "gone.txt")
    config.write_text(config.read_text().replace(str(start.corpus), gone))
    whole = altcore.load("pure", checkpoint, runs_dir=start.runs)
    keys = {"checkpoint": checkpoint, "runs_dir": tmp_path / "runs"}
    with pytest.raises(BadInput, match=r"gone.txt does not exist: .*with_data=False"):
        altcore.load("pure", **keys)
    moved = altcore.load("pure", **keys, data=start.corpus)
    assert moved.workload.facts == whole.workload.facts
    alone = altcore.load("pure", **keys, with_data=False)
    own = whole.model.state_dict()
    assert all(torch.equal(own[key], x) for key, x in alone.model.state_dict().items())
    assert alone.workload.facts == whole.workload.facts
    with pytest.raises(BadInput, match="with_data: the run was loaded without its data"):
        alone.workload.batch("val", 0, 0)
    command = ("checkpoints", "export", "pure", tmp_path / "out", "--runs-dir", keys["runs_dir"])
    assert call(capsys, *command, "--as", "codes", "--name", checkpoint).code == 0
    altcore.export(whole, tmp_path / "whole", "codes")
    exported, expected = (altcore.read_export(tmp_path / name) for name in ("out", "whole"))
    assert all(torch.equal(expected[key], x) for key, x in exported.items())
    monkeypatch.delattr(Gpt, "build_model")
    (tmp_path / "out").unlink()
    outcome = call(capsys, *command)
    assert outcome.code == 2
    says = "gone.txt does not exist: workload gpt cannot build its model without its data: it has"
    assert f"{says} no build_model" in " ".join(outcome.err.split())


def test_a_damaged_value_of_the_record_is_named_with_its_line(start, tmp_path):
    """As one digit of max_steps."""
    shutil.copytree(start.runs / "pure", tmp_path / "runs/pure")
    file = tmp_path / "runs/pure/config.yaml"
    text = file.read_text().replace("max_steps: 6", "max_steps: 0")
    file.write_text(text)
    line = text.splitlines().index("max_steps: 0") + 1
    for which in ("best", "latest"):
        with pytest.raises(BadInput) as error:
            altcore.load("pure", which, runs_dir=tmp_path / "runs")
        told = f"max_steps: must be >= 1: 0 (given in {file}, line {line})"
        assert str(error.value) == told
    with pytest.raises(BadInput, match=rf"given in {re.escape(str(file))}, line {line}\)"):
        loading.find_checkpoint(file.parent, "best")


def test_a_damaged_checkpoint_is_refused(start, tmp_path):
    """The named one; best and latest go back to one that is whole."""
    shutil.copytree(start.runs / "pure", tmp_path / "runs/pure")
    file = tmp_path / "runs/pure/checkpoints/step-00000006/weights.pt"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(InvalidCheckpoint, match="sha256"):
        altcore.load("pure", "step-00000006", runs_dir=tmp_path / "runs")
    assert altcore.load("pure", "latest", runs_dir=tmp_path / "runs").step == 4


def test_a_checkpoint_of_another_run_is_never_loaded(start, tmp_path, capsys):
    """Not as the latest or the best; by its name it is refused, and `verify` finds it."""
    runs = tmp_path / "runs"
    shutil.copytree(start.runs / "pure", runs / "pure")
    shutil.rmtree(runs / "pure/checkpoints/step-00000006")
    shutil.copytree(
        start.runs / "master/checkpoints/step-00000006", runs / "pure/checkpoints/step-00000006"
    )
    for which in ("latest", "best"):
        assert altcore.load("pure", which, runs_dir=runs).step < 6
    with pytest.raises(InvalidCheckpoint, match="is of another run"):
        altcore.load("pure", "step-00000006", runs_dir=runs)
    outcome = call(capsys, "checkpoints", "verify", "pure", "--runs-dir", runs)
    assert outcome.code == 1
    assert "is of another run" in outcome.out


@pytest.mark.parametrize("name", RECIPES)
def test_exported_weights_are_those_that_products_see(name, start, tmp_path):
    """Codes decode to the values; the masters are the model's own."""
    loaded = altcore.load(name, "latest", runs_dir=start.runs)
    q, own = loaded.quantization, loaded.model.state_dict()
    others = {kind: altcore.export(loaded, tmp_path / kind, kind) for kind in ("values", "codes")}
    assert altcore.export(loaded, tmp_path / "masters", "masters") == {}
    masters, values, codes = (
        altcore.read_export(tmp_path / kind) for kind in ("masters", "values", "codes")
    )
    assert masters.keys() == values.keys() == codes.keys() == own.keys()
    assert all(torch.equal(masters[key], own[key]) for key in own)
    for key in own:
        assert torch.equal(values[key], codes[key].to(values[key].dtype)), key
    seen = {}
    for full, (slot, source) in q.weights.sources.items():
        if isinstance(source, tuple):
            layer, quantizer = source
            if not quantizer.cast.hadamard and type(layer.module).__name__ in ("Linear",):
                seen[full] = quantizer.fake(slot.parameter, False)
        else:
            seen[full] = slot.parameter.detach()
    for full in seen.keys() - others["values"].keys():
        assert torch.equal(values[full], seen[full].to(values[full].dtype)), full
    if name == "none":
        assert not seen
    else:
        assert seen.keys() - others["values"].keys()


@pytest.mark.filterwarnings("ignore:.*stored weight")
@pytest.mark.parametrize("fmt", ["E4M3", "BF16"])
def test_an_edited_weight_is_exported_as_the_next_forward_sees_it(fmt, start, tmp_path):
    """On its grid, with a scale that holds it; the export changes nothing itself."""
    keys = {"format": fmt, "recipe": "pure", "name": f"edited-{fmt}"}
    loaded = start(**keys) and altcore.load(keys["name"], "latest", runs_dir=start.runs)
    weights = {
        full: slot.parameter for full, (slot, _) in loaded.quantization.weights.sources.items()
    }
    with torch.no_grad():
        for p in weights.values():
            p.add_(1.001)
    edited = {full: p.detach().clone() for full, p in weights.items()}
    exported = {}
    for kind in ("masters", "values", "codes"):
        altcore.export(loaded, tmp_path / kind, kind)
        exported[kind] = altcore.read_export(tmp_path / kind)
    assert all(torch.equal(weights[full], x) for full, x in edited.items())
    assert all(torch.equal(exported["masters"][full], x) for full, x in edited.items())
    loaded.workload.loss(loaded.model, loaded.workload.batch("val", 0, 0))
    for full, p in weights.items():
        assert not torch.equal(edited[full], p)
        assert torch.equal(exported["values"][full], p), full
        assert torch.equal(exported["codes"][full].to(p.dtype), p), full


def test_an_exported_file_says_what_it_holds(start, tmp_path):
    """Run, checkpoint, formats with their digests."""
    loaded = altcore.load("pure", "latest", runs_dir=start.runs)
    altcore.export(loaded, tmp_path / "codes", "codes")
    with safe_open(tmp_path / "codes", framework="pt") as file:
        told = json.loads(file.metadata()["altcore"])
    assert told["run"] == "pure"
    assert told["checkpoint"] == "step-00000006"
    assert json.loads(told["formats"]).keys() == {"E4M3"}
    entry = next(iter(json.loads(told["weights"]).values()))
    assert entry["format"] == "E4M3"
    assert entry["bits"] == 8
    small = (tmp_path / "codes").stat().st_size
    altcore.export(loaded, tmp_path / "values")
    assert small < 0.5 * (tmp_path / "values").stat().st_size
    with pytest.raises(BadInput, match="one of values, masters, codes"):
        altcore.export(loaded, tmp_path / "x", "code")


def test_an_export_defines_a_format_that_is_not_installed(start, tmp_path):
    """Nobody needs the file that defined it."""
    definition = {"name": "MINE2", "exponent": 3, "mantissa": 4, "bias": 5}
    own = tmp_path / "mine2.yaml"
    own.write_text(yaml.safe_dump(definition))
    start(name="mine", format=str(own), recipe="pure", max_steps=1)
    own.unlink()
    loaded = altcore.load("mine", "latest", runs_dir=start.runs)
    altcore.export(loaded, tmp_path / "codes", "codes")
    altcore.export(loaded, tmp_path / "values", "values")
    codes, values = (altcore.read_export(tmp_path / kind) for kind in ("codes", "values"))
    assert all(torch.equal(values[name], x.to(values[name].dtype)) for name, x in codes.items())


def test_without_safetensors_the_extra_is_named(start, tmp_path, monkeypatch):
    """It is optional: writing and reading say what to install."""
    loaded = altcore.load("pure", "latest", runs_dir=start.runs)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for function in (partial(altcore.export, loaded), altcore.read_export):
        with pytest.raises(BadInput, match=r"safetensors is not installed.*altcore\[export\]"):
            function(tmp_path / "weights")


@pytest.mark.parametrize("kind", ["codes", "values"])
def test_a_flipped_bit_in_an_exported_file_is_named(kind, start, tmp_path):
    file = tmp_path / "exported"
    altcore.export(altcore.load("pure", "latest", runs_dir=start.runs), file, kind)
    data = bytearray(file.read_bytes())
    data[-5] ^= 64
    file.write_bytes(data)
    with pytest.raises(BadInput, match="is not as it was exported"):
        altcore.read_export(file)


def test_a_flipped_bit_anywhere_in_the_header_is_named(start, tmp_path):
    """Of names, types, places, or of what the file says of itself."""
    file = tmp_path / "exported"
    altcore.export(altcore.load("pure", "latest", runs_dir=start.runs), file, "codes")
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for i in range(0, header, max(1, header // 150)):
        data = bytearray(whole)
        data[i] ^= 1 << i % 8
        file.write_bytes(data)
        with pytest.raises(BadInput, match="exported"):
            altcore.read_export(file)
