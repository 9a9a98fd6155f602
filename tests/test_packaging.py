"""The distributions: what their wheels hold and ask for, alone and together."""

import ast
import itertools
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import distribution, requires, version
from pathlib import Path

import pytest
from helpers_cli import ROOT

from altcore.plugin_help import read_help
from altcore.registry import KINDS, group_of

PLUGINS = sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml"))
EXAMPLES = sorted(p.parent for p in ROOT.glob("examples/*/pyproject.toml"))
ALL = [ROOT, *PLUGINS, *EXAMPLES]


def project(source):
    """Return the table [project] of a distribution's pyproject.toml."""
    return tomllib.loads((source / "pyproject.toml").read_text())["project"]


def name_of(requirement):
    """Return the name in a requirement, normalized."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement).group()
    return re.sub(r"[-_.]+", "-", name).lower()


def build_wheels(folder, sources):
    """Build a wheel of each source; returns their paths, in order.

    Ours by the backend itself, a third party's as a third party does it, with a frontend.
    """
    wheels = []
    for i, source in enumerate(sources):
        frontend = ["build", "--wheel", "--no-isolation"]
        tool = frontend if source in EXAMPLES else ["flit_core.wheel"]
        command = [sys.executable, "-m", *tool, "--outdir", folder / str(i), source]
        subprocess.run(command, check=True, capture_output=True)
        wheels += (folder / str(i)).glob("*.whl")
    return wheels


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheels of every distribution here, by source, as (names of files, metadata)."""
    found = build_wheels(tmp_path_factory.mktemp("wheels"), ALL)
    contents = {}
    for source, wheel in zip(ALL, found, strict=True):
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            metadata = next(n for n in names if n.endswith(".dist-info/METADATA"))
            contents[source] = names, Parser().parsestr(archive.read(metadata).decode())
    return contents


def test_a_wheel_holds_every_file_of_its_package(wheels):
    """Data files, kernels and py.typed too; no test, and no second package."""
    for source, (names, _) in wheels.items():
        packed = {n for n in names if ".dist-info/" not in n}
        packages = [p for p in source.glob("altcore*") if (p / "__init__.py").exists()]
        files = {
            str(f.relative_to(source))
            for p in packages
            for f in p.rglob("*")
            if f.is_file() and "__pycache__" not in f.parts
        }
        assert packed == (files or {"altcore_format_lloyd16.py"}), source.name
    core = wheels[ROOT][0]
    assert {
        "altcore/py.typed",
        "altcore/config/defaults.yaml",
        "altcore/config/original-keys.yaml",
    } <= set(core)
    assert any(n.endswith(".c") for n in core)


def test_metadata_says_what_lists_show(wheels):
    """Name, version and a one-line summary, of which `altcore plugins list` lives."""
    for source, (_, metadata) in wheels.items():
        assert metadata["Name"] == project(source)["name"]
        assert metadata["Summary"] == project(source)["description"]
        assert metadata["Requires-Python"] == ">=3.11"
        assert metadata["License-Expression"] == "MIT" or metadata["License"] == "MIT"
        assert metadata.get_payload().strip(), f"{source.name} has no README"


def test_versions_agree():
    """The module's version is that of the distribution."""
    import altcore

    assert altcore.__version__ == version("altcore") == project(ROOT)["version"]
    for source in PLUGINS:
        module = __import__(f"altcore_{source.name}")
        found = getattr(module, "__version__", version(project(source)["name"]))
        assert found == project(source)["version"]


@pytest.mark.parametrize("source", PLUGINS, ids=lambda p: p.name)
def test_kind_group_folder_and_distribution_have_one_name(source):
    """plugins/formats is altcore-formats, altcore_formats and the group altcore.formats."""
    about = project(source)
    assert about["name"] == f"altcore-{source.name}"
    (group,) = about["entry-points"]
    assert group == f"altcore.{source.name}"
    assert group in [group_of(kind) for kind in KINDS]
    targets = {t.partition(":")[0].partition(".")[0] for t in about["entry-points"][group].values()}
    assert targets == {f"altcore_{source.name}"}
    assert (source / f"altcore_{source.name}" / "py.typed").exists()


@pytest.mark.parametrize("source", PLUGINS, ids=lambda p: p.name)
def test_what_is_installed_is_what_is_written(source):
    """An entry point added to pyproject.toml counts only after `make venv`."""
    about = project(source)
    (points,) = about["entry-points"].values()
    installed = distribution(about["name"]).entry_points
    assert {e.name: e.value for e in installed} == points, "run make venv"


def imported(tree):
    """Yield the packages that code imports, but those whose absence it deals with."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Try) and "ImportError" in map(ast.unparse, caught(node)):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        yield from imported(node)


def caught(node):
    return [h.type for h in node.handlers if h.type is not None]


@pytest.mark.parametrize("source", ALL, ids=lambda p: project(p)["name"])
def test_every_import_is_a_declared_dependency(source):
    """A subset of the plugins installs and loads: none leans on what another brings.

    Imports within functions and for type checkers count as well. An extra declares them, too.
    """
    known = {"yaml": "pyyaml", "attr": "attrs"}
    extras = project(source).get("optional-dependencies", {}).values()
    needed = [*project(source)["dependencies"], *itertools.chain.from_iterable(extras)]
    declared = {name_of(r) for r in needed}
    own = project(source)["name"].replace("-", "_")
    for path in source.glob("altcore*"):
        for file in [path] if path.suffix == ".py" else path.rglob("*.py"):
            for name in set(imported(ast.parse(file.read_text()))):
                if name not in sys.stdlib_module_names and name != own:
                    assert known.get(name, name.replace("_", "-")) in declared, f"{file}: {name}"


def test_plugins_ask_for_the_core_and_not_for_each_other():
    """So that any subset installs."""
    ours = {project(s)["name"] for s in PLUGINS}
    for source in PLUGINS:
        asked = {name_of(r) for r in project(source)["dependencies"]}
        assert "altcore" in asked
        assert not asked & ours
    assert not {name_of(r) for r in project(ROOT)["dependencies"]} & ours


def test_the_extra_standard_is_all_first_party_plugins():
    """`altcore[standard]` brings every distribution under plugins/."""
    extra = {name_of(r) for r in project(ROOT)["optional-dependencies"]["standard"]}
    assert extra == {project(s)["name"] for s in PLUGINS}


def test_constraints_name_all_that_gets_installed():
    """Every dependency, those of dependencies and the tools have an exact version."""
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    pins = {name_of(name): v for name, v in pinned.items()}
    assert all("+" not in v for v in pins.values()), "a local version is not found everywhere"
    ours = {project(s)["name"] for s in ALL}
    wanted = [*project(ROOT)["dependencies"]]
    for extra in ("test", "dev"):
        wanted += project(ROOT)["optional-dependencies"][extra]
    for source in PLUGINS:
        wanted += project(source)["dependencies"]
    seen = set()
    while wanted:
        name = name_of(wanted.pop())
        if name in seen | ours:
            continue
        seen.add(name)
        assert name in pins, f"constraints.txt lacks {name}"
        if name != "torch":  # what its CUDA builds bring differs from machine to machine
            wanted += [r for r in requires(name) or [] if "extra ==" not in r and ";" not in r]


@pytest.mark.parametrize("source", [*PLUGINS, *EXAMPLES], ids=lambda p: p.name)
def test_a_readme_tells_of_every_plugin(source):
    """Each has its line there, which is its help in `altcore plugins list`."""
    (points,) = project(source)["entry-points"].values()
    assert set(read_help((source / "README.md").read_text())) == set(points)


def test_no_path_of_a_machine_in_what_is_published():
    """Documents and code name no folder of somebody's machine."""
    suspicious = re.compile(r"/(?:home|Users|root)/\w+")
    for folder in ("altcore", "plugins", "examples", "docs"):
        for file in Path(ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".md", ".toml", ".yaml", ".c"):
                assert not suspicious.search(file.read_text(encoding="utf-8")), file
