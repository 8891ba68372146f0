"""VGG-16 and VGG-19 with batch normalisation for small images: one linear layer after the convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from lightning_farms.common.arguments import check_integers
from lightning_farms.models.resnet import initialise_

_WIDTHS = (1, 2, 4, 8, 8)  # channels of each stage, in multiples of the first stage's
_SMALLEST_IMAGE = 2 ** len(_WIDTHS)


class VGG(nn.Module):
    r"""Plain network of 3 x 3 convolutions, each with batch normalisation, for images of about 32 x 32 pixels.

    Five stages have ``width``, 2, 4, 8 and 8 times ``width`` channels; max-pooling halves the image after each. The
    remaining pixels are averaged, and one linear layer classifies the result. Weights are drawn from
    :math:`N(0, 2 / n)`, n being a neuron's number of inputs. The convolutions have torchvision's names and, as there,
    a bias.

    Args:
        convolutions: number of convolutions of each of the five stages.
        num_classes: number of classes.
        width: channels of the first stage.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is below 1, or there are not five stages.

    Example:
        >>> model = VGG((1, 1, 1, 1, 1), num_classes=10, width=8)
        >>> import torch
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Reference:
        Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, Table 1
        (columns D and E); initialisation: He et al., Delving Deep into Rectifiers, ICCV 2015, Equation 10.
    """

    def __init__(self, convolutions: Sequence[int], num_classes: int = 100, *, width: int = 64) -> None:
        super().__init__()
        if len(convolutions) != len(_WIDTHS):
            raise ValueError(
                f"Expected argument `convolutions` to have {len(_WIDTHS)} entries, but got {len(convolutions)}."
            )
        counts = {f"convolutions[{i}]": n for i, n in enumerate(convolutions)}
        check_integers(1, **counts, width=width, num_classes=num_classes)
        layers: list[nn.Module] = []
        channels = 3
        for factor, count in zip(_WIDTHS, convolutions, strict=True):
            for _ in range(count):
                layers += [
                    nn.Conv2d(channels, factor * width, 3, padding=1),
                    nn.BatchNorm2d(factor * width),
                    nn.ReLU(inplace=True),
                ]
                channels = factor * width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        initialise_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: shape (batch, 3, height, width), height and width at least 32.

        Returns:
            Logits, shape (batch, num_classes).

        Raises:
            ValueError: the images are smaller than 32 x 32.
        """
        if min(images.shape[-2:]) < _SMALLEST_IMAGE:
            raise ValueError(
                f"Expected argument `images` to be at least {_SMALLEST_IMAGE} x {_SMALLEST_IMAGE} pixels, "
                f"but got {images.shape[-2]} x {images.shape[-1]}."
            )
        return cast(Tensor, self.classifier(self.features(images).mean(dim=(-2, -1))))


def vgg16(num_classes: int = 100, *, width: int = 64) -> VGG:
    """Build a VGG-16 with batch normalisation: 14,774,436 parameters at the defaults.

    Args:
        num_classes: number of classes.
        width: channels of the first stage.

    Returns:
        The network.

    Example:
        >>> sum(parameter.numel() for parameter in vgg16().parameters())
        14774436
    """
    return VGG((2, 2, 3, 3, 3), num_classes, width=width)


def vgg19(num_classes: int = 100, *, width: int = 64) -> VGG:
    """Build a VGG-19 with batch normalisation: 20,086,692 parameters at the defaults.

    Args:
        num_classes: number of classes.
        width: channels of the first stage.

    Returns:
        The network.

    Example:
        >>> sum(isinstance(module, nn.Conv2d) for module in vgg19(width=8).modules())
        16
    """
    return VGG((2, 2, 4, 4, 4), num_classes, width=width)
