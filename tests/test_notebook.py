"""The notebooks of the documentation: they were run from the first cell on, and still can be."""

import ast
import re
import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location

import nbformat
import pytest
from helpers_cli import ROOT

from altcore.sweep import jobs_of, read_sweep
from altcore_reporters import plot

NOTEBOOK, LOSS_SLOPE = ROOT / "docs/notebook.ipynb", ROOT / "docs/loss-slope.ipynb"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown_by(cell):
    """Return the kinds of what a cell shows, as its result or by `plt.show`."""
    return set().union(*(o.data for o in cell.outputs if "data" in o))


def kind_of(cell):
    """Return the kind of what the last line of a cell has to show."""
    if cell.source.startswith("plot.") or cell.source.endswith("plt.show()"):
        return "image/png"
    is_markdown = cell.source.startswith("Markdown(") or cell.source.endswith("\nanswer")
    return "text/markdown" if is_markdown else "text/html"


def check(notebook):
    """Each cell ran in order and without an error, and the last line of each shows itself."""
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(o.output_type != "error" for cell in cells for o in cell.outputs)
    for cell in cells:
        if isinstance(ast.parse(cell.source).body[-1], ast.Expr):
            assert kind_of(cell) in shown_by(cell), cell.source


def told_by(notebook, kind):
    """Return all that the cells of a notebook show of a kind."""
    outputs = [o for cell in code_cells(notebook) for o in cell.outputs if "data" in o]
    return "".join(o.data.get(kind, "") for o in outputs)


@pytest.mark.parametrize("path", [NOTEBOOK, LOSS_SLOPE], ids=lambda path: path.stem)
def test_no_folder_of_a_machine_is_shown(path):
    assert not re.search(r"/(tmp|home|Users|root|work)/", path.read_text())


def test_the_notebook_was_run_and_shows_everything():
    """A run, a frame, an answer, and every picture that there is."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    check(notebook)
    text = NOTEBOOK.read_text()
    drawn = set(re.findall(r"plot\.(\w+)\(", text))
    assert drawn == {"curves", "heat_maps", "values"}
    assert all(callable(getattr(plot, name)) for name in drawn)
    told, answered = (told_by(notebook, kind) for kind in ("text/html", "text/markdown"))
    assert all(words in told for words in ("<strong>e4m3-pure</strong>", "best_loss"))
    assert answered.startswith("# Comparison\n")


def check_study(notebook):
    """Check that a notebook shows the table, the four pictures, both hypotheses and the verdict."""
    check(notebook)
    tables, report = (told_by(notebook, kind) for kind in ("text/html", "text/markdown"))
    columns = ("r_squared", "alpha_early", "best_val_ce", "Pearson", "Spearman", "not fitted")
    assert all(f"<th>{column}</th>" in tables for column in columns)
    pictures = [cell.source for cell in code_cells(notebook) if "image/png" in shown_by(cell)]
    drawn = ("plt.hist", "plt.scatter", "power_law(", "lambda_max")
    assert [word in source for word, source in zip(drawn, pictures, strict=True)] == [True] * 4
    assert re.search(r"\*\*(NO-)?GO: the data can(not)? be trusted.\*\* H1 .*; H2 ", report)


def test_the_loss_slope_study_was_judged():
    check_study(nbformat.read(LOSS_SLOPE, as_version=4))


@pytest.fixture(scope="module")
def tool():
    """The module tools/notebook.py."""
    spec = spec_from_file_location("notebook_tool", ROOT / "tools/notebook.py")
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_the_small_study_has_eight_runs(tool, tmp_path):
    """Two of each variant, so few that they are run in minutes."""
    (tmp_path / "small.yaml").write_text(tool.SMALL)
    jobs = jobs_of(read_sweep(tmp_path / "small.yaml"))
    assert Counter(job.variant for job in jobs) == dict.fromkeys(
        ("base", "bn_off", "narrow", "adamw"), 2
    )
    assert {job.train_config("runs", {}).epochs for job in jobs} == {6}


@pytest.mark.parametrize(
    ("typed", "path", "folder"),
    [
        ([], NOTEBOOK, None),
        (["loss-slope"], LOSS_SLOPE, "small"),
        (["loss-slope", "--export", "mine"], LOSS_SLOPE, "mine"),
    ],
    ids=["notebook", "small study", "your export"],
)
def test_either_notebook_is_run(tool, tmp_path, monkeypatch, typed, path, folder):
    """In the folder of the export that was asked for, and written where it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["notebook.py", *typed])
    monkeypatch.setattr(tool, "small_export", lambda scratch: tmp_path / "small")
    monkeypatch.setattr(tool, "executed", lambda path, folder: (path, folder))
    written = []
    monkeypatch.setattr(tool.nbformat, "write", lambda made, to: written.append((made, to)))
    assert tool.main() == 0
    (((ran, where), to),) = written
    assert ran == to == path
    assert folder is None or where == str(tmp_path / folder)


@pytest.mark.slow
def test_the_notebook_runs(tool, tmp_path):
    """As `make notebook` does it."""
    check(tool.executed(NOTEBOOK, str(tmp_path)))
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {
        *("e4m3-pure", "e4m3-pure-2", "e7m0-pure", "e7m0-pure-2"),
    }


@pytest.mark.slow
def test_the_loss_slope_study_is_run_and_judged(tool, tmp_path):
    """As `make notebook NOTEBOOK=loss-slope` does it."""
    check_study(tool.executed(LOSS_SLOPE, str(tool.small_export(tmp_path))))
