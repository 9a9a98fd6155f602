"""The workload ``resnet18-cifar``: ResNet-18 on small labelled images."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from altcore.plugin import BadInput, setting
from altcore_workloads.augment import DRAWS, crop_and_resize, crop_boxes, mirrored
from altcore_workloads.image_sources import load
from altcore_workloads.images import Images, Preset
from altcore_workloads.resnet_model import NORMS, ResNet18

NAME = "resnet18-cifar"
LEAST_SIZE = 9  # smaller images end as one pixel, over which batch norm has no variance


def _known_norm(_: Resnet18, __: attrs.Attribute[str], value: str) -> None:
    if value not in NORMS:
        raise BadInput(f"{value!r} is none of {', '.join(NORMS)}", key=f"{NAME}.norm_type")


def _whole(least: int) -> Any:
    def check(_: Resnet18, field: attrs.Attribute[Any], value: int | None) -> None:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (is_whole and value >= least):
            raise BadInput(
                f"{value!r} is not a whole number of at least {least}", key=f"{NAME}.{field.name}"
            )

    return check


def _positive(_: Resnet18, field: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise BadInput(f"{value!r} is not a positive number", key=f"{NAME}.{field.name}")


def _share(_: Resnet18, field: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and not 0 < value <= 1:
        raise BadInput(f"{value!r} is not in (0, 1]", key=f"{NAME}.{field.name}")


def _from_data(help: str, validator: Any = None) -> Any:
    return setting(None, help=f"{help}; from the data if not given", validator=validator)


@attrs.define(eq=False)
class Resnet18:
    """ResNet-18 on small images: CIFAR-10, MNIST and its kin, digits, or a folder of your own.

    Impossible settings raise BadInput that names the key.
    """

    data: str | None = setting(
        None,
        help="CIFAR-10's archive or folder, a folder of idx files (MNIST) or of labelled images, "
        "cifar10, datasets:NAME_OR_FOLDER, generated, or digits; digits if not given",
    )
    image_size: int | None = _from_data("height and width of the images", _whole(LEAST_SIZE))
    batch_size: int | None = _from_data("images in a micro-batch", _whole(1))
    width_mult: float | None = _from_data(
        "channels as a multiple of ResNet-18's (each layer has at least 8)", _positive
    )
    norm_type: str = setting(
        "batch", help=f"norm of the convolutions: {' or '.join(NORMS)}", validator=_known_norm
    )
    flip: bool | None = _from_data("whether half of the images are mirrored")
    crop_scale: float | None = _from_data("smallest share of an image in a random crop", _share)
    num_classes: int | None = _from_data("classes that the model tells apart", _whole(2))
    in_channels: int | None = _from_data("values in a pixel: 1 or 3", _whole(1))

    def build(self, seed: int, device: torch.device) -> BuiltResnet18:
        """Read the data and make the model on ``device``, its weights a function of ``seed``.

        The global random state is neither used nor changed, and the weights are drawn on the CPU,
        so that they are the same on every device. Raises BadInput if the data cannot be used.
        """
        # A default device that the caller has set is not for the data, nor for drawing weights.
        with torch.device("cpu"):
            images = load(self.data, self.image_size)
            if self.in_channels is not None:
                images = images.with_channels(self.in_channels)
        if self.num_classes is not None and self.num_classes < images.classes:
            raise BadInput(
                f"{self.num_classes} is too small for {images.source}, which has "
                f"{images.classes} classes",
                key=f"{NAME}.num_classes",
            )
        chosen = self._chosen(images.preset)
        facts = {
            "classes": images.classes,
            "in_channels": images.channels,
            "width_mult": chosen.width_mult,
        }
        model = self.build_model(seed, device, facts)
        with torch.device("cpu"):
            return BuiltResnet18(model, images, seed, device, chosen)

    def build_model(self, seed: int, device: torch.device, facts: Mapping[str, Any]) -> nn.Module:
        """Make the model as `build` does with data that have these ``facts``, and read none."""
        with torch.device("cpu"):
            # Modules draw their default weights when made, from the random state that is kept here.
            with torch.random.fork_rng(devices=[]):
                model = ResNet18(
                    in_channels=int(facts["in_channels"]),
                    num_classes=self.num_classes or max(int(facts["classes"]), 2),
                    width_mult=float(facts["width_mult"]),
                    norm_type=self.norm_type,
                )
            generator = torch.Generator("cpu")
            generator.manual_seed(int.from_bytes(_hash(f"init/{seed:d}", 8), "little") >> 1)
            model.initialise(generator)
        return model.to(device)

    def _chosen(self, preset: Preset) -> Preset:
        """Return what is given, and of the rest what suits the data."""
        given = {field.name: getattr(self, field.name) for field in attrs.fields(Preset)}
        return attrs.evolve(preset, **{k: v for k, v in given.items() if v is not None})


@attrs.define(eq=False)
class BuiltResnet18:
    """The model, its batches and its loss."""

    model: nn.Module
    images: Images = attrs.field(repr=False)
    seed: int
    device: torch.device
    chosen: Preset
    item: str = attrs.field(default="images", init=False)
    items_per_batch: int = attrs.field(init=False)
    steps_per_epoch: int = attrs.field(init=False)
    """Micro-batches in which each training image comes once; the last may be short."""
    validation_batches: int = attrs.field(init=False)
    """Batches of the whole validation split; the last may be short."""
    facts: dict[str, str | int | float] = attrs.field(init=False, repr=False)
    _mean: Tensor = attrs.field(init=False, repr=False)
    _std: Tensor = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        size = self.items_per_batch = self.chosen.batch_size
        self.steps_per_epoch = -(-len(self.images.train) // size)
        self.validation_batches = -(-len(self.images.val) // size)
        self.facts = _facts(self.images, self.chosen, self.model)
        if told := self.images.told:
            self.facts["notice"] = told
        mean, std = self.images.moments()
        self._mean = torch.tensor(mean, device=self.device)[:, None, None]
        # A channel that is the same everywhere has no deviation to divide by.
        self._std = torch.tensor([x or 1.0 for x in std], device=self.device)[:, None, None]
        self.images = self.images.to(self.device)

    def batch(self, split: str, step: int, micro: int) -> tuple[Tensor, Tensor]:
        """Return normalised images, float32 (n, channels, size, size), and labels, int64 (n,).

        Training batches count from 1 through all epochs, with ``micro`` 0. An epoch has each image
        once, cropped and mirrored anew; order, crops and mirrors are a pure function of (seed,
        epoch, image). Validation batches count from 0, and begin anew after the last.
        """
        if split == "val":
            start = step % self.validation_batches * self.items_per_batch
            part = self.images.val[start : start + self.items_per_batch]
            return self._normalised(part.images.float()), part.labels
        if split != "train":
            raise ValueError(f"no split {split!r}: it is 'train' or 'val'")
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        order, draws = _epoch(self.seed, epoch, len(self.images.train))
        rows = order[index * self.items_per_batch :][: self.items_per_batch]
        size = self.images.image_size
        boxes = crop_boxes(draws[rows], size, self.chosen.crop_scale)
        mirror = mirrored(draws[rows]) & self.chosen.flip
        rows, boxes, mirror = (x.to(self.device) for x in (rows, boxes, mirror))
        part = self.images.train[rows]
        return self._normalised(crop_and_resize(part.images.float(), boxes, mirror)), part.labels

    def _normalised(self, images: Tensor) -> Tensor:
        return (images / 255 - self._mean) / self._std

    def items(self, batch: tuple[Tensor, Tensor]) -> int:
        """Return how many images a batch has."""
        return len(batch[1])

    def loss(
        self, model: nn.Module, batch: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean cross entropy of ``model`` on a batch in nats, and measures.

        It is computed in float32, whatever the type of the logits. Measures: ``accuracy``, the
        share of images whose largest logit is that of their label (NaN if a logit is), and
        ``loss_bits``.
        """
        images, labels = batch
        logits = model(images).float()
        loss = functional.cross_entropy(logits, labels)
        logits = logits.detach()
        correct = (logits.argmax(dim=1) == labels).float()
        # Of a NaN argmax makes the largest logit.
        correct = correct.masked_fill(logits.isnan().any(dim=1), math.nan)
        return loss, {"accuracy": correct.mean(), "loss_bits": loss.detach() / math.log(2)}


@functools.lru_cache(maxsize=2)  # a step that is asked for again, between those of another epoch
def _epoch(seed: int, epoch: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the order of an epoch's images, and each image's uniform numbers.

    int64 (count,) and float64 (count, DRAWS), on the CPU; not to be written to.
    """
    with torch.device("cpu"):
        keys = torch.frombuffer(_hash(f"order/{seed:d}/{epoch:d}", 8 * count), dtype=torch.int64)
        noise = _hash(f"augment/{seed:d}/{epoch:d}", 4 * count * DRAWS)
        draws = torch.frombuffer(noise, dtype=torch.int32).double() / 2**32 + 0.5
        return keys.argsort(stable=True), draws.view(count, DRAWS)


def _facts(images: Images, chosen: Preset, model: nn.Module) -> dict[str, str | int | float]:
    """Return what the record says of the data and the model; entropy in nats an image."""
    return {
        "data": images.description,
        "train_images": len(images.train),
        "val_images": len(images.val),
        "classes": images.classes,
        "in_channels": images.channels,
        "sha256": images.sha256,
        "unigram_entropy": images.label_entropy(),
        **attrs.asdict(chosen),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _hash(key: str, length: int) -> bytearray:
    """Return ``length`` bytes that depend on nothing but the key, on every machine."""
    return bytearray(hashlib.shake_128(f"altcore-resnet18/{key}".encode()).digest(length))
