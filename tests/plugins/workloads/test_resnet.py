"""The workload plugin ``resnet18-cifar``: model, batches, loss, settings."""

import math

import pytest
import torch
import yaml
from helpers_cli import ROOT
from helpers_images import small_resnet
from torch import nn

from altcore import BadInput
from altcore.config import load_config
from altcore_workloads.gpt import Gpt
from altcore_workloads.images import PHOTOS
from altcore_workloads.resnet import Resnet18
from altcore_workloads.resnet_model import BasicBlock, ResNet18

CPU = torch.device("cpu")


def network(**settings):
    given = {"in_channels": 3, "num_classes": 10, "width_mult": 1.0, "norm_type": "batch"}
    return ResNet18(**{**given, **settings})


# -------------------------------------------------------------------------------- model


def test_it_is_the_resnet18_of_cifar():
    """As many parameters as the usual one has; 32 by 32 pixels end as 4 by 4, without a pool."""
    model = network()
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    assert not [m for m in model.modules() if isinstance(m, nn.MaxPool2d)]
    seen = []
    model.layer4.register_forward_hook(lambda *args: seen.append(args[2].shape))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert seen == [(2, 512, 4, 4)]


def test_its_names_are_torchvisions():
    """So that recipes and readers know them."""
    names = {n for n, m in network().named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {"conv1", "layer1.0.conv1", "layer2.0.downsample.0", "layer4.1.conv2", "fc"} <= names
    assert len(names) == 21


@pytest.mark.parametrize(
    ("width", "channels"),
    [(1.0, [64, 128, 256, 512]), (0.5, [32, 64, 128, 256]), (0.01, [8, 8, 8, 8])],
)
def test_width_multiplies_channels_down_to_eight(width, channels):
    """No layer is narrower than 8."""
    model = network(width_mult=width)
    found = [getattr(model, f"layer{i}")[1].conv2.out_channels for i in range(1, 5)]
    assert found == channels


def test_without_norm_there_are_biases_and_no_norm():
    """A norm has its own bias, and buffers that a run must keep."""
    with_norm, without = network(), network(norm_type="none")
    assert not [m for m in without.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not list(without.buffers())
    for model, has_bias in ((with_norm, False), (without, True)):
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert all((m.bias is not None) == has_bias for m in convolutions)


def test_without_norm_signals_keep_their_size_at_the_start():
    """The stream grows by less than e in variance; unscaled, by 2 with each block."""
    model = small_resnet(width_mult=1.0, norm_type="none").model
    sizes = []
    for block in (m for m in model.modules() if isinstance(m, BasicBlock)):
        block.register_forward_hook(lambda *args: sizes.append(float(args[2].square().mean())))
    with torch.no_grad():
        model(torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert len(sizes) == 8
    assert 0.5 < sizes[0] < sizes[-1] < math.e * sizes[0]


def test_weights_are_a_function_of_the_seed():
    """The global random state is neither used nor changed."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = small_resnet(seed=3).model.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    two, other = small_resnet(seed=3).model.state_dict(), small_resnet(seed=4).model.state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_a_default_device_is_not_where_data_are_read():
    """The caller's default device is for the caller's tensors."""
    with torch.device("meta"):
        built = small_resnet()
        images, labels = built.batch("train", 1, 0)
    assert images.device == labels.device == next(built.model.parameters()).device == CPU


# ------------------------------------------------------------------------------ batches


def labels_and_places(built, epoch):
    """Return the rows of the training split that an epoch's batches hold, in their order."""
    spe = built.steps_per_epoch
    plain = [built.batch("train", epoch * spe + i, 0) for i in range(1, spe + 1)]
    known = {image.tobytes(): i for i, image in enumerate(built.images.train.images.numpy())}
    mean, std = built._mean, built._std
    back = [((x * std + mean) * 255).round().to(torch.uint8).numpy() for x, _ in plain]
    return [known[image.tobytes()] for batch in back for image in batch]


def test_an_epoch_has_each_image_once_in_an_order_of_its_own():
    """The last batch is short; the order depends on seed and epoch alone."""
    built = small_resnet(crop_scale=1.0, flip=False)
    assert built.steps_per_epoch == 7
    assert len(built.batch("train", 7, 0)[1]) == 320 - 6 * 50
    first, second = labels_and_places(built, 0), labels_and_places(built, 1)
    assert sorted(first) == sorted(second) == list(range(320))
    assert first != second
    assert labels_and_places(small_resnet(crop_scale=1.0, flip=False), 0) == first
    assert labels_and_places(small_resnet(seed=2, crop_scale=1.0, flip=False), 0) != first


def test_labels_belong_to_their_images():
    """Through order, crop and mirror."""
    built = small_resnet(crop_scale=1.0, flip=False)
    rows = labels_and_places(built, 0)
    labels = torch.cat([built.batch("train", n, 0)[1] for n in range(1, 8)])
    assert torch.equal(labels, built.images.train.labels[rows])


def test_a_batch_is_a_pure_function_of_seed_and_step():
    """Order of calls, another model and the global random state change no batch."""
    one, two = small_resnet(flip=True), small_resnet(flip=True, norm_type="none", width_mult=0.2)
    wanted = one.batch("train", 9, 0)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    for step in (1, 30, 8):
        two.batch("train", step, 0)
        two.batch("val", step, 0)
    assert all(torch.equal(a, b) for a, b in zip(wanted, two.batch("train", 9, 0), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_belongs_to_the_image_and_not_to_its_place():
    """With another batch size, every image of the epoch is cropped and mirrored as before."""
    few, many = small_resnet(batch_size=32), small_resnet(batch_size=320)
    parts = [few.batch("train", n, 0)[0] for n in range(1, few.steps_per_epoch + 1)]
    assert torch.equal(torch.cat(parts), many.batch("train", 1, 0)[0])


def test_an_image_is_cropped_anew_in_each_epoch():
    """Same images, other pixels."""
    built = small_resnet(batch_size=320)
    first, second = (built.batch("train", n, 0)[0] for n in (1, 2))
    assert first.shape == second.shape
    assert (first.sort(0).values != second.sort(0).values).float().mean() > 0.9


def test_validation_is_the_whole_split_unchanged():
    """In order, the last batch short, each image once; normalised and nothing else."""
    built = small_resnet()
    assert built.validation_batches == 2
    batches = [built.batch("val", i, 0) for i in range(2)]
    assert [built.items(b) for b in batches] == [50, 30]
    images = torch.cat([x for x, _ in batches])
    mean, std = built.images.moments()
    expected = (built.images.val.images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(
        std
    )[:, None, None]
    assert torch.allclose(images, expected, atol=1e-6)
    assert torch.equal(torch.cat([y for _, y in batches]), built.images.val.labels)
    assert torch.equal(built.batch("val", 2, 0)[0], batches[0][0])


def test_training_images_are_normalised():
    """Each channel has mean 0 and variance 1 over the split that trains."""
    built = small_resnet(batch_size=320, crop_scale=1.0, flip=False)
    images, _ = built.batch("train", 1, 0)
    assert images.dtype == torch.float32
    assert images.mean((0, 2, 3)) == pytest.approx(torch.zeros(3), abs=1e-4)
    assert images.std((0, 2, 3)) == pytest.approx(torch.ones(3), abs=1e-3)


def test_an_unknown_split_is_refused():
    """Only train and val exist."""
    with pytest.raises(ValueError, match="'train' or 'val'"):
        small_resnet().batch("test", 1, 0)


# ------------------------------------------------------------------------------- losses


def test_loss_in_nats_and_bits_and_accuracy():
    """Cross entropy by hand; measures are 0-dim tensors that carry no gradient."""
    built = small_resnet()
    batch = built.batch("train", 1, 0)
    built.model.eval()
    loss, measures = built.loss(built.model, batch)
    with torch.no_grad():
        shares = built.model(batch[0]).double().softmax(1)
    chosen = shares[range(50), batch[1]]
    assert loss.item() == pytest.approx(float(-chosen.log().mean()), rel=1e-5)
    assert set(measures) == {"accuracy", "loss_bits"}
    assert measures["loss_bits"].item() == pytest.approx(float(-chosen.log2().mean()), rel=1e-5)
    assert measures["accuracy"].item() == pytest.approx(
        float((shares.argmax(1) == batch[1]).double().mean())
    )
    assert all(m.dim() == 0 and not m.requires_grad for m in measures.values())


def test_nan_logits_have_no_accuracy():
    """The largest of them would be the first: a tenth of the images would be right."""
    built = small_resnet()
    batch = built.batch("train", 1, 0)
    _, measures = built.loss(lambda images: torch.full((len(images), 10), torch.nan), batch)
    assert measures["accuracy"].isnan()


def test_loss_is_in_float32_whatever_the_logits_are():
    """A bfloat16 forward does not make a bfloat16 loss."""
    built = small_resnet()
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)).bfloat16()
    images, labels = built.batch("train", 1, 0)
    loss, _ = built.loss(model, (images.bfloat16(), labels))
    assert loss.dtype == torch.float32


def test_facts_say_what_was_chosen():
    """What the data decides stands in the record, like what is given."""
    facts = small_resnet().facts
    assert facts["train_images"] == 320
    assert facts["val_images"] == 80
    assert facts["classes"] == 10
    assert facts["unigram_entropy"] == pytest.approx(math.log(10))
    assert len(facts["sha256"]) == 64
    assert (facts["image_size"], facts["batch_size"], facts["flip"]) == (16, 50, True)
    assert facts["crop_scale"] == PHOTOS.crop_scale
    assert all(isinstance(v, str | int | float) for v in facts.values())


# ----------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"norm_type": "layer"}, "norm_type: 'layer' is none of batch, none"),
        ({"image_size": 8}, "image_size: 8 is not a whole number of at least 9"),
        ({"batch_size": 0}, "batch_size: 0 is not a whole number of at least 1"),
        ({"batch_size": True}, "batch_size: True is not a whole number of at least 1"),
        ({"num_classes": 1}, "num_classes: 1 is not a whole number of at least 2"),
        ({"width_mult": 0.0}, "width_mult: 0.0 is not a positive number"),
        ({"width_mult": math.inf}, "width_mult: inf is not a positive number"),
        ({"crop_scale": 0.0}, r"crop_scale: 0.0 is not in \(0, 1\]"),
        ({"crop_scale": 1.5}, r"crop_scale: 1.5 is not in \(0, 1\]"),
    ],
)
def test_impossible_settings_name_the_key(settings, says):
    """Before any data are read."""
    with pytest.raises(BadInput, match=f"resnet18-cifar.{says}"):
        Resnet18(**settings)


def test_too_few_classes_are_refused_and_more_are_not():
    """A model may know classes that the data lack."""
    with pytest.raises(BadInput, match="num_classes: 9 is too small for generated, which has 10"):
        small_resnet(num_classes=9)
    assert small_resnet(num_classes=12).model.fc.out_features == 12


def test_channels_are_converted():
    """Colours become luma; a number that is neither 1 nor 3 is refused."""
    colour, grey = small_resnet(), small_resnet(in_channels=1)
    assert grey.model.conv1.in_channels == grey.facts["in_channels"] == 1
    red, green, blue = colour.images.train.images.double().unbind(1)
    expected = 0.299 * red + 0.587 * green + 0.114 * blue
    assert (grey.images.train.images[:, 0] - expected).abs().max() <= 0.51
    with pytest.raises(BadInput, match=r"in_channels: generated has 3, .* not as 4"):
        small_resnet(in_channels=4)


@pytest.mark.cuda
def test_it_is_the_same_on_cuda():
    """Weights and labels bit for bit, images up to rounding."""
    here, there = small_resnet(), small_resnet(device="cuda")
    for (name, one), two in zip(
        here.model.state_dict().items(), there.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two.cpu()), name
    for split in ("train", "val"):
        (images, labels), (images2, labels2) = (w.batch(split, 1, 0) for w in (here, there))
        assert images2.is_cuda
        assert torch.equal(labels, labels2.cpu())
        assert torch.allclose(images, images2.cpu(), atol=1e-5)
    loss, _ = there.loss(there.model, there.batch("train", 1, 0))
    loss.backward()
    assert torch.isfinite(loss)


# ------------------------------------------------------------------------ configurations


def test_each_variant_states_its_difference_to_base_alone():
    """The preset says the rest; every file loads."""
    folder = ROOT / "experiments" / "resnet"
    found = {p.stem: yaml.safe_load(p.read_text()) for p in folder.glob("*.yaml")}
    assert set(found) == {"base", "bn_off", "narrow", "adamw"}
    base = found.pop("base")
    for name, keys in found.items():
        assert keys.pop("preset") == base["preset"], name
    assert base == {"preset": "resnet18-cifar"}
    assert found["bn_off"] == {"resnet18-cifar": {"norm_type": "none"}, "grad_clip": 1.0}
    assert found["narrow"] == {"resnet18-cifar": {"width_mult": 0.5}}
    assert found["adamw"] == {"optimizer": "adamw", "learning_rate": "1e-3"}
    base, bn_off, narrow, adamw = (
        load_config(folder / f"{name}.yaml") for name in ("base", "bn_off", "narrow", "adamw")
    )
    assert base.settings["sgd"] == {"momentum": 0.9, "weight_decay": 5e-4}
    assert (base.workload, base.optimizer, base.grad_clip) == ("resnet18-cifar", "sgd", 0)
    assert bn_off == base.evolve(
        grad_clip=1.0, settings={**base.settings, "resnet18-cifar": {"norm_type": "none"}}
    )
    assert narrow == base.evolve(settings={**base.settings, "resnet18-cifar": {"width_mult": 0.5}})
    assert adamw == base.evolve(optimizer="adamw", learning_rate=1e-3, settings={})


@pytest.mark.parametrize("settings", [Resnet18(data="generated", image_size=16), Gpt(size="tiny")])
def test_a_model_without_its_data_is_the_one_with_them(settings):
    """Of this workload and of gpt, by the facts alone and to the last bit."""
    built = settings.build(3, CPU)
    again = settings.build_model(3, CPU, built.facts).state_dict()
    own = built.model.state_dict()
    assert again.keys() == own.keys()
    assert all(torch.equal(again[key], x) for key, x in own.items())
