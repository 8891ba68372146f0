"""analyze_weights(): what comes one by one is analysed, reported on and let go."""

import math
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_farms.analysis import Diagnostics, LayerWeight, analyze, analyze_weights
from lightning_farms.analysis.weights import NO_MATRICES


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def weight_of(name, matrices, reason=""):
    return LayerWeight(name, "linear", tuple(matrices.shape[1:]), matrices, (), reason)


def test_weights_one_by_one():
    model = nn.Linear(40, 24)
    weights = [weight_of("a", model.weight[None]), weight_of("b", NO_MATRICES, "no such thing")]
    finished = []
    report = analyze_weights(iter(weights), progress=finished.append)
    assert replace(report["a"], name="weight") == analyze(model)["weight"]
    assert (report["b"].status, report["b"].reason) == ("skipped", "no such thing")
    assert finished == [2]
    assert len(analyze_weights([])) == 0


def test_progress_and_order_with_a_workspace_of_one_weight():
    weights = [weight_of(str(i), torch.randn(1, 12, 12), "no" if i % 3 == 0 else "") for i in range(7)]
    finished = []
    report = analyze_weights(weights, workspace=1, progress=finished.append)
    assert [row.name for row in report] == [str(i) for i in range(7)]
    assert [row.status for row in report] == ["skipped", "ok", "ok"] * 2 + ["skipped"]
    assert sum(finished) == 7
    assert max(finished) == 2
    assert list(report) == list(analyze_weights(weights))


def test_weights_are_consumed_lazily_and_let_go():
    alive, most = [], []

    def weights(count):
        for index in range(count):
            matrices = torch.randn(1, 16, 16)
            alive.append(weakref.ref(matrices))
            most.append(sum(reference() is not None for reference in alive))
            yield weight_of(str(index), matrices)
            del matrices

    report = analyze_weights(weights(30), workspace=8 * 16 * 16 * 4, diagnostics=Diagnostics(twin=True))
    assert len(report) == 30
    assert max(most) <= 4 + 2  # half the workspace, the one that makes it full, and the one that is read


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_weights_that_come_from_elsewhere(dtype):
    values = torch.randn(1, 24, 24).to(dtype)
    (row,) = analyze_weights([weight_of("w", values)])
    (expected,) = analyze_weights([weight_of("w", values.double())])
    assert row.alpha == pytest.approx(expected.alpha, abs=1e-4)
    spoilt = torch.full((1, 24, 24), math.nan).to(dtype)
    assert analyze_weights([weight_of("w", spoilt)])["w"].reason == "the weights are not all finite"


def test_progress_is_told_before_a_long_analysis_is_over():
    """Each of these is taken to cost 1e10 multiplications, as a call for a tiny matrix is for 1e6 of them."""
    weights = [weight_of(str(i), torch.randn(10_000, 10, 10)) for i in range(5)]
    steps = []
    report = analyze_weights(weights, progress=steps.append)
    assert steps == [1, 1, 1, 1, 1, 0]
    assert list(report) == list(analyze_weights(weights))
