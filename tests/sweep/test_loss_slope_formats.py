"""experiments/loss-slope/formats.py: differences of formats to float32, from an export."""

from importlib import util
from itertools import product

import pandas as pd
import pytest
from helpers_cli import ROOT

from altcore.estimates import estimate

STEPS = {"alpha_early": 0.5, "r_squared": -0.25, "best_val_ce": 0.125}
"""What E5M2 changes in ``base``; in ``narrow`` it changes nothing but this, by the seed's sign."""


@pytest.fixture(scope="module")
def script():
    path = ROOT / "experiments" / "loss-slope" / "formats.py"
    spec = util.spec_from_file_location("loss_slope_formats", path)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Two variants in float32 and E5M2, at two points with two seeds."""
    folder, rows = tmp_path_factory.mktemp("export"), []
    for variant, fmt, lr, seed in product(("base", "narrow"), ("", "-E5M2"), (0.1, 0.2), (0, 1)):
        sign = {"base": 1, "narrow": 2 * seed - 1}[variant] if fmt else 0
        level = lr + seed / 8 + (variant == "narrow")
        row = {"run_id": f"{variant}{fmt}-{lr}-{seed}", "variant": f"{variant}{fmt}", "lr": lr}
        row |= {"weight_decay": 1e-4, "seed": seed}
        small = lr * seed / 100  # so that no interval is without width
        row |= {key: level + sign * step + bool(fmt) * small for key, step in STEPS.items()}
        rows.append(row | {"r_squared": min(max(row["r_squared"], 0), 1)})
    pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)
    return folder


def lines_of(text, title):
    part = text.partition(f"### {title}\n")[2].partition("\n###")[0]
    return [[c.strip() for c in line.strip("| ").split("|")] for line in part.split("\n") if line]


def test_differences_are_paired_by_point_and_seed(script, export):
    """Told from 0 where they are always the same, though runs differ by more; not elsewhere."""
    found = {
        tuple(r[:2]): r[2:]
        for r in lines_of(script.tables(script.read(export)), "Differences to float32")
    }
    pairs, slope, p, *_ = found["base", "E5M2"]
    assert pairs == "4"
    assert slope.startswith("**+0.501** [0.49")
    assert p == "0.000"
    assert found["base", "E5M2"][5].startswith("**+0.126** [0.12")
    assert found["narrow", "E5M2"][1].startswith("+0.001 [-0.9")
    assert found["all", "E5M2"][0] == "8"
    # Of three p it is the second, after that of base, so Holm takes it twice.
    signs = [
        (sign, lr * seed / 100)
        for lr in (0.1, 0.2)
        for seed in (0, 1)
        for sign in (1, 2 * seed - 1)
    ]
    alone = estimate([0.5 * sign + small for sign, small in signs])
    assert 0.05 < 2 * alone.p < 1
    assert found["all", "E5M2"][2] == f"{2 * alone.p:.3f}"


def test_means_hypotheses_and_changes(script, export):
    told = script.tables(script.read(export))
    means = {tuple(r[:2]): r[2:] for r in lines_of(told, "What was measured")}
    assert means["base", "float32"][:2] == ["4", "0.213 ± 0.092"]
    judged = {r[0]: r[1:] for r in lines_of(told, "H1 and H2")}
    assert list(judged)[2:] == ["all", "float32", "E5M2", "base", "narrow"]
    assert judged["float32"][1] == "50% [16%, 84%]"  # narrow's R² is 1 here
    assert judged["float32"][3].startswith("1.00 ")
    assert judged["all"][0] == "16"
    changed = {r[0]: r[1:] for r in lines_of(told, "Changes of the slope, and of the best loss")}
    assert changed["narrow"][0] == "4"
    assert changed["narrow"][1].startswith("1.00 ")
    # Two seeds at a point lie as far above as below, in both measures.
    within = lines_of(told, "Early slope and best loss, less the mean of a point")
    assert {r[0]: r[1:] for r in within}["narrow"] == ["8", "0.98 [0.88, 1.00]"]


def test_a_page_keeps_its_text(script, export, tmp_path):
    page = tmp_path / "page.md"
    begin, end = script.MARKERS
    page.write_text(f"# Title\n{begin}\nstale\n{end}\nafter\n")
    for _ in range(2):
        script.main([str(export), "--page", str(page)])
    text = page.read_text()
    assert text.startswith(f"# Title\n{begin}\n\n### What was measured\n")
    assert text.endswith(f"|\n\n{end}\nafter\n")
    assert "stale" not in text
