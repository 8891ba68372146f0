"""A layer's numbers from its eigenvalues, against plain numpy; and the row that they make."""

import math

import numpy as np
import pytest
import torch

from lightning_farms.analysis import FARMS, Diagnostics, LayerSpectrum, LayerWeight, WholeMatrix
from lightning_farms.analysis._engine.measure import METRICS, NUMBERS, layer_row, layer_seed, measure, measure_each
from lightning_farms.analysis._engine.plan import plan_layer
from lightning_farms.analysis._engine.spectrum import Spectrum
from lightning_farms.analysis.layer_spectrum import ON_REQUEST
from lightning_farms.functional import esd
from lightning_farms.functional.submatrices import slice_windows

CONVOLUTION = LayerWeight("conv", "convolution", (40, 14, 3, 3), torch.zeros(9, 40, 14), ())
LINEAR = LayerWeight("fc", "linear", (40, 14), torch.zeros(1, 40, 14), ())


def drawn(layer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return layer._replace(matrices=torch.randn(layer.matrices.shape, generator=generator, dtype=torch.float64))


def spectra_of(layer, method):
    plan = plan_layer(layer, method)
    return esd(slice_windows(plan.matrices, plan.windows)).movedim(1, 0), plan  # (blocks, P, k)


def numbers_of(layer, method=FARMS(), wanted=Diagnostics()):
    spectra, plan = spectra_of(layer, method)
    passed = torch.zeros((), dtype=torch.float64)
    (values,) = measure([Spectrum(spectra, passed, passed)], [plan], method, wanted)
    assert values.shape == (len(NUMBERS),)
    assert values.dtype == torch.float64
    return dict(zip(NUMBERS, values.tolist(), strict=True)), spectra.numpy(), plan


def hill(values):
    values = np.sort(values)
    tail = values[len(values) // 2 :]
    return 1 + len(tail) / np.log(tail / tail[0]).sum(), len(tail), tail[0]


def test_errors_of_averaged_blocks_add_in_quadrature():
    numbers, spectra, _ = numbers_of(drawn(CONVOLUTION))
    fits = [hill(block.ravel()) for block in spectra]
    assert len(fits) == 3
    errors = [(alpha - 1) / math.sqrt(size) for alpha, size, _ in fits]
    assert numbers["standard_error"] == pytest.approx(math.sqrt(sum(error**2 for error in errors)) / 3, rel=1e-12)
    assert numbers["tail_size"] == sum(size for _, size, _ in fits) == 3 * 63
    assert numbers["alpha"] == pytest.approx(np.mean([alpha for alpha, _, _ in fits]), rel=1e-12)
    assert (numbers["fits"], numbers["usable"], numbers["deficient"]) == (3, 3, 0)


@pytest.mark.parametrize("layer", [LINEAR, CONVOLUTION])
def test_error_of_one_fit(layer):
    numbers, spectra, _ = numbers_of(drawn(layer), FARMS(blocks="pooled"))
    alpha, size, xmin = hill(spectra.ravel())
    assert numbers["alpha"] == pytest.approx(alpha, rel=1e-12)
    assert numbers["xmin"] == xmin
    assert numbers["tail_size"] == size
    assert numbers["standard_error"] == pytest.approx((alpha - 1) / math.sqrt(size), rel=1e-12)


@pytest.mark.parametrize("method", [FARMS(), FARMS(blocks="pooled"), WholeMatrix()])
def test_norms_are_means_over_windows(method):
    numbers, spectra, _ = numbers_of(drawn(CONVOLUTION), method)
    largest, total = spectra.max(-1), spectra.sum(-1)
    shares = spectra / total[..., None]
    expected = {
        "spectral_norm": largest.mean(),
        "frobenius_norm_squared": total.mean(),
        "stable_rank": (total / largest).mean(),
        "effective_rank": np.exp(-(shares * np.log(shares)).sum(-1)).mean(),
        "alpha_hat": numbers["alpha"] * np.log10(largest.mean()),
    }
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, rel=1e-12)


def test_what_is_not_asked_for_is_not_a_number():
    numbers, _, _ = numbers_of(drawn(LINEAR))
    optional = {name for name in METRICS if name.startswith("mp_")} | {
        "alpha_low",
        "alpha_high",
        "p_value",
        *ON_REQUEST,
    }
    assert {name for name, value in numbers.items() if math.isnan(value)} == optional


def test_block_without_a_fit_is_left_out_of_every_mean():
    layer = drawn(CONVOLUTION)
    layer.matrices[:, :14] = 0
    wanted = Diagnostics(bootstrap=20, p_value=20)
    numbers, spectra, plan = numbers_of(layer, wanted=wanted)
    fits = [hill(block.ravel()) for block in spectra[1:]]
    assert numbers["alpha"] == pytest.approx(np.mean([fit[0] for fit in fits]), rel=1e-12)
    assert numbers["tail_size"] == 2 * 63
    errors = [(alpha - 1) / math.sqrt(size) for alpha, size, _ in fits]
    assert numbers["standard_error"] == pytest.approx(math.hypot(*errors) / 2, rel=1e-12)
    assert numbers["alpha_low"] < numbers["alpha"] < numbers["alpha_high"]
    assert 0 <= numbers["p_value"] <= 1
    row = layer_row(plan, list(numbers.values()))
    assert row.reason == "1 of 3 blocks were left out as rank-deficient, or for equal eigenvalues"


@pytest.mark.parametrize(
    ("matrices", "reason"),
    [
        (torch.zeros(1, 40, 14), "rank-deficient"),
        (torch.ones(1, 40, 14), "rank-deficient"),
        (torch.eye(14).repeat(1, 2, 1), "not a power law"),
    ],
)
def test_row_without_a_fit_has_norms_but_no_numbers_of_a_fit(matrices, reason):
    layer = LINEAR._replace(matrices=matrices.double(), shape=tuple(matrices.shape[1:]))
    numbers, spectra, plan = numbers_of(layer, wanted=Diagnostics(bootstrap=5, p_value=5))
    row = layer_row(plan, list(numbers.values()))
    assert row.status == "skipped"
    assert reason in row.reason
    names = ("alpha", "standard_error", "tail_size", "alpha_low", "alpha_high", "p_value", "ks_distance", "alpha_hat")
    assert all(math.isnan(getattr(row, name)) for name in names)
    assert row.frobenius_norm_squared == pytest.approx(spectra.sum(-1).mean())
    expected = math.log10(row.frobenius_norm_squared) if matrices.any() else -math.inf
    assert row.log_norm == pytest.approx(expected)
    assert numbers["rounding"] > 1


def test_row_tells_the_plan_and_logarithms():
    layer = drawn(LINEAR)
    method = FARMS(0.5, 10, 2)
    numbers, _, plan = numbers_of(layer, method)
    row = layer_row(plan, list(numbers.values()))
    assert isinstance(row, LayerSpectrum)
    assert (row.name, row.kind, row.shape) == ("fc", "linear", (40, 14))
    assert (row.aspect_ratio, row.windows, row.eigenvalue_count) == (0.5, 4, 20)
    assert row.coverage == 20 * 10 / (40 * 14)
    assert row.log_norm == pytest.approx(math.log10(row.frobenius_norm_squared))
    assert row.log_spectral_norm == pytest.approx(math.log10(row.spectral_norm))
    assert row.status == "ok"


def test_few_eigenvalues_a_block_are_pooled():
    layer = drawn(LayerWeight("c", "convolution", (12, 3, 3), torch.zeros(3, 12, 3), ()))
    numbers, spectra, _ = numbers_of(layer)
    assert numbers["fits"] == 1
    assert numbers["alpha"] == pytest.approx(hill(spectra.ravel())[0], rel=1e-12)


def test_official_convolutions_are_halved_and_one_infinite_block_makes_the_mean_infinite():
    method = FARMS(1.0, 14, 3, compat="official")
    layer = drawn(CONVOLUTION._replace(shape=(40, 14, 1, 1), matrices=torch.zeros(1, 40, 14)))
    numbers, spectra, _ = numbers_of(layer, method)
    assert numbers["spectral_norm"] == pytest.approx(0.5 * spectra.max(-1).mean())
    layer.matrices[0, :14] = torch.eye(14)
    numbers, _, plan = numbers_of(layer, method)
    assert layer_row(plan, list(numbers.values())).status == "skipped"


def test_seeds_are_the_layers_own():
    seeds = {layer_seed(name, seed) for name in ("a", "b", "a.b") for seed in (0, 1, 10)}
    assert len(seeds) == 9
    assert layer_seed("blocks.0", 0) == 3096906226  # the same on every machine and in every process


ALL_DIAGNOSTICS = Diagnostics(bootstrap=10, p_value=10, marchenko_pastur=True, outliers=True, distributions=True)


@pytest.mark.parametrize("wanted", [Diagnostics(), ALL_DIAGNOSTICS])
@pytest.mark.parametrize(
    "method",
    [
        FARMS(),
        FARMS(blocks="pooled"),
        FARMS(fit="ks"),
        WholeMatrix(),
        WholeMatrix(fit="peak"),
        FARMS(compat="official", window=8, steps=3),
    ],
)
def test_equal_bits_whichever_layers_are_measured_together(method, wanted):
    plans, spectra = {}, {}
    for index, shape in enumerate([*[(9, 40, 14)] * 4, *[(9, 14, 40)] * 2, *[(1, 37, 41)] * 5, (1, 300, 300)]):
        kind = "convolution" if shape[0] == 9 else "linear"
        layer = LayerWeight(f"w{index}", kind, (*shape[1:], 3, 3)[: 4 if shape[0] == 9 else 2], torch.zeros(shape), ())
        layer = drawn(layer, index)
        if index in (1, 8):
            layer.matrices[:, : shape[1] // 2] = 0  # some of the fits do not hold
        found, plans[index] = spectra_of(layer, method)
        errors = torch.tensor([0.0, index], dtype=torch.float64)
        spectra[index] = Spectrum(found, *errors)
    together = measure_each(spectra, plans, method, wanted)
    for index, numbers in together.items():
        (alone,) = measure([spectra[index]], [plans[index]], method, wanted)
        assert numbers.nan_to_num(-1.0).equal(alone.nan_to_num(-1.0)), index
        assert numbers[NUMBERS.index("squares_error")] == index


def test_a_layer_that_cannot_be_measured_costs_no_other():
    plans, spectra = {}, {}
    for index in range(4):
        found, plans[index] = spectra_of(drawn(LINEAR, index), FARMS())
        spectra[index] = Spectrum(found, *torch.zeros(2, dtype=torch.float64))

    class Failing(FARMS):
        def fit_tail(self, eigenvalues):
            if (eigenvalues == spectra[2].eigenvalues.amax()).any():
                raise MemoryError("too much")
            return super().fit_tail(eigenvalues)

    found = measure_each(spectra, plans, Failing(), Diagnostics())
    assert [type(each) for each in found.values()] == [torch.Tensor, torch.Tensor, MemoryError, torch.Tensor]
    assert found[3].nan_to_num().equal(measure_each(spectra, plans, FARMS(), Diagnostics())[3].nan_to_num())
