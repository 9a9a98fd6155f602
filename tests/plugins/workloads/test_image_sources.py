"""Where the images of ``resnet18-cifar`` come from: archives, idx files, folders, data sets."""

import builtins
import gzip
import io
import math
import os
import pickle
import socket
import struct
import tarfile

import pytest
import torch
from PIL import Image

from altcore import BadInput
from altcore_workloads import pictures
from altcore_workloads.image_sources import load
from altcore_workloads.images import HELD_OUT, Split, to_square, with_validation

PIXELS = 3 * 32 * 32


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def raw(tensor):
    return tensor.contiguous().numpy().tobytes()


# ------------------------------------------------------------------------------ CIFAR-10


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


def cifar(folder, kind="binary", **changed):
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
        (pickled(noise(4, PIXELS), [0, 1, 2, 10]), "a label that is none of 0 to 9"),
        (pickled(noise(4, PIXELS), [0] * 4).replace(b"u1", b"i1"), "an array of bytes"),
    ],
)
def test_a_wrong_batch_says_what_would_be_right(tmp_path, batch, says):
    """Of the Python version."""
    folder = cifar(tmp_path, "Python", test_batch=batch)
    with pytest.raises(BadInput, match=f"test_batch .*{says}"):
        load(str(folder))


# ----------------------------------------------------------------------------- idx files


def idx(array, kind=0x08):
    """Return an idx file."""
    head = bytes([0, 0, kind, array.dim()])
    return head + b"".join(struct.pack(">I", n) for n in array.shape) + raw(array)


def mnist(folder, names=("train", "t10k"), compress=True, size=28, **changed):
    """Write pairs of idx files; returns the folder."""
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        images, labels = noise(30, size, size, seed=i), noise(30, seed=i + 9) % 7
        for file, content in (
            (f"{name}-images-idx3-ubyte", idx(images)),
            (f"{name}-labels-idx1-ubyte", idx(labels)),
        ):
            content = changed.get(file.replace("-", "_"), content)
            path = folder / (f"{file}.gz" if compress else file)
            path.write_bytes(gzip.compress(content) if compress else content)
    return folder


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files_are_read(tmp_path, compress):
    """MNIST's, compressed or not; t10k validates, labels decide the number of classes."""
    found = load(str(mnist(tmp_path / "d", compress=compress)), 28)
    assert raw(found.train.images) == raw(noise(30, 28, 28))
    assert raw(found.val.images) == raw(noise(30, 28, 28, seed=1))
    assert found.val.labels.tolist() == (noise(30, seed=10) % 7).tolist()
    assert found.train.images.shape == (30, 1, 28, 28)
    assert found.classes == 7
    assert not found.preset.flip
    assert load(str(tmp_path / "d")).train.images.shape == (30, 1, 32, 32)


def test_idx_files_without_a_second_pair_are_split(tmp_path):
    """No image is in both splits, and none is lost."""
    found = load(str(mnist(tmp_path / "d", ["emnist-letters-train"])), 28)
    parts = [{raw(image) for image in split.images} for split in (found.train, found.val)]
    assert parts[0] | parts[1] == {raw(image) for image in noise(30, 28, 28)}
    assert not parts[0] & parts[1]


def without_labels(path):
    folder = mnist(path / "d")
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    return folder


def cut_short(path):
    folder = mnist(path / "d")
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-20])
    return folder


def no_gzip(path):
    folder = mnist(path / "d")
    (folder / "train-images-idx3-ubyte.gz").write_bytes(idx(noise(30, 28, 28)))
    return folder


IMAGES, LABELS = "train_images_idx3_ubyte", "train_labels_idx1_ubyte"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (without_labels, "no labels beside it: train-labels-idx1-ubyte is needed"),
        (cut_short, "train-images-idx3-ubyte.gz is a broken .gz file"),
        (no_gzip, "train-images-idx3-ubyte.gz is a broken .gz file"),
        (lambda p: mnist(p / "d", ["t10k"]), "with 'train' in its name"),
        (lambda p: mnist(p / "d", ["train", "a", "b"]), "at most one other"),
        (lambda p: mnist(p / "d", **{IMAGES: idx(noise(30, 28, 28), kind=9)}), "not 00 00 08 03"),
        (lambda p: mnist(p / "d", **{IMAGES: b""}), "begins with nothing"),
        (lambda p: mnist(p / "d", **{IMAGES: idx(noise(30, 28, 28))[:-1]}), "30 x 28 x 28 bytes"),
        (lambda p: mnist(p / "d", **{IMAGES: idx(noise(30, 9, 9))}), "differ in size"),
        (lambda p: mnist(p / "d", **{LABELS: idx(noise(29))}), "30 images, and .* 29 labels"),
    ],
)
def test_unusable_idx_files_are_named(tmp_path, make, says):
    """With what is wrong, and what would be right."""
    folder = make(tmp_path)
    with pytest.raises(BadInput, match=says) as caught:
        load(str(folder))
    assert str(caught.value).startswith(f"resnet18-cifar.data: {folder}")


# ------------------------------------------------------------------------------- folders


def picture(path, size=(40, 30), mode="RGB", seed=0):
    """Write an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = raw(noise(size[1], size[0], channels, seed=seed))
    Image.frombytes(mode, size, pixels).save(path)
    return path


def folder_of(root, splits=("",), per_class=6, **keys):
    for i, split in enumerate(splits):
        for name in ("cat", "dog"):
            for j in range(per_class):
                picture(root / split / name / f"{j}.png", seed=100 * i + j, **keys)
    return root


def middle(seed, size=32):
    """Return the pixels of an image of `picture`: its middle square, scaled."""
    pixels = noise(30, 40, 3, seed=seed).permute(2, 0, 1)[None, :, :, 5:35]
    return to_square(pixels, size)[0]


@pytest.mark.parametrize("names", [("train", "val"), ("train", "test"), ("training", "validation")])
def test_folders_of_splits_are_read(tmp_path, names):
    """Classes are the names of sub-folders, in order; the middle of each image is scaled."""
    found = load(str(folder_of(tmp_path / "d", names)))
    assert found.train.labels.tolist() == found.val.labels.tolist() == [0] * 6 + [1] * 6
    assert torch.equal(found.train.images[7], middle(1))
    assert torch.equal(found.val.images[2], middle(102))
    assert found.classes == 2
    assert load(str(tmp_path / "d"), 9).train.images.shape == (12, 3, 9, 9)


def test_a_folder_without_splits_is_split_by_name(tmp_path):
    """An image stays where it is when others come, and at every size."""
    root = folder_of(tmp_path / "d", per_class=20)
    few = load(str(root))
    held = {raw(i) for i in few.val.images}
    assert held
    assert len(few.train) + len(few.val) == 40
    assert load(str(root), 9).val.labels.tolist() == few.val.labels.tolist()
    for j in range(20, 40):
        picture(root / "cat" / f"{j}.png", seed=j)
    assert held <= {raw(i) for i in load(str(root)).val.images}


def test_other_files_are_left_out(tmp_path):
    """Hidden ones, and those that are no images by their names."""
    root = folder_of(tmp_path / "d", ("train", "val"))
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / ".cache").mkdir()
    picture(root / "train" / "cat" / ".hidden.png")
    assert len(load(str(root)).train) == 12


def test_grey_and_coloured_images(tmp_path):
    """Grey files alone have one channel; one file with colours makes all of them coloured."""
    root = folder_of(tmp_path / "d", ("train", "val"), mode="L")
    assert load(str(root)).channels == 1
    picture(root / "val" / "cat" / "9.png", mode="RGBA")
    found = load(str(root))
    assert found.channels == found.val.images.shape[1] == 3
    assert torch.equal(found.train.images[:, 0], found.train.images[:, 2])


def test_the_digest_is_of_the_files(tmp_path):
    """It depends on their contents, names and split, and not on where the folder lies."""
    one, two = (folder_of(tmp_path / n, ("train", "val")) for n in "ab")
    assert load(str(one)).sha256 == load(str(two), 9).sha256
    picture(two / "val" / "cat" / "3.png", seed=999)
    assert load(str(one)).sha256 != load(str(two)).sha256


def broken_image(path):
    root = folder_of(path / "d")
    (root / "dog" / "x.png").write_bytes((root / "dog" / "1.png").read_bytes()[:200])
    return root


def no_image(path):
    root = folder_of(path / "d")
    (root / "dog" / "x.png").write_text("text")
    return root


def deep_image(path):
    root = folder_of(path / "d")
    Image.new("I;16", (9, 9)).save(root / "dog" / "x.png")
    return root


def strange_class(path):
    root = folder_of(path / "d", ("train", "val"))
    picture(root / "val" / "cow" / "1.png")
    return root


def empty_classes(path):
    for name in ("cat", "dog"):
        (path / "d" / name).mkdir(parents=True)
    return path / "d"


def one_class(path):
    picture(path / "d" / "cat" / "1.png")
    return path / "d"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (broken_image, "x.png cannot be read as an image: "),
        (no_image, "x.png cannot be read as an image: "),
        (deep_image, "x.png has pixels of the kind I;16; 8 bits a channel are needed"),
        (strange_class, "cow is a class that .*train does not have"),
        (empty_classes, "d holds no image in its sub-folders: .*.png"),
        (one_class, "d has 1 sub-folders; a sub-folder with images for each of two"),
        (lambda p: folder_of(p / "d", ["train"]), "has a folder train but no val"),
        (lambda p: folder_of(p / "d", ["test"]), "has a folder test but no train"),
        (lambda p: p / "gone", "gone does not exist"),
        (lambda p: picture(p / "a.png"), "a.png is not an archive of CIFAR-10"),
    ],
)
def test_unusable_folders_are_named(tmp_path, make, says):
    """With what is wrong, in one line."""
    with pytest.raises(BadInput, match=says) as caught:
        load(str(make(tmp_path)))
    message = str(caught.value)
    assert message.startswith(f"resnet18-cifar.data: {tmp_path}")
    assert "\n" not in message


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


@pytest.mark.parametrize(
    ("path", "says"), [("", "empty; give a path"), ("~no-such-user/a", "cannot be a path")]
)
def test_what_cannot_be_a_path_is_refused(path, says):
    """An empty path is not the current folder; an unknown home does not crash."""
    with pytest.raises(BadInput, match=f"resnet18-cifar.data: .*{says}"):
        load(path)


def test_data_without_permission_are_refused(tmp_path, monkeypatch):
    """A file that is there and cannot be read would silently change the data."""
    root = folder_of(tmp_path / "d")
    real = type(root).read_bytes

    # Permission bits do not bind root, as which tests often run.
    def denied(path):
        if path.name == "3.png":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(type(root), "read_bytes", denied)
    with pytest.raises(BadInput, match=r"cannot read .*cat/3.png: Permission denied"):
        load(str(root))


# ---------------------------------------------------------------------- datasets library


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    """The library, with a cache of the test's own; whoever tries to connect fails."""
    import datasets

    def refuse(*_):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return datasets


def rows_of(datasets, count, seed=0, image="img", label="label"):
    """Return a labelled data set in memory."""
    shown = [
        Image.frombytes("RGB", (40, 30), raw(noise(30, 40, 3, seed=seed + i))) for i in range(count)
    ]
    features = datasets.Features(
        {image: datasets.Image(), label: datasets.ClassLabel(names=["a", "b", "c"])}
    )
    columns = {image: shown, label: [i % 2 for i in range(count)]}
    return datasets.Dataset.from_dict(columns, features)


def test_a_data_set_saved_on_disk_is_read(datasets, tmp_path):
    """Train and test; images and labels are found by their kind, classes by their names."""
    saved = datasets.DatasetDict(
        {"test": rows_of(datasets, 3, seed=50), "train": rows_of(datasets, 5)}
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    found = load(f"datasets:{tmp_path / 'saved'}")
    assert torch.equal(found.train.images[4], middle(4))
    assert torch.equal(found.val.images[2], middle(52))
    assert found.train.labels.tolist() == [0, 1, 0, 1, 0]
    assert found.classes == 3


def test_a_data_set_of_one_split_is_split(datasets, tmp_path):
    """By content."""
    rows_of(datasets, 20).save_to_disk(str(tmp_path / "saved"))
    found = load(f"datasets:{tmp_path / 'saved'}")
    assert len(found.train) + len(found.val) == 20
    assert len(found.val)


def test_cifar10_is_a_name_of_the_hub(datasets, monkeypatch):
    """It is the only one that has a short name; a folder of that name is ./cifar10."""
    asked = []

    def load_dataset(*names):
        asked.append(names)
        return datasets.DatasetDict(
            {"train": rows_of(datasets, 3), "test": rows_of(datasets, 2, seed=9)}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load("cifar10").description == "uoft-cs/cifar10, through the datasets library"
    assert asked == [("uoft-cs/cifar10",)]
    assert not pictures.is_dataset("./cifar10")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda d, p: None, "cannot be loaded: .*without a network, give datasets:FOLDER"),
        (
            lambda d, p: d.DatasetDict({"test": rows_of(d, 2)}).save_to_disk(p),
            "has the splits test; 'train' is needed",
        ),
        (
            lambda d, p: d.Dataset.from_dict({"text": ["a"], "label": [1]}).save_to_disk(p),
            "has 1 rows with text, label; images and a 'label' are needed",
        ),
    ],
)
def test_unusable_data_sets_are_named(datasets, tmp_path, make, says):
    """With what would be right."""
    folder = str(tmp_path / "saved")
    make(datasets, folder)
    with pytest.raises(BadInput, match=f"resnet18-cifar.data: datasets:.*saved {says}"):
        load(f"datasets:{folder}")


# ------------------------------------------------------------------------ digits, and all


def test_digits_are_the_default():
    """1797 real scans, a fifth of them to validate, by their content; nothing is downloaded."""
    found = load(None)
    assert len(found.train) + len(found.val) == 1797
    assert 0.15 < len(found.val) / 1797 < 0.25
    assert found.train.images.shape[1:] == (1, 16, 16)
    assert found.classes == 10
    assert found.sha256 == load("digits", 8).sha256
    assert int(load("digits", 8).train.images.max()) == 255


@pytest.mark.parametrize(
    ("package", "data", "extra"),
    [
        ("sklearn", lambda p: None, "digits"),
        ("PIL", lambda p: str(folder_of(p / "d")), "images"),
        ("datasets", lambda p: "cifar10", "datasets"),
    ],
)
def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch, package, data, extra):
    """Each is an extra, and imported only when it is used."""
    given = data(tmp_path)
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(BadInput, match=rf"pip install 'altcore-workloads\[{extra}\]'"):
        load(given)
    assert len(load("generated").train) == 320


def test_generated_images_are_always_the_same():
    """A digest written down here: every machine has it."""
    found = load("generated")
    assert found.sha256.startswith("aaabba90cc42868d")
    assert torch.bincount(found.train.labels).tolist() == [32] * 10


def test_scaling_takes_the_middle_square():
    """And an average over what becomes one pixel."""
    image = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    image[..., 2:4] = 200
    assert to_square(image, 4)[0, 0, 0].tolist() == [200, 200, 0, 0]
    assert to_square(image, 1).item() == pytest.approx(100, abs=15)
    assert to_square(noise(2, 3, 16, 16), 16).shape == (2, 3, 16, 16)


def test_equal_images_stay_together():
    """An image that comes twice does not validate what it has trained."""
    images = noise(50, 1, 4, 4).repeat(2, 1, 1, 1)
    train, val = with_validation(Split(images, torch.arange(100)), "here")
    assert not {raw(i) for i in train.images} & {raw(i) for i in val.images}
    assert len(val) == pytest.approx(100 / HELD_OUT, abs=10)
    with pytest.raises(BadInput, match="here needs two different images"):
        with_validation(Split(images[:1], torch.zeros(1)), "here")


def test_moments_and_entropy_are_those_of_the_training_split():
    """Against the definitions."""
    found = load("generated")
    mean, deviation = found.moments()
    values = found.train.images.double() / 255
    assert mean == pytest.approx(values.mean((0, 2, 3)).tolist())
    assert deviation == pytest.approx(values.std((0, 2, 3), correction=0).tolist())
    assert found.label_entropy() == pytest.approx(math.log(10))
