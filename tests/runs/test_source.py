"""The source of a plugin is known by all files that decide what it does."""

import json
import sys
import zipfile

import pytest

from altcore.runs import source


def test_the_source_of_a_package_is_what_lies_in_it(tmp_path, monkeypatch):
    """All its files, but for what Python writes beside them."""
    package = tmp_path / "acme_source"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    first = source.source_digest("acme_source.deep")
    (package / "__pycache__" / "deep.pyc").write_text("made")
    source._source.cache_clear()
    assert source.source_digest("acme_source") == first
    (package / "deep.py").write_text("X = 2\n")
    source._source.cache_clear()
    assert source.source_digest("acme_source") != first


def test_the_source_of_a_plugin_is_all_that_its_distribution_installs(tmp_path, monkeypatch):
    """A module beside the plugin's own, which it imports, decides as much."""
    for listed, others in (("top_level.txt", ["acme_plug", "acme_helper"]), ("RECORD", [])):
        folder = tmp_path / listed
        folder.mkdir()
        (folder / "acme_plug.py").write_text("import acme_helper\n")
        (folder / "acme_helper.py").write_text("X = 1\n")
        info = folder / "acme_plug-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Name: acme-plug\nVersion: 1.0\n")
        rows = "acme_plug.py,,\nacme_helper.py,,\n__editable__x.py,,\n"
        (info / listed).write_text("\n".join(others) or rows)
        with monkeypatch.context() as path:
            path.syspath_prepend(folder)
            source._with_others.cache_clear()
            first = source.source_digest("acme_plug:Plug", "acme-plug")
            (folder / "acme_helper.py").write_text("X = 2\n")
            source._source.cache_clear()
            assert source.source_digest("acme_plug:Plug", "acme-plug") != first
            assert source.source_digest("acme_plug:Plug", "acme-nobody") != first
        sys.modules.pop("acme_plug", None)
        sys.modules.pop("acme_helper", None)


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


FILES = {
    "acme_plug/__init__.py": "import os, acme_one as one, numpy\n",
    "acme_plug/deep.py": "def late():\n    from acme_two.part import X\n",
    "acme_one.py": "import importlib\nimportlib.import_module('acme_three')\n",
    "acme_two/part.py": "X = 1\n",
    "acme_three.py": "import acme_plug\n",
    "acme_apart.py": "",
    "tests/__init__.py": "",
    "setup.py": "import acme_plug\n",
}
SEEN = ["acme_one.py", "acme_plug/deep.py", "acme_three.py", "acme_two/part.py"]
LAYOUTS = {
    "a .pth": ("project", "", SEEN),
    "src": ("project/src", "project", SEEN),
    "two folders": ("project/a project/b", "project", SEEN),
    "one folder": ("site", "", SEEN),
    "with others": ("site", "others", ["acme_plug/deep.py"]),
    "folders apart": ("project/a elsewhere", "project", ["acme_plug/deep.py"]),
}


@pytest.mark.parametrize(("folders", "project", "seen"), LAYOUTS.values(), ids=LAYOUTS)
def test_modules_of_a_project_count_if_its_source_imports_them(
    folders, project, seen, tmp_path, monkeypatch
):
    """As hatchling, flit and uv install it to be edited: no module is listed."""
    first, *rest = folders.split()
    other = rest[0] if rest else first
    places = {name: (first if name.startswith("acme_plug") else other) for name in FILES}
    write(tmp_path, {f"{places[name]}/{name}": text for name, text in FILES.items()})
    info = "site/acme_plug-1.0.dist-info"
    url = {"url": f"file://{tmp_path / project}", "dir_info": {"editable": True}}
    about = {"METADATA": "Name: acme-plug\nVersion: 1.0\n", "RECORD": "acme_plug.pth,,\n"}
    about |= {"direct_url.json": json.dumps(url)} if project == "project" else {}
    write(tmp_path / info, about)
    if project == "others":
        write(tmp_path / "site/acme_one-2.0.dist-info", {"METADATA": "Name: acme-one\n"})
    for folder in {*folders.split(), "site"}:
        monkeypatch.syspath_prepend(tmp_path / folder)

    def found():
        source._source.cache_clear()
        source._with_others.cache_clear()
        return source.source_digest("acme_plug:Plug", "acme-plug")

    before, changed = found(), []
    for name, place in sorted(places.items()):
        file = tmp_path / place / name
        file.write_text(f"{FILES[name]}# changed")
        changed += [name] * (found() != before)
        file.write_text(FILES[name])
    assert changed == sorted({*seen, "acme_plug/__init__.py"})


def test_the_source_in_an_archive_is_the_archive(tmp_path, monkeypatch):
    digests = set()
    for text in ("X = 1", "X = 2"):
        with zipfile.ZipFile(tmp_path / "acme.zip", "w") as archive:
            archive.writestr("acme_zipped.py", text)
            archive.writestr("acme_zipped-1.0.dist-info/METADATA", "Name: acme-zipped\n")
        with monkeypatch.context() as path:
            path.syspath_prepend(tmp_path / "acme.zip")
            source._source.cache_clear()
            digests.add(source.source_digest("acme_zipped", "acme-zipped"))
        sys.modules.pop("acme_zipped")
    assert len(digests) == 2


@pytest.fixture(autouse=True)
def _forget():
    """A process imports a module once."""
    yield
    for name in [name for name in sys.modules if name.startswith("acme_")]:
        del sys.modules[name]
