import pytest
import torch

from lightning_farms.models import DPOT, RELEASED_SIZES, released_size

# reference/other.json, key "dpot_released_sizes", for tiny to medium; for all the README of the original program
# (width, hidden units of the MLP, layers, blocks, millions of parameters; for the huge one it says 8092 hidden units)
# and the sizes of the files in GB, which hold every parameter three times (its value and Adam's two averages), float32.
FIGURES = {
    "tiny": (512, 512, 4, 4, 7, 7_534_643, 67, 0.0905),
    "small": (1024, 1024, 6, 8, 30, 30_801_459, 91, 0.370),
    "medium": (1024, 4096, 12, 8, 122, 122_125_875, 163, 1.47),
    "large": (1536, 6144, 24, 16, 509, None, None, 6.11),
    "huge": (2048, 8192, 27, 8, 1030, None, None, 12.4),
}


@pytest.mark.parametrize("name", FIGURES)
def test_sizes(name):
    width, hidden, layers, blocks, millions, parameters, tensors, gigabytes = FIGURES[name]
    size = released_size(name)
    with torch.device("meta"):
        model = DPOT(**size.config)
    state = model.state_dict()
    assert model.config == size.config
    assert tuple(state["blocks.0.mlp.0.weight"].shape) == (hidden, width, 1, 1)
    assert (len(model.blocks), state["blocks.0.filter.w1"].shape[1]) == (layers, blocks)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == size.parameters == (parameters or counted)
    assert abs(counted / 1e6 - millions) < max(1.1, 0.002 * millions)
    assert len(state) == (tensors or 19 + 12 * layers)
    assert 12 * counted / 1e9 == pytest.approx(gigabytes, rel=0.004)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("tiny", "model_Ti.pth"), ("Tiny", "model_Ti.pth"), ("Ti", "model_Ti.pth"), ("ti", "model_Ti.pth"),
        ("SMALL", "model_S.pth"), ("m", "model_M.pth"), ("L", "model_L.pth"), ("Huge", "model_H.pth"),
    ],
)  # fmt: skip
def test_names(name, file):
    assert released_size(name).file == file


@pytest.mark.parametrize("name", ["base", "", "model_Ti.pth", None])
def test_unknown_name(name):
    with pytest.raises(ValueError, match="released size \\('tiny', 'small', 'medium', 'large', 'huge'\\), but got"):
        released_size(name)


def test_order():
    assert [size.name for size in RELEASED_SIZES] == list(FIGURES)
    assert sorted(size.parameters for size in RELEASED_SIZES) == [size.parameters for size in RELEASED_SIZES]
