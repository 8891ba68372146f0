"""What is attached to a layer of DPOT has its effect, though the fast path would not call the layer."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_farms.models import DPOT

SIZES = {
    "img_size": 16, "patch_size": 4, "in_channels": 2, "out_channels": 2, "in_timesteps": 5, "embed_dim": 16,
    "depth": 2, "n_blocks": 2, "modes": 3, "out_layer_dim": 8, "n_cls": 3,
}  # fmt: skip

# module -> the parameters that double its output when they are doubled
DOUBLING = {
    "patch_embed": "patch_embed.proj.2",
    "patch_embed.proj": "patch_embed.proj.2",
    "patch_embed.proj.0": "patch_embed.proj.0",
    "patch_embed.proj.2": "patch_embed.proj.2",
    "time_agg_layer": "time_agg_layer.w",
    "blocks.1.mlp": "blocks.1.mlp.2",
    "blocks.1.mlp.0": "blocks.1.mlp.0",
    "blocks.1.mlp.2": "blocks.1.mlp.2",
    "out_layer": "out_layer.4",
    "out_layer.0": "out_layer.0",
    "out_layer.2": "out_layer.2",
    "out_layer.4": "out_layer.4",
}


def _network():
    torch.manual_seed(0)
    return DPOT(**SIZES).double()


def _frames():
    return torch.randn(2, 16, 16, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _double(model, prefix):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(prefix):
                parameter.mul_(2)
    return model


@pytest.mark.parametrize(("hooked", "doubled"), DOUBLING.items(), ids=DOUBLING)
def test_a_hook_on_a_layer_has_its_effect(hooked, doubled):
    model = _network()
    plain = model(_frames()).prediction
    handle = model.get_submodule(hooked).register_forward_hook(lambda module, inputs, output: 2 * output)
    result = model(_frames()).prediction
    torch.testing.assert_close(result, _double(_network(), doubled)(_frames()).prediction)
    assert (result - plain).norm() > 1e-4 * plain.norm()
    handle.remove()
    assert torch.equal(model(_frames()).prediction, plain)


@pytest.mark.parametrize("name", ["patch_embed.proj.0", "patch_embed.proj.2", "blocks.0.mlp.0", "out_layer.0"])
def test_a_parametrised_layer_has_its_effect_and_its_gradients(name):
    model = _network()
    layer = parametrizations.weight_norm(model.get_submodule(name))
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)
    prediction = model(_frames()).prediction
    twin = _network()
    with torch.no_grad():
        twin.get_submodule(name).weight.mul_(2)
    torch.testing.assert_close(prediction, twin(_frames()).prediction)
    prediction.sum().backward()
    assert layer.parametrizations.weight.original0.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["patch_embed.proj.2", "blocks.0.mlp.2", "out_layer.2"])
def test_a_layer_may_be_replaced_by_one_that_mixes_neighbours(name):
    """A 3x3 convolution that is zero but in the centre is the 1x1 convolution; shifted by a pixel it is not."""
    model = _network()
    expected = model(_frames()).prediction
    parent, _, child = name.rpartition(".")
    small = model.get_submodule(name)
    wide = nn.Conv2d(small.in_channels, small.out_channels, 3, padding=1).double()
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, :, 1, 1] = small.weight[:, :, 0, 0]
        wide.bias.copy_(small.bias)
    setattr(model.get_submodule(parent), child, wide)
    torch.testing.assert_close(model(_frames()).prediction, expected)
    with torch.no_grad():
        wide.weight.copy_(wide.weight.roll(1, dims=3))
    assert (model(_frames()).prediction - expected).norm() > 1e-4 * expected.norm()


@pytest.mark.parametrize(
    "layers",
    [
        nn.Conv2d(5, 16, kernel_size=4, stride=4),
        nn.Sequential(nn.Conv2d(5, 16, kernel_size=4, stride=4)),
        nn.Sequential(nn.Conv2d(5, 8, kernel_size=4, stride=4), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 16, 1)),
        nn.Sequential(nn.Conv2d(5, 8, kernel_size=4, stride=4), nn.PReLU(8), nn.Conv2d(8, 16, 1)),
        nn.Sequential(nn.Conv2d(5, 8, kernel_size=4, stride=4, bias=False), nn.SiLU(), nn.Conv2d(8, 16, 1, bias=False)),
    ],
    ids=["one convolution", "sequence of one", "no activation", "activation with parameters", "no bias"],
)
def test_other_layers_may_take_the_place_of_the_embedding(layers):
    model = _network()
    model.patch_embed.proj = layers.double()
    result = model(_frames()).prediction
    model.patch_embed.register_forward_hook(lambda *arguments: None)  # from here on the layers are called
    torch.testing.assert_close(result, model(_frames()).prediction)


def test_an_embedding_for_other_channels_is_refused():
    model = _network()
    model.patch_embed.proj[0] = nn.Conv2d(6, 11, kernel_size=4, stride=4).double()
    with pytest.raises(RuntimeError, match="to have 6 channels, but got 5"):
        model(_frames())


@pytest.mark.parametrize(
    "layers",
    [
        nn.ConvTranspose2d(16, 2, kernel_size=4, stride=4),
        nn.Sequential(nn.ConvTranspose2d(16, 2, kernel_size=4, stride=4, bias=False)),
        nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(16, 2, 3, padding=1)),
        nn.Sequential(nn.ConvTranspose2d(16, 8, kernel_size=4, stride=4), nn.PReLU(8), nn.Conv2d(8, 2, 1)),
    ],
    ids=["one convolution", "sequence of one, no bias", "upsampling", "activation with parameters"],
)
def test_other_layers_may_take_the_place_of_the_output_layers(layers):
    model = _network()
    model.out_layer = layers.double()
    result = model(_frames()).prediction
    model.out_layer.register_forward_hook(lambda *arguments: None)  # from here on the layers are called
    torch.testing.assert_close(result, model(_frames()).prediction)
