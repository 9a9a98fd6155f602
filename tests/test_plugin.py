"""The face for plugin authors: what it holds, and that plugins use nothing else of altcore."""

import ast
import inspect
import re
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest

import altcore
import altcore.plugin
from altcore.runs import Summary

ROOT = Path(__file__).parent.parent

summary_page = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "summary_page.py")))
run_and_step = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "run_and_step.py")))

FACES = {"altcore": altcore, "altcore.plugin": altcore.plugin}
SOURCES = [
    path
    for folder in ("plugins", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "build" not in path.parts
]
OWN = {path.name for path in (ROOT / "plugins").glob("*/altcore_*")}
"""Packages of plugins, which may import their own modules."""


def foreign_imports(source, package=""):
    """Return the imports of altcore that a plugin may not make, type-checking ones included."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("import_module", "importlib.import_module", "__import__")
            and node.args
        ):
            names = [(getattr(node.args[0], "value", "?"), "")]
        else:
            continue
        for module, name in names:
            top = str(module).partition(".")[0]
            if top == "altcore":
                public = getattr(FACES.get(module), "__all__", ())
                if module not in FACES or (name and name not in public and name != "plugin"):
                    found.append(f"{module}.{name}".rstrip("."))
            elif top in OWN and top != package:
                found.append(module)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_plugins_import_the_face_only(path):
    """What a first-party plugin uses, a third party may use; and never another plugin."""
    own = next((part for part in path.parts if part in OWN), "")
    assert foreign_imports(path.read_text(), own) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from altcore.plugin import Run, hookimpl", []),
        ("import altcore", []),
        ("from altcore import Format", []),
        ("from altcore.engine import Run", ["altcore.engine.Run"]),
        ("import altcore.numerics", ["altcore.numerics"]),
        ("from altcore import engine", ["altcore.engine"]),
        ("from altcore.plugin import Engine", ["altcore.plugin.Engine"]),
        ("if TYPE_CHECKING:\n    from altcore.engine import Run", ["altcore.engine.Run"]),
        ("def f():\n    import_module('altcore.engine')", ["altcore.engine"]),
        ("from altcore_optimizers.adam import adam_step", ["altcore_optimizers.adam"]),
    ],
)
def test_the_check_sees_every_kind_of_import(source, found):
    assert foreign_imports(source, "altcore_diagnostics") == found


@pytest.mark.parametrize("face", FACES.values(), ids=FACES)
def test_the_three_lists_of_names_agree(face):
    """``__all__``, the homes, and the imports that a type checker reads."""
    tree = ast.parse(inspect.getsource(face))
    (block,) = (n for n in tree.body if isinstance(n, ast.If))
    imported = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {name: f"altcore.{home.removeprefix('altcore.')}" for name, home in face._HOME.items()}
    assert homes == imported
    assert sorted(face.__all__) == sorted(homes)
    for name, home in homes.items():
        assert getattr(face, name) is getattr(import_module(home), name)
        assert name in getattr(import_module(home), "__all__", [name])
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = face.Nothing


def test_everyday_names_are_in_altcore_too():
    """What most plugins need takes one import."""
    everyday = {
        "BadInput", "ChangeRecipe", "DeferredErrors", "Format", "NonFinite", "Rollback", "Run",
        "ScaleLearningRate", "ShiftFormat", "SkipStep", "Step", "Stop", "hookimpl", "setting",
    }  # fmt: skip
    assert everyday <= set(altcore.__all__) & set(altcore.plugin.__all__)


def test_a_plugin_of_formats_and_who_reads_records_need_no_torch():
    """Names load on first use: a format's module, or a tracker's process, starts at once."""
    code = (
        "import sys, altcore.plugin\n"
        "from altcore.plugin import Format, table_format, hookimpl, setting, round_scalar\n"
        "from altcore.plugin import read_lines, read_run, summary_of\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_of_the_face_is_documented():
    """By purpose, in the groups of the module."""
    page = (ROOT / "docs" / "plugins.md").read_text()
    part = page.partition("\n## What `altcore.plugin` holds\n")[2].partition("\n## ")[0]
    rows = [row.split("|")[1:3] for row in part.splitlines() if row.startswith("| ")][1:]
    found = {title.strip(): re.findall(r"`(\w+)`", names) for title, names in rows}
    source = inspect.getsource(altcore.plugin).partition("_HOME = {")[2].partition("\n}")[0]
    groups = {}
    for line in source.splitlines():
        if line.strip().startswith("#"):
            own = groups.setdefault(line.strip(" #"), [])
        elif line.strip():
            own.append(line.split('"')[1])
    assert found == groups


# --------------------------------------------------------------------------- run and step


def test_the_page_of_the_summary_is_that_of_its_class():
    """Every key, and no other. To write it again: ``make pages``."""
    assert summary_page.PAGE.read_text() == summary_page.page()
    assert all(a.metadata["help"] for a in attrs.fields(Summary))


def test_the_page_is_that_of_the_docstrings():
    """To write it again: ``make pages``."""
    assert run_and_step.PAGE.read_text() == run_and_step.page()


@pytest.mark.parametrize(
    ("cls", "heading", "names"), run_and_step.SECTIONS, ids=[h for _, h, _ in run_and_step.SECTIONS]
)
def test_every_public_attribute_is_documented(cls, heading, names):
    """With a type and a meaning; of a step also when it is there."""
    members = run_and_step.members(cls, names)
    public = {n for n in {*dir(cls), *getattr(cls, "__annotations__", {})} if n[0] != "_"}
    assert {m.name for m in members} == (public if names is None else set(names))
    for m in members:
        assert m.shown, m.name
        assert m.text, f"{heading}.{m.name} has no docstring"
        assert m.since or heading != "Step", f"{m.name}: from when on is it there?"


OF_PYTHON_AND_TORCH = {
    "AbstractContextManager", "Any", "Callable", "False", "Fraction", "Hashable", "Iterator",
    "Mapping", "Module", "None", "Optimizer", "Path", "T", "Tensor",
}  # fmt: skip
OF_THE_FACE = {"AnyFormat", "BlockFormat", "Format", "ResolvedRecipe"}
"""Types that other pages explain, and that authors may import."""


@pytest.mark.parametrize(
    ("cls", "heading", "names"), run_and_step.SECTIONS, ids=[h for _, h, _ in run_and_step.SECTIONS]
)
def test_every_type_on_the_page_is_explained(cls, heading, names):
    """By a section of its own, a link, or Python's and torch's pages."""
    known = {h for _, h, _ in run_and_step.SECTIONS} | OF_PYTHON_AND_TORCH | OF_THE_FACE
    assert {*altcore.plugin.__all__, "AnyFormat"} >= OF_THE_FACE  # a Format or a BlockFormat
    for m in run_and_step.members(cls, names):
        types = set(re.findall(r"\b[A-Z]\w*", re.sub(r"\w+(: | *=)", "", m.shown)))
        assert types <= known or "](" in m.text, f"{heading}.{m.name}: {types - known}"
        for module in re.findall(r"`(altcore\.[\w.]+)\.\w+`", m.text):
            assert module in FACES, f"{heading}.{m.name} sends authors to {module}"


@pytest.mark.parametrize(("name", "columns"), [("counts", "COUNTS"), ("stored_moves", "MOVES")])
def test_the_columns_of_counters_are_on_the_page(name, columns):
    """In their order, by names that authors may import."""
    (row,) = (line for line in run_and_step.page().splitlines() if line.startswith(f"| `{name}`"))
    assert f"`altcore.plugin.{columns}`" in row
    places = [row.index(f"`{column}`") for column in getattr(altcore.plugin, columns)]
    assert places == sorted(places)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_plugins_keep_no_weak_dictionaries(path):
    """What belongs to a step is in the step: `Step.shared`."""
    assert "Weak" not in path.read_text()


def uses(tree):
    """Yield the attributes of runs and steps that a module uses: (section, attribute)."""
    bound = {"run": "Run", "step": "Step", "quantizer": "Quantizer", "weight.grid": "WeightGrid"}
    for node in ast.walk(tree):
        for own, section in (("run.quantization", "Quantization"), (".counters", "Counters")):
            if isinstance(node, ast.Assign) and ast.unparse(node.value).endswith(own):
                bound[ast.unparse(node.targets[0])] = section
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            section = bound.get(owner.removeprefix("self."))
            if owner.endswith("run.quantization"):
                section = "Quantization"
            elif owner.endswith((".counters", ".site")):
                section = owner.rpartition(".")[2].capitalize()
            if section:
                yield section, node.attr


@pytest.fixture(scope="module")
def documented():
    """The names of attributes on the page, by section."""
    return {h: {m.name for m in run_and_step.members(c, n)} for c, h, n in run_and_step.SECTIONS}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_plugins_use_documented_attributes_only(path, documented):
    """Of run and step, and of what hangs on them; no private one."""
    for section, attribute in uses(ast.parse(path.read_text())):
        assert attribute in documented[section], f"{section}.{attribute} is not on the page"
