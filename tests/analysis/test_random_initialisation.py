"""The point of FARMS: where every weight is i.i.d. Gaussian, all layers' alphas agree."""

import statistics
import time

import torch

from lightning_farms.analysis import FARMS, WholeMatrix, analyze
from lightning_farms.models import DPOT, ResNet, resnet34

MOST_STD = 0.05
FEWEST_EIGENVALUES = 100


def gaussian(model):
    """The model with every parameter of two or more dimensions redrawn."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.02, generator=generator)
    return model


def alphas_of_large_layers(model, method):
    start = time.perf_counter()
    report = analyze(model, method)
    seconds = time.perf_counter() - start
    large = [row for row in report if row.eigenvalue_count >= FEWEST_EIGENVALUES]
    assert all(row.status == "ok" for row in large)
    alphas = {row.name: row.alpha for row in large}
    spread = statistics.pstdev(alphas.values())
    print(f"{method}: {len(alphas)} of {len(report)} layers, std of alpha {spread:.4f}, {seconds:.2f} s")
    print({name: round(alpha, 3) for name, alpha in alphas.items()})
    return alphas, spread


def assert_alphas_agree(model, layers):
    alphas, spread = alphas_of_large_layers(model, FARMS())
    assert len(alphas) == layers
    assert spread <= MOST_STD
    assert all(1.9 < alpha < 2.25 for alpha in alphas.values())
    return alphas


def test_small_resnet():
    model = gaussian(ResNet((1, 1, 1, 1), width=16))
    assert_alphas_agree(model, 11)


def test_whole_matrices_do_not_agree():
    """The same check on the same model fails without windows of one ratio."""
    _, spread = alphas_of_large_layers(gaussian(ResNet((1, 1, 1, 1), width=16)), WholeMatrix())
    assert spread > 5 * MOST_STD


def test_resnet34():
    assert_alphas_agree(gaussian(resnet34()), 37)


def test_dpot_tiny():
    model = DPOT(img_size=128, patch_size=8, embed_dim=512, depth=4, n_blocks=4, mlp_ratio=1.0, out_layer_dim=32)
    alphas = assert_alphas_agree(gaussian(model), 24)
    assert {"pos_embed", "time_agg_layer.w", "blocks.0.filter.w1", "blocks.3.filter.w2", "out_layer.0"} <= set(alphas)
    names = [row.name for row in analyze(model)]
    assert not [name for name in names if name.endswith((".b1", ".b2", ".gamma"))]
