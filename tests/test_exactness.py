"""docs/exactness.md has what benchmarks/exactness.py prints, which would tell of any mismatch."""

import os
import re
import shutil
import subprocess
import sys

import oracles
import pytest
import torch
from format_checks import PATHS, assert_same, differing, path, same_bits
from helpers_cli import ROOT
from test_benchmarks import rows

from altcore import get_format
from altcore.numerics import fake_blocks, round_blocks
from altcore.registry import entries

SCRIPT = ROOT / "benchmarks" / "exactness.py"
PAGE = ROOT / "docs" / "exactness.md"
TABLES = ("to_nearest", "other_roundings", "stochastic")


@pytest.fixture
def exactness(monkeypatch):
    """The script as a module, with a format or two in each table."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import exactness

    names = ("E4M3", "E8M0", "E4M3FNUZ")
    monkeypatch.setattr(oracles, "ML_DTYPES", {"E4M3FNUZ": oracles.ML_DTYPES["E4M3FNUZ"]})
    monkeypatch.setattr(oracles, "GFLOAT", {n: oracles.GFLOAT[n] for n in ("E4M3", "E8M0")})
    chosen = {exactness.Format: names, exactness.BlockFormat: ("MXFP4", "NVFP4")}
    monkeypatch.setattr(exactness, "formats", chosen.__getitem__)
    monkeypatch.setattr(exactness, "SAMPLED", names)
    monkeypatch.setattr(exactness, "DRAWN", ("E4M3",))
    monkeypatch.setattr(sys, "argv", ["exactness", "--quick"])
    return exactness


def only(exactness, monkeypatch, table):
    """Leave out the other tables."""
    for name in set(TABLES) - {table}:
        nothing = (exactness.Table(name, ("", ""), []), 0)
        monkeypatch.setattr(exactness, name, lambda effort, nothing=nothing: nothing)


def status(exactness, capsys):
    """Return the exit status and what was printed."""
    with pytest.raises(SystemExit) as leaving:
        exactness.main()
    return leaving.value.code, capsys.readouterr().out


def spoiled(function, when=lambda *_, **__: True):
    """Wrap a function so that its result's last number, or that of its part, is another."""

    def wrong(*arguments, **named):
        result = function(*arguments, **named)
        first = result[0] if isinstance(result, tuple) else result
        if when(*arguments, **named):
            first = first.clone()
            first.view(-1)[-1] = 0.3
        return (first, *result[1:]) if isinstance(result, tuple) else first

    return wrong


def in_torch(*_, **__):
    return os.environ.get("ALTCORE_KERNELS") == "off"


@pytest.mark.parametrize("table", TABLES)
def test_nothing_differs(exactness, monkeypatch, capsys, table):
    """The status is 0, and the output says so."""
    only(exactness, monkeypatch, table)
    code, printed = status(exactness, capsys)
    assert code == 0
    assert "\nMismatches: 0." in printed
    assert "became" not in printed


@pytest.mark.parametrize(
    ("table", "module", "name"),
    [
        ("to_nearest", "oracles", "ml_rounded"),
        ("to_nearest", "oracles", "gfloat_rounded"),
        ("to_nearest", "oracles", "mx_rounded"),
        ("to_nearest", "oracles", "nvfp4_rounded"),
        ("to_nearest", "exactness", "decode"),
        ("to_nearest", "exactness", "reference"),
        ("to_nearest", "exactness", "round_to_grid"),
        ("to_nearest", "exactness", "fake_blocks"),
        ("other_roundings", "oracles", "gfloat_rounded"),
        ("other_roundings", "exactness", "reference"),
        ("other_roundings", "exactness", "round_to_grid"),
    ],
)
def test_one_wrong_number_is_a_failure(exactness, monkeypatch, capsys, table, module, name):
    """An oracle, or altcore's torch path alone, is wrong in one place of each tensor."""
    only(exactness, monkeypatch, table)
    owner = oracles if module == "oracles" else exactness
    is_ours = name in ("round_to_grid", "fake_blocks")
    when = in_torch if is_ours else lambda *_, **__: True
    monkeypatch.setattr(owner, name, spoiled(getattr(owner, name), when))
    code, printed = status(exactness, capsys)
    assert code == 1
    assert not re.search(r"\nMismatches: 0\.", printed)
    if name != "decode":  # 0x1.3333...p-2 is the number 0.3
        assert re.search(r"became .*0x1\.3333\w*p-2", printed)


@pytest.mark.parametrize("how", ["biased", "neither", "by path"])
def test_wrong_draws_are_a_failure(exactness, monkeypatch, capsys, how):
    """Draws whose mean is wrong, that are no neighbours, or that differ from path to path."""
    only(exactness, monkeypatch, "stochastic")
    right = exactness.round_to_grid

    def wrong(x, fmt, rule, key):
        if how == "biased":
            x = x * (1 + 2**-8)
        q = right(x, fmt, rule, key=key + 1 if how == "by path" else key)
        return q * 4 if how == "neither" else q

    def of_one_path(x, fmt, rule, key):
        return (right if in_torch() else wrong)(x, fmt, rule, key=key)

    monkeypatch.setattr(exactness, "round_to_grid", of_one_path if how == "by path" else wrong)
    code, printed = status(exactness, capsys)
    assert code == 1
    assert "missed" in printed


@pytest.mark.slow
def test_the_script_runs_and_the_page_has_its_rows(tmp_path):
    """All of it with ``--quick``, put between the markers of a copy of the page."""
    made = shutil.copy(PAGE, tmp_path / "page.md")
    command = [sys.executable, SCRIPT, "--quick", "--markdown", made]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows(made.read_text()) == rows(PAGE.read_text()), "run make exactness with --markdown"
    before, _, _ = PAGE.read_text().partition("<!-- tables: begin -->")
    assert made.read_text().startswith(before)


def test_the_page_is_of_a_whole_run():
    """Every format that is tested is there, nothing differs, and figures are not of --quick."""
    _, _, tables = PAGE.read_text().partition("<!-- tables: begin -->")
    lines = [[c.strip() for c in x.strip("| ").split(" | ")] for x in tables.splitlines()]
    names = {cells[0].partition(":")[0] for cells in lines}
    own = [e for e in entries() if e.distribution == "altcore-formats" and not e.is_family]
    assert {e.name for e in own}.union(*oracles.FAMILIES.values()) <= names
    assert tables.count("mismatches: 0.") == 2
    assert "became" not in tables
    assert "missed" not in tables
    head = []
    for cells in lines:
        head = cells if any(c.startswith("wrong, ") for c in cells) else head
        if len(cells) == len(head) and cells is not head:
            wrong = [c for c, h in zip(cells, head, strict=True) if h.startswith("wrong, ")]
            assert set(wrong) <= {"0", "–", "---:"}, cells
    assert "backend eager" not in tables
    assert "131,072" in tables


def test_bits_that_differ():
    """The comparison of the tables and tests: zeros by their sign, NaN by being NaN."""
    a = torch.tensor([0.0, -0.0, torch.nan, 1.0, 2.0])
    b = torch.tensor([0.0, 0.0, -torch.nan, 1.0, torch.nan])
    assert differing(a, b).tolist() == [False, True, False, False, True]
    assert not same_bits(a, b)
    assert same_bits(a, a.clone())
    with pytest.raises(AssertionError):
        assert_same(a, b)
    assert_same(a[2:4], b[2:4])
    with pytest.raises(AssertionError):
        assert_same(a, a.double())


def test_rules_change_what_they_say():
    """Each replaced result is counted by its rule, and nothing else is changed."""
    x = torch.tensor([torch.nan, -1e-9, 1.0, -2.0, 2.0**-130])
    fnuz, scale, table = map(get_format, ("E4M3FNUZ", "E8M0", "E2M1"))
    theirs = torch.tensor([torch.nan, 0.0, 1.0, -2.0, 0.0])
    arguments = ("nearest-even", "saturate", 2.0**-126)
    wanted, counts = oracles.by_definition(x, theirs, fnuz, *arguments)
    assert counts == {"NaN": 0, "−0": 1}
    assert_same(wanted, torch.tensor([torch.nan, -0.0, 1.0, -2.0, 0.0]))
    wanted, counts = oracles.by_definition(x, torch.full((5,), 1.0), scale, *arguments)
    assert counts == {"NaN": 1, "unsigned": 3, "−0": 0}
    least = 2.0**-127
    assert_same(wanted, torch.tensor([torch.nan, least, 1.0, least, least]))
    wanted, counts = oracles.by_definition(x, theirs.nan_to_num(6.0), table, *arguments)
    assert counts == {"NaN": 1}
    assert_same(wanted, theirs)


@pytest.mark.parametrize("way", PATHS)
def test_oracles_of_blocks_on_their_own(way):
    """A block whose values are known by hand, in MXFP4 and in NVFP4."""
    x = torch.tensor([[6.0, 5.1, 0.24, -0.26, *[0.0] * 12]])
    y, mx = torch.cat([x, x], 1), get_format("MXFP4")
    with path(way):
        values, _ = oracles.mx_rounded(y, mx)
        assert values[0, :4].tolist() == [6, 6, 0, -0.5]
        assert_same(round_blocks(y, mx).values, values)
        values, g = oracles.nvfp4_rounded(x)
        assert (values * g)[0, :4].tolist() == pytest.approx([6, 6, 0, -0.5])
        assert_same(fake_blocks(x, get_format("NVFP4")), values * g)
