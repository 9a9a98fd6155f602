"""The network of the workload ``resnet18-cifar``: ResNet-18 for small images.

He et al. (arXiv:1512.03385) with the stem that CIFAR asks for: one 3x3 convolution of stride 1 and
no max-pool. Modules have torchvision's names (``layer1.0.conv1``), so that recipes can address them
and its readers know them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

STAGES = (64, 128, 256, 512)
"""Channels of the four stages at width 1."""
LEAST_CHANNELS = 8
HEAD_STD = 0.01
NORMS = ("batch", "none")


def widths(width_mult: float) -> list[int]:
    """Return the channels of each stage, at least 8."""
    return [max(LEAST_CHANNELS, round(channels * width_mult)) for channels in STAGES]


def _norm(norm_type: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm_type == "batch" else nn.Identity()


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to their input or to its 1x1 projection."""

    def __init__(self, inputs: int, channels: int, stride: int, norm_type: str) -> None:
        super().__init__()
        # A norm has a bias of its own.
        bias = norm_type == "none"
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=bias)
        self.bn1 = _norm(norm_type, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.bn2 = _norm(norm_type, channels)
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != channels:
            self.downsample.append(nn.Conv2d(inputs, channels, 1, stride, bias=bias))
            self.downsample.append(_norm(norm_type, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, channels, height/stride, width/stride)."""
        branch = functional.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        return functional.relu(branch + self.downsample(x))


class ResNet18(nn.Module):
    """Images in, a logit for each class out."""

    def __init__(
        self, *, in_channels: int, num_classes: int, width_mult: float, norm_type: str
    ) -> None:
        super().__init__()
        channels = widths(width_mult)
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=norm_type == "none")
        self.bn1 = _norm(norm_type, channels[0])
        inputs, strides = [channels[0], *channels], (1, 2, 2, 2)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(
                BasicBlock(before, width, stride, norm_type),
                BasicBlock(width, width, 1, norm_type),
            )
            for before, width, stride in zip(inputs, channels, strides, strict=False)
        )
        self.fc = nn.Linear(channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to logits (batch, num_classes)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))

    def get_output_embeddings(self) -> nn.Linear:
        """Return the output head, as Hugging Face models do."""
        return self.fc

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw every weight anew from ``generator`` (a CPU generator for a model on the CPU).

        Convolutions are normal with variance 2 / fan-in (He et al., arXiv:1502.01852), the head is
        normal with standard deviation 0.01; biases are zero. Without norm, the second convolution
        of each of the L = 8 blocks is smaller by sqrt(L): the variance of the residual stream then
        grows by (1 + 1/L)^L < e over the depth, where it would double with each block. This is the
        factor of GPT-2 (Radford et al. 2019, section 2.3) and the argument of Fixup (Zhang et al.,
        arXiv:1901.09321, section 2); unlike Fixup, no weight begins as zero, which a scale cannot
        be taken from.
        """
        blocks = [module for module in self.modules() if isinstance(module, BasicBlock)]
        shrunk = {id(block.conv2) for block in blocks if isinstance(block.bn2, nn.Identity)}
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d | nn.Linear):
                std = math.sqrt(2 / module.weight[0].numel())
                if isinstance(module, nn.Linear):
                    std = HEAD_STD
                elif id(module) in shrunk:
                    std /= math.sqrt(len(blocks))
                module.weight.normal_(0.0, std, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
