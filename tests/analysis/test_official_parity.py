"""compat="official" against the numbers that the authors' program prints."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_farms.analysis import FARMS, WholeMatrix, analyze

QUANTITIES = (
    "alpha",
    "ks_distance",
    "spectral_norm",
    "frobenius_norm_squared",
    "alpha_hat",
    "stable_rank",
    "eigenvalue_count",
)

# reference/farms_alpha.json: kind, shape and seed of the weight; aspect ratio of FARMS (num_row_samples 100,
# sampling_ops_per_dim 9) or - for the whole matrix; fit; and QUANTITIES (there: alpha, D, spectral_norm, norm,
# alpha_hat, stable_rank, eigs_num)
CASES = """
gaussian 64x3x3x3 1 1.0 hill 2.0183898 0.23560521 0.25382867 1.5268681 -1.210303 6.1940153 567
gaussian 64x3x3x3 1 - hill 6.1560249 0.18888228 1.8218178 32.749619 1.6036748 17.976341 27
gaussian 128x64x3x3 1 1.0 hill 2.1091135 0.18467245 0.23400552 31.967373 -1.3313645 136.91154 1152
gaussian 128x64x3x3 1 - hill 2.7012167 0.16544923 0.32596937 63.934738 -1.315015 196.13725 576
gaussian 64x128x1x1 1 1.0 hill 2.1396279 0.20508605 0.95058027 16.015768 -0.048148384 16.870174 128
gaussian 64x128x1x1 1 - hill 2.7467899 0.22198522 1.3394485 32.031532 0.34863907 23.913975 64
gaussian 96x96x3x3 1 1.0 hill 2.1182256 0.18257585 0.22105882 47.944786 -1.3884803 216.88701 864
gaussian 96x96x3x3 1 - hill 2.1182256 0.18257585 0.22105882 47.944786 -1.3884803 216.88699 864
gaussian 100x512 1 1.0 hill 2.1158357 0.17604852 0.81616449 176.37842 -0.18666389 216.10646 900
gaussian 100x512 1 - hill 3.7299707 0.17086446 2.0597539 100.14422 1.170522 48.619507 100
gaussian 300x500 1 1.0 hill 2.1166286 0.17536792 0.85083538 1614.8175 -0.14849094 1897.92 8100
gaussian 300x500 1 - hill 2.5207 0.17085913 3.02163 298.63251 1.2105442 98.831581 300
gaussian 512x512 1 1.0 hill 2.1188545 0.17546025 0.84062773 1579.5837 -0.15975377 1879.0526 8100
gaussian 512x512 1 - hill 2.1294398 0.1794439 3.8662336 511.51736 1.2505946 132.3038 512
spiked 64x3x3x3 1 1.0 hill 1.81507 0.23320663 5.688276 26.783421 1.2069235 5.0656829 567
spiked 64x3x3x3 1 - hill 2.1043105 0.19408503 109.44759 575.38208 4.2911231 5.2571468 27
spiked 128x64x3x3 1 1.0 hill 1.7389188 0.16267329 71.137587 746.12762 3.1944234 10.659466 1152
spiked 128x64x3x3 1 - hill 1.906503 0.2207765 141.4814 1492.2554 4.1003147 10.54736 576
spiked 64x128x1x1 1 1.0 hill 1.7494721 0.15064692 325.22521 443.65694 4.3636032 1.4059453 128
spiked 64x128x1x1 1 - hill 1.9280016 0.21932852 645.97198 887.31384 5.4180966 1.3736105 64
spiked 96x96x3x3 1 1.0 hill 1.8091009 0.16519123 95.049858 991.70691 3.5783137 10.433544 864
spiked 96x96x3x3 1 - hill 1.8091009 0.16519123 95.049858 991.70691 3.5783137 10.433545 864
spiked 100x512 1 1.0 hill 1.8076627 0.1632297 376.86621 4251.9243 4.6568776 11.282318 900
spiked 100x512 1 - hill 2.3492355 0.26576686 1720.6239 2418.1501 7.6013884 1.4053915 100
spiked 300x500 1 1.0 hill 1.8099797 0.16581035 504.04074 36567.043 4.8914079 72.547791 8100
spiked 300x500 1 - hill 2.2532077 0.15758014 4821.9351 6736.9746 8.2990627 1.3971518 300
spiked 512x512 1 1.0 hill 1.8103836 0.16544437 402.57431 35528.414 4.7157705 88.253059 8100
spiked 512x512 1 - hill 2.0301816 0.14584923 8152.4663 11336.153 7.9406272 1.3905184 512
student 64x3x3x3 1 1.0 hill 1.8834705 0.21871179 0.83151818 3.3473511 -0.26306326 4.5540192 567
student 64x3x3x3 1 - hill 4.2189155 0.22886309 4.9907966 73.042191 2.9455196 14.635377 27
student 128x64x3x3 1 1.0 hill 2.0180272 0.15529212 3.2407168 94.991867 0.87954846 39.108209 1152
student 128x64x3x3 1 - hill 2.4614103 0.14674473 5.0561128 189.98373 1.7323818 37.575058 576
student 64x128x1x1 1 1.0 hill 2.0264409 0.14583567 4.1773086 46.570637 1.2545293 11.197855 128
student 64x128x1x1 1 - hill 2.3921375 0.15545022 5.235333 93.141266 1.7198137 17.790897 64
student 96x96x3x3 1 1.0 hill 2.0099206 0.16023067 3.4467618 142.63226 1.080154 41.381527 864
student 96x96x3x3 1 - hill 2.0099206 0.16023067 3.4467618 142.63226 1.080154 41.381527 864
student 100x512 1 1.0 hill 2.041394 0.16728932 3.8768477 490.84668 1.201317 126.60974 900
student 100x512 1 - hill 3.7040801 0.13264862 6.8346019 281.62183 3.0918446 41.205292 100
student 300x500 1 1.0 hill 2.015975 0.16062734 12.097284 4797.71 2.1826717 396.59396 8100
student 300x500 1 - hill 2.4321239 0.16012731 15.591966 874.9812 2.9012827 56.117439 300
student 512x512 1 1.0 hill 2.0291796 0.15936676 11.236606 4582.7119 2.1319274 407.83774 8100
student 512x512 1 - hill 2.0812171 0.17578125 16.490427 1485.6584 2.5333238 90.092178 512
spiked 128x64x3x3 2 0.5 hill 1.7115789 0.22390869 38.471681 374.49564 2.6942499 9.7273445 576
spiked 300x500 2 0.5 hill 1.8534219 0.22484988 258.19714 17614.471 4.4703637 68.221016 4050
spiked 128x64x3x3 2 0.75 hill 1.7564406 0.18594947 50.154377 515.10701 2.9672282 10.283389 864
spiked 300x500 2 0.75 hill 1.8530195 0.18175006 369.29861 27004.945 4.7574008 73.124954 6075
spiked 128x64x3x3 2 1.5 hill 1.7544524 0.19341081 41.09363 419.79247 2.818603 10.180616 756
spiked 300x500 2 1.5 hill 1.9604625 0.18350911 789.15149 56486.527 5.6797741 71.578812 8100
spiked 128x64x3x3 2 2.0 hill 1.7467179 0.20536545 27.35076 272.68411 2.5008666 9.9808826 576
spiked 300x500 2 2.0 hill 2.0554423 0.20174396 1000.1389 74391.047 6.166451 74.380714 8100
spiked 128x64x3x3 3 1.0 peak 1.5985809 0.13868415 58.178371 583.77802 2.8198668 10.040446 1152
spiked 300x500 3 1.0 peak 1.6406789 0.15135866 396.22311 35892.324 4.262385 90.586143 8100
spiked 128x64x3x3 3 1.0 ks 1.5985809 0.13868415 58.178371 583.77802 2.8198668 10.040446 1152
spiked 300x500 3 1.0 ks 13.956593 0.082117945 396.22311 35892.324 36.258387 90.586143 8100
""".strip().splitlines()


def draw(kind, shape, seed):
    """The weight of a case; the normal numbers are drawn first for every kind."""
    random = np.random.RandomState(seed)
    weight = random.standard_normal(shape)
    if kind == "student":
        weight = random.standard_t(3, size=shape)
    if kind == "spiked":
        rows, columns = shape[0], math.prod(shape[1:])
        left, right = random.standard_normal((rows, 4)), random.standard_normal((4, columns))
        weight = weight + ((left * [8, 4, 2, 1]) @ right / 2).reshape(shape)
    return torch.tensor(weight / math.sqrt(math.prod(shape[1:])), dtype=torch.float32)


def layer(weight):
    out_features, in_features, *kernel = weight.shape
    if kernel:
        module = nn.Conv2d(in_features, out_features, kernel, bias=False, device="meta")
    else:
        module = nn.Linear(in_features, out_features, bias=False, device="meta")
    module.weight = nn.Parameter(weight)
    return module


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case.split()[:5]))
def test_official_figures(case):
    kind, shape, seed, aspect_ratio, fit, *figures = case.split()
    if aspect_ratio == "-":
        method = WholeMatrix(fit=fit, compat="official")
    else:
        method = FARMS(float(aspect_ratio), 100, 9, fit=fit, compat="official")
    (row,) = analyze(layer(draw(kind, tuple(map(int, shape.split("x"))), int(seed))), method)
    assert row.status == "ok"
    got = torch.tensor([getattr(row, name) for name in QUANTITIES], dtype=torch.float64)
    expected = torch.tensor([float(figure) for figure in figures], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
    assert row.eigenvalue_count == expected[-1]


def test_there_are_all_cases():
    assert len(set(CASES)) == 54


def test_ours_differs_from_official_where_the_program_drops_rows():
    module = layer(draw("gaussian", (130, 64, 3, 3), 1))
    (ours,), (official,) = analyze(module), analyze(module, FARMS(1.0, 100, 9, compat="official"))
    assert ours.windows == 3
    assert official.windows == 2


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv1d(32, 32, 3),
        nn.Conv2d(32, 64, 3, groups=2),
        nn.ConvTranspose2d(32, 32, 3),
        nn.Bilinear(16, 16, 4),
    ],
)
@pytest.mark.parametrize("method", [FARMS(1.0, 8, 2, compat="official"), WholeMatrix(compat="official")])
def test_official_refuses_what_the_program_does_not_know(module, method):
    (row,) = analyze(module, method)
    assert row.status == "skipped"
    assert row.reason == 'compat="official" covers Linear weights and those of Conv2d without groups only'


def test_official_clamps_a_window_larger_than_the_linear_layer():
    module = layer(draw("spiked", (64, 24), 1))
    (clamped,), (fits,) = (analyze(module, FARMS(1.0, window, 9, compat="official")) for window in (100, 24))
    assert clamped.alpha == fits.alpha
    assert clamped.windows == fits.windows == 9
    assert clamped.reason == "the window was shrunk to 24 x 24 to fit the matrix"


def test_official_refuses_a_window_wider_than_the_linear_layer():
    (row,) = analyze(nn.Linear(10, 64), FARMS(1.5, 100, 9, compat="official"))
    assert row.status == "skipped"
    assert "use a smaller `window`, or compat=None" in row.reason


@pytest.mark.parametrize("method", [FARMS(1.0, 16, 3, compat="official"), WholeMatrix(compat="official")])
def test_official_skips_an_infinite_alpha(method):
    module = nn.Linear(16, 16, bias=False)
    nn.init.eye_(module.weight)
    (row,) = analyze(module, method)
    assert row.status == "skipped"
    assert math.isnan(row.alpha)
    assert math.isnan(row.alpha_hat)
    assert "not a power law" in row.reason


def test_official_skips_a_mean_over_blocks_that_is_not_finite():
    module = nn.Conv2d(16, 32, 1, bias=False)
    weight = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    weight[16:] = torch.eye(16)
    module.weight = nn.Parameter(weight[..., None, None])
    (row,) = analyze(module, FARMS(1.0, 16, 3, compat="official"))
    assert row.status == "skipped"
    assert math.isnan(row.alpha)
