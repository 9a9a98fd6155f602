"""``altcore formats``: figures, tables, pictures and SQNR."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from fractions import Fraction

import numpy as np
import pytest
from helpers_cli import call

from altcore import float_format, get_format, table_format
from altcore.cli.formats import binade_picture, facts, linear_picture, write_svg
from altcore.formats import BlockFormat
from altcore.log import log
from altcore.study import read_data


def test_list_has_every_named_format_and_names_the_families(capsys):
    """Figures are those of the format; a family is named, since it has no end."""
    rows = {r["name"]: r for r in json.loads(call(capsys, "formats", "list", "--json").out)}
    assert rows["E4M3"]["largest"] == 448
    assert rows["E5M2"]["inf_codes"] == 2
    assert rows["E7M0"]["precision"] == 1
    text = call(capsys, "formats", "list").out
    assert "E*M*" in text.splitlines()[-1]
    assert all(name in text for name in rows)


def test_list_has_block_formats_below(capsys):
    """With the scale's share in the bits, the elements' figures, and how far scales reach."""
    rows = {r["name"]: r for r in json.loads(call(capsys, "formats", "list", "--json").out)}
    bits = {"MXFP8-E4M3": 8.25, "MXINT8": 8.25, "MXFP4": 4.25, "NVFP4": 4.5}
    assert {name: rows[name]["bits"] for name in bits} == bits
    about = rows["MXFP8-E4M3"]
    assert (about["element"], about["block"], about["rule"]) == ("E4M3", "32", "floor")
    assert (about["precision"], about["largest"], about["smallest"]) == (4, 448, 2**-9)
    assert (about["scale"], about["largest_scale"]) == ("E8M0", 2.0**127)
    assert about["smallest_scale"] == 2.0**-127
    assert (rows["NVFP4"]["scale"], rows["NVFP4"]["largest_scale"]) == ("E4M3", 448)
    assert rows["NVFP4-square"]["block"] == "16x16"
    scalar, below = call(capsys, "formats", "list").out.split("in blocks")
    assert "MXFP4" not in scalar
    (line,) = [x for x in below.splitlines() if x.split()[:1] == ["NVFP4"]]
    cells = "NVFP4 4.5 E2M1 2 6 0.5 16 two-level E4M3 448 0.001953125"
    assert line.split() == cells.split()


@pytest.mark.parametrize(
    ("rule", "scale", "largest", "bits"),
    [("amax", "float32", 3.4028235e38, 8), ("power-of-two", "E8M0", 2.0**126, 5)],
)
def test_facts_of_other_scale_rules(rule, scale, largest, bits):
    """Scales that are no codes take 32 bits; powers of two stay within float32's normal ones."""
    about = facts(BlockFormat("MINE", get_format("E2M1"), 8, rule))
    assert (about["scale"], about["bits"]) == (scale, bits)
    assert about["largest_scale"] == pytest.approx(largest)


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


@pytest.mark.parametrize("name", ["MXFP4", "MXFP4-rceil", "NVFP4-square"])
def test_show_of_a_block_format_is_of_its_elements(capsys, name):
    """Their values and pictures, with block, rule and scale; as text and as JSON."""
    text = call(capsys, "formats", "show", name).out
    element = call(capsys, "formats", "show", "E2M1").out
    assert text.partition("values:")[2] == element.partition("values:")[2]
    assert linear_picture(get_format("E2M1")) in text
    assert "the elements' values" in text
    fmt = get_format(name)
    said = dict(line.split() for line in text.splitlines()[:16])
    assert (said["element"], said["rule"], said["bits"]) == ("E2M1", fmt.rule, f"{fmt.bits:g}")
    about = json.loads(call(capsys, "formats", "show", name, "--json").out)
    assert about["values"] == list(get_format("E2M1").values)
    assert (about["name"], about["rule"]) == (name, fmt.rule)


def test_pictures_put_values_where_they_are():
    """The linear picture has a mark at 0, half and the largest; binades count their values."""
    fmt = table_format("T", [0, 0.5, 1])
    marks = [i for i, c in enumerate(linear_picture(fmt)) if c == "|"]
    assert marks == [0, 48, 95]
    assert binade_picture(float_format("E2M1", 2, 1)) == "2^-1 1222 2^2"


@pytest.mark.parametrize(
    ("values", "marks", "binades"),
    [
        ([-1, 0, 0.5, 3], [0, 24, 36, 95], "negative: 2^0 1 2^0\n2^-1 101 2^1"),
        ([-8, 0, 1], [0, 84, 95], "negative: 2^3 1 2^3\n2^0 1 2^0"),
        ([0.5, 1, 2], [24, 48, 95], "2^-1 111 2^1"),
    ],
)
def test_pictures_and_figures_of_what_is_not_symmetric(values, marks, binades):
    """From the lowest value to the largest, wherever they lie; scales go by `Format.max`."""
    fmt = table_format("T", values)
    assert [i for i, c in enumerate(linear_picture(fmt)) if c == "|"] == marks
    assert binade_picture(fmt) == binades
    about = facts(fmt)
    assert (about["lowest"], about["largest"]) == (values[0], values[-1])
    assert about["range_binades"] == round(math.log2(values[-1] / fmt.smallest), 1)


def test_show_of_what_is_not_symmetric(capsys):
    """Both signs are there, and the title says from where to where."""
    text = call(capsys, "formats", "show", "INT4").out
    said = dict(line.split() for line in text.splitlines()[:8])
    assert (said["lowest"], said["largest"]) == ("-8", "7")
    assert "-8 to 7" in text
    assert "0 to 6 and" in call(capsys, "formats", "show", "E2M1").out


def test_plot_of_what_is_not_symmetric(tmp_path):
    """Its negative values have the lower half of the row, at their magnitudes."""
    write_svg(tmp_path / "p.svg", [table_format("T", [-8, 0, 1, 2]), get_format("E2M1")])
    root = ET.fromstring((tmp_path / "p.svg").read_text())
    paths = [p.get("d") for p in root.iter("{http://www.w3.org/2000/svg}path")]
    assert paths[0] == "M325.0 12v10M540.0 12v10"
    assert paths[1] == "M970.0 22v10"
    assert paths[2].count("v20") == 7


def test_compare_has_block_formats_beside_others(capsys, tmp_path):
    """In one table, n/a where there is no scale to choose; and a picture of their elements."""
    picture = tmp_path / "p.svg"
    names = ("E2M1", "MXFP4", "NVFP4-square")
    text = call(capsys, "formats", "compare", *names, "--on", "normal", "--plot", str(picture)).out
    head, scalar, mx, square = [line.split() for line in text.splitlines()]
    assert head[0] == "format"
    assert max(map(len, text.splitlines())) < 100
    assert "n/a" not in scalar
    assert mx.count("n/a") == square.count("n/a") == 3
    assert float(mx[6]) > 0
    assert "NVFP4-square" in picture.read_text()
    rows = json.loads(call(capsys, "formats", "compare", *names, "--on", "t5", "--json").out)
    assert [r["best"] is None for r in rows] == [False, True, True]
    assert all(set(r["amax"]) == set(rows[0]["amax"]) for r in rows)


def test_plot_of_a_block_format(tmp_path, capsys):
    """One row, with the marks of its elements."""
    out = tmp_path / "p.svg"
    assert call(capsys, "formats", "plot", "MXFP4", "E2M1", "--out", str(out)).code == 0
    paths = [p.get("d") for p in ET.parse(out).iter("{http://www.w3.org/2000/svg}path")]
    assert paths[0].count("M") == paths[1].count("M") == 7


def test_compare_reads_a_file(capsys, tmp_path):
    """A .npy file's numbers are what is compared; the table has a row for each format."""
    path = tmp_path / "x.npy"
    np.save(path, np.linspace(-1, 1, 1001, dtype=np.float32))
    out = call(capsys, "formats", "compare", "E4M3", "E0M7", "--on", str(path), "--json").out
    rows = json.loads(out)
    assert [r["format"] for r in rows] == ["E4M3", "E0M7"]
    assert rows[1]["amax"]["sqnr_db"] > rows[0]["amax"]["sqnr_db"]


def test_what_is_said_of_a_run_is_no_part_of_the_table(capsys, monkeypatch):
    """Such as a checkpoint that is damaged: it is told on standard error."""

    def read(what, _):
        log.warning(f"{what} is damaged")
        return read_data("normal", "runs")

    monkeypatch.setattr("altcore.study.read_data", read)
    found = call(capsys, "formats", "compare", "E4M3", "--on", "mine")
    assert "mine is damaged" in found.err
    assert [line.split()[0] for line in found.out.splitlines()] == ["format", "E4M3"]


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


@pytest.mark.parametrize(
    ("name", "precision"),
    [("binary15p5ue", 5), ("binary8p8ue", 8), ("binary8p1uf", 1), ("posit8_1", None)],
)
def test_figures_of_tables(name, precision):
    """A table whose values are a floating-point format's has a precision; no range overflows."""
    about = facts(get_format(name))
    assert about["precision"] == precision
    largest, smallest = Fraction(about["largest"]), Fraction(about["smallest"])
    ratio = largest / smallest
    binades = math.log2(ratio.numerator) - math.log2(ratio.denominator)
    assert about["range_binades"] == pytest.approx(binades, abs=0.05)
    assert about["range_db"] == pytest.approx(20 * math.log10(2) * binades, abs=0.05)
