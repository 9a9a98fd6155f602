"""Checkpoints of people's own loops."""

import copy
import os
import pickle
import shutil
import sys
import threading
from collections import defaultdict
from pathlib import Path

import numpy
import pytest
import torch
from helpers_streams import Broken
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from torch import nn

import altcore
from altcore import BadInput, CheckpointManager, durable
from altcore.engine import OwnLoop


class Loop:
    """A small loop with dropout, so that random states matter."""

    def __init__(self, recipe="pure", fmt="E4M3", seed=0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.q = None
        if recipe is not None:
            self.q = altcore.quantize_model(
                self.model, recipe, format=fmt, optimizer=self.optimizer, head=None
            )
        self.step = 0

    def train(self, steps):
        for _ in range(steps):
            self.step += 1
            loss = self.model(torch.randn(5, 8)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return self

    def weights(self):
        return {name: w.clone() for name, w in self.model.state_dict().items()}

    def manager(self, folder, **settings):
        return CheckpointManager(folder, self.model, self.optimizer, self.q, **settings)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


RECIPES = [(None, None), ("pure", "E4M3"), ("master", "E5M2"), ("pure", "E3M4")]


@pytest.mark.parametrize(("recipe", "fmt"), RECIPES, ids=map(str, RECIPES))
def test_a_restored_loop_goes_on_bit_for_bit(recipe, fmt, tmp_path):
    """Weights, moments, scales and random states are as they were."""
    whole = Loop(recipe, fmt).train(7)
    first = Loop(recipe, fmt).train(4)
    path = altcore.save_checkpoint(tmp_path, first.model, first.optimizer, first.q, 4)
    assert path.name == "step-00000004"
    again = Loop(recipe, fmt, seed=9).train(2)
    assert altcore.load_checkpoint(tmp_path, again.model, again.optimizer, again.q) == 4
    assert same(again.train(3).weights(), whole.weights())
    again = Loop(recipe, fmt, seed=9)
    assert altcore.load_checkpoint(path, again.model, again.optimizer, again.q) == 4
    assert same(again.weights(), first.weights())


@pytest.mark.parametrize("why", ["full", "its reader has gone", "closed"])
def test_a_warning_that_cannot_be_printed_costs_no_checkpoint(why, tmp_path, monkeypatch, capsys):
    """The folder has room, whatever is wrong with standard output."""
    monkeypatch.setattr(sys, "stdout", Broken(why))
    monkeypatch.setattr(altcore.log.log, "_has_failed", False)
    loop = Loop()
    schedule = torch.optim.lr_scheduler.ExponentialLR(loop.optimizer, 0.9)
    with loop.manager(tmp_path) as manager:
        for step in (1, 2):
            loop.train(1)
            schedule.step()
            assert manager.save(step).is_dir()
    assert capsys.readouterr().err.count("this is said once: state that no checkpoint has") == 1


def test_without_an_optimizer_only_the_model_is_restored(tmp_path):
    """For evaluation: random states stay as they are."""
    loop = Loop().train(2)
    altcore.save_checkpoint(tmp_path, loop.model, loop.optimizer, loop.q, 2)
    other = Loop(seed=1)
    before = torch.get_rng_state()
    assert altcore.load_checkpoint(tmp_path, other.model, None, other.q) == 2
    assert torch.equal(before, torch.get_rng_state())
    assert same(other.weights(), loop.weights())


def test_the_gradient_scaler_is_kept(tmp_path):
    """And asked for: it is part of the state."""
    loop = Loop(None)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    altcore.save_checkpoint(tmp_path, loop.model, loop.optimizer, None, 1, scaler)
    fresh = torch.amp.GradScaler("cpu", init_scale=2.0)
    with pytest.raises(BadInput, match="scaler"):
        altcore.load_checkpoint(tmp_path, loop.model, loop.optimizer, None)
    altcore.load_checkpoint(tmp_path, loop.model, loop.optimizer, None, fresh)
    assert fresh.state_dict()["scale"] == 8.0


def test_a_scaler_within_a_step_is_not_saved(tmp_path):
    """Its gradients and verdict are in no checkpoint; an anomaly is kept all the same."""
    loop, scaler = Loop(None), torch.amp.GradScaler("cpu")
    manager = loop.manager(tmp_path, scaler=scaler)
    scaler.scale(loop.model(torch.randn(5, 8)).square().mean()).backward()
    for inner in (scaler.unscale_, scaler.step):
        inner(loop.optimizer)
        with pytest.raises(BadInput, match=r"^scaler: .*save after scaler\.update"):
            manager.save(1)
    assert manager.save_on_anomaly(1).name == "anomaly_00000001"
    scaler.update()
    manager.save(1)


@pytest.mark.parametrize("is_planned", [False, True])
def test_a_scaler_that_is_not_passed_is_named(is_planned, tmp_path):
    """Once it makes the steps of the optimizer; one that is disabled has no state."""
    loop, scaler = Loop(None), torch.amp.GradScaler("cpu")
    plan = {"plan": torch.optim.lr_scheduler.StepLR(loop.optimizer, 9)} if is_planned else {}
    kept = [{}, {"scaler": scaler}, {"also": {**plan, "scaler": scaler}}]
    managers = [
        loop.manager(tmp_path / str(i), **{"also": plan, **more}) for i, more in enumerate(kept)
    ]
    for made, told in ((torch.amp.GradScaler("cpu", enabled=False), 0), (scaler, 1)):
        made.scale(loop.model(torch.randn(5, 8)).square().mean()).backward()
        made.step(loop.optimizer)
        made.update()
        with capture_logs() as logs:
            for manager in managers:
                manager.save(told)
        named = ["a GradScaler that steps the optimizer: pass it in as scaler"]
        assert [x["names"] for x in logs] == [named] * told


def test_a_scaler_that_is_disabled_is_none(tmp_path):
    """It has no scale to keep, and takes none."""
    loop = Loop(None)
    enabled, disabled = (torch.amp.GradScaler("cpu", enabled=e) for e in (True, False))
    save, load = altcore.save_checkpoint, altcore.load_checkpoint
    save(tmp_path / "on", loop.model, loop.optimizer, None, 1, enabled)
    save(tmp_path / "off", loop.model, loop.optimizer, None, 1, disabled)
    with pytest.raises(BadInput, match="holds a scaler, and none is given"):
        load(tmp_path / "on", loop.model, loop.optimizer, None, disabled)
    with pytest.raises(BadInput, match="holds no scaler"):
        load(tmp_path / "off", loop.model, loop.optimizer, None, enabled)
    assert load(tmp_path / "off", loop.model, loop.optimizer, None, disabled) == 1


def test_a_quantized_state_needs_a_quantization_and_the_other_way_round(tmp_path):
    """Nothing is dropped or made up in silence."""
    loop, plain = Loop(), Loop(None)
    altcore.save_checkpoint(tmp_path / "q", loop.model, loop.optimizer, loop.q, 1)
    altcore.save_checkpoint(tmp_path / "p", plain.model, plain.optimizer, None, 1)
    with pytest.raises(BadInput, match="quantization"):
        altcore.load_checkpoint(tmp_path / "q", plain.model, plain.optimizer, None)
    with pytest.raises(BadInput, match="quantization"):
        altcore.load_checkpoint(tmp_path / "p", loop.model, loop.optimizer, loop.q)
    with pytest.raises(BadInput, match="not the model that was quantized"):
        altcore.save_checkpoint(tmp_path / "q", plain.model, plain.optimizer, loop.q, 1)


def test_a_quantization_that_was_removed_is_not_kept(tmp_path):
    """Its scales are gone, and the model is not to blame."""
    loop = Loop("pure", "E4M3")
    with CheckpointManager(tmp_path, loop.model, loop.optimizer, loop.q) as manager:
        loop.q.remove()
        with pytest.raises(BadInput, match=r"^q: it was removed from the model.*before q\.remove"):
            manager.save(1)


@pytest.mark.parametrize("recipe", ["pure", {"optimizer_state": "BF16"}], ids=str)
def test_a_quantized_model_is_not_kept_without_its_scales(recipe, tmp_path):
    """Neither saved, nor restored, nor managed; a copy of it, and what is left of it, are plain."""
    loop = Loop(recipe, None if isinstance(recipe, dict) else "E4M3")
    given = loop.model, loop.optimizer, None
    with pytest.raises(BadInput, match=r"^q: the model is quantized.*pass the q"):
        altcore.save_checkpoint(tmp_path, *given, 1)
    with pytest.raises(BadInput, match=r"^q: the model is quantized"):
        altcore.load_checkpoint(tmp_path, nn.ModuleList([loop.model]), None, None)
    with pytest.raises(BadInput, match=r"^q: the model is quantized"):
        CheckpointManager(tmp_path, *given)
    twin = copy.deepcopy(loop.model)
    altcore.save_checkpoint(tmp_path, twin, torch.optim.SGD(twin.parameters()), None, 1)
    loop.q.remove()
    altcore.save_checkpoint(tmp_path, *given, 1)


def test_another_model_is_refused_before_anything_changes(tmp_path):
    """By the name of what is different."""
    loop = Loop(None).train(1)
    path = altcore.save_checkpoint(tmp_path, loop.model, loop.optimizer, None, 1)
    other = nn.Sequential(nn.Linear(8, 15), nn.ReLU(), nn.Dropout(0.3), nn.Linear(15, 4))
    before = copy.deepcopy(other.state_dict())
    optimizer = torch.optim.AdamW(other.parameters())
    for folder in (path, tmp_path):
        with pytest.raises(BadInput, match=r"^model: .*does not fit .*0\.weight"):
            altcore.load_checkpoint(folder, other, optimizer, None)
    assert same(other.state_dict(), before)
    with pytest.raises(BadInput, match=r"^model: "):
        CheckpointManager(tmp_path, other, optimizer).restore()
    assert path.exists()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_is_found(data, tmp_path_factory):
    """In any file of a checkpoint; the one before is taken, with a warning."""
    folder = tmp_path_factory.mktemp("flips")
    loop = Loop()
    manager = loop.manager(folder)
    manager.save(1)
    path = manager.save(2)
    manager.close()
    file = data.draw(st.sampled_from(sorted(p.name for p in path.iterdir())))
    raw = bytearray((path / file).read_bytes())
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    (path / file).write_bytes(raw)
    with capture_logs() as logs:
        assert loop.manager(folder).latest().name == "step-00000001"
    assert any("not valid" in line["event"] for line in logs)


def test_the_manager_keeps_the_best_and_the_newest(tmp_path):
    """The best by value, the last ones, and of the next best the weights."""
    loop = Loop()
    manager = loop.manager(tmp_path, max_checkpoints=3, keep_best=1)
    assert manager.latest() is None
    assert manager.best() is None
    assert manager.restore() == 0
    values = [5.0, 1.0, 3.0, 2.0, 4.0, 6.0]
    for step, value in enumerate(values, 1):
        manager.save(step, value)
    names = sorted(p.name for p in tmp_path.iterdir() if p.is_dir())
    assert names == ["step-00000002", "step-00000005", "step-00000006", "weights-00000004"]
    assert manager.best().name == "step-00000002"
    assert manager.latest().name == "step-00000006"
    assert (tmp_path / "best").read_text() == "step-00000002"
    manager = loop.manager(tmp_path, mode="max")
    assert manager.best().name == "step-00000006"
    assert manager.restore() == 6


def test_weights_that_are_not_finite_are_an_anomaly(tmp_path):
    """The first one stays beside the last healthy checkpoint; nothing goes on from it."""
    loop = Loop(None)
    manager = loop.manager(tmp_path, max_checkpoints=1, keep_best=0)
    manager.save(1)
    with torch.no_grad():
        loop.model[0].weight[0, 0] = torch.inf
    with capture_logs() as logs:
        assert manager.save(2).name == "anomaly_00000002"
    assert logs[0]["first"] == "0.weight"
    assert manager.save(3) is None
    with pytest.raises(BadInput, match=r"0\.weight is not finite after step 3"):
        altcore.save_checkpoint(tmp_path, loop.model, loop.optimizer, None, 3)
    assert manager.latest().name == "step-00000001"
    assert manager.restore() == 1
    manager.save(4)
    manager.save(5)
    assert manager.save_on_anomaly(6) is None
    names = sorted(p.name for p in tmp_path.iterdir() if p.is_dir())
    assert names == ["anomaly_00000002", "step-00000001", "step-00000005"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("mode", "best"), ("max_checkpoints", 0), ("keep_best", -1), ("max_checkpoints", 1.5)],
)
def test_settings_of_the_manager_are_checked(key, value, tmp_path):
    """The error names the setting."""
    with pytest.raises(BadInput, match=key):
        Loop(None).manager(tmp_path, **{key: value})


@pytest.mark.parametrize(
    ("step", "value"),
    [(-1, None), ("1", None), (1, "low"), (1, True), (1, 10**400), (1, torch.ones(2))],
)
def test_steps_and_values_are_checked(step, value, tmp_path):
    """Nothing is written of a wrong one."""
    loop = Loop(None)
    with pytest.raises(BadInput):
        altcore.save_checkpoint(tmp_path / "c", loop.model, loop.optimizer, None, step, value=value)
    assert not (tmp_path / "c").exists()


# ---------------------------------------------------------------------------- whose files


def test_files_of_others_stay(tmp_path):
    """Only names that altcore makes are tidied or removed, and foreign pointers are refused."""
    (tmp_path / "data.tmp").mkdir()
    (tmp_path / "snapshots").mkdir()
    others = ["results", "results.old", "notes.tmp", "only.old", "data.tmp/x", "snapshots/a.png"]
    for name in others:
        (tmp_path / name).write_text("mine")
    half = tmp_path / "step-00000001.tmp"
    half.mkdir()
    manager = Loop().train(1).manager(tmp_path, max_checkpoints=1)
    for step in (1, 2, 3):
        manager.save(step, value=step)
    assert all((tmp_path / name).read_text() == "mine" for name in others)
    assert not half.exists()


@pytest.mark.parametrize("pointer", ["best", "last"])
@pytest.mark.parametrize("is_folder", [True, False])
def test_a_folder_with_a_best_of_its_own_is_refused(pointer, is_folder, tmp_path):
    path = tmp_path / pointer
    if is_folder:
        path.mkdir()
    else:
        path.write_text("my notes")
    with pytest.raises(BadInput, match=f"{pointer} is not altcore's"):
        Loop().manager(tmp_path)
    assert path.exists()


def test_the_checkpoints_of_a_run_are_left_alone(start, tmp_path):
    run = start(name="r", max_steps=2).run_directory
    before = sorted((run / "checkpoints").rglob("*"))
    with pytest.raises(BadInput, match="is the checkpoint of a run"):
        Loop().manager(run / "checkpoints")
    assert sorted((run / "checkpoints").rglob("*")) == before


def test_the_directory_of_a_run_is_refused(start):
    """So is any folder in it, before a file is written; what would be right is said."""
    run, loop = start(name="r", max_steps=1).run_directory, Loop()
    shutil.rmtree(run / "checkpoints")
    before = sorted(run.rglob("*"))
    for folder, where in ((run, "is"), (run / "checkpoints", "is within"), (run / "own", "within")):
        says = f"{where} the directory of a run, .*a folder of its own; altcore.train.resume='r'"
        with pytest.raises(BadInput, match=says):
            loop.manager(folder)
        with pytest.raises(BadInput, match=says):
            altcore.save_checkpoint(folder, loop.model, loop.optimizer, loop.q, 1)
    assert sorted(run.rglob("*")) == before
    assert loop.manager(run.parent / "mine").save(1)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_folder_has_is_refused(name, tmp_path):
    """By whoever saves and whoever restores."""
    loop, folder = Loop(None), tmp_path / name
    given = (loop.model, loop.optimizer, None)
    for function in (
        lambda: loop.manager(folder),
        lambda: altcore.save_checkpoint(folder, *given, 0),
        lambda: altcore.load_checkpoint(folder, *given),
    ):
        with pytest.raises(BadInput, match=r"^folder: .* is no folder: (File name|embedded null)"):
            function()


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file is not a folder"):
        Loop().manager(tmp_path / "file")


# ---------------------------------------------------------------------------- what is kept


def test_a_loop_that_begins_anew_among_checkpoints_is_refused(tmp_path):
    """What it saved would be removed as older, replace the one of its step, or follow another's.

    The best one could then be the other loop's.
    """
    first = Loop().train(1)
    first.manager(tmp_path).save(300, value=1.0)
    other = Loop(seed=1).train(1).manager(tmp_path)
    told = r"step 300, which this manager has neither written nor restored.*restore\(\) goes on"
    for step in (50, 300, 301):
        with pytest.raises(BadInput, match=told):
            other.save(step, value=2.0)
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-00000300"]
    assert other.restore() == 300
    assert other.save(300).exists()
    assert other.save(350).exists()


def test_after_a_damaged_checkpoint_a_loop_saves_its_steps_again(tmp_path):
    loop = Loop().train(1)
    manager = loop.manager(tmp_path)
    for step in (1, 2):
        manager.save(step, value=torch.tensor(3.0 - step))
    assert manager.best().name == "step-00000002"
    (tmp_path / "step-00000002" / "weights.pt").write_bytes(b"junk")
    with capture_logs():
        assert manager.best().name == "step-00000001"
        assert manager.restore() == 1
    assert manager.save(2).exists()
    assert (tmp_path / "damaged_step-00000002").exists()


@pytest.mark.parametrize("is_swapped", [True, False])
def test_a_loop_does_not_begin_anew_beside_checkpoints_that_are_not_valid(is_swapped, tmp_path):
    """Be they damaged, or whole and of another step than their names."""
    loop = Loop(None).train(1)
    manager = loop.manager(tmp_path)
    places = [manager.save(step) for step in (1, 2)]
    if is_swapped:
        for path, to in zip((*places, tmp_path / "x"), (tmp_path / "x", *places), strict=True):
            path.rename(to)
    else:
        for path in places:
            (path / "manifest.json").write_bytes(b"")
    before = loop.weights()
    with capture_logs(), pytest.raises(BadInput, match="there is no valid checkpoint in"):
        manager.restore()
    assert same(loop.weights(), before)
    assert sorted(tmp_path.glob("*step-*")) == places


@pytest.mark.parametrize("value", [object(), defaultdict(int), {Path("x"): 1}.keys()], ids=type)
def test_what_cannot_be_read_again_is_not_written(value, tmp_path):
    """A checkpoint that nobody can load would take the place of one that somebody can."""
    loop = Loop().train(1)
    manager = loop.manager(tmp_path)
    manager.save(1)
    loop.optimizer.param_groups[0]["note"] = value
    with pytest.raises(BadInput, match=r"optimizer.param_groups.0.note: \w+ cannot be kept"):
        manager.save(2)
    assert manager.latest().name == "step-00000001"
    del loop.optimizer.param_groups[0]["note"]
    loop.optimizer.param_groups[0]["lr"] = numpy.float64(0.5)
    manager.save(2)
    assert Loop().manager(tmp_path).restore() == 2


def test_another_format_is_refused_with_both_names(tmp_path):
    Loop(fmt="E4M3").train(1).manager(tmp_path).save(1)
    other = Loop(fmt="E5M2")
    with pytest.raises(BadInput, match=r"recipe pure in E4M3, and the model of recipe pure in E5"):
        other.manager(tmp_path).restore()
    assert "E5M2" in repr(other.q)


def test_another_quantization_is_refused_by_the_first_difference(tmp_path):
    """Also within one recipe's name and formats; for evaluation seed and compute may vary."""
    first = Loop(None)
    recipe = {"weight": {"format": "E4M3", "rounding": "stochastic"}}
    first.q = altcore.quantize_model(first.model, recipe, compute="float32", seed=1, head=None)
    first.train(1).manager(tmp_path).save(1)

    def restored(is_trained=True, **other):
        again = Loop(None)
        asked = {"recipe": recipe, "compute": "float32", "seed": 1, "head": None, **other}
        q = altcore.quantize_model(again.model, **asked)
        optimizer = again.optimizer if is_trained else None
        return altcore.load_checkpoint(tmp_path, again.model, optimizer, q)

    nearest = {"weight": {"format": "E4M3", "rounding": "nearest-even"}}
    for other, told in (
        ({"compute": "bfloat16"}, r"^q: compute was float32, and is bfloat16: .*compute='float32'"),
        ({"seed": 2}, r"^q: seed was 1, and is 2"),
        (
            {"recipe": {**recipe, "skip": ["3"]}},
            r"weight@fwd of layer 3 was E4M3, and is not",
        ),
        ({"recipe": nearest}, r"@fwd of layer 0 was rounding stochastic, and is rounding near"),
    ):
        with pytest.raises(BadInput, match=told):
            restored(**other)
    assert restored(is_trained=False, compute="bfloat16", seed=2) == restored() == 1


def test_a_format_that_changed_on_the_way_is_restored(tmp_path):
    first = Loop(fmt="E4M3").train(1)
    first.q.change(Loop(fmt="E5M2").q.plan)
    first.manager(tmp_path).save(1)
    again = Loop(fmt="E4M3")
    assert again.manager(tmp_path).restore() == 1
    assert repr(again.q) == repr(first.q)


def spoil_moment(loop):
    next(iter(loop.optimizer.state.values()))["exp_avg"].fill_(torch.nan)


def spoil_group(loop):
    loop.optimizer.param_groups[0]["lr"] = float("nan")


def spoil_buffer(loop):
    loop.model.register_buffer("seen", torch.tensor(float("nan")))


def spoil_statistic(loop):
    loop.model.append(nn.BatchNorm1d(4))
    loop.model[4].running_var.fill_(torch.inf)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (spoil_statistic, "4.running_var"),
        (spoil_moment, "exp_avg of the optimizer's parameter 0.weight"),
        (spoil_group, "lr of the optimizer's group 0"),
        (spoil_buffer, "buffer seen"),
    ],
)
def test_a_state_that_is_not_finite_is_no_regular_checkpoint(spoil, named, tmp_path):
    loop = Loop(recipe=None).train(2)
    manager = loop.manager(tmp_path)
    spoil(loop)
    taken = []
    loop.optimizer.register_state_dict_pre_hook(taken.append)
    with capture_logs() as logs:
        path = manager.save(2)
    assert len(taken) == 1
    assert path.name.startswith("anomaly")
    assert logs[0]["first"] == named
    with pytest.raises(BadInput, match=f"{named} is not finite after step 2"):
        altcore.save_checkpoint(tmp_path, loop.model, loop.optimizer, loop.q, 2)


def test_what_was_not_finite_before_training_is_not_watched(tmp_path):
    """A buffer that nobody fills, and a frozen weight; the manager saves and restores them."""
    loops = [Loop(recipe=None), Loop(recipe=None)]
    for loop in loops:
        spoil_buffer(loop)
        frozen = torch.full((1,), -torch.inf)
        loop.model.register_parameter("frozen", nn.Parameter(frozen, requires_grad=False))
    first, again = (loop.manager(tmp_path) for loop in loops)
    assert first.save(1).name == "step-00000001"
    assert again.restore() == 1
    with torch.no_grad():
        loops[0].model[0].weight[0, 0] = torch.nan
    assert first.save(2).name == "anomaly_00000002"


def test_a_scale_of_gradients_that_is_not_finite_is_no_regular_checkpoint(tmp_path):
    loop = Loop(recipe=None).train(1)
    scaler = torch.amp.GradScaler("cpu", init_scale=float("inf"))
    scaler.scale(torch.ones(1))
    with pytest.raises(BadInput, match="the gradients' scale is not finite"):
        altcore.save_checkpoint(tmp_path, loop.model, loop.optimizer, None, 1, scaler)


def test_what_is_not_finite_is_not_restored(tmp_path, monkeypatch):
    """As an earlier version, or another program, may have written it."""
    loop = Loop(recipe=None).train(2)
    manager = loop.manager(tmp_path)
    manager.save(1)
    spoil_moment(loop)
    with monkeypatch.context() as patch:
        patch.setattr(altcore.checkpoints.OwnLoop, "not_finite", lambda *_: None)
        manager.save(2)
    with capture_logs() as logs:
        assert Loop(recipe=None).manager(tmp_path).restore() == 1
    assert "exp_avg of the optimizer's parameter 0.weight is not finite" in logs[0]["error"]


def test_a_save_within_a_save_is_refused(tmp_path, monkeypatch):
    """As in a signal's handler: it would wait for its own thread for ever."""
    manager = Loop(recipe=None).train(1).manager(tmp_path)
    manager.save(1)
    with monkeypatch.context() as patch:
        patch.setattr(altcore.checkpoints, "retain", lambda *_, **__: manager.save(3))
        with pytest.raises(BadInput, match="is being written by this thread"):
            manager.save(2)
    assert manager.save(3).name == "step-00000003"


def test_two_managers_of_one_process_do_not_save_into_one_folder(tmp_path):
    """They would replace and remove each other's checkpoints; `save_checkpoint` would, too."""
    first, second = (Loop(None, seed=i).train(1) for i in range(2))
    manager, other = first.manager(tmp_path), second.manager(tmp_path)
    manager.save(1)
    told = "is being written by another CheckpointManager of this process"
    for call in (
        lambda: other.save(2),
        lambda: other.save_on_anomaly(2),
        lambda: altcore.save_checkpoint(tmp_path, second.model, second.optimizer, None, 2),
    ):
        with pytest.raises(BadInput, match=told):
            call()
    assert second.manager(tmp_path).restore() == 1
    manager.close()
    assert other.restore() == 1
    assert other.save(2).exists()


def test_threads_take_turns(tmp_path):
    """No checkpoint is tidied, pruned or replaced while it is being written."""
    managers = [Loop(None, seed=i).train(1).manager(tmp_path / str(i % 2)) for i in range(3)]
    managers[2] = managers[0]
    failed = []

    def save(manager):
        for step in range(1, 15):
            try:
                manager.save(step)
            except BadInput as error:  # the other thread was faster
                failed.append(str(error))

    threads = [threading.Thread(target=save, args=(manager,)) for manager in managers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("is to be saved" in text for text in failed)
    assert [manager.latest().name for manager in managers] == ["step-00000014"] * 3


@pytest.mark.parametrize("what", ["weight", "moment", "gradient"])
def test_a_loop_that_trains_while_it_is_saved_is_refused(what, tmp_path, monkeypatch):
    """Its checkpoint would be half of one step and half of the next; nothing is written."""
    loop = Loop(None).train(1)
    weight = loop.model[0].weight
    moved = {
        "weight": weight,
        "moment": loop.optimizer.state[weight]["exp_avg"],
        "gradient": weight.grad,
    }[what]
    manager, write = loop.manager(tmp_path / "a"), torch.save

    def write_and_move(*given, **named):
        write(*given, **named)
        with torch.no_grad():
            moved.add_(1)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", write_and_move)
        for save in (
            lambda: manager.save(1),
            lambda: manager.save_on_anomaly(1),
            lambda: altcore.save_checkpoint(tmp_path / "b", loop.model, loop.optimizer, None, 1),
        ):
            with pytest.raises(BadInput, match="the weights changed while they were saved"):
                save()
    assert not [*tmp_path.glob("*/*-*"), *tmp_path.glob("*/anomaly*")]
    assert manager.save(1).exists()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_manager_is_not_copied(copied, tmp_path):
    """The copy would save the copy of the model in the place of the model."""
    with pytest.raises(BadInput, match=r"^folder: a CheckpointManager cannot be copied or pickled"):
        copied(Loop(None).manager(tmp_path))


def test_another_optimizer_is_refused_by_name(tmp_path):
    """Adam has the same groups and moments as AdamW."""
    loop = Loop().train(1)
    loop.manager(tmp_path).save(1)
    other = Loop()
    adam = torch.optim.Adam(other.model.parameters(), lr=0.5)
    with pytest.raises(BadInput, match="the checkpoint is of AdamW, and it is Adam"):
        CheckpointManager(tmp_path, other.model, adam, other.q).restore()


def test_a_weight_that_is_nan_is_not_called_changed_by_somebody(tmp_path, recwarn):
    loop = Loop().train(1)
    for name in ("exp_avg", "exp_avg_sq"):
        next(iter(loop.optimizer.state.values()))[name].fill_(torch.nan)
    loop.train(2)
    assert not [w for w in recwarn if "other than q.store" in str(w.message)]


# ---------------------------------------------------------------------------- what is given


def on_meta():
    with torch.device("meta"):
        return nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("model", "named"), [(on_meta, "meta"), (lambda: nn.LazyLinear(2), "weight has no shape yet")]
)
def test_a_model_without_numbers_is_refused_by_name(model, named, tmp_path):
    made = model()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    with pytest.raises(BadInput, match=named):
        altcore.save_checkpoint(tmp_path, made, optimizer, None, 1)
    with pytest.raises(BadInput, match=named):
        CheckpointManager(tmp_path, made, optimizer).save(1)


def test_the_optimizer_of_another_model_is_refused(tmp_path):
    """Its moments would be restored, and its parameters not."""
    loop, other = Loop(None), Loop(None)
    with pytest.raises(BadInput, match="parameter 0 is not the model's"):
        altcore.save_checkpoint(tmp_path, loop.model, other.optimizer, None, 1)


def test_a_state_that_would_not_be_restored_is_not_saved(tmp_path):
    """A weight that was changed after its step is on no grid."""
    loop = Loop("pure").train(1)
    with torch.no_grad():
        loop.model[0].weight.mul_(1.001)
    with pytest.raises(BadInput, match=r"could not be restored: .*off the grid.*q\.follow\("):
        altcore.save_checkpoint(tmp_path, loop.model, loop.optimizer, loop.q, 1)
    assert not [*tmp_path.iterdir()]


def test_a_scheduler_may_come_before_or_after(tmp_path):
    """What it puts into a group is kept, and stays if the checkpoint knows nothing of it."""
    plain, planned = Loop(None).train(1), Loop(None)
    cycle = torch.optim.lr_scheduler.OneCycleLR(planned.optimizer, 0.1, total_steps=20)
    planned.train(1)
    for name, loop in (("plain", plain), ("planned", planned)):
        altcore.save_checkpoint(tmp_path / name, loop.model, loop.optimizer, None, 1)
    altcore.load_checkpoint(tmp_path / "plain", planned.model, planned.optimizer, None)
    cycle.step()
    altcore.load_checkpoint(tmp_path / "planned", plain.model, plain.optimizer, None)
    assert plain.optimizer.param_groups[0]["max_lr"] == 0.1


def test_buffers_of_any_layout_and_type_are_kept(tmp_path):
    """Torch cannot ask all of them whether they are finite."""
    model = nn.Linear(2, 2)
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("eight", torch.ones(3).to(torch.float8_e4m3fn))
    model.register_buffer("complex", torch.tensor([1 + 2j]))
    manager = CheckpointManager(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.1))
    manager.save(1)
    model.complex.zero_()
    assert (manager.restore(), model.complex.item()) == (1, 1 + 2j)
    model.eight = torch.full((3,), torch.nan).to(torch.float8_e4m3fn)
    with capture_logs() as logs:
        manager.save(2)
    assert logs[0]["first"] == "buffer eight"


def counting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4))
    model.register_buffer("seen", torch.zeros(()), persistent=False)
    model.register_buffer("table", None, persistent=False)
    return model


def test_buffers_that_are_not_persistent_are_kept(tmp_path):
    """A model that counts in one would go on as another model."""
    model, other = counting(), counting()
    model.seen += 3
    model.table = torch.ones(2)
    model.register_buffer("late", torch.ones(1), persistent=False)
    for made in (model, other):
        made.optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    altcore.save_checkpoint(tmp_path, model, model.optimizer, None, 1)
    seen = other.seen
    altcore.load_checkpoint(tmp_path, other, other.optimizer, None)
    assert (seen, other.table.sum(), other.late) == (3, 2, 1)
    assert same(other.state_dict(), model.state_dict())


# ---------------------------------------------------------------------------- who saves


def in_child(call):
    """Return what a forked process is told by `BadInput`."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            call()
        except BadInput as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as told:
        return told.read()


def test_another_process_does_not_save_beside_a_manager(tmp_path):
    """A forked child neither; one that only restores may."""
    loop = Loop(None)
    with loop.manager(tmp_path) as manager:
        manager.save(1)
        (tmp_path / ".lock").unlink()  # anybody can: the folder itself is locked, too
        told = "is being written by another process"
        assert told in in_child(lambda: manager.save(2))
        assert told in in_child(lambda: Loop(None).manager(tmp_path).save_on_anomaly(2))
        assert not in_child(lambda: Loop(None).manager(tmp_path).restore())
        assert manager.save(3).exists()
    other = Loop(None).manager(tmp_path)
    assert not in_child(lambda: other.restore() and other.save(4))
    assert [p.name for p in sorted(tmp_path.glob("step-*"))] == [
        f"step-0000000{i}" for i in (1, 3, 4)
    ]


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_a_lock_that_is_none_is_refused_by_name(kind, tmp_path):
    """And whoever only reads needs none, as on a disk that can only be read."""
    Loop(None).manager(tmp_path).save(1)
    path = tmp_path / ".lock"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "elsewhere")
    loop = Loop(None)
    manager = loop.manager(tmp_path)
    assert (manager.restore(), manager.latest().name) == (1, "step-00000001")
    for save in (
        lambda: manager.save(2),
        lambda: altcore.save_checkpoint(tmp_path, loop.model, loop.optimizer, None, 2),
    ):
        with pytest.raises(BadInput, match=r"folder: .*\.lock cannot be written"):
            save()
    assert not (tmp_path / "elsewhere").exists()


def test_checkpoints_of_another_loop_stay(tmp_path):
    """Also if the loop restores the newest one in the folder, which is its own."""
    manager = Loop(None).manager(tmp_path, max_checkpoints=2, keep_best=0)
    manager.save(3)
    manager.close()
    other = Loop(None)
    for step in (1, 2):
        altcore.save_checkpoint(tmp_path, other.model, other.optimizer, None, step)
    for step in (4, 5):
        manager.save(step)
    assert {p.name[-1] for p in tmp_path.glob("step-*")} == {"1", "2", "4", "5"}
    manager.restore()
    manager.save(6)
    assert {p.name[-1] for p in tmp_path.glob("step-*")} == {"1", "2", "5", "6"}


def test_one_checkpoint_is_the_newest(tmp_path):
    """What was just written stays, and `best` names nothing that is gone."""
    manager = Loop(None).manager(tmp_path, max_checkpoints=1)
    for step in (1, 2):
        assert manager.save(step, value=step).exists()
    assert (manager.latest().name, manager.best().name) == ("step-00000002",) * 2
    assert not (tmp_path / "best").exists()
    assert (tmp_path / "weights-00000001").exists()


def test_weights_alone_are_named_as_such(tmp_path):
    """No loop goes on from them, and the best one is one to go on from."""
    loop = Loop(None).train(1)
    manager = loop.manager(tmp_path, max_checkpoints=1)
    for step in (1, 2):
        manager.save(step, value=float(step))
    assert manager.best().name == "step-00000002"
    file = tmp_path / "weights-00000001/weights.pt"
    with pytest.raises(BadInput, match=r"weights-00000001 holds the weights alone") as refused:
        altcore.load_checkpoint(file.parent, loop.model, loop.optimizer, None)
    assert f"torch.load({str(file)!r})['model']" in str(refused.value)
    assert torch.load(file)["model"].keys() == loop.weights().keys()


def test_a_folder_stays_the_same_one(tmp_path, monkeypatch):
    """Wherever the process goes; if it is moved away, nothing begins anew in its place."""
    monkeypatch.chdir(tmp_path)
    manager = Loop(None).manager("own")
    manager.save(1)
    monkeypatch.chdir("/")
    assert manager.save(2) == tmp_path / "own/step-00000002"
    (tmp_path / "own").rename(tmp_path / "moved")
    for call in (lambda: manager.save(3), manager.restore, lambda: manager.save_on_anomaly(3)):
        with pytest.raises(BadInput, match="own was moved or removed"):
            call()
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("damaged", [b"\0" * 13, b"rtep-00000002", b""])
def test_a_damaged_pointer_beside_checkpoints_is_rebuilt(damaged, tmp_path):
    """A loss of power leaves zeros; the checkpoints say themselves which is the newest."""
    loop = Loop()
    with loop.manager(tmp_path) as manager:
        loop.train(1)
        manager.save(1)
    (tmp_path / "last").write_bytes(damaged)
    with Loop(seed=1).manager(tmp_path) as manager:
        assert manager.restore() == 1


class Wrapping(torch.optim.SGD):
    """An optimizer that lets another one do its work, as SAM does."""

    def __init__(self, parameters):
        super().__init__(list(parameters), lr=0.1)
        self.base = torch.optim.AdamW(self.param_groups)


def test_an_optimizer_whose_state_is_elsewhere_is_refused(tmp_path):
    """The state of one that it holds, or one that holds itself; or it is no optimizer."""
    model = nn.Linear(3, 3)
    with pytest.raises(BadInput, match=r"optimizer: it keeps state in base, which its state_dict"):
        altcore.save_checkpoint(tmp_path, model, Wrapping(model.parameters()), None, 1)
    looped = torch.optim.SGD(model.parameters(), lr=0.1)
    looped.param_groups[0]["own"] = {}
    looped.param_groups[0]["own"]["own"] = looped.param_groups[0]["own"]
    with pytest.raises(
        BadInput,
        match=r"optimizer: its state is nested more than 100 levels.*: \[",
    ):
        altcore.save_checkpoint(tmp_path, model, looped, None, 1)
    with pytest.raises(BadInput, match=r"optimizer: a torch\.optim\.Optimizer is needed"):
        altcore.save_checkpoint(tmp_path, model, nn.Linear(1, 1), None, 1)
    assert not list(tmp_path.iterdir())


class Own(torch.Tensor):
    """A tensor of a class that torch does not know."""


def own_class():
    return torch.ones(2).as_subclass(Own)


def tagged():
    tensor = torch.ones(2)
    tensor.tag = object()
    return tensor


@pytest.mark.parametrize("make", [own_class, tagged])
@pytest.mark.parametrize("place", ["buffer", "moment"])
def test_a_tensor_that_could_not_be_read_again_is_refused(tmp_path, make, place):
    """Of a class of its own, or with an object hung on it: torch writes and never reads it."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if place == "buffer":
        model.register_buffer("own", make(), persistent=False)
    else:
        optimizer.state[model.bias]["own"] = make()
    manager = CheckpointManager(tmp_path, model, optimizer)
    with pytest.raises(BadInput, match=r"own.*(class Own could be read|cannot be kept)"):
        manager.save(1)
    assert manager.latest() is None


def test_a_tensor_of_a_class_that_torch_may_read_is_kept(tmp_path):
    model = torch.nn.Linear(2, 2)
    model.register_buffer("own", own_class())
    with torch.serialization.safe_globals([Own]):
        manager = CheckpointManager(tmp_path, model, torch.optim.SGD(model.parameters(), 0.1))
        manager.save(1)
        assert manager.restore() == 1
    assert type(model.own) is Own


class Late:
    """States nothing before it has begun."""

    def __init__(self):
        self.count = None

    def state_dict(self):
        return {"count": self.count + 0}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_what_states_nothing_before_it_begins_is_restored(tmp_path):
    model, late = torch.nn.Linear(2, 2), Late()
    late.count = 3
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with CheckpointManager(tmp_path, model, optimizer, also={"late": late}) as manager:
        manager.save(1)
        late.count = None
        assert manager.restore() == 1
    assert late.count == 3


def test_folders_that_are_made_are_synced_in_their_parents(tmp_path, monkeypatch):
    """Or a loss of power takes all of them."""
    synced = []
    monkeypatch.setattr(durable, "fsync_folder", synced.append)
    model = torch.nn.Linear(2, 2)
    folder = tmp_path / "a" / "b" / "c"
    with CheckpointManager(folder, model, torch.optim.SGD(model.parameters(), 0.1)) as manager:
        manager.save(1)
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b"} <= set(synced)


def test_any_parameter_on_a_gpu_tells_its_loops_device():
    """Only then are its random states kept; a device that every machine has stands for it."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="meta"))
    assert OwnLoop.of(model, None, None, None, None).device.type == "meta"


@pytest.mark.parametrize(
    ("swap", "key"),
    [
        ({"model": 1, "optimizer": 0}, "model: a torch.nn.Module is needed"),
        ({"also": [1]}, "also: a mapping"),
        ({"model": None}, "model: a torch.nn.Module"),
    ],
)
def test_arguments_in_the_wrong_places_are_named(tmp_path, swap, key):
    model = torch.nn.Linear(2, 2)
    both = (model, torch.optim.SGD(model.parameters(), 0.1))
    given = {"model": both[0], "optimizer": both[1]}
    given |= {k: both[v] if isinstance(v, int) else v for k, v in swap.items()}
    with pytest.raises(BadInput, match=key):
        CheckpointManager(tmp_path, **given)


def test_names_of_several_types_are_kept(tmp_path):
    model, parts = torch.nn.Linear(2, 2), {1: Late(), "a": Late()}
    for part in parts.values():
        part.count = 3
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with CheckpointManager(tmp_path, model, optimizer, also=parts) as manager:
        manager.save(1)
        parts[1].count = 0
        manager.restore()
    assert parts[1].count == 3


def test_two_of_one_name_are_refused(tmp_path):
    model = torch.nn.Linear(2, 2)
    also = {1: torch.nn.Linear(1, 1), "1": torch.nn.Linear(1, 1)}
    with pytest.raises(BadInput, match="also: two are called the same: 1, 1"):
        CheckpointManager(tmp_path, model, torch.optim.SGD(model.parameters(), 0.1), also=also)


class Averaging(nn.Module):
    """Keeps a mean in an attribute, of which no state tells."""

    def __init__(self):
        super().__init__()
        self.weight, self.mean = nn.Parameter(torch.ones(2, 2)), torch.zeros(2)

    def forward(self, x):
        y = x @ self.weight
        self.mean = 0.9 * self.mean + y.detach().mean(0)
        return y - self.mean


def test_attributes_of_a_parametrized_module_are_looked_at(tmp_path):
    """Its class is made by torch, and it is one's own all the same."""
    model = Averaging()
    nn.utils.parametrize.register_parametrization(model, "weight", nn.Identity())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with capture_logs() as logs, CheckpointManager(tmp_path, model, optimizer) as manager:
        model(torch.ones(3, 2)).sum().backward()
        optimizer.step()
        manager.save(1)
    assert ["mean of the model"] in [line.get("names") for line in logs]


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="torch before 2.10")
def test_a_gradient_of_another_type_is_kept_where_torch_allows_it(tmp_path):
    model = torch.nn.Linear(2, 2, dtype=torch.bfloat16)
    for p in model.parameters():
        p.grad_dtype = torch.float32
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.ones(3, 2, dtype=torch.bfloat16)).sum().backward()
    before = model.weight.grad.clone()
    assert before.dtype == torch.float32
    with CheckpointManager(tmp_path, model, optimizer) as manager:
        manager.save(1)
        model.weight.grad = None
        manager.restore()
    assert torch.equal(model.weight.grad, before)
