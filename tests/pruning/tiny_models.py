"""Blocks of linear layers, and layers of which only the size matters."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Part(NamedTuple):
    """A weight, or a layer without values."""

    name: str
    block: str
    size: int
    matrices: Tensor = torch.empty(0)


def blocks_of_linears(shapes, blocks, seed=0):
    """A model with the list `layers`; a block has a linear layer (inputs, outputs) for every shape, and ReLUs between.

    Each has directions of its own strength, so that alphas differ.
    """
    generator = torch.Generator().manual_seed(seed)

    def linear(inputs, outputs):
        layer = nn.Linear(inputs, outputs, bias=False)
        strength = 1 + 3 * torch.rand(1, generator=generator)
        left, right = torch.randn(outputs, 2, generator=generator), torch.randn(2, inputs, generator=generator)
        layer.weight.data = torch.randn(outputs, inputs, generator=generator) + strength * left @ right
        return layer

    def block():
        return nn.Sequential(*[part for shape in shapes for part in (linear(*shape), nn.ReLU())])

    return nn.ModuleDict({"layers": nn.ModuleList(block() for _ in range(blocks))})
