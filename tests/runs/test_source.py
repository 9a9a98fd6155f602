"""The source of a plugin is known by all files that decide what it does."""

import sys

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
            source._installed_by.cache_clear()
            first = source.source_digest("acme_plug:Plug", "acme-plug")
            (folder / "acme_helper.py").write_text("X = 2\n")
            source._source.cache_clear()
            assert source.source_digest("acme_plug:Plug", "acme-plug") != first
            assert source.source_digest("acme_plug:Plug", "acme-nobody") != first
        sys.modules.pop("acme_plug", None)
        sys.modules.pop("acme_helper", None)
