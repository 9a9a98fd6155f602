"""`FormatComparator`: ranks, and what may be concluded from them."""

import math
import re

import pandas as pd
import pytest

from altcore.errors import BadInput
from altcore_reporters import FormatComparator

NAN = math.nan


def frame(*rows, columns=("format", "seed", "final_loss", "state")):
    return pd.DataFrame(rows, columns=list(columns))


SIX = frame(
    ("E3M4", 1, 2.0, "finished"),
    ("E3M4", 2, 2.2, "finished"),
    ("E5M2", 1, 2.5, "finished"),
    ("E5M2", 2, 2.6, "finished"),
    ("E7M0", 1, 1.0, "crashed"),
    ("E7M0", 2, NAN, "failed"),
)


def test_formats_are_ranked_by_their_mean():
    """Two runs each; the mean of what is known of E7M0, and how many seeds that is."""
    found = FormatComparator(SIX).rank_by_metric("final_loss")
    assert list(found.columns) == ["rank", "format", "final_loss", "low", "high", "seeds"]
    assert list(found["format"]) == ["E7M0", "E3M4", "E5M2"]
    assert list(found["final_loss"]) == pytest.approx([1.0, 2.1, 2.55])
    assert list(found["rank"]) == [1, 2, 3]
    assert list(found["seeds"]) == [1, 2, 2]
    half = 12.706204736 * 0.1  # t of one degree of freedom, times the error of 2.0 and 2.2
    assert found["high"][1] == pytest.approx(2.1 + half)
    assert math.isinf(found["high"][0])
    turned = FormatComparator(SIX).rank_by_metric("final_loss", ascending=False)
    assert list(turned["format"]) == ["E5M2", "E3M4", "E7M0"]


def test_equal_formats_share_a_rank_and_missing_ones_have_none():
    """The original experiments' frames have a row a format, some without the metric."""
    rows = (("E0M7", 2.0), ("E1M6", 2.0), ("E5M2", 3.0), ("E7M0", NAN))
    df = frame(*rows, columns=["format", "bit_stall_final"])
    found = FormatComparator(df).rank_by_metric("bit_stall_final")
    assert list(found["format"]) == ["E0M7", "E1M6", "E5M2", "E7M0"]
    assert list(found["rank"][:3]) == [1, 1, 3]
    assert found["rank"].isna()[3]


def test_formats_are_ranked_within_their_condition():
    """A learning rate is not a format."""
    df = pd.concat([SIX.assign(condition="slow"), SIX[:4].assign(condition="fast")])
    found = FormatComparator(df).rank_by_metric("final_loss")
    assert list(zip(found["condition"], found["rank"], found["format"], strict=True)) == [
        ("slow", 1, "E7M0"),
        ("slow", 2, "E3M4"),
        ("slow", 3, "E5M2"),
        ("fast", 1, "E3M4"),
        ("fast", 2, "E5M2"),
    ]


def test_the_sweet_spot_is_the_lowest_of_the_finished_runs():
    """A run that crashed does not count, unless it is asked to."""
    assert FormatComparator(SIX).identify_sweet_spot() == "E3M4"
    assert FormatComparator(SIX).identify_sweet_spot(exclude_crashed=False) == "E7M0"
    assert FormatComparator(SIX[4:]).identify_sweet_spot() is None
    for empty in (SIX[:0], pd.DataFrame()):
        assert FormatComparator(empty).identify_sweet_spot() is None
        assert len(FormatComparator(empty).rank_by_metric("final_loss")) == 0


def test_the_improvement_is_in_percent_of_the_baseline():
    """By hand: 2.55 to 2.1."""
    comparator = FormatComparator(SIX)
    assert comparator.compute_improvement("E5M2", "E3M4") == pytest.approx(45 / 2.55)
    assert comparator.compute_improvement("E3M4", "E5M2") == pytest.approx(-45 / 2.1)
    assert math.isnan(comparator.compute_improvement("E5M2", "E7M0"))
    assert math.isnan(comparator.compute_improvement("E5M2", "E9M9"))
    stall = SIX.assign(bit_stall_final=[0.0, 0.0, 0.5, 0.5, 1, 1])
    assert FormatComparator(stall).compute_improvement("E5M2", "E3M4", "bit_stall_final") == 100
    assert math.isnan(
        FormatComparator(stall).compute_improvement("E3M4", "E5M2", "bit_stall_final")
    )


def test_a_column_that_is_not_there_is_named():
    """With the one that was meant."""
    with pytest.raises(BadInput, match=r"'final_los' \(did you mean final_loss"):
        FormatComparator(SIX).rank_by_metric("final_los")
    with pytest.raises(BadInput, match="format"):
        FormatComparator(pd.DataFrame({"final_loss": [1.0]}))


# ---------------------------------------------------------------------------- what is concluded


def test_a_lead_is_clear_when_every_rival_is_distinguishable():
    """Three seeds, with differences of 1.0 ± 0.1 and 2.0 ± 0.1."""
    losses = {"A": (1.0, 5.0, 9.0), "B": (1.9, 6.0, 10.1), "C": (3.1, 7.0, 10.9)}
    rows = [(f, s, v) for f, own in losses.items() for s, v in enumerate(own)]
    (lead,) = FormatComparator(frame(*rows, columns=["format", "seed", "final_loss"])).lead()
    assert (lead.format, lead.seeds, lead.is_clear) == ("A", 3, True)
    assert [r.format for r in lead.rivals] == ["B", "C"]
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert lead.rivals[0].change.low == pytest.approx(1 - half)
    assert lead.rivals[1].change.high == pytest.approx(2 + half)


def test_overlapping_formats_have_no_winner():
    """The lower mean alone decides nothing."""
    rows = [
        ("A", 1, 1.0),
        ("A", 2, 2.0),
        ("A", 3, 1.5),
        ("B", 1, 1.4),
        ("B", 2, 1.8),
        ("B", 3, 1.6),
    ]
    df = frame(*rows, columns=["format", "seed", "final_loss"])
    (lead,) = FormatComparator(df).lead()
    assert (lead.format, lead.is_clear) == ("A", False)
    assert not lead.rivals[0].is_distinguishable
    assert not lead.rivals[0].is_equal


def test_the_highest_may_be_the_best():
    """An accuracy leads where it is highest."""
    (lead,) = FormatComparator(SIX[:4]).lead("final_loss", ascending=False)
    assert (lead.format, lead.mean) == ("E5M2", 2.55)


def test_one_seed_has_no_winner():
    """However far apart the two are."""
    rows = (("A", 1, 1.0), ("B", 1, 100.0))
    (lead,) = FormatComparator(frame(*rows, columns=["format", "seed", "final_loss"])).lead()
    assert not lead.is_clear


def test_a_format_alone_leads_nothing():
    """There is nothing to compare it with."""
    (lead,) = FormatComparator(SIX[:2]).lead()
    assert not lead.is_clear
    assert lead.rivals == ()


def test_rivals_are_corrected_for_their_number():
    """What one comparison would tell, four do not."""
    losses = {"A": (1.0, 2.0, 3.0), "B": (1.10, 2.14, 3.08)}
    rows = [(f, s, v) for f, own in losses.items() for s, v in enumerate(own)]
    columns = ["format", "seed", "final_loss"]
    (alone,) = FormatComparator(frame(*rows, columns=columns)).lead()
    assert alone.rivals[0].is_distinguishable
    rows += [
        (f, s, v + 0.2 + s * x)
        for f, x in (("C", 1), ("D", 2), ("E", 3))
        for s, v in enumerate(losses["A"])
    ]
    (among,) = FormatComparator(frame(*rows, columns=columns)).lead()
    rival = next(r for r in among.rivals if r.format == "B")
    assert rival.change == alone.rivals[0].change
    assert rival.p == pytest.approx(4 * rival.change.p)
    assert rival.change.excludes_zero
    assert not rival.is_distinguishable


def test_runs_of_one_seed_count_as_their_mean():
    """Two runs of one seed are no two seeds: there is no interval, and no mean of runs."""
    twice = frame(*[("A", 1, x) for x in (1.0, 1.5)], *[("B", 1, x) for x in (9.0, 9.1)],
                  columns=["format", "seed", "final_loss"])  # fmt: skip
    (lead,) = FormatComparator(twice).lead()
    assert (lead.seeds, lead.is_clear, lead.rivals[0].change.n) == (1, False, 1)
    more = pd.concat([twice, frame(("A", 2, 5.0), columns=["format", "seed", "final_loss"])])
    ranked = FormatComparator(more).rank_by_metric("final_loss")
    assert list(ranked["final_loss"]) == pytest.approx([3.125, 9.05])
    assert list(ranked["seeds"]) == [2, 1]
    assert FormatComparator(more).lead()[0].mean == pytest.approx(3.125)


def losses(**formats):
    """A frame of finished runs, from each format's losses by seed."""
    rows = [(f, s, v, "finished") for f, own in formats.items() for s, v in own.items()]
    return frame(*rows)


EASY = losses(A={1: 2.600, 2: 2.601, 3: 2.602, 4: 1.2}, B={1: 2.5, 2: 2.5, 3: 2.503})


def test_an_easy_seed_makes_no_leader():
    """A is 0.1 above B in each seed that both have; its mean over all is lower."""
    (lead,) = FormatComparator(EASY).lead()
    assert (lead.format, lead.is_clear, lead.differ, lead.common) == ("B", True, True, (1, 2, 3))
    assert lead.mean == pytest.approx(7.503 / 3)
    ranked = FormatComparator(EASY).rank_by_metric("final_loss")
    assert list(ranked["format"]) == ["B", "A"]
    assert list(ranked["seeds"]) == [3, 3]
    assert FormatComparator(EASY).compute_improvement("A", "B") == pytest.approx(
        (7.803 - 7.503) / 7.803 * 100
    )


@pytest.mark.parametrize("ascending", [True, False])
def test_a_rival_that_is_ahead_in_the_common_seeds_stops_a_lead(ascending):
    """C has one seed, so that the means are over different ones, and A's is the best."""
    df = pd.concat([EASY, losses(C={1: 9.0, 5: 9.0})])
    if not ascending:
        df["final_loss"] *= -1
    (lead,) = FormatComparator(df).lead(ascending=ascending)
    rival = next(r for r in lead.rivals if r.format == "B")
    assert (lead.format, lead.is_clear, lead.differ, lead.common) == ("A", False, True, ())
    assert rival.is_distinguishable
    assert rival.is_ahead


def test_survivors_are_no_sweet_spot():
    """B crashed in three seeds of five, and the two that are left are the lowest."""
    df = losses(A=dict.fromkeys(range(5), 2.5), B={0: 2.3, 1: 2.301})
    crashed = frame(*(("B", seed, 8.0, "crashed") for seed in (2, 3, 4)))
    alone = frame(("B", 7, NAN, "crashed"), ("B", 8, NAN, "running"))
    comparator = FormatComparator(pd.concat([df, crashed, crashed, alone]))
    (lead,) = comparator.finished.lead()
    assert (lead.format, lead.failed, lead.is_clear) == ("B", 3, False)
    assert comparator.identify_sweet_spot() is None
    again = pd.concat([df, crashed, losses(B=dict.fromkeys((2, 3, 4), 2.3))])
    assert FormatComparator(again).identify_sweet_spot() == "B"
    unknown = pd.concat([df, crashed]).drop(columns="seed")
    assert FormatComparator(unknown).finished.lead()[0].failed == 3
    infinite = df.assign(final_loss=df["final_loss"].replace(2.3, math.inf))
    assert FormatComparator(infinite).lead()[0].failed == 1


def test_a_copy_of_a_run_does_not_count():
    """The loader's frames have no seeds, and then every other run counts for itself."""
    rows = [("A", "a", 1.0), ("A", "a", 1.0), ("A", None, 4.0), ("A", None, 4.0), ("B", "b", 9.0)]
    df = frame(*rows, columns=["format", "run_id", "final_loss"])
    ranked = FormatComparator(df).rank_by_metric("final_loss")
    assert list(ranked["seeds"]) == [3, 1]
    assert list(ranked["final_loss"]) == [3.0, 9.0]


# -------------------------------------------------------------------------------- layer types


def test_layers_are_averaged_by_type():
    """By hand, in the order of the types."""
    df = frame(
        ("transformer.h.0.attn.c_attn", 1.0, 0.5),
        ("transformer.h.1.attn.c_proj", 3.0, 0.7),
        ("transformer.h.0.mlp.c_fc", 5.0, NAN),
        ("transformer.wte", 7.0, 0.1),
        ("lm_head", 9.0, 0.2),
        columns=["layer", "stall", "sqnr"],
    )
    found = FormatComparator(SIX).compare_by_layer_type(df)
    assert list(found.columns) == ["layer_type", "layers", "stall", "sqnr"]
    assert list(found["layer_type"]) == ["attention", "mlp", "embedding", "classifier"]
    assert list(found["layers"]) == [2, 1, 1, 1]
    assert list(found["stall"]) == [2, 5, 7, 9]
    assert found["sqnr"][0] == pytest.approx(0.6)
    assert math.isnan(found["sqnr"][1])


def test_layers_of_formats_are_averaged_apart_and_seeds_together():
    """A layer of two seeds is one layer."""
    rows = [("A", s, "lm_head", s * 1.0) for s in (1, 2)] + [("B", 1, "lm_head", 9.0)]
    df = frame(*rows, columns=["format", "seed", "layer_name", "x"])
    found = FormatComparator(SIX).compare_by_layer_type(df)
    assert found.to_dict("list") == {
        "format": ["A", "B"],
        "layer_type": ["classifier", "classifier"],
        "layers": [1, 1],
        "x": [1.5, 9.0],
    }


def test_layers_may_be_the_index():
    """As in a frame made of a dictionary."""
    df = pd.DataFrame({"x": {"wte": 1.0, "attn": 2.0}})
    found = FormatComparator(SIX).compare_by_layer_type(df)
    assert list(found["layer_type"]) == ["attention", "embedding"]


# ------------------------------------------------------------------------ frames of other people


@pytest.mark.parametrize(
    ("df", "told"),
    [
        (SIX.assign(final_loss="low"), "final_loss is 'low', and not a number"),
        (SIX.assign(final_loss=[[1.0]] * 6), "final_loss is [1.0], and not a number"),
        (SIX.assign(final_loss=pd.Timestamp(0)), "final_loss is Timestamp"),
        (SIX.assign(seed=[[1]] * 6), "seed is [1], and not a single value"),
        (SIX.assign(format=[{"name": "A"}] * 6), "format is {'name': 'A'}, and not a single value"),
        (SIX.assign(format=["A", None, NAN, *"BCD"]), "format is missing in 2 of 6 runs"),
        (pd.concat([SIX, SIX["final_loss"]], axis=1), "several columns 'final_loss'"),
        (None, "None is not a frame"),
    ],
)
def test_what_a_column_cannot_hold_is_named(df, told):
    """The column and the value, in whatever the frame is used for."""
    for use in (
        lambda: FormatComparator(df).rank_by_metric("final_loss"),
        lambda: FormatComparator(df).identify_sweet_spot(exclude_crashed=False),
        lambda: FormatComparator(df).compute_improvement("E3M4", "E5M2"),
    ):
        with pytest.raises(BadInput, match=re.escape(told)):
            use()


def test_categories_and_numbers_as_text_are_what_they_say():
    """As a frame read from a file may have them; a missing condition is one of its own."""
    condition = pd.Categorical(["a", "a", "a", "a", None, None])
    df = SIX.astype({"format": "category", "state": "category", "final_loss": "category"})
    text = SIX.assign(final_loss=["2.0", "2.2", "2.5", "2.6", "1.0", None])
    for other in (df.assign(condition=condition), text.assign(condition=condition)):
        found = FormatComparator(other.set_index("seed", drop=False)).rank_by_metric("final_loss")
        assert list(found["condition"]) == ["a", "a", ""]
        assert list(found["final_loss"]) == pytest.approx([2.1, 2.55, 1.0])


def test_layers_of_a_frame_with_many_indexes():
    """Whose levels are called as its columns."""
    df = pd.DataFrame({"format": ["A", "B"], "layer": ["wte", "wte"], "x": [1.0, 2.0]})
    found = FormatComparator(SIX).compare_by_layer_type(df.set_index(["format", "x"], drop=False))
    assert list(found["x"]) == [1.0, 2.0]
