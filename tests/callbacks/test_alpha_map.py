"""Every map, in the rates that updates really use."""

import pytest
import torch

from lightning_farms import LayerwiseLearningRate, LinearMap, Log2Map, SigmoidMap, SqrtMap, StepMap, analyze
from lightning_farms.functional import tb_linear_map, tb_log2, tb_sigmoid, tb_sqrt, tb_step
from tests.callbacks.conftest import Tower, weights

MAPS = [
    (LinearMap(0.4, 1.6), lambda a: tb_linear_map(a, 0.4, 1.6)),
    (SigmoidMap(0.5, 0.8, 3.0), lambda a: tb_sigmoid(a, 0.5, 0.8, 3.0)),
    (SqrtMap(), tb_sqrt),
    (Log2Map(), tb_log2),
    (StepMap(0.4, 1.6), lambda a: tb_step(a, 0.4, 1.6)),
]


@pytest.mark.parametrize(("alpha_map", "reference"), MAPS, ids=lambda v: type(v).__name__)
def test_every_map(alpha_map, reference, used):
    alphas = analyze(Tower()).alphas
    expected = reference(torch.tensor(list(alphas.values()), dtype=torch.float64)).tolist()
    first = weights(used(LayerwiseLearningRate(alpha_map, summary=False))[0])
    assert first == pytest.approx(dict(zip(alphas, expected, strict=True)), rel=1e-9)
    assert max(expected) > 1.05 * min(expected)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LinearMap(0.0, 1.0), "0 < min_ratio <= max_ratio"),
        (lambda: StepMap(2.0, 1.0), "0 < min_ratio <= max_ratio"),
        (lambda: SigmoidMap(tau=0.0), "`tau` to be finite and positive"),
    ],
)
def test_wrong_settings(make, match):
    with pytest.raises(ValueError, match=match):
        make()
