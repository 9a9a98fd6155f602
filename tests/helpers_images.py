"""What tests of images share: random ones, files of them, and a small ResNet."""

import torch
from PIL import Image

from altcore_workloads.images import to_square
from altcore_workloads.resnet import Resnet18


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def raw(tensor):
    return tensor.contiguous().numpy().tobytes()


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


def small_resnet(seed=1, device="cpu", **settings):
    """Return resnet18-cifar at a size that takes no time."""
    given = {"data": "generated", "image_size": 16, "width_mult": 0.125, "batch_size": 50}
    return Resnet18(**{**given, **settings}).build(seed, torch.device(device))
