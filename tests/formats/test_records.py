"""How records hold formats: by name and digest if they are installed, else whole."""

import shutil
import subprocess
import sys

import pytest

from altcore.errors import BadInput
from altcore.formats import (
    BlockFormat,
    check_digests,
    check_names,
    digests_of,
    float_format,
    format_digest,
    get_format,
    saved,
    table_format,
)

MINE = table_format("MINE", [-1, 0, 1])


def test_an_installed_format_is_held_by_name():
    """A family's member and a block format too; an equal object is the same format."""
    for name in ("E3M4", "E3M3", "posit8_1", "MXFP4-rceil"):
        assert saved(get_format(name)) == name
    assert saved(float_format("E3M4", 3, 4)) == "E3M4"


@pytest.mark.parametrize(
    "fmt",
    [
        MINE,
        float_format("E4M3", 4, 3),  # not the installed one, which has a NaN
        table_format("E4M3+finer", [-1, 0, 1]),
        table_format("MXFP4*finer", [-1, 0, 1]),  # a family refuses the name
    ],
    ids=str,
)
def test_another_is_held_whole(fmt):
    """Whether nobody knows the name, or means something else by it."""
    assert saved(fmt) == fmt.to_plain()
    assert get_format(saved(fmt)) == fmt
    assert digests_of([fmt]) == {}


@pytest.mark.parametrize("name", ["E4M3", "E3M4", "MXFP4"])
def test_an_installed_name_means_what_is_installed(name):
    """No other format may have it: the record of a run would say one and mean the other."""
    check_names([get_format(name)])
    own = table_format(name, [-1, 0, 1])
    with pytest.raises(BadInput, match=rf"^format {name}: altcore-formats .* another name$"):
        check_names([MINE, own])
    check_names([BlockFormat("BLOCKS", own)])


def test_two_formats_need_two_names():
    """In a recipe, and so in a run; the same one may be given twice."""
    check_names([MINE, table_format("MINE", [-1, 0, 1])])
    with pytest.raises(BadInput, match=r"^format MINE: two formats .* another name$"):
        check_names([MINE, table_format("MINE", [-1, 0, 2])])


def test_digests_are_of_the_installed_ones():
    """By name, each once."""
    found = digests_of([get_format("E4M3"), MINE, get_format("E4M3"), get_format("BF16")])
    assert found == {n: format_digest(get_format(n)) for n in ("BF16", "E4M3")}
    check_digests(found)


def test_a_distribution_that_changed_is_named(shelf):
    """With its format, distribution and version; one that is gone is for its user to miss."""
    shelf.install("format", "SHELF", table_format("SHELF", [-1, 0, 1]), "acme", "1.0")
    before = digests_of([get_format("SHELF")])
    assert before
    shutil.rmtree(shelf.folder / "acme-1.0.dist-info")
    shelf.install("format", "SHELF", table_format("SHELF", [-1, 0, 2]), "acme", "1.1")
    with pytest.raises(BadInput, match=r"format SHELF: .*acme 1\.1"):
        check_digests(before)
    shutil.rmtree(shelf.folder / "acme-1.1.dist-info")
    shelf.install("format", "OTHER", table_format("OTHER", [-1, 0, 2]), "acme", "1.2")
    check_digests(before)


def test_a_format_of_another_copy_of_altcore_is_named_as_one():
    """After altcore was purged and imported again, as in a notebook; not as no format at all."""
    code = """
import sys
import altcore
from altcore.formats import get_format
get_format("E4M3"), get_format("E3M2"), get_format("MXFP4")
for name in [name for name in sys.modules if name.split(".")[0] == "altcore"]:
    del sys.modules[name]
from altcore.formats import get_format
for name in ("E4M3", "MXFP4"):
    try:
        get_format(name)
    except ValueError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "is of another copy of altcore, which this process imported before" in line
        assert line.endswith("start Python, or the notebook's kernel, again")
