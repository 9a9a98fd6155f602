"""Folders of labelled images, and data sets of the datasets library."""

import socket

import pytest
import torch
from helpers_images import folder_of, middle, noise, picture, raw, small_resnet
from PIL import Image

from altcore import BadInput
from altcore_workloads import pictures
from altcore_workloads.image_sources import load

# ------------------------------------------------------------------------------- folders


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
    """Hidden ones without a word, and those that are no images of a class by name."""
    root = folder_of(tmp_path / "d", ("train", "val"))
    assert load(str(root)).notice is None
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / ".cache").mkdir()
    (root / "train" / ".cache" / "x").write_text("x")
    picture(root / "train" / "cat" / ".hidden.png")
    picture(root / "train" / "lost.png")
    picture(root / "test" / "cat" / "0.png")
    found = load(str(root))
    assert len(found.train) == 12
    said = f"files in {root} that are no images of a class are left out: "
    assert found.notice == f"{said}test/cat/0.png, train/cat/notes.txt, train/lost.png"
    built = small_resnet(data=str(root))
    assert built.facts["notice"] == found.notice


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


def empty_class(path):
    root = folder_of(path / "d", ("train", "val"))
    (root / "train" / "cow").mkdir()
    return root


def empty_split(path):
    root = folder_of(path / "d", ["train"])
    (root / "val" / "cat").mkdir(parents=True)
    return root


def empty_image(path):
    root = folder_of(path / "d")
    (root / "dog" / "x.png").write_bytes(b"")
    return root


def one_class(path):
    picture(path / "d" / "cat" / "1.png")
    return path / "d"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (broken_image, "x.png cannot be read as an image: "),
        (no_image, "x.png cannot be read as an image: of no known kind$"),
        (empty_image, "dog/x.png is empty$"),
        (deep_image, r"^resnet18-cifar.data: \S+x.png has pixels of the kind I;16; 8 bits"),
        (strange_class, "cow is a class that .*train does not have"),
        (empty_classes, "d/cat holds no image, and a sub-folder is a class: .*.png"),
        (empty_class, "d/train/cow holds no image, and a sub-folder is a class: .*.png"),
        (empty_split, "d/val holds no image"),
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
