"""CIFAR-10's published files: both versions, in a folder or an archive, broken and hostile ones."""

import io
import os
import pickle
import re
import struct
import tarfile

import pytest
from helpers_images import noise, raw

from altcore import BadInput
from altcore_workloads.image_sources import load

PIXELS = 3 * 32 * 32


def batches(rows=4):
    """Return (pixels, labels) of CIFAR-10's six batches, by name."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {
        name: (noise(rows, PIXELS, seed=i), [(i + j) % 10 for j in range(rows)])
        for i, name in enumerate(names)
    }


def binary(pixels, labels):
    """Return a batch of the binary version."""
    return b"".join(bytes([k]) + raw(row) for row, k in zip(pixels, labels, strict=True))


def text(value):
    """Return the opcodes that Python 2 writes for a string."""
    return b"T" + struct.pack("<I", len(value)) + value


def array(pixels):
    """Return the opcodes that Python 2's numpy writes for an array of bytes."""
    rows, columns = pixels.shape
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n"
        + (b"cnumpy\nndarray\n" + b"K\x00\x85" + text(b"b") + b"\x87R")
        + b"(K\x01"
        + struct.pack("<cHcH", b"M", rows, b"M", columns)
        + b"\x86"
        + (b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R")
        + (b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
        + b"\x89"
        + text(raw(pixels))
        + b"tb"
    )


def pickled(pixels, labels):
    """Return a batch of the Python version: protocol 2, as Python 2 wrote it."""
    numbers = b"".join(b"M" + struct.pack("<H", k) for k in labels)
    items = {
        b"batch_label": text(b"training batch"),
        b"labels": b"](" + numbers + b"e",
        b"data": array(pixels),
        b"filenames": b"](" + text(b"a.png") * len(labels) + b"e",
    }
    pairs = b"".join(text(key) + value for key, value in items.items())
    return b"\x80\x02}(" + pairs + b"u."


def pickled_again(protocol, core=None, name=lambda key: key):
    """Return a writer of batches in Python 3, with the names of the numpy here or another one."""

    def write(pixels, labels):
        batch = {name(b"labels"): labels, name(b"data"): pixels.numpy(), name(b"note"): b"x"}
        content = pickle.dumps(batch, protocol)
        return re.sub(rb"cnumpy\._?core\b", b"cnumpy." + core, content) if core else content

    return write


def cifar(folder, kind="binary", pickled=pickled, **changed):
    """Write the six batches of a version into its folder; returns the folder."""
    write, suffix = (binary, ".bin") if kind == "binary" else (pickled, "")
    folder = folder / f"cifar-10-batches-{'bin' if kind == 'binary' else 'py'}"
    folder.mkdir()
    for name, batch in batches().items():
        (folder / f"{name}{suffix}").write_bytes(changed.get(name) or write(*batch))
    (folder / "readme.html").write_text("<html>")
    return folder


def packed(folder):
    """Return the folder as a .tar.gz, as it is published."""
    path = folder.parent / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


@pytest.mark.parametrize("kind", ["binary", "Python"])
@pytest.mark.parametrize("place", [lambda f: f, lambda f: f.parent, packed])
def test_cifar10_is_read_from_its_folder_and_its_archive(tmp_path, kind, place):
    """The five batches train, the sixth validates; pixels and labels as they are."""
    found = load(str(place(cifar(tmp_path, kind))))
    *train, (pixels, labels) = batches().values()
    assert raw(found.train.images) == b"".join(raw(p) for p, _ in train)
    assert found.train.labels.tolist() == [k for _, labels in train for k in labels]
    assert raw(found.val.images) == raw(pixels)
    assert found.val.labels.tolist() == labels
    assert found.train.images.shape == (20, 3, 32, 32)
    assert found.classes == 10
    assert found.description == f"CIFAR-10, {kind} version"


@pytest.mark.parametrize("name", [bytes, bytes.decode])
@pytest.mark.parametrize(
    ("protocol", "core"),
    [(2, b"core"), (2, b"_core"), (3, b"core"), (3, b"_core"), (4, ""), (5, "")],
)
def test_batches_that_python_3_wrote_are_read(tmp_path, protocol, core, name):
    """They were loaded and dumped again, with either version of numpy."""
    again = pickled_again(protocol, core, name)
    for folder, write in (("again", again), ("published", pickled)):
        (tmp_path / folder).mkdir()
        cifar(tmp_path / folder, "Python", pickled=write)
    found, published = (load(str(tmp_path / f)) for f in ("again", "published"))
    assert found.sha256 == published.sha256
    assert found.train.labels.tolist() == published.train.labels.tolist()


def test_both_versions_have_one_digest(tmp_path):
    """It names the images, not the file that they came in."""
    (tmp_path / "a").mkdir()
    assert load(str(cifar(tmp_path))).sha256 == load(str(cifar(tmp_path / "a", "Python"))).sha256


def test_the_test_pickles_are_what_numpy_would_write():
    """The hand-written opcodes load as an array under Python's own unpickler."""
    pixels, labels = batches()["test_batch"]
    found = pickle.loads(pickled(pixels, labels), encoding="bytes")
    assert found[b"labels"] == labels
    assert found[b"data"].tobytes() == raw(pixels)
    assert found[b"data"].shape == (4, PIXELS)


class Hostile:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def hostile_state():
    """Return a pickle that gives one of the three known names a new method."""
    state = b"}(" + text(b"__call__") + b"K\x01u"
    return b"\x80\x02cnumpy\ndtype\n" + state + b"b."


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps(Hostile(os.mkdir, "owned"), 2), "names posix.mkdir"),
        (pickle.dumps(Hostile(eval, "open('owned', 'w')"), 2), "names __builtin__.eval"),
        (pickle.dumps(Hostile(eval, "open('owned', 'w')"), 5), "names builtins.eval"),
        (b"cos\nmkdir\n(S'owned'\ntR.", "names os.mkdir"),
        (b"(S'owned'\nios\nmkdir\n.", "names os.mkdir"),
        (b"(cos\nmkdir\nS'owned'\no.", "names os.mkdir"),
        (b"\x80\x02cnumpy.core.multiarray\nscalar\n.", "names numpy.core.multiarray.scalar"),
        (b"\x80\x02cnumpy\nload\nU\x05owned\x85R.", "names numpy.load"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", "names numpy.ndarray.tofile"),
        (b"Powned\n.", "is not a batch"),
        (hostile_state(), "'labels' are needed"),
        (b"", "is not a batch"),
        (b"\x80\x02}", "is not a batch"),
        (b"\x80\x02c_codecs\nencode\n(U\x05ownedU\x04zlibtR.", "encodes other text than latin1"),
        (b"\x80\x02c_codecs\ndecode\n.", "names _codecs.decode"),
        (b"\x89PNG", "is not a batch"),
        (b"N.", "'labels' are needed"),
        (pickle.dumps({b"data": b"x", b"labels": []}), "'labels' are needed"),
    ],
)
def test_a_hostile_or_broken_pickle_does_nothing(tmp_path, monkeypatch, content, says):
    """Nothing that it names is called, and the message has the file and the name."""
    monkeypatch.chdir(tmp_path)
    folder = cifar(tmp_path, "Python")
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(BadInput, match=says) as caught:
        load(str(folder))
    assert str(folder / "data_batch_3") in str(caught.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (pickled(noise(4, 3071), [0] * 4), "with 3072 in a row"),
        (pickled(noise(4, PIXELS), [0] * 3), "as many 'labels'"),
        (pickled(noise(4, PIXELS), [0, 1, 2, 10]), "has the label 10; 0 to 9 are needed"),
        (pickled(noise(4, PIXELS), [0] * 4).replace(b"u1", b"i1"), "an array of bytes"),
    ],
)
def test_a_wrong_batch_says_what_would_be_right(tmp_path, batch, says):
    """Of the Python version."""
    folder = cifar(tmp_path, "Python", test_batch=batch)
    with pytest.raises(BadInput, match=f"test_batch .*{says}"):
        load(str(folder))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: (p / "test_batch.bin").unlink(), "has no test_batch.bin"),
        (lambda p: (p / "data_batch_2.bin").write_bytes(b"123"), "3 bytes; records of 3073"),
        (lambda p: (p / "data_batch_2.bin").write_bytes(b""), "0 bytes; records of 3073"),
        (
            lambda p: (p / "data_batch_2.bin").write_bytes(bytes([10] + [0] * PIXELS)),
            "data_batch_2.bin has the label 10",
        ),
    ],
)
def test_unusable_binary_batches_are_named(tmp_path, make, says):
    """With what would be right."""
    folder = cifar(tmp_path)
    make(folder)
    with pytest.raises(BadInput, match=says) as caught:
        load(str(folder))
    assert str(folder) in str(caught.value)


def test_a_broken_archive_is_named(tmp_path):
    """An archive cut short, and one of something else."""
    path = packed(cifar(tmp_path))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"cifar.tar.gz is (a broken archive|not an archive)"):
        load(str(path))
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("notes"), io.BytesIO())
    with pytest.raises(BadInput, match=r"cifar.tar.gz has no data_batch_1"):
        load(str(path))
