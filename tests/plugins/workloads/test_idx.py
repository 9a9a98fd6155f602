"""Files of the format idx, such as MNIST's: read, split, and refused by name."""

import gzip
import os
import struct

import pytest
from helpers_images import noise, raw

from altcore import BadInput
from altcore_workloads.image_sources import load


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


def test_classes_without_images_are_named(tmp_path):
    """One image with a large label gives the model an output for each number below it."""
    labels = noise(30) % 2
    labels[7] = 5
    found = load(str(mnist(tmp_path / "d", **{LABELS: idx(labels)})), 28)
    assert found.classes == 7  # those of the validation images, too
    assert found.notice == "4 of 7 classes have no image to train on: 2, 3, 4, 6"
    assert load(str(mnist(tmp_path / "e"))).notice is None


def test_images_that_validate_and_train_are_told(tmp_path):
    same = {"train_images_idx3_ubyte": idx(noise(30, 28, 28, seed=1))}
    told = load(str(mnist(tmp_path / "d", **same)), 28).told
    assert told.startswith("the data that validate are those that train")
    assert load(str(mnist(tmp_path / "e")), 28).told == ""


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
        (
            lambda p: mnist(p / "d", **{IMAGES: idx(noise(0, 28, 28)), LABELS: idx(noise(0))}),
            "train-images-idx3-ubyte.gz is empty: it holds 0 x 28 x 28 bytes",
        ),
        (
            lambda p: mnist(p / "d", **{LABELS: idx(noise(30) * 0 + 255)}),
            "d has one class to train on: the label of each image is 255",
        ),
    ],
)
def test_unusable_idx_files_are_named(tmp_path, make, says):
    """With what is wrong, and what would be right."""
    folder = make(tmp_path)
    with pytest.raises(BadInput, match=says) as caught:
        load(str(folder))
    assert str(caught.value).startswith(f"resnet18-cifar.data: {folder}")


def test_a_pipe_is_refused_at_once(tmp_path):
    """It would wait for its writer, in a folder or in the place of an archive."""
    file = mnist(tmp_path / "d") / "train-labels-idx1-ubyte.gz"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(BadInput, match=rf"cannot read {file}: it is not a regular file"):
        load(str(file.parent))
    with pytest.raises(BadInput, match=f"{file} is not an archive of CIFAR-10"):
        load(str(file))
