"""The numbers behind pictures: nothing is lost that shows, and nothing is there that was not."""

import math
import random

import pytest
from helpers_pages import MadeUp, run

from altcore.plugin import read_run
from altcore_reporters.pictures import (
    Mark,
    band_of,
    curve_of,
    differences,
    grouped,
    heat_map,
    heat_maps,
    marks_of,
    smoothed,
    thinned,
    value_histograms,
)


def lines(key, values):
    return [{"step": i, key: v} for i, v in enumerate(values, 1)]


# Curves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 499, 500, 501, 10_000])
def test_a_thinned_curve_is_short_and_keeps_its_ends_and_extremes(number):
    draw = random.Random(number)
    values = [draw.gauss(0, 1) for _ in range(number)]
    values[number // 3], values[number // 2] = 1e6, -1e6
    kept = thinned(values)
    assert len(kept) <= 500
    assert kept == sorted(set(kept))
    assert {0, number - 1, values.index(max(values)), values.index(min(values))} <= set(kept)


def test_a_thinned_curve_breaks_where_it_was_not_finite():
    values = [1.0] * 5000
    values[2500] = math.nan
    kept = thinned(values)
    assert len(kept) <= 500
    assert 2500 in kept


def test_a_curve_has_the_steps_that_were_recorded():
    """What is not finite breaks it; what was not measured on a step is no point."""
    record = MadeUp(metrics=[*lines("loss", [3.0, math.inf, 2.0]), {"step": 3, "val_loss": 2.5}])
    curve = curve_of(record, "loss")
    assert list(curve.steps) == [1, 2, 3]
    assert list(curve.values) == [3.0, math.inf, 2.0]
    assert curve.finite == [3.0, 2.0]
    assert list(curve_of(record, "val_loss").steps) == [3]
    assert not curve_of(record, "nothing").steps


def test_a_band_spans_the_runs_that_are_there():
    """One ends earlier; where none is finite there is no band."""
    first = MadeUp(metrics=lines("loss", [4.0, 2.0, math.nan, 1.0]))
    second = MadeUp(metrics=lines("loss", [6.0, 4.0, math.nan]))
    band = band_of([first, second], "loss")
    assert list(band.steps) == [1, 2, 3, 4]
    assert band.means[:2] == [5.0, 3.0]
    assert (band.lows[:2], band.highs[:2]) == ([4.0, 2.0], [6.0, 4.0])
    assert all(math.isnan(column[2]) for column in (band.means, band.lows, band.highs))
    assert (band.means[3], band.lows[3], band.highs[3]) == (1.0, 1.0, 1.0)


def test_a_band_is_of_seeds_and_not_of_runs():
    """A seed that ran twice weighs no more than one that ran once."""
    values = ((1, 2.0), (1, 4.0), (2, 9.0))
    runs = [MadeUp(summary={"seed": s}, metrics=lines("loss", [x])) for s, x in values]
    band = band_of(runs, "loss")
    assert (band.means, band.lows, band.highs) == ([6.0], [3.0], [9.0])


def test_running_means_have_no_reach_beyond_their_window():
    assert smoothed([0.0, 0.0, 9.0, 0.0, 0.0], 3) == [0.0, 3.0, 3.0, 3.0, 0.0]
    assert smoothed([1.0, 2.0], 1) == [1.0, 2.0]


@pytest.mark.parametrize("spike", [1e20, -1.7e308, 5e-324])
def test_running_means_recover_from_a_spike(spike):
    found = smoothed([2.0, spike, 2.0, math.inf, *[2.0] * 4], 3)
    assert found[1] == pytest.approx(spike / 3 + 4 / 3)
    assert found[2:] == [(spike + 2.0) / 2, math.inf, *[2.0] * 4]


# Groups -------------------------------------------------------------------------------------------


def test_runs_that_differ_in_their_seed_only_are_one_configuration():
    found = grouped([run("E4M3", 1), run("E5M2", 1), run("E4M3", 2)])
    assert [(g.label, len(g.records)) for g in found] == [("E4M3", 2), ("E5M2", 1)]


def test_plugins_that_look_make_no_configuration_and_those_that_act_do():
    watched = run(
        seed=2, config={"plugins": ["progress", "ulp-stats"], "settings": {"ulp-stats": {}}}
    )
    clipped = run(seed=3, config={"plugins": ["partition-clip", "progress"]})
    plain = run(seed=1, config={"plugins": []})
    assert [len(g.records) for g in grouped([plain, watched, clipped])] == [2, 1]


def test_a_plugin_that_is_not_installed_may_act():
    """Also an object that Python gave, which the record describes."""
    given = run(seed=3, config={"plugins": [{"class": "mine"}]})
    assert len(grouped([run(config={"plugins": []}), given])) == 2
    unknown = run(seed=2, config={"plugins": ["who-knows"]})
    assert len(grouped([run(config={"plugins": []}), unknown])) == 2


def test_labels_are_as_short_as_they_can_be():
    """What most runs share is left out, and runs that nothing tells apart are numbered."""
    common = {"optimizer": "adamw", "learning_rate": 0.1}
    found = grouped([
        run("E4M3", config=common),
        run("E5M2", config=common),
        run("E5M2", config={**common, "learning_rate": 0.2, "max_steps": 5}),
    ])  # fmt: skip
    labels = [g.label.replace("\u00a0", " ") for g in found]
    assert labels == ["E4M3", "E5M2", "E5M2 · learning rate 0.2"]


def test_recipes_of_one_name_and_two_contents_are_two_configurations():
    recipes = [{"name": "mine", "weight": w} for w in ("E4M3", "E5M2")]
    found = grouped([run(config={"recipe": recipe}) for recipe in recipes])
    assert [g.label for g in found] == ["mine", "mine (2)"]


def test_runs_without_a_configuration_are_alone():
    found = grouped([MadeUp("a"), MadeUp("b")])
    assert [g.label for g in found] == ["a", "b"]


def test_differences_are_told_by_key():
    found = differences([run("E4M3", 1), run("E5M2", 1)])
    assert [(d.key, list(d.values)) for d in found] == [("format", ["E4M3", "E5M2"])]


def test_recipes_without_a_name_are_called_by_their_runs():
    """As in a study, whose runs are named by arm and seed; long lists are cut."""
    names = {"FU-s1-9c1": "F", "FU-s2-03e": "F", "B-s1-77a": "B"}
    frozen = {"F": [], "B": ["layer"] * 20}
    runs = [
        run(seed=seed, name=name, config={"recipe": {"weight": arm}, "freeze": frozen[arm]})
        for seed, (name, arm) in enumerate(names.items())
    ]
    first, second = (group.label for group in grouped(runs))
    assert first == "FU"
    assert second.startswith("B-s1-77a")
    assert len(second) < 60


# Marks --------------------------------------------------------------------------------------------


def test_marks_are_where_things_happened():
    """A streak of steps that are not finite is one mark; a verdict without a Stop is none."""
    nan = {"event": "nan", "what": "loss", "layer": None, "value": "nan"}
    stop = {"plugin": "guard", "action": "Stop", "reason": "enough"}
    record = MadeUp(
        events=[
            {"step": 0, "event": "start"},
            *({"step": s, **nan} for s in (5, 6, 9)),
            {"step": 9, "event": "rollback", "plugin": "p", "to": 3, "reason": "why"},
            {"step": 9, "event": "recipe", "from": ["E4M3"], "to": ["E5M2"], "reason": "so"},
            {"step": 11, "event": "collapse", "cause": "stalled", "reason": "it stalled"},
            {"step": 11, "event": "verdict", "chosen": [], "refused": []},
            {"step": 12, "event": "verdict", "chosen": [stop], "refused": []},
        ]
    )
    assert marks_of(record) == [
        Mark(5, "nan", "nan in loss", 6),
        Mark(9, "nan", "nan in loss", 9),
        Mark(9, "rollback", "back to the weights of step 3: why", 9),
        Mark(9, "shift", "E4M3 to E5M2: so", 9),
        Mark(11, "collapse", "it stalled", 11),
        Mark(12, "stop", "guard: enough", 12),
    ]


def test_marks_of_a_run_without_events_are_those_of_its_summary():
    shift = {"step": 4, "from": ["E4M3"], "to": ["E5M2"], "reason": ""}
    collapse = {"step": 3, "cause": "stalled", "reason": "r"}
    record = MadeUp(summary={"shifts": [shift], "collapses": [collapse]})
    assert [(m.step, m.kind) for m in marks_of(record)] == [(3, "collapse"), (4, "shift")]


# Layers -------------------------------------------------------------------------------------------

STALL = "bit-stall/stored_stall_share"


def test_a_heat_map_has_a_row_for_each_layer_and_no_invented_cell():
    record = MadeUp(
        metrics=[
            {"step": 1, STALL: 0.9, f"{STALL}/h.0": 0.5, f"{STALL}/h.1": math.nan},
            {"step": 2, "loss": 1.0},
            {"step": 50, f"{STALL}/h.0": 0.75},
        ]
    )
    found = heat_map(record, STALL)
    assert (list(found.layers), list(found.steps)) == (["h.0", "h.1"], [1, 50])
    assert list(found.values[0]) == [0.5, 0.75]
    assert all(map(math.isnan, found.values[1]))
    assert found.range == (0.5, 0.75)
    assert [h.measure for h in heat_maps(record)] == [STALL]
    assert heat_map(record, "ulp-stats/stored_mean") is None


def test_a_heat_map_of_many_steps_and_layers_keeps_the_greatest_values():
    rows = [{"step": s, **{f"{STALL}/h.{i}": i / 100 for i in range(80)}} for s in range(1, 1001)]
    rows[500][f"{STALL}/h.3"] = 1.0
    found = heat_map(MadeUp(metrics=rows), STALL)
    assert (len(found.steps), len(found.layers), found.all_layers) == (120, 64, 80)
    assert found.layers[:2] == ["h.3", "h.17"]
    assert max(found.values[0]) == 1.0
    assert (found.steps[0], found.last_step) == (1, 1000)


# Values -------------------------------------------------------------------------------------------


def test_histograms_are_those_that_were_measured_last():
    shares = [0.25, 0.0, *[0.0] * 118, 0.5, 0.25, 0.0]
    key = "value-histogram/activation@fwd_E4M3"
    at = [
        {"step": s, f"{key}_histogram": [0.0] * s + shares[s:], f"{key}_low": -49} for s in (1, 0)
    ]
    (found,) = value_histograms(MadeUp(metrics=at))
    assert (found.operand, found.format, found.step) == ("activation@fwd", "E4M3", 0)
    assert (found.zeros, found.below, found.above) == (0.25, 0.0, 0.0)
    assert (found.edges[0], found.edges[-1]) == (-49, 11)
    assert max(found.values) == 448
    assert found.source == "measured"


def test_a_format_that_is_not_installed_leaves_its_values_out():
    key = "value-histogram/weight@fwd_nobody-has-it"
    record = MadeUp(
        metrics=[{"step": 1, f"{key}_histogram": [0.0, 0.5, 0.5, 0.0], f"{key}_low": 0}]
    )
    (found,) = value_histograms(record)
    assert (found.format, list(found.values)) == ("nobody-has-it", [])


def test_a_format_that_the_record_holds_whole_is_drawn(start):
    """It is of no distribution: also of a view, whose scale follows from its largest value."""
    fmt = {"name": "mine", "values": [-4.0, -1.0, 0.0, 1.0, 4.0]}
    result = start(name="r", format=fmt, recipe="master", checkpoint_interval=3)
    record = read_run(result.run_directory)
    (found,) = value_histograms(record)
    assert (found.format, list(found.values)) == ("mine", [1.0, 4.0])
    assert grouped([record, run("E4M3")])[0].label.startswith("mine")


@pytest.mark.parametrize("recipe", ["pure", "master"])
def test_weights_come_from_the_checkpoint_if_nobody_measured(start, recipe):
    """A stored weight lies on its format's values; a view is scaled by its largest magnitude."""
    result = start(name="r", recipe=recipe, format="E4M3", checkpoint_interval=3)
    (found,) = value_histograms(read_run(result.run_directory))
    assert found.operand == ("stored_weight" if recipe == "pure" else "weight@fwd")
    assert (found.source, found.step) == ("checkpoint", 3)
    assert found.zeros + found.below + sum(found.shares) + found.above == pytest.approx(1)
    top = next(e for e, s in reversed(list(zip(found.edges, found.shares, strict=False))) if s)
    assert 2**top <= 448
    if recipe == "master":
        assert 2**top >= 256


def test_a_run_without_a_checkpoint_has_no_histogram():
    assert value_histograms(MadeUp()) == []
