"""Which way eigenvalues came is in the report; the ways for weights on a device are sent the CPU's here."""

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lightning_farms import Balancer, SpectralMonitor, TempBalance
from lightning_farms.analysis import FARMS, Diagnostics, LayerSpectrum, analyze
from lightning_farms.analysis.ranks import Ranks
from lightning_farms.functional import eigensolvers
from lightning_farms.functional.eigensolvers import Rule, Way
from tests.functional.test_eigensolvers import cupy  # noqa: F401


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64) for _ in range(5)]
    return nn.Sequential(*layers, nn.Conv2d(16, 33, 3), nn.Linear(300, 290), nn.Linear(2, 2))


def send(monkeypatch, way):
    monkeypatch.setattr(eigensolvers, "RULES", (Rule(way, "for this test"),))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("way", [Way.TORCH, Way.CUPY, Way.HOST])
def test_alphas_agree_and_the_report_says_which_way(monkeypatch, cupy, model, way, workers):  # noqa: F811
    expected = analyze(model)
    assert {row.way for row in expected} == {""}
    assert "Eigenvalues by" not in str(expected)
    send(monkeypatch, way)
    report = analyze(model, workers=workers, diagnostics=Diagnostics(twin=True))
    for row, wanted in zip(report, expected, strict=True):
        assert row.alpha == pytest.approx(wanted.alpha, abs=1e-4, nan_ok=True)
        assert row.way == (way if row.status == "ok" else "")
        assert type(row.way) is str  # as it is to be in a file of plain types
    assert str(report).endswith(f". Eigenvalues by: {way} (7)")
    assert json.loads(report.to_json())["summary"]["ways"] == {way: 7}
    assert "ways" not in json.loads(expected.to_json())["summary"]
    assert bool(cupy.batches) == (way is Way.CUPY)


def test_the_way_is_the_same_on_all_ranks(monkeypatch, model):
    send(monkeypatch, Way.HOST)
    report = analyze(model, ranks=Ranks(0, 1, lambda table: table))
    assert report.columns == analyze(model).columns
    assert [row.way for row in report] == [row.way for row in analyze(model)]


def test_a_wrong_spectrum_of_any_way_is_computed_again(monkeypatch, cupy, model):  # noqa: F811
    expected = analyze(model)
    send(monkeypatch, Way.CUPY)
    cupy.linalg.eigvalsh = lambda matrices, UPLO: np.linalg.eigvalsh(matrices, UPLO=UPLO) * 1.5
    for row, wanted in zip(analyze(model), expected, strict=True):
        assert row.alpha == pytest.approx(wanted.alpha, abs=1e-4, nan_ok=True)
        if row.status == "ok":
            assert row.reason.endswith("computed again in float64 on the CPU")
            assert row.way == ""


def test_what_cupy_refuses_is_computed_again(monkeypatch, cupy, model):  # noqa: F811
    def refusing(matrices, **options):
        raise RuntimeError("CUSOLVER_STATUS_INVALID_VALUE")

    send(monkeypatch, Way.CUPY)
    cupy.linalg.eigvalsh = refusing
    report = analyze(model)
    assert report["0"].reason == (
        "the eigenvalue decomposition failed, so that the eigenvalues were computed again in float64 on the CPU"
    )


def test_a_row_at_its_default_looks_as_before():
    assert "way" not in repr(LayerSpectrum("fc", "linear", (8, 4)))
    assert LayerSpectrum("fc", "linear", (8, 4), way="host") == LayerSpectrum("fc", "linear", (8, 4))


def test_where_is_checked_and_in_no_state_key(monkeypatch, model):
    for make in (
        lambda where: analyze(model, where=where),
        lambda where: SpectralMonitor(where=where),
        lambda where: TempBalance(where=where),
        lambda where: Balancer(model, torch.optim.SGD(model.parameters()), TempBalance().alpha_map, where=where),
    ):
        make("host")
        with pytest.raises(ValueError, match="Expected argument `where` to be one of"):
            make("gpu")
    assert SpectralMonitor(where="host").state_key == SpectralMonitor().state_key
    assert "where" not in SpectralMonitor().state_key
    assert "cupy" not in sys.modules
    assert FARMS() == SpectralMonitor().analysis
