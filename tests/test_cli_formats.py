"""``altcore formats``: figures, tables, pictures and SQNR."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from helpers_cli import call

from altcore import BadInput, float_format, get_format, table_format
from altcore.cli.formats import binade_picture, facts, linear_picture, write_svg
from altcore.sqnr import compare, measure, samples


def test_list_has_every_named_format_and_names_the_families(capsys):
    """Figures are those of the format; a family is named, since it has no end."""
    rows = {r["name"]: r for r in json.loads(call(capsys, "formats", "list", "--json").out)}
    assert rows["E4M3"]["largest"] == 448
    assert rows["E5M2"]["inf_codes"] == 2
    assert rows["E7M0"]["precision"] == 1
    text = call(capsys, "formats", "list").out
    assert "E*M*" in text.splitlines()[-1]
    assert all(name in text for name in rows)


def test_facts_of_a_format_made_by_hand():
    """Dynamic range is that between the largest and the smallest positive value."""
    about = facts(table_format("T", [-1, 0, 0.25, 1]))
    assert (about["bits"], about["values"], about["range_binades"]) == (2, 4, 2.0)
    assert about["range_db"] == pytest.approx(20 * math.log10(4), abs=0.05)


def test_show_prints_every_value_of_a_small_format(capsys):
    """The value table is complete, as text and as JSON; a family's member is shown too."""
    text = call(capsys, "formats", "show", "E2M1").out
    assert all(f"{v:g}" in text.split() for v in get_format("E2M1").values)
    about = json.loads(call(capsys, "formats", "show", "E4M1", "--json").out)
    assert about["values"] == list(get_format("E4M1").values)


def test_pictures_put_values_where_they_are():
    """The linear picture has a mark at 0, half and the largest; binades count their values."""
    fmt = table_format("T", [0, 0.5, 1])
    marks = [i for i, c in enumerate(linear_picture(fmt)) if c == "|"]
    assert marks == [0, 48, 95]
    assert binade_picture(float_format("E2M1", 2, 1)) == "2^-1 1222 2^2"


def test_sqnr_of_fixed_point_on_uniform_data():
    """127 steps of uniform error: the signal's 1/3 over a twelfth of the step squared."""
    both = compare(get_format("E0M7"), samples("uniform"))
    assert both["amax"]["sqnr_db"] == pytest.approx(10 * math.log10(4 * 127**2), abs=0.05)
    assert both["amax"]["overflow"] == 0


@pytest.mark.parametrize("name", ["E4M3", "E0M7", "E2M1"])
def test_the_best_scale_is_at_least_as_good_as_any_other(name):
    """No scale on a fine search beats it by more than the search's own step can."""
    x, fmt = samples("laplace")[:20_000], get_format(name)
    best = compare(fmt, x)["best"]
    others = [measure(fmt, x, best["scale"] * f)["sqnr_db"] for f in (0.5, 0.8, 0.95, 1.05, 1.3, 2)]
    assert best["sqnr_db"] >= max(others) - 0.05
    assert best["sqnr_db"] >= compare(fmt, x)["amax"]["sqnr_db"]


def test_what_is_lost_is_counted_by_hand():
    """Past the largest value overflows, under half the smallest underflows."""
    found = measure(get_format("E2M1"), torch.tensor([8.0, 1.0, 0.1, 0.0]), 1.0)
    assert found["overflow"] == 0.25
    assert found["underflow"] == 0.25


def test_compare_reads_a_file(capsys, tmp_path):
    """A .npy file's numbers are what is compared; the table has a row for each format."""
    path = tmp_path / "x.npy"
    np.save(path, np.linspace(-1, 1, 1001, dtype=np.float32))
    out = call(capsys, "formats", "compare", "E4M3", "E0M7", "--on", str(path), "--json").out
    rows = json.loads(out)
    assert [r["format"] for r in rows] == ["E4M3", "E0M7"]
    assert rows[1]["amax"]["sqnr_db"] > rows[0]["amax"]["sqnr_db"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("norml", "did you mean normal"),
        ("missing.npy", "cannot be read"),
    ],
)
def test_data_that_cannot_be(data, said):
    """The message names what was given."""
    with pytest.raises(BadInput, match=rf"--on {data}.*{said}"):
        samples(data)


def test_a_file_with_nan_is_refused(tmp_path):
    """Noise over NaN would be no number."""
    np.save(tmp_path / "x.npy", np.array([1.0, np.nan]))
    with pytest.raises(BadInput, match="NaN"):
        samples(str(tmp_path / "x.npy"))


def test_the_picture_is_svg_with_a_row_for_each_format(tmp_path, capsys):
    """Well-formed, names escaped; a name that ends otherwise is refused before it is written."""
    fmt = table_format("<script>", [-1, 0, 0.5, 1])
    write_svg(tmp_path / "p.svg", [fmt, get_format("E4M3")])
    root = ET.fromstring((tmp_path / "p.svg").read_text())
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:2] == ["<script>", "E4M3"]
    outcome = call(capsys, "formats", "plot", "E4M3", "--out", str(tmp_path / "p.png"))
    assert outcome.code == 2
    assert ".svg" in outcome.err
    assert not (tmp_path / "p.png").exists()
