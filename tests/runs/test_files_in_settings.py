"""Files that settings name are found in values of any shape, however they are written."""

from pathlib import Path

import pytest

from altcore import BadInput
from altcore.runs import file_digests, named_files
from altcore.runs.files_in_settings import paths_among

SHAPES = {
    "a text": ("d/a", ["w.s"]),
    "a list": (["d/a", "none/at/all", "d/b"], ["w.s[0]", "w.s[2]"]),
    "a mapping": ({"train": "d/a", "n": 1}, ["w.s.train"]),
    "many levels": ([{"x": (1, {"y": ["./d"]})}], ["w.s[0].x[1].y[0]"]),
    "a set": ({"x", "d/b", "d/a"}, ["w.s[0]", "w.s[1]"]),
    "a path": (Path("word"), ["w.s"]),
    "paths": ({"x": [Path("d"), Path("word")], "y": "word"}, ["w.s.x[0]", "w.s.x[1]"]),
    "a home": ("~/d/a", ["w.s"]),
    "a variable": (["$PLACE/d/a", "${PLACE}/d"], ["w.s[0]", "w.s[1]"]),
    "a pattern": (["d/[ab]", "*/a", "~/*/b", "d/*.x"], ["w.s[0]", "w.s[1]", "w.s[2]"]),
    "a word": ("word", []),
    "a separator": (["/", ".", "..", "./"], []),
    "nothing": ({"a": [], "b": "", "c": None, "d": "\0/", "e": "/e" * 9999, "f": "[/\0"}, []),
}


@pytest.mark.parametrize(("value", "places"), SHAPES.values(), ids=SHAPES)
def test_each_file_is_found_and_its_change_is_seen(value, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    Path("d").mkdir()
    for name in ("d/a", "d/b", "word"):
        Path(name).write_text(name)
    settings = {"w": {"s": value}}
    plain = {"w": {"s": str(value) if isinstance(value, Path) else value}}
    if isinstance(value, dict) and "x" in value:
        plain["w"]["s"] = {**value, "x": [str(path) for path in value["x"]]}
    surely = paths_among(settings)
    found = named_files(plain, surely)
    assert [place for texts in found.values() for place in texts] == places
    first = file_digests(found)
    for name in ("d/a", "d/b", "word"):
        Path(name).write_text("changed")
    now = file_digests(found)
    assert [place for place in places if now[place] != first[place]] == places


def test_a_file_that_cannot_be_read_is_named_with_its_place(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path / "b"))

    monkeypatch.setattr("altcore.runs.files_in_settings.contents", refuse)
    with pytest.raises(BadInput, match=rf"w.s\[1\].*{tmp_path}/b cannot be read: Permission"):
        file_digests(named_files({"w": {"s": ["x", str(tmp_path)]}}))
