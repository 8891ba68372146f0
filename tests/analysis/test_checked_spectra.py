"""Wrong spectra are found by their sums and computed again; faults and want of memory cost one layer."""

import pytest
import torch
from torch import nn

from lightning_farms.analysis import FARMS, MODEL_BALANCING, Diagnostics, WholeMatrix, analyze, layer_weights
from lightning_farms.functional import checked_esd, eigensolvers
from lightning_farms.functional.eigensolvers import Rule, Way
from lightning_farms.models import DPOT, resnet18

FAULTS = {
    "squared": lambda values: values.square(),
    "scaled": lambda values: values * 1.5,
    "largest": lambda values: torch.cat([values[..., :-1], values[..., -1:] * 10], -1),
    "not finite": lambda values: values * torch.nan,
    "of another matrix": lambda values: values.roll(1, 0) if values.ndim > 1 and len(values) > 1 else values * 2,
}


def wrong(monkeypatch, fault, name="eigvalsh"):
    monkeypatch.setattr(eigensolvers, "RULES", (Rule(Way.CPU, "for this test"),))
    real = getattr(torch.linalg, name)
    monkeypatch.setattr(torch.linalg, name, lambda matrices, **options: fault(real(matrices, **options)))


@pytest.mark.parametrize("method", [FARMS(), WholeMatrix(fit="ks")])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_spectrum_is_computed_again_and_said(monkeypatch, fault, method):
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(3)], nn.Linear(300, 300))
    good = analyze(model, method)
    wrong(monkeypatch, FAULTS[fault])
    bad = analyze(model, method)
    for row, expected in zip(bad, good, strict=True):
        assert row.status == "ok"
        assert row.alpha == pytest.approx(expected.alpha, abs=1e-4 if method.forgives_rounding else 1e-8)
        assert row.reason.startswith("eigenvalues failed a check (the")
        assert row.reason.endswith("computed again in float64 on the CPU")


def test_what_fails_twice_is_skipped(monkeypatch):
    wrong(monkeypatch, FAULTS["scaled"])
    wrong(monkeypatch, FAULTS["scaled"], "svdvals")
    (row,) = analyze(nn.Linear(64, 64))
    assert row.status == "skipped"
    assert row.reason.startswith("the eigenvalues failed a check, also when")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-10, 1.0, 1e8, 1e13])
@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (33, 31), (64, 64), (129, 140), (260, 300)])
def test_no_false_alarm(shape, scale, dtype):
    torch.manual_seed(0)
    random = torch.randn(2, *shape, dtype=dtype)
    outlier = random.clone()
    outlier[:, 0, 0] = 1e5
    for matrices in (random, outlier, torch.ones_like(random), random[:, :, :1] @ random[:, :1]):
        for quick in (False, True):
            found = checked_esd(matrices * scale, quick=quick)
            assert (found.sum_error == 0).all()
            assert (found.squares_error == 0).all()


@pytest.mark.parametrize("size", [64, 300])
def test_every_spectrum_of_another_random_matrix_is_noticed(monkeypatch, size):
    torch.manual_seed(0)
    wrong(monkeypatch, lambda values: values.roll(1, 0))
    found = checked_esd(torch.randn(12, size, size), quick=True)
    assert ((found.sum_error > 0) | (found.squares_error > 0)).all()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory")]
)
def test_want_of_memory_is_met_by_smaller_jobs_and_else_costs_its_layer(monkeypatch, error):
    model = nn.Sequential(nn.Linear(20, 80), nn.Linear(20, 80), nn.Linear(30, 30))
    expected, real = analyze(model), torch.linalg.eigvalsh

    def scarce(most):
        def eigvalsh(matrices, **options):
            if matrices.numel() > most:
                raise error
            return real(matrices, **options)

        monkeypatch.setattr(torch.linalg, "eigvalsh", eigvalsh)

    scarce(32 * 32)
    assert list(analyze(model)) == list(expected)
    scarce(400)
    with pytest.warns(UserWarning, match="The analysis failed for 2: "):
        report = analyze(model)
    assert list(report)[:2] == list(expected)[:2]
    assert report["2"].reason.startswith("out of memory; try a smaller window")


def test_a_fault_in_the_draws_costs_its_layer(monkeypatch):
    model, rand = nn.Sequential(nn.Linear(20, 80), nn.Linear(30, 30)), torch.rand

    def failing(shape, **options):
        if shape[-1] == 30:
            raise KeyError("no such")
        return rand(shape, **options)

    monkeypatch.setattr(torch, "rand", failing)
    with pytest.warns(UserWarning, match="The analysis failed for 1: KeyError"):
        report = analyze(model, diagnostics=Diagnostics(bootstrap=3))
    assert [row.status for row in report] == ["ok", "skipped"]
    assert report["1"].reason == "the analysis failed: KeyError: 'no such'"


def transformer():
    parts = [nn.TransformerEncoderLayer(32, 4, 64), nn.Embedding(50, 32), nn.LSTM(16, 16), nn.Bilinear(16, 16, 16)]
    parts += [nn.Conv3d(16, 16, 3), nn.ConvTranspose2d(16, 16, 3), nn.Conv1d(3, 16, 5), nn.Conv1d(3, 16, 4)]
    parts += [nn.Linear(12, 40), nn.Linear(13, 40), nn.Conv2d(64, 128, 1, groups=16), nn.Conv2d(64, 128, 3, groups=16)]
    return nn.ModuleList(parts)


@pytest.mark.parametrize("make", [lambda: DPOT(img_size=128), resnet18, transformer])
def test_model_balancings_selection(make):
    model = make()
    kinds = (nn.Conv2d, nn.Linear, nn.Conv1d)
    found = {name: m.weight for name, m in model.named_modules() if isinstance(m, kinds)}
    expected = {name for name, w in found.items() if min(w.shape[:2]) * w[0, 0].numel() > 12}
    assert {w.name for w in layer_weights(model, MODEL_BALANCING) if not w.reason} == expected
    assert expected
