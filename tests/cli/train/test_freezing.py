"""Freezing by patterns, and weights that are not finite, at the command line's doors."""

import pytest
import torch
from torch import nn

from lightning_farms.cli.train._freezing import freeze
from lightning_farms.models import DPOT, OperatorModule, load_weights, save_weights


def network():
    return DPOT(img_size=8, patch_size=4, embed_dim=8, depth=2, n_blocks=1, out_layer_dim=4)


def test_patterns_freeze_what_they_match():
    model = OperatorModule(network())
    freeze(model, ["network.blocks.0.*", "*.bias"])
    for name, value in model.named_parameters():
        frozen = name.startswith(("network.blocks.0.", "network.cls_head")) or name.endswith(".bias")
        assert value.requires_grad is not frozen, name
    assert any(value.requires_grad for value in model.parameters())


def test_no_pattern_freezes_nothing():
    model = nn.Linear(2, 2)
    freeze(model, [])
    assert all(value.requires_grad for value in model.parameters())


def test_patterns_of_no_use_are_refused():
    with pytest.raises(
        ValueError, match=r"`freeze` to match parameters, but 'wieght' matches none of these: weight, bias"
    ):
        freeze(nn.Linear(2, 2), ["wieght"])
    with pytest.raises(ValueError, match=r"`freeze` to leave parameters to train"):
        freeze(nn.Linear(2, 2), ["*"])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, bad):
    broken = network()
    name, value = next((name, value) for name, value in broken.named_parameters() if name.startswith("blocks.1."))
    with torch.no_grad():
        value.view(-1)[0] = bad
    save_weights(broken, tmp_path / "a.pth")
    message = rf"to be finite, but these tensors have NaN or infinite values: (network\.)?{name}\. It"
    with pytest.raises(ValueError, match=message):
        load_weights(network(), tmp_path / "a.pth")
    module = OperatorModule(network())
    with pytest.raises(ValueError, match=message):
        module.on_load_checkpoint({"state_dict": OperatorModule(broken).state_dict()})
    module.on_load_checkpoint({"state_dict": module.state_dict()})
