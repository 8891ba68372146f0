"""What the report says of layers that stand out: of networks without differences nothing."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_farms.analysis import FARMS, LayerSpectrum, SpectralReport, Status, WholeMatrix, analyze
from lightning_farms.analysis.guidance import guidance


def rows(alphas, size=256, share=0.5):
    tail = int(share * size)
    return [
        LayerSpectrum(
            f"blocks.{i}.fc",
            "linear",
            (size, size),
            aspect_ratio=1.0,
            eigenvalue_count=size,
            alpha=alpha,
            tail_size=tail,
            standard_error=(alpha - 1) / math.sqrt(tail),
        )
        for i, alpha in enumerate(alphas)
    ]


EVEN = [2.08, 2.12, 2.1, 2.1, 2.11, 2.13, 2.07]


@pytest.mark.parametrize(
    ("alpha", "words"), [(1.4, ("Heavier tails", "more training")), (3.4, ("Lighter tails", "less training"))]
)
def test_a_layer_that_differs_is_named_with_direction_and_source(alpha, words):
    [line] = guidance(rows([*EVEN, alpha]))
    assert f"blocks.7.fc (alpha {alpha:.2f}, median 2.1" in line
    assert all(word in line for word in (*words, "Hu et al., ICML 2025", "Martin and Mahoney", "not a fault by itself"))
    assert "blocks.0.fc" not in line


def test_four_layers_are_enough():
    assert len(guidance(rows([*EVEN[:3], 1.4]))) == 1


def test_both_directions_the_farthest_first():
    lines = guidance(rows([*EVEN * 2, 1.3, 1.5, 3.6]))
    assert [line.split(" (")[0] for line in lines] == [
        "Heavier tails than the other layers: blocks.14.fc",
        "Lighter tails than the other layers: blocks.16.fc",
    ]
    assert lines[0].index("blocks.14.fc") < lines[0].index("blocks.15.fc")


def test_of_a_change_only_the_direction_is_said():
    assert guidance(rows([*EVEN, 1.4]), of_change=True) == [
        "Heavier tails than the other layers: blocks.7.fc (alpha 1.40, median 2.10)."
    ]


@pytest.mark.parametrize(
    "silent",
    [
        rows(EVEN),
        rows([*EVEN[:2], 1.4]),  # three layers
        rows([*EVEN[:6], 1.3, 1.35, 3.4]),  # a third of them: they are of several kinds
        rows([2.1] * 20 + [2.02], size=100_000),  # beyond all error, but by less than a tenth
        rows([*EVEN, 1.75], size=16),  # within the error of so few eigenvalues
        rows([1.5, 1.9, 2.4, 3.1, 4.0, 1.4, 2.0, 2.9, 4.4]),  # no farther than the others are from each other
        [replace(row, status=Status.SKIPPED, alpha=math.nan) for row in rows([*EVEN, 1.4])],
        [],
    ],
)
def test_nothing_is_said_where_nothing_stands_out(silent):
    assert guidance(silent) == []


def test_the_scatter_of_few_layers_may_be_larger_than_it_looks():
    scattered = [2.0, 1.95, 2.05, 1.9, 2.1]
    assert not guidance(rows([*scattered, 2.45], size=100_000))
    assert guidance(rows([*scattered, 2.75], size=100_000))
    assert guidance(rows([*scattered * 6, 2.45], size=100_000))


def test_a_tail_that_a_scan_chose_is_less_sure():
    assert guidance(rows([*EVEN, 1.8]))
    assert not guidance(rows([*EVEN, 1.8], share=0.3))


def test_of_tiny_matrices_the_whole_standard_error_counts():
    tiny = [replace(row, kind="convolution", shape=(64, 8, 5, 5)) for row in rows([*EVEN, 1.9])]
    assert not guidance(tiny)
    assert guidance([replace(row, shape=(64, 16, 5, 5)) for row in tiny])


def test_a_bootstrap_interval_counts_where_there_is_one():
    named = rows([*EVEN, 1.6])
    assert guidance(named)
    assert not guidance([replace(row, alpha_low=row.alpha - 0.9, alpha_high=row.alpha + 1.5) for row in named])


def test_products_are_compared_with_products():
    products = [
        replace(row, name=f"{row.name}.lora", kind="low-rank product") for row in rows([2.9, 2.8, 3.0, 2.9, 2.7])
    ]
    assert guidance([*rows(EVEN), *products]) == []
    products[2] = replace(products[2], alpha=1.5, standard_error=0.05)
    [line] = guidance([*rows(EVEN), *products])
    assert "blocks.2.fc.lora (alpha 1.50, median 2.80)" in line


def test_layers_of_another_aspect_ratio_are_not_compared():
    others = [replace(row, name=f"{row.name}.wide", aspect_ratio=4.0) for row in rows([3.5])]
    assert guidance(rows([*EVEN, 3.5]))
    assert not guidance(rows(EVEN) + others)
    assert not guidance(rows(EVEN) + [replace(row, name=f"{row.name}.tall", aspect_ratio=0.25) for row in rows([3.5])])


def untrained(seed):
    torch.manual_seed(seed)
    convolutions = [nn.Conv2d(8, 16, 3), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 64, 3), nn.Conv2d(64, 64, 1)]
    linear = [nn.Linear(64, 192), nn.Linear(64, 64), nn.Linear(64, 256), nn.Linear(256, 64), nn.Linear(64, 10)]
    return nn.Sequential(*convolutions, *linear, *[nn.Linear(96, 96) for _ in range(4)], nn.LSTM(32, 32))


@pytest.mark.parametrize("method", [FARMS(), WholeMatrix(), FARMS(fit="ks"), WholeMatrix(fit="ks")])
def test_of_an_untrained_network_nothing_is_said(method):
    for seed in (0, 1, 2, 14):  # 14: the first convolution's eight channels scatter
        assert analyze(untrained(seed), method).guidance == []


def test_a_layer_made_heavy_tailed_is_the_one_that_is_named():
    model = untrained(0)
    with torch.no_grad():
        left, _, right = torch.linalg.svd(model[10].weight)
        model[10].weight.copy_(left * torch.arange(1, 97) ** -1.0 @ right)
    report = analyze(model)
    [line] = report.guidance
    assert line.startswith("Heavier tails than the other layers: 10 (alpha")
    assert str(report).splitlines()[-1] == line
    assert line in report._repr_html_()
    assert "Heavier" not in str(analyze(untrained(0)))


def test_a_report_read_by_a_person_ends_with_it():
    report = SpectralReport(rows([*EVEN, 3.4]))
    assert str(report).splitlines()[-1] == report.guidance[0]
