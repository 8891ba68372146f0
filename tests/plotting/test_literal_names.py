"""Names of layers and files are shown as they are: text between dollars is no mathematics."""

import io

import pytest

from lightning_farms.plotting import (
    alpha_depth_figure,
    comparison_figure,
    esd_figure,
    layer_heatmap_figure,
    sparsity_figure,
)

NAME = r"$\no{mathematics$"

FIGURES = {
    "alpha over depth": lambda: alpha_depth_figure({NAME: 2.0}, title=NAME),
    "comparison": lambda: comparison_figure({NAME: 2.0}, {NAME: 2.5}, labels=(NAME, NAME), title=NAME),
    "esd": lambda: esd_figure([1.0, 2.0, 4.0], alpha=2.0, xmin=2.0, ks_distance=0.1, title=NAME),
    "heat map": lambda: layer_heatmap_figure([[1.0, 2.0]], layers=[NAME], epochs=[0, 1], title=NAME, label="alpha"),
    "sparsity": lambda: sparsity_figure({NAME: {f"{NAME}.0": 0.5, f"{NAME}.{NAME}": 0.5}}, title=NAME),
}


@pytest.mark.parametrize("kind", FIGURES)
def test_names_are_not_parsed(kind):
    FIGURES[kind]().savefig(io.BytesIO(), format="png")
