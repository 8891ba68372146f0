"""Figure 6 of the paper: at random initialisation all layers are equally untrained, so their alphas should agree.

The networks are ResNet-34 and VGG-19 for 32 x 32 images and 100 classes at several widths, with weights drawn from
N(0, 2 / inputs) as in Appendix A.1. Nothing is trained.

    python examples/figures/figure_6.py [--out DIR] [--seed 0]
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jsonargparse import auto_cli
from torch import nn

from lightning_farms import FARMS, SpectralReport, WholeMatrix, analyze
from lightning_farms.analysis import SpectralMethod
from lightning_farms.common.atomic import complete_or_nothing
from lightning_farms.models import resnet34, vgg19

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHODS: dict[str, SpectralMethod] = {
    "whole matrix": WholeMatrix(),
    "FARMS": FARMS(),
    "FARMS, authors' windows": FARMS(window=100, steps=9, compat="official"),
}
COLOURS = {"whole matrix": "tab:orange", "FARMS": "tab:blue"}
MODELS: dict[str, Callable[..., nn.Module]] = {"ResNet-34": resnet34, "VGG-19": vgg19}
PUBLISHED_WIDTH = 64

Reports = dict[str, SpectralReport]


def analyze_untrained(build: Callable[..., nn.Module], width: int, seed: int) -> Reports:
    """Draw one network, and analyse it with every method."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(100, width=width)
    return {label: analyze(model, method) for label, method in METHODS.items()}


def print_reports(model: str, width: int, reports: Reports) -> None:
    """Print mean, standard deviation over layers and range of alpha, with one line per method."""
    for label, report in reports.items():
        alphas = report.alphas.values()
        print(
            f"{model:10} width {width:3}  {label:24} {len(report)} layers: mean alpha {report.mean_alpha:.3f}, "
            f"std over layers {report.std_alpha:.3f}, {min(alphas):.2f} to {max(alphas):.2f}"
        )


def draw(results: dict[str, dict[int, Reports]]) -> Figure:
    """Draw a row per network: each layer's alpha at the published width, and mean and std of alpha over widths."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3 * len(results)), dpi=100, layout="constrained")
    grid = figure.add_gridspec(len(results), 3)
    for row, (model, by_width) in enumerate(results.items()):
        _draw_layers(figure.add_subplot(grid[row, :2]), model, by_width[PUBLISHED_WIDTH])
        _draw_widths(figure.add_subplot(grid[row, 2]), model, by_width)
    return figure


def _draw_layers(axes: Axes, model: str, reports: Reports) -> None:
    for label, colour in COLOURS.items():
        alphas = list(reports[label].alphas.values())
        axes.plot(range(1, len(alphas) + 1), alphas, marker="o", markersize=4, linewidth=1, color=colour, label=label)
    axes.set(xlabel="layer", ylabel=r"$\alpha$ (Hill)", title=f"{model} at initialisation")
    axes.set_ylim(bottom=1)
    axes.legend(fontsize=9)


def _draw_widths(axes: Axes, model: str, by_width: dict[int, Reports]) -> None:
    widths = list(by_width)
    for label, colour in COLOURS.items():
        means = [by_width[width][label].mean_alpha for width in widths]
        spreads = [by_width[width][label].std_alpha for width in widths]
        axes.errorbar(widths, means, spreads, marker="o", markersize=4, capsize=3, linewidth=1, color=colour)
    axes.set(xlabel="width (channels of the first stage)", title=f"{model}: mean ± std over layers")
    axes.set_xticks(widths)
    axes.set_ylim(bottom=1)


def main(out: Path = Path(__file__).parent, seed: int = 0, widths: tuple[int, ...] = (16, 32, 64, 96)) -> None:
    """Analyse, print and draw.

    Args:
        out: folder for figure_6.png.
        seed: seed of the weights.
        widths: channels of the first stage; 64, the published width, must be among them.
    """
    results: dict[str, dict[int, Reports]] = {}
    for model, build in MODELS.items():
        results[model] = {width: analyze_untrained(build, width, seed) for width in widths}
        for width, reports in results[model].items():
            print_reports(model, width, reports)
    out.mkdir(parents=True, exist_ok=True)
    with complete_or_nothing(out / "figure_6.png") as draft:
        draw(results).savefig(draft, format="png")


if __name__ == "__main__":
    auto_cli(main)
