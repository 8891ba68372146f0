"""Matrices of known low rank in fewer rows or columns, against NumPy's singular values of the whole windows."""

import numpy as np
import pytest
import torch

from lightning_farms import FARMS, WholeMatrix
from lightning_farms.analysis._engine.decompose import compressed, decompose
from lightning_farms.analysis._engine.plan import plan_layer
from lightning_farms.analysis.weights.layer_weight import LayerWeight

RANK = 12


def low_rank(rows, columns, *, batch=1, dtype=torch.float32, decay=0.0):
    generator = torch.Generator().manual_seed(3)
    up = torch.randn(batch, rows, RANK, generator=generator, dtype=dtype)
    down = torch.randn(batch, RANK, columns, generator=generator, dtype=dtype)
    return up * torch.arange(1, RANK + 1) ** -decay @ down


def plan_of(matrices, method, rank=RANK):
    return plan_layer(LayerWeight("w", "linear", tuple(matrices.shape[1:]), matrices, (), rank=rank), method)


def spectrum_of(plan, *, quick=True, workers=1):
    [group] = decompose({0: plan}, quick=quick, workspace=2**28, workers=workers)
    return group[0]


def by_numpy(plan):
    """The largest eigenvalues of every window, ascending: (windows, P, RANK)."""
    windows, matrices = plan.windows, plan.matrices.numpy().astype(complex)
    blocks = [
        matrices[:, row : row + windows.height, column : column + windows.width]
        for row in windows.row_starts
        for column in windows.column_starts
    ]
    return np.linalg.svd(np.stack(blocks), compute_uv=False)[..., RANK - 1 :: -1] ** 2


CASES = {
    "whole": (low_rank(90, 130), WholeMatrix()),
    "whole, upright": (low_rank(130, 90), WholeMatrix()),
    "windows of all rows": (low_rank(64, 300), FARMS()),
    "windows of all columns": (low_rank(300, 64), FARMS()),
    "narrow windows": (low_rank(100, 300), FARMS(aspect_ratio=0.7)),
    "a batch": (low_rank(80, 90, batch=5), WholeMatrix()),
    "complex": (low_rank(80, 90, dtype=torch.complex64), WholeMatrix()),
    "double": (low_rank(80, 90, dtype=torch.float64), FARMS()),
    "steep": (low_rank(200, 220, decay=2.0), WholeMatrix()),
    "half": (low_rank(80, 90).half(), WholeMatrix()),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("quick", [True, False])
def test_eigenvalues_are_those_of_the_whole_windows(case, quick):
    plan = plan_of(*CASES[case])
    small = compressed(plan, quick)
    assert min(small.matrices.shape[-2:]) == RANK + 8 < min(plan.matrices.shape[-2:]) / 2
    spectrum = spectrum_of(plan, quick=quick)
    expected = by_numpy(plan)
    got = spectrum.eigenvalues.double().numpy()
    assert got.shape == expected.shape
    noise = (2e-6 if quick else 3e-7 if case != "double" else 1e-12) * expected[..., -1:]
    if case == "half":  # whose own rounding makes it of full rank
        noise = 1e-5 * expected[..., -1:]
    assert np.all(np.abs(got - expected) <= noise)


def test_what_is_neither_known_nor_low_nor_whole_stays():
    matrices = low_rank(90, 130)
    for plan in (
        plan_of(matrices, WholeMatrix(), rank=None),
        plan_of(matrices, WholeMatrix(), rank=40),
        plan_of(matrices, FARMS(window=50, steps=3)),
    ):
        assert compressed(plan, True) is plan
        assert plan.compressed_side is None


def test_the_same_for_any_number_of_threads_and_every_time():
    plan = plan_of(low_rank(257, 300), WholeMatrix())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again = (spectrum_of(plan, workers=n).eigenvalues for n in (1, 3))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())


def test_a_product_of_zero_has_eigenvalues_of_zero():
    plan = plan_of(torch.zeros(1, 90, 130), WholeMatrix())
    assert not spectrum_of(plan).eigenvalues.any()


def test_its_cost_is_that_of_the_few_rows():
    product, full = (plan_of(low_rank(512, 512), WholeMatrix(), rank=rank) for rank in (RANK, None))
    assert product.cost < full.cost / 20
