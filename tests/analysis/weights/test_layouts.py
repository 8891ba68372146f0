"""Kernels and batches whose class is not PyTorch's: a model and its file have the same matrices."""

import pytest
import torch
from torch import nn

from lightning_farms.analysis import checkpoint_weights, layer_weights


def bare(name, shape, **attributes):
    """A module of a class of that name with a `weight`."""
    module = type(name, (nn.Module,), {})()
    module.weight = nn.Parameter(torch.randn(shape))
    for key, value in attributes.items():
        setattr(module, key, value)
    return module


def positions(weight, order):
    return weight.permute(order).flatten(0, -3)


CASES = {
    "deformable": (bare("DeformConv2d", (16, 12, 3, 3), groups=1), (2, 3, 0, 1), "convolution"),
    "a user's": (bare("EqualizedConv1d", (16, 12, 5)), (2, 0, 1), "convolution"),
    "sparse in 3-D": (bare("SubMConv3d", (16, 3, 3, 3, 12), out_channels=16), (1, 2, 3, 0, 4), "convolution"),
    "sparse in 2-D": (bare("SparseConv2d", (16, 2, 2, 12), out_channels=16), (1, 2, 0, 3), "convolution"),
    "experts": (bare("ParallelExperts", (6, 20, 40)), (0, 1, 2), "parameter"),
}


@pytest.mark.parametrize("case", CASES)
def test_model_and_file_have_the_same_matrices(case):
    module, order, kind = CASES[case]
    expected = positions(module.weight.detach(), order)
    model = nn.ModuleDict({"layer": module})
    for weights in (layer_weights(model), checkpoint_weights(model.state_dict())):
        [weight] = weights
        assert (weight.name, weight.kind, weight.reason) == ("layer", kind, "")
        assert torch.equal(weight.matrices, expected)


def test_groups_of_a_foreign_convolution():
    module = bare("DeformConv2d", (16, 3, 3, 3), groups=4)
    [weight] = layer_weights(module)
    assert weight.matrices.shape == (36, 4, 3)
    assert torch.equal(weight.matrices[10], module.weight.detach()[4:8, :, 0, 1])


def test_older_sparse_kernels_have_the_outputs_last():
    module = bare("SubMConv3d", (3, 3, 3, 12, 16), out_channels=16)
    [weight] = layer_weights(module)
    assert torch.equal(weight.matrices[5], module.weight.detach()[0, 1, 2].T)


BATCHES = {
    "by a bias each": ("up", (6, 20, 8), {"up.bias": torch.ones(6, 20)}, True),
    "by name": ("mlp.experts.up", (6, 20, 8), {}, True),
    "by its length": ("up", (6, 20, 64), {}, True),
    "a kernel": ("up", (6, 20, 8), {}, False),
    "a long kernel with a bias": ("pos_conv", (32, 20, 128), {"pos_conv.bias": torch.ones(32)}, False),
    "a kernel of one channel": ("filter", (6, 1, 64), {}, False),
}


@pytest.mark.parametrize("case", BATCHES)
def test_what_tells_a_batch_from_a_kernel(case):
    module, shape, others, batch = BATCHES[case]
    tensor = torch.randn(shape)
    [weight] = checkpoint_weights({f"{module}.weight": tensor, **others})
    assert weight.kind == ("parameter" if batch else "convolution")
    assert torch.equal(weight.matrices, tensor if batch else tensor.permute(2, 0, 1))
