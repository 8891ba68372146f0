"""OWL and DLP against NumPy, written from their descriptions for blocks of one size."""

import math

import numpy as np
import pytest
import torch

from lightning_farms.pruning import DLPAllocation, OWLAllocation, allocate
from lightning_farms.pruning.allocation import WeightsSubject
from tests.pruning.tiny_models import Part

SHAPES = [(1, 20, 30), (1, 40, 20), (3, 10, 8)]  # the last: experts, each with inputs of its own


def parts_of(blocks, seed=0):
    """Weights and mean squares of inputs with a few large channels."""
    random = np.random.RandomState(seed)
    parts, squares = [], {}
    for block in range(blocks):
        for number, shape in enumerate(SHAPES):
            name = f"{block}.{number}"
            values = torch.from_numpy(random.standard_t(2 + block, shape).astype(np.float32))
            parts.append(Part(name, f"{block}", values.numel(), values))
            inputs = random.chisquare(1, (shape[0], shape[2])) * (1 + 30 * (random.rand(shape[0], shape[2]) < 0.1))
            squares[name] = torch.from_numpy(inputs[0] if shape[0] == 1 else inputs)
    return parts, squares


def products(part, squares):
    """|W| ||x|| of a weight, flat."""
    norms = np.sqrt(squares[part.name].numpy().astype(np.float32)).reshape(-1, 1, part.matrices.shape[-1])
    return (np.abs(part.matrices.numpy()) * norms).ravel()


def by_unit(parts, squares, granularity, figure):
    """The figure of all products of a block or a layer, for each of its parts."""
    units = {}
    for part in parts:
        units.setdefault(part.block if granularity == "block" else part.name, []).append(products(part, squares))
    figures = {unit: figure(np.concatenate(values)) for unit, values in units.items()}
    return [figures[part.block if granularity == "block" else part.name] for part in parts]


def outliers(values):
    return np.mean(values > 5 * values.mean())


def lower_median(values):
    return np.sort(values)[(len(values) - 1) // 2]


@pytest.mark.parametrize("granularity", ["block", "layer"])
@pytest.mark.parametrize(("kind", "figure"), [(OWLAllocation, outliers), (DLPAllocation, lower_median)])
def test_figures(kind, figure, granularity):
    parts, squares = parts_of(4)
    ratios = allocate(parts, 0.6, kind(granularity=granularity), calibration=squares)
    expected = by_unit(parts, squares, granularity, figure)
    assert len(set(expected)) > 2
    assert [layer.source for layer in ratios] == pytest.approx(expected, rel=1e-6)


def owl_ratios(figures, sparsity, spread):
    """Densities 2 lambda wide around 1 - S, the more outliers the denser."""
    scaled = (figures - figures.min()) / (figures.max() - figures.min()) * 2 * spread
    return 1 - (scaled - scaled.mean() + 1 - sparsity)


def dlp_ratios(figures, sparsity, spread):
    """Importance: 1 minus the share of a block's median in the sum; then as above."""
    return owl_ratios(1 - figures / figures.sum(), sparsity, spread)


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
@pytest.mark.parametrize(
    ("kind", "figure", "map_", "spread"),
    [(OWLAllocation, outliers, owl_ratios, 0.08), (DLPAllocation, lower_median, dlp_ratios, 0.15)],
)
def test_ratios_of_blocks_of_one_size(kind, figure, map_, spread, sparsity):
    parts, squares = parts_of(5)
    ratios = allocate(parts, sparsity, kind(), calibration=squares)
    figures = np.array(by_unit(parts, squares, "block", figure)[:: len(SHAPES)], dtype=np.float64)
    got = [layer.ratio for layer in ratios][:: len(SHAPES)]
    assert got == pytest.approx(map_(figures, sparsity, spread).tolist(), abs=1e-6)  # float32 products
    assert max(got) - min(got) == pytest.approx(2 * spread)
    assert ratios.zeros == math.floor(sparsity * ratios.size + 0.5)


@pytest.mark.parametrize("kind", [OWLAllocation, DLPAllocation])
def test_reversed_the_range_is_the_same_the_other_way_round(kind):
    parts, squares = parts_of(4)
    plain, reverse = (
        [layer.ratio for layer in allocate(parts, 0.5, kind(reverse=r), calibration=squares)] for r in (False, True)
    )
    assert np.corrcoef(plain, reverse)[0, 1] == pytest.approx(-1)
    assert max(reverse) - min(reverse) == pytest.approx(max(plain) - min(plain))


def test_blocks_of_different_sizes_keep_the_range_and_the_total():
    parts, squares = parts_of(3)
    parts = parts[1:-2]  # of the first block and of the last a part is left
    ratios = allocate(parts, 0.5, OWLAllocation(spread=0.1), calibration=squares)
    each = [layer.ratio for layer in ratios]
    assert max(each) - min(each) == pytest.approx(0.2)
    assert sum(r * p.size for r, p in zip(each, parts, strict=True)) == pytest.approx(0.5 * ratios.size)


def test_a_range_that_leaves_the_possible_is_cut_and_the_total_kept():
    parts, squares = parts_of(4)
    for sparsity in (0.05, 0.95):
        ratios = allocate(parts, sparsity, DLPAllocation(spread=0.4), calibration=squares)
        each = [layer.ratio for layer in ratios]
        assert (min(each), max(each))[sparsity > 0.5] == int(sparsity > 0.5)
        assert ratios.zeros == math.floor(sparsity * ratios.size + 0.5)


@pytest.mark.parametrize("kind", [OWLAllocation, DLPAllocation])
def test_what_is_not_finite_has_no_say_and_is_named(kind):
    parts, squares = parts_of(3)
    squares["0.1"][3] = math.nan
    del squares["1.0"]
    parts[-1].matrices[0, 0, 0] = math.inf
    ratios = allocate(parts, 0.5, kind(), calibration=squares)
    assert [name for part in parts if math.isnan(ratios[name := part.name].source)] == ["0.1", "1.0", "2.2"]
    assert all(ratios[f"{block}.0"].score == ratios[f"{block}.2"].score for block in range(3))
    for reason, name in [
        ("its inputs are not all finite", "0.1"),
        ("there are no inputs of it", "1.0"),
        ("the weights are not all finite", "2.2"),
    ]:
        assert any(f"({reason})" in note and f": {name}" in note for note in ratios.notes)
    kept = [part for part in parts if part.name.startswith("2") and part.name != "2.2"]
    alone = allocate(kept, 0.5, kind(), calibration=squares)
    assert alone["2.0"].source == ratios["2.0"].source


def test_experts_without_tokens_have_no_say():
    parts, squares = parts_of(1)
    squares["0.2"][1] = 0
    ratios = allocate(parts, 0.5, DLPAllocation(granularity="layer"), calibration=squares)
    both = parts[2]._replace(matrices=parts[2].matrices[[0, 2]])
    assert ratios["0.2"].source == lower_median(products(both, {"0.2": squares["0.2"][[0, 2]]}))


def test_without_any_figure_all_layers_lose_the_same():
    parts, squares = parts_of(2)
    nothing = {name: torch.full_like(values, math.nan) for name, values in squares.items()}
    assert {layer.score for layer in allocate(parts, 0.5, OWLAllocation(), calibration=nothing)} == {1.0}


def test_inputs_may_be_found_when_they_are_asked_for():
    parts, squares = parts_of(2)
    calls = []
    subject = WeightsSubject(parts, lambda: calls.append(1) or squares)
    allocate(subject, 0.5)
    assert not calls
    found = allocate(subject, 0.5, OWLAllocation())
    assert calls == [1]
    assert found == allocate(subject, 0.5, OWLAllocation(), calibration=squares)


def test_without_inputs():
    parts, _ = parts_of(2)
    with pytest.raises(ValueError, match="Expected argument `calibration` to be given"):
        allocate(parts, 0.5, OWLAllocation())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spread": 1.5}, "Expected argument `spread` to be in"),
        ({"threshold": 0.0}, "Expected argument `threshold` to be a positive number, but got 0.0"),
        ({"granularity": "row"}, "Expected argument `granularity` to be one of"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        OWLAllocation(**options)
