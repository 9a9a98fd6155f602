"""The reporters that compare runs, on runs that were trained, as the command calls them."""

import re
import shutil
import subprocess
import sys

import pytest
from helpers import Starter
from helpers_cli import call
from helpers_records import put
from helpers_wandb import ENTITY, WandbServer, client_of

from altcore.plugin import read_run
from altcore_reporters import FormatComparator
from altcore_reporters.analysis import FailureModes, FormatComparison, ManifoldComparison
from altcore_reporters.layer_metrics import layer_frame
from altcore_reporters.wandb_runs import read_runs as read_wandb_runs

AWARE = {"optimizer": "manifold-adamw", "manifold-adamw.mode": "gradient"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus):
    """Two formats and two optimizers with two seeds each, and a run that is like no other."""
    start = Starter(tmp_path_factory.mktemp("compared") / "runs", corpus, {"max_steps": 2})
    for seed in (1, 2):
        for fmt in ("E5M2", "E3M4"):
            start(
                ["ulp-stats"],
                name=f"{fmt}-{seed}",
                format=fmt,
                seed=seed,
                **{"ulp-stats.interval": 1},
            )
        start(name=f"aware-{seed}", format="E5M2", seed=seed, **AWARE)
    start(name="alone", format="E5M2", seed=1, learning_rate=0.5)
    return start.runs


@pytest.fixture(scope="module")
def records(folder):
    """The records of the runs, by name."""
    return {path.name: read_run(path) for path in folder.iterdir()}


def text_of(reporter, records, out):
    (path,) = reporter.render(list(records), out)
    return path.read_text()


def test_formats_are_compared_from_the_command_line(folder, tmp_path, capsys):
    """All runs of a folder; those that differ in more than the format are left out, by name."""
    out = tmp_path / "reports"
    done = call(capsys, "report", "format-comparison", "--from", folder, "--out", out)
    assert (done.code, done.out) == (0, f"{out / 'format_comparison.md'}\n")
    text = (out / "format_comparison.md").read_text()
    assert "from 4 runs of 2 formats." in text
    left_out = text.partition("shares their configuration and data: ")[2].partition(".\n")[0]
    assert sorted(left_out.replace(" and ", ", ").split(", ")) == ["alone", "aware-1", "aware-2"]
    assert "paired" in text
    assert "| attention" in text.partition("### ulp-stats/view_zero_share")[2]


REPORTERS = ["format-comparison", "failure-modes", "manifold-comparison", "page", "failure-report"]


@pytest.mark.parametrize("reporter", REPORTERS)
def test_what_is_wrong_with_the_runs_is_in_the_report(folder, tmp_path, capsys, reporter):
    """Whoever reads the file alone has no standard error: an edited loss would be a finding."""
    runs, out = tmp_path / "runs", tmp_path / "reports"
    shutil.copytree(folder, runs)
    edited = runs / "E5M2-1/summary.json"
    edited.write_text(re.sub('"val_loss": [^,]*', '"val_loss": 1.0', edited.read_text()))
    (runs / "E3M4-2/summary.json").write_text("no JSON")
    (runs / "E3M4-1/config.yaml").unlink()
    done = call(capsys, "report", reporter, "--from", runs, "--out", out)
    assert done.code == 0, done.err
    texts = [path.read_text() for path in sorted(out.iterdir())]
    said = [text for text in texts if f"{edited} was changed since the run ended" in text]
    assert len(said) == 1
    if reporter != "failure-report":  # which is of one run
        assert "E3M4-2 cannot be read, and is left out" in said[0]
        assert "a run is left out: " in said[0]
    as_left = tmp_path / "as-left"
    assert call(capsys, "report", reporter, "--from", folder, "--out", as_left).code == 0
    assert not any("Caution" in path.read_text() for path in as_left.iterdir())


def test_a_comparison_is_that_of_the_losses(records, tmp_path):
    """The report's difference is the mean of the two seeds' own."""
    text = text_of(FormatComparison(), records.values(), tmp_path)
    loss = {name: record.summary["val_loss"] for name, record in records.items()}
    change = sum(loss[f"E5M2-{s}"] - loss[f"E3M4-{s}"] for s in (1, 2)) / 2
    ranking = text.partition("### By validation loss")[2].partition("###")[0]
    assert f"{abs(change):.4f} [" in ranking


def test_runs_like_no_other_are_shown_if_there_is_nothing_else(records, tmp_path):
    """And nothing is concluded."""
    text = text_of(FormatComparison(), [records["alone"], records["aware-1"]], tmp_path)
    assert "Left out" not in text
    assert "only E5M2 has finished runs" in text


def test_failures_are_those_that_did_not_learn(records, tmp_path):
    """Two steps are too few to learn anything."""
    text = text_of(FailureModes(), records.values(), tmp_path)
    assert "from 7 failures in 7 runs." in text
    assert "did not learn: the validation loss is" in text


def test_optimizers_are_compared_by_seed(records, tmp_path):
    """In the format that is asked for; the settings of each belong to it."""
    text = text_of(ManifoldComparison(), records.values(), tmp_path)
    assert "from 4 runs." in text
    assert re.search(r"Left out, since no run of the other kind [^.]*: alone\.", text)
    loss = {name: record.summary["val_loss"] for name, record in records.items()}
    change = sum(loss[f"aware-{s}"] - loss[f"E5M2-{s}"] for s in (1, 2)) / 2
    assert f"{change:.4f} [" in text
    assert "manifold-adamw against adamw in E5M2: " in text
    other = text_of(ManifoldComparison(format="E3M4"), records.values(), tmp_path)
    assert "There is no run of a manifold-aware optimizer" in other


@pytest.mark.parametrize("reporter", [FormatComparison, FailureModes, ManifoldComparison])
def test_no_run_makes_a_report_that_says_so(reporter, tmp_path):
    assert "No data" in text_of(reporter(), [], tmp_path)


def test_runs_of_the_original_experiments_are_reported_on_from_wandb(tmp_path):
    """Flat keys, states and links; two seeds tell what is ever so steady."""
    losses = {
        ("E5M2", False): (2.0, 2.2),
        ("E5M2", True): (1.9, 2.099),
        ("E3M4", False): (2.5, 2.71),
    }
    with WandbServer() as server, client_of(server, tmp_path / "client"):
        for (fmt, aware), own in losses.items():
            for seed, loss in enumerate(own):
                config = {"use_fp8": True, "fp8_format": fmt, "use_manifold_aware": aware}
                config |= {"seed": seed, "run_name": f"{fmt}-{seed}", "learning_rate": 6e-4}
                summary = {"loss": loss, "quantization/bit_stall_rate": 0.9, "_step": 499}
                put(server, f"{fmt}-{aware}-{seed}", config=config, summary=summary)
        config |= {"fp8_format": "E7M0", "use_manifold_aware": False}
        put(server, "broken", config=config, summary={"_step": 12}, state="failed")
        runs = read_wandb_runs(f"{ENTITY}/altgrad")
        text = text_of(FormatComparison(), runs, tmp_path)
        assert "**Sweet spot: E5M2**, by final loss." in text
        assert f"[E5M2-False-0]({server.url}/{ENTITY}/altgrad/runs/id-E5M2-False-0)" in text
        assert "E7M0 failed in 1 of 1 run." in text
        text = text_of(FailureModes(), runs, tmp_path)
        assert "## E7M0: powers of two only" in text
        assert "**unknown**, from the reason alone at step 12." in text
        text = text_of(ManifoldComparison(), runs, tmp_path)
        assert "manifold-adamw against adamw in E5M2: better. Final loss -0.1005" in text


def test_layers_are_measured_at_the_end(records):
    """The last tenth of two steps is the last one; what a run lacks is missing."""
    found = layer_frame(records.values())
    own = found[found["run_id"] == records["E5M2-1"].environment["run_id"]]
    (row,) = own[own["layer"] == "transformer.h.0.mlp.c_fc"].to_dict("records")
    last = records["E5M2-1"].steps[-1]
    assert (
        row["ulp-stats/view_zero_share"]
        == last["ulp-stats/view_zero_share/transformer.h.0.mlp.c_fc"]
    )
    assert list(found.columns) == ["run_id", "format", "layer", "ulp-stats/view_zero_share"]
    types = FormatComparator(found).compare_by_layer_type(found)["layer_type"]
    assert {"attention", "mlp"} <= set(types)


def test_importing_the_package_imports_no_pandas():
    """Nor the reporters: both are loaded where nothing is analysed."""
    code = (
        "import sys, altcore_reporters, altcore_reporters.analysis\n"
        "assert 'pandas' not in sys.modules and 'scipy' not in sys.modules\n"
        "assert set(altcore_reporters.__all__) <= set(dir(altcore_reporters))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
