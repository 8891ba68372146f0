import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from lightning_farms.models import VGG, vgg16, vgg19

FACTORS = (1, 2, 4, 8, 8)


def closed_form(convolutions, width, classes):
    """Parameters of a CIFAR VGG: a convolution has a bias and two normalisation parameters a channel."""
    total, inputs = 0, 3
    for factor, count in zip(FACTORS, convolutions, strict=True):
        for _ in range(count):
            total += factor * width * (9 * inputs + 3)
            inputs = factor * width
    return total + (inputs + 1) * classes


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("build", "convolutions", "known"),
    [(vgg16, (2, 2, 3, 3, 3), 14_774_436), (vgg19, (2, 2, 4, 4, 4), 20_086_692)],
)
def test_parameter_count_is_the_known_one(build, convolutions, known):
    with torch.device("meta"):
        assert count(build()) == known == closed_form(convolutions, 64, 100)
        assert count(build(10, width=24)) == closed_form(convolutions, 24, 10)


@pytest.mark.parametrize(("build", "layers"), [(vgg16, 16), (vgg19, 19)])
def test_name_is_the_number_of_weight_layers_with_three_linear_ones_counted(build, layers):
    """The published networks end in three linear layers, these in one."""
    with torch.device("meta"):
        weights = [module for module in build().modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(weights) == layers - 2


def forward_from_the_paper(state, convolutions, images):
    x, index = images, 0
    for number in convolutions:
        for _ in range(number):
            x = F.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1)
            x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
            scale, shift = (state[f"features.{index + 1}.{name}"].view(1, -1, 1, 1) for name in ("weight", "bias"))
            x = (x * scale + shift).relu()
            index += 3
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
        index += 1
    return x.mean((2, 3)) @ state["classifier.weight"].T + state["classifier.bias"]


def test_forward_equals_the_equations():
    torch.manual_seed(0)
    model = VGG((1, 2, 1, 1, 1), num_classes=7, width=4).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    images = torch.randn(3, 3, 64, 32, dtype=torch.float64)
    expected = forward_from_the_paper(model.state_dict(), (1, 2, 1, 1, 1), images)
    torch.testing.assert_close(model(images), expected)
    assert expected.shape == (3, 7)


def test_weights_are_gaussian_with_variance_two_over_inputs():
    torch.manual_seed(0)
    model = vgg19(width=16)
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        weight = layer.weight.detach()
        inputs = weight[0].numel()
        assert stats.kstest((weight.flatten() * (inputs / 2) ** 0.5).numpy(), "norm").pvalue > 1e-3
        assert layer.bias.abs().max() == 0


def test_gradients_reach_every_parameter_that_normalisation_leaves_free():
    torch.manual_seed(0)
    model = vgg16(5, width=4).double()
    F.cross_entropy(model(torch.randn(8, 3, 32, 32, dtype=torch.float64)), torch.arange(8) % 5).backward()
    gradients = {name: parameter.grad.abs().max() for name, parameter in model.named_parameters()}
    removed = {f"features.{i}.bias" for i, module in enumerate(model.features) if isinstance(module, nn.Conv2d)}
    assert all((gradient > 1e-10) == (name not in removed) for name, gradient in gradients.items())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((2, 2, 3, 3),), ValueError, "`convolutions` to have 5 entries, but got 4"),
        (((2, 2, 3, 3, 0),), ValueError, r"`convolutions\[4\]` to be an integer of at least 1, but got 0"),
        (((1, 1, 1, 1, 1), True), TypeError, "`num_classes` to be an integer, but got True"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        VGG(*arguments)


def test_wrong_width():
    with pytest.raises(ValueError, match="`width` to be an integer of at least 1, but got 0"):
        vgg16(width=0)


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="`images` to be at least 32 x 32 pixels, but got 32 x 28"):
        vgg16(width=1)(torch.zeros(1, 3, 32, 28))
