import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_farms.models.dpot._channels_last import is_patchwise, is_pointwise, is_untouched, pointwise


class Adapted(nn.Conv2d):
    """A layer of another class, as LoRA's and quantised ones are."""


def _replace_forward(layer):
    layer.forward = lambda x: x
    return layer


def _with(register):
    def attach(layer):
        getattr(layer, register)(lambda *arguments: None)
        return layer

    return attach


ATTACHMENTS = {
    "forward hook": _with("register_forward_hook"),
    "forward pre-hook": _with("register_forward_pre_hook"),
    "backward hook": _with("register_full_backward_hook"),
    "backward pre-hook": _with("register_full_backward_pre_hook"),
    "weight normalisation": parametrizations.weight_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "forward of its own": _replace_forward,
    "subclass": lambda layer: Adapted(4, 4, 1),
}


@pytest.mark.parametrize("attach", ATTACHMENTS.values(), ids=ATTACHMENTS)
def test_attachments_are_seen(attach):
    layer = nn.Conv2d(4, 4, 1)
    assert is_untouched(layer, nn.Conv2d)
    assert is_pointwise(layer)
    layer = attach(layer)
    assert not is_untouched(layer, nn.Conv2d)
    assert not is_pointwise(layer)


def test_a_removed_hook_is_forgotten():
    layer = nn.Conv2d(4, 4, 1)
    layer.register_forward_hook(lambda *arguments: None).remove()
    assert is_untouched(layer, nn.Conv2d)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv2d(4, 8, 1), True),
        (nn.Conv2d(4, 8, 1, bias=False), True),
        (nn.GELU(), True),
        (nn.Conv2d(4, 8, 3, padding=1), False),
        (nn.Conv2d(4, 8, 1, stride=2), False),
        (nn.Conv2d(4, 8, 1, padding=1), False),
        (nn.Conv2d(4, 8, 1, padding="same"), False),
        (nn.Conv2d(4, 8, 1, groups=2), False),
        (nn.PReLU(4), False),
        (nn.Softmax2d(), False),
        (nn.Linear(4, 4), False),
    ],
    ids=str,
)
def test_what_is_pointwise(module, expected):
    assert is_pointwise(module) is expected


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv2d(4, 8, 3, stride=3), True),
        (nn.ConvTranspose2d(4, 8, (2, 3), stride=(2, 3)), True),
        (nn.Conv2d(4, 8, 3, stride=2), False),
        (nn.Conv2d(4, 8, 3, stride=3, padding=1), False),
        (nn.Conv2d(4, 8, 3, stride=3, dilation=2), False),
        (nn.Conv2d(4, 8, 3, stride=3, groups=4), False),
        (nn.ConvTranspose2d(4, 8, 3, stride=3, output_padding=1), False),
        (nn.Conv1d(4, 8, 3, stride=3), False),
    ],
    ids=str,
)
def test_what_is_patchwise(module, expected):
    assert is_patchwise(module, type(module)) is expected
    assert not is_patchwise(module, nn.ConvTranspose2d if type(module) is nn.Conv2d else nn.Conv2d)


def test_pointwise_layers_equal_the_ordinary_call():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 5, 1), nn.GELU(), nn.Conv2d(5, 2, 1, bias=False), nn.Tanh()).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(pointwise(layers, x.movedim(1, -1)), layers(x).movedim(1, -1))
