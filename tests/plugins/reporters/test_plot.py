"""Pictures of runs as matplotlib figures."""

import math

import matplotlib.image
import pytest
from helpers_cli import imports
from helpers_pages import MadeUp, losses, run
from numpy.testing import assert_allclose

from altcore import BadInput
from altcore.plugin import RunRecord
from altcore_reporters import plot
from altcore_reporters.pictures import curve_of


def lines_of(ax):
    """Return the lines of an axis that a legend names, by their labels."""
    return {x.get_label(): x for x in ax.lines if not x.get_label().startswith("_")}


def test_one_run_has_an_axis_for_each_measure():
    """The losses share one; what was not measured has none."""
    record = run(metrics=[*losses(40), *losses(4, key="val_loss")])
    axes = plot.curves(record).axes
    labels = [ax.get_ylabel() for ax in axes]
    assert labels[0] == "training loss"
    assert {"stalled updates of stored weights", "flushed to zero", "gradient norm"} <= set(labels)
    assert not {"validation loss", "overflow"} & set(labels)
    shown = lines_of(axes[0])
    assert list(shown) == ["training", "validation"]
    steps, values = shown["training"].get_data()
    assert_allclose(steps, curve_of(record, "loss").steps)
    assert_allclose(values, curve_of(record, "loss").values)
    assert axes[1].get_ylim()[0] == 0.0
    assert axes[1].yaxis.get_major_formatter()(0.5) == "50%"


def test_runs_that_differ_in_their_seed_are_one_band():
    """Each configuration has a label and a colour, and each band the means of its runs."""
    runs = [
        run(f, seed, low=low + seed / 10)
        for f, low in (("E4M3", 2.0), ("E7M0", 4.0))
        for seed in (1, 2, 3)
    ]
    (ax,) = plot.curves(runs, ["loss"]).axes
    shown = lines_of(ax)
    assert len(shown) == len(ax.collections) == 2
    assert [label.partition(" ")[0] for label in shown] == ["E4M3", "E7M0"]
    colours = [line.get_color() for line in shown.values()]
    assert colours == list(plot.PALETTE[:2])
    ends = [curve_of(r, "loss").values[-1] for r in runs[:3]]
    assert_allclose(next(iter(shown.values())).get_ydata()[-1], sum(ends) / 3)


def test_what_happened_is_marked_also_where_the_loss_has_no_height():
    """At the nearest step that has one. A loss that leaves hides no other."""
    metrics = losses(20)
    metrics[9]["loss"] = math.nan
    metrics[-1]["loss"] = 1e9
    events = [{"step": 10, "event": "nan"}, {"step": 12, "event": "collapse", "reason": "x"}]
    (ax,) = plot.curves(run(metrics=metrics, events=events), ["loss"]).axes
    marks = {x.get_marker(): x.get_data() for x in ax.lines if x.get_marker() in "xv"}
    assert_allclose(marks["x"], [[10], [metrics[8]["loss"]]])
    assert_allclose(marks["v"], [[12], [metrics[11]["loss"]]])
    assert ax.get_ylim()[1] < 10


def test_layers_over_steps_are_heat_maps():
    """With the layers' names, and NaN where nothing was measured."""
    metrics = [
        {"step": 1, "ulp-stats/stored_mean/a": 0.5, "ulp-stats/stored_mean/b": 0.25},
        {"step": 9, "ulp-stats/stored_mean/a": 0.125},
    ]
    ax, bar = plot.heat_maps(MadeUp(metrics=metrics)).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "9"]
    assert_allclose(ax.images[0].get_array().filled(math.nan), [[0.5, 0.125], [0.25, math.nan]])
    assert bar.get_ylim() == (0.0, 0.5)


def test_values_lie_among_those_of_their_format():
    """With the format's values below, and what is lost shaded."""
    key = "value-histogram/weight@fwd_E4M3_"
    metrics = [{"step": 5, f"{key}low": -2, f"{key}histogram": [0.1, 0.0, 0.2, 0.3, 0.4, 0.0]}]
    (ax,) = plot.values(MadeUp(metrics=metrics)).axes
    assert ax.get_title(loc="left") == "Weights, E4M3, at step 5"
    assert len(ax.collections[0].get_segments()) == 126
    # Bins differ in width: it is the area that shows a share.
    half = math.log2(1.5)
    assert_allclose(ax.patches[0].get_data().values, [0.2 / half, 0.3 / (1 - half), 0.4 / half])
    assert ax.get_xlabel() == "10\N{NO-BREAK SPACE}% are zero."


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (plot.curves, "no run has recorded loss, "),
        (plot.heat_maps, "bare has measured no layers"),
        (plot.values, "nothing is known of the tensors of bare"),
        (lambda _: plot.curves([]), "there are no runs to draw"),
    ],
)
def test_what_was_not_measured_is_said(draw, says):
    with pytest.raises(BadInput, match=says):
        draw(RunRecord("bare", "nowhere"))


def test_a_figure_shows_itself_without_pyplot(tmp_path, monkeypatch):
    """In a notebook; pyplot would keep every figure, and might ask for a screen."""
    figure = plot.curves(run(), ["loss"])
    (tmp_path / "shown.png").write_bytes(figure._repr_png_())
    assert matplotlib.image.imread(tmp_path / "shown.png").shape[1] == 720
    code = "import altcore_reporters, altcore_reporters.progress"
    assert not imports(code, tmp_path) & {"matplotlib", "pandas", "numpy"}


def test_runs_are_given_in_several_ways(start):
    """The path of a directory, as text too; and what train returned."""
    result = start(max_steps=2)
    names = [
        plot.records_of(given)[0].name
        for given in (result, [result], result.run_directory, str(result.run_directory))
    ]
    assert len({*names}) == 1
    assert "<strong>" in result._repr_html_()
