"""ResNet-18 and ResNet-34 for small images: a 3 x 3 stem without pooling, then basic blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_farms.common.arguments import check_integers


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, and the input added before the last activation.

    If the input's shape differs from the output's, it first passes a 1 x 1 convolution with batch normalisation.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: shape (batch, in_channels, height, width).

        Returns:
            Shape (batch, out_channels, ceil(height / stride), ceil(width / stride)).
        """
        shortcut = x if self.downsample is None else self.downsample(x)
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + shortcut)


class ResNet(nn.Module):
    r"""Residual network of basic blocks for images of about 32 x 32 pixels.

    Four stages have ``width``, 2, 4 and 8 times ``width`` channels; each but the first halves the image.
    Weights of convolutions and of the head are drawn from :math:`N(0, 2 / n)`, n being a neuron's number of inputs.
    Parameters have torchvision's names.

    Args:
        blocks: number of basic blocks of each of the four stages.
        num_classes: number of classes.
        width: channels of the first stage.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is below 1, or there are not four stages.

    Example:
        >>> model = ResNet((1, 1, 1, 1), num_classes=10, width=8)
        >>> import torch
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Reference:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016; initialisation: He et al., Delving Deep
        into Rectifiers, ICCV 2015, Equation 10.
    """

    def __init__(self, blocks: Sequence[int], num_classes: int = 100, *, width: int = 64) -> None:
        super().__init__()
        if len(blocks) != 4:
            raise ValueError(f"Expected argument `blocks` to have 4 entries, but got {len(blocks)}.")
        check_integers(1, **{f"blocks[{i}]": n for i, n in enumerate(blocks)}, width=width, num_classes=num_classes)
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks[0], stride=1)
        self.layer2 = _stage(width, 2 * width, blocks[1], stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks[2], stride=2)
        self.layer4 = _stage(4 * width, 8 * width, blocks[3], stride=2)
        self.fc = nn.Linear(8 * width, num_classes)
        initialise_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: shape (batch, 3, height, width).

        Returns:
            Logits, shape (batch, num_classes).
        """
        features = F.relu(self.bn1(self.conv1(images)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
        return cast(Tensor, self.fc(features.mean(dim=(-2, -1))))


def initialise_(model: nn.Module) -> None:
    r"""Draw the weights of all Conv2d and Linear layers from :math:`N(0, 2 / n)`, n: inputs of a neuron; zero biases.

    Reference:
        Hu et al., ICML 2025, Appendix A.1.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def resnet18(num_classes: int = 100, *, width: int = 64) -> ResNet:
    """Build a ResNet-18: 11,220,132 parameters at the defaults.

    Args:
        num_classes: number of classes.
        width: channels of the first stage.

    Returns:
        The network.

    Example:
        >>> sum(parameter.numel() for parameter in resnet18().parameters())
        11220132
    """
    return ResNet((2, 2, 2, 2), num_classes, width=width)


def resnet34(num_classes: int = 100, *, width: int = 64) -> ResNet:
    """Build a ResNet-34: 21,328,292 parameters at the defaults.

    Args:
        num_classes: number of classes.
        width: channels of the first stage.

    Returns:
        The network.

    Example:
        >>> len(resnet34(width=8).layer3)
        6
    """
    return ResNet((3, 4, 6, 3), num_classes, width=width)


def _stage(in_channels: int, out_channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
