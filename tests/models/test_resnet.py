import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from lightning_farms.models import ResNet, resnet18, resnet34


def closed_form(blocks, width, classes):
    """Parameters of a CIFAR ResNet, stage by stage: convolutions without bias, two numbers a normalised channel."""
    total, inputs = 27 * width + 2 * width, width
    for stage, count in enumerate(blocks):
        outputs = width * 2**stage
        for _ in range(count):
            total += 9 * outputs * (inputs + outputs) + 4 * outputs
            total += (inputs * outputs + 2 * outputs) if inputs != outputs else 0
            inputs = outputs
    return total + (inputs + 1) * classes


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("build", "blocks", "known"), [(resnet18, (2, 2, 2, 2), 11_220_132), (resnet34, (3, 4, 6, 3), 21_328_292)]
)
def test_parameter_count_is_the_known_one(build, blocks, known):
    with torch.device("meta"):
        assert count(build()) == known == closed_form(blocks, 64, 100)
        assert count(build(10, width=24)) == closed_form(blocks, 24, 10)


def convolve(state, x, conv, norm, stride=1):
    weight = state[f"{conv}.weight"]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    x = (x - mean) / (variance + 1e-5).sqrt()
    return x * state[f"{norm}.weight"].view(1, -1, 1, 1) + state[f"{norm}.bias"].view(1, -1, 1, 1)


def forward_from_the_paper(state, blocks, images):
    """Equations 1 and 2 of He et al. on a state dict, the first block of stages 2 to 4 with stride 2."""
    x = convolve(state, images, "conv1", "bn1").relu()
    for stage, number in enumerate(blocks, start=1):
        for block in range(number):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            hidden = convolve(state, x, f"{name}.conv1", f"{name}.bn1", stride).relu()
            hidden = convolve(state, hidden, f"{name}.conv2", f"{name}.bn2")
            if f"{name}.downsample.0.weight" in state:
                x = convolve(state, x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = (hidden + x).relu()
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def test_forward_equals_the_equations():
    torch.manual_seed(0)
    model = ResNet((1, 2, 1, 1), num_classes=7, width=4).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    images = torch.randn(3, 3, 16, 12, dtype=torch.float64)
    expected = forward_from_the_paper(model.state_dict(), (1, 2, 1, 1), images)
    torch.testing.assert_close(model(images), expected)
    assert expected.shape == (3, 7)


def test_image_is_halved_three_times():
    model = resnet18(width=4)
    sizes = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    model(torch.zeros(1, 3, 32, 32))
    assert sizes == [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)]


def test_weights_are_gaussian_with_variance_two_over_inputs():
    torch.manual_seed(0)
    model = resnet18(width=16)
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 21
    for layer in layers:
        weight = layer.weight.detach()
        inputs = weight[0].numel()
        assert stats.kstest((weight.flatten() * (inputs / 2) ** 0.5).numpy(), "norm").pvalue > 1e-3
    assert model.fc.bias.abs().max() == 0


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    model = resnet34(5, width=4)
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((2, 2, 2),), ValueError, "`blocks` to have 4 entries, but got 3"),
        (((2, 2, 0, 2),), ValueError, r"`blocks\[2\]` to be an integer of at least 1, but got 0"),
        (((2, 2, 2, 2), 0), ValueError, "`num_classes` to be an integer of at least 1, but got 0"),
        (((2, 2, 2, 2), 10.0), TypeError, "`num_classes` to be an integer, but got 10.0"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ResNet(*arguments)


def test_wrong_width():
    with pytest.raises(ValueError, match="`width` to be an integer of at least 1, but got -3"):
        resnet18(width=-3)
