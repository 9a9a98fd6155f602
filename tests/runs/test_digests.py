"""Files and folders are known by what they hold, and large ones by parts of it."""

import os
import time

import pytest

from altcore.runs import digests


def test_a_file_is_read_once_and_again_when_it_changed(tmp_path, monkeypatch):
    """By size and time of change; one that changed just now may change again unseen."""
    path = tmp_path / "data"
    path.write_text("one")
    first = digests.contents(path)
    path.write_text("two")  # of the same size, perhaps at the same time
    assert digests.contents(path) != first
    old = time.time() - 100
    os.utime(path, (old, old))
    second = digests.contents(path)
    path.write_text("six")
    os.utime(path, (old, old))
    third = digests.contents(path)
    assert third != second
    path.write_text("two")
    os.utime(path, (old, old))
    assert digests.contents(path) == second
    misses = digests._read.cache_info().misses
    assert digests.contents(path) == second
    assert digests._read.cache_info().misses == misses
    path.write_text("six")
    os.utime(path, (old + 1, old + 1))
    assert digests.contents(path) != second


def test_a_large_file_is_known_by_its_size_and_samples(tmp_path, monkeypatch):
    """The ends are among the samples."""
    monkeypatch.setattr("altcore.runs.digests.BLOCK", 4)
    path = tmp_path / "large"
    path.write_bytes(bytes(1000))
    first = digests.contents(path)
    for change in (bytes(999), b"\1" + bytes(999), bytes(999) + b"\1"):
        path.write_bytes(change)
        assert digests.contents(path) != first


def tree(folder):
    """Make ``data`` with a file and a link to ``far``, which has a file and a folder."""
    (folder / "data").mkdir()
    (folder / "far/deep").mkdir(parents=True)
    for name in ("data/a", "far/b", "far/deep/c"):
        (folder / name).write_text(name)
    (folder / "data/z").symlink_to("../far")
    return folder / "data"


def cycle(data):
    (data.parent / "far/back").symlink_to("../data")


def again(data):
    (data.parent / "far/again").symlink_to("deep")


CHANGES = {
    "a file behind a link": lambda data: (data / "z/b").write_text("B"),
    "a file further behind": lambda data: (data / "z/deep/c").write_text("C"),
    "a file more": lambda data: (data / "z/more").write_text(""),
    "a cycle": cycle,
    "a second link to a folder": again,
    "a link less": lambda data: (data / "z").unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_links_in_a_folder_are_followed(change, tmp_path):
    data = tree(tmp_path)
    first, stamps = digests.contents(data), digests.stamps([data])
    assert digests.contents(data) == first
    change(data)
    changed = digests.contents(data)
    assert changed != first
    assert digests.stamps([data]) != stamps
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    tmp_path.rename(moved)
    assert digests.contents(moved / "data") == changed


def test_links_that_meet_again_end(tmp_path):
    """Folders that all link to one another are read once each; so many files behind links, too."""
    for name in "abcdefgh":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        for other in "abcdefgh":
            (tmp_path / name / f"to-{other}").symlink_to(f"../{other}")
    found = [*digests._within(tmp_path)]
    assert len(found) == len({*found}) == 8 + 64
    assert [*digests._within(tmp_path)] == found


def test_beyond_a_number_of_files_links_are_not_followed(tmp_path, monkeypatch):
    """They are known by where they lead; files behind no link always count."""
    data = tree(tmp_path)
    monkeypatch.setattr(digests, "LINKED", 1)
    assert [*digests._within(data)] == [data / "a", data / "z/b", data / "z/deep"]


def test_files_of_one_setting_share_what_is_read(tmp_path, monkeypatch):
    """Whole if they are small together; else a part of each, and the sizes of very many."""
    monkeypatch.setattr(digests, "BLOCK", 1)
    monkeypatch.setattr(digests, "BLOCKS", 8)
    paths = [tmp_path / str(i) for i in range(20)]
    for path in paths:
        path.write_bytes(bytes(4))
    groups = [[path] for path in paths]
    assert digests.shares(groups[:1]) == [8]
    assert digests.shares(groups[:2]) == [8, 8]
    assert digests.shares(groups[:4]) == [2, 2, 2, 2]
    assert sum(digests.shares(groups)) == 7
    paths[0].write_bytes(bytes(100))
    sizes = {blocks: digests.contents(paths[0], blocks=blocks) for blocks in (0, 1, 8)}
    paths[0].write_bytes(b"\1" + bytes(99))
    now = {blocks: digests.contents(paths[0], blocks=blocks) for blocks in (0, 1, 8)}
    assert [blocks for blocks in now if now[blocks] != sizes[blocks]] == [1, 8]
    many = digests.contents(*paths, blocks=8)
    paths[19].write_bytes(bytes(3))
    assert digests.contents(*paths, blocks=8) != many != digests.contents(*paths[:19], blocks=8)
    assert digests.contents(tmp_path, blocks=0)
