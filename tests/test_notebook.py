"""The notebook of the documentation: it was run from its first cell on, and still can be."""

import ast
import re
from importlib.util import module_from_spec, spec_from_file_location

import nbformat
import pytest
from helpers_cli import ROOT

from altcore_reporters import plot

NOTEBOOK = ROOT / "docs/notebook.ipynb"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown_by(cell):
    """Return the kinds of what a cell shows as its result."""
    results = [o.data for o in cell.outputs if o.output_type == "execute_result"]
    return set().union(*results)


def check(notebook):
    """Each cell ran in order and without an error, and the last line of each shows itself."""
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(o.output_type != "error" for cell in cells for o in cell.outputs)
    for cell in cells:
        if isinstance(ast.parse(cell.source).body[-1], ast.Expr):
            is_figure = cell.source.startswith("plot.")
            assert ("image/png" if is_figure else "text/html") in shown_by(cell), cell.source


def test_the_notebook_was_run_and_shows_everything():
    """A run, a frame, an answer, and every picture that there is; and no folder of a machine."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    check(notebook)
    text = NOTEBOOK.read_text()
    assert not re.search(r"/(tmp|home|Users|root)/", text)
    drawn = set(re.findall(r"plot\.(\w+)\(", text))
    assert drawn == {"curves", "heat_maps", "values"}
    assert all(callable(getattr(plot, name)) for name in drawn)
    told = "".join(
        o.data.get("text/html", "") for c in code_cells(notebook) for o in c.outputs if "data" in o
    )
    assert all(words in told for words in ("<strong>e4m3-pure</strong>", "best_loss", "Comparison"))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    """As `make notebook` does it."""
    spec = spec_from_file_location("notebook_tool", ROOT / "tools/notebook.py")
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    check(tool.executed(NOTEBOOK, str(tmp_path)))
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {
        *("e4m3-pure", "e4m3-pure-2", "e7m0-pure", "e7m0-pure-2"),
    }
