"""Figures 2 and 8 of the paper: the spectrum of a random matrix depends on its aspect ratio, and so does its alpha.

The matrices are Gaussian with independent entries, so all of them are "equally untrained". The Marchenko-Pastur law and
the Hill estimator's result for it are computed, not fitted.

    python examples/figures/figure_2_8.py [--out DIR] [--seed 0]
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jsonargparse import auto_cli
from torch import Tensor

from lightning_farms.common.atomic import complete_or_nothing
from lightning_farms.functional import esd, fit_hill, fixed_aspect_ratio_submatrices
from lightning_farms.functional.random_matrix import (
    marchenko_pastur_cdf,
    marchenko_pastur_density,
    marchenko_pastur_edges,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WHOLE, WINDOWS = "tab:orange", "tab:blue"


class Spectrum(NamedTuple):
    """One matrix: its shape, its eigenvalues, and alpha of the whole matrix and by windows."""

    rows: int
    columns: int
    eigenvalues: Tensor
    alpha: float
    windows_alpha: float


class AlphaCurve(NamedTuple):
    """Alpha against aspect ratio: means over draws, whole and by FARMS windows, and the Hill estimator's limit."""

    ratios: list[float]
    whole: list[float]
    windows: list[float]
    limit: list[float]


def gaussian(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Draw a Gaussian matrix with independent entries of variance 1 / rows."""
    return torch.randn(rows, columns, generator=generator) / math.sqrt(rows)


def hill_limit(rows: int, columns: int) -> float:
    r"""Return alpha of an infinite matrix of this shape: :math:`1 + \frac{1/2}{\int_M^\infty \rho(x) \ln(x / M) dx}`.

    M is the median of the Marchenko-Pastur law. The integral is taken by parts over the distribution function F:
    :math:`\int_M^{\lambda_+} (1 - F(x)) / x \, dx`.
    """
    lower, upper = marchenko_pastur_edges(rows, columns, 1 / rows)
    x = torch.linspace(lower.item(), upper.item(), 200_001, dtype=torch.float64)
    share = marchenko_pastur_cdf(x, rows, columns, 1 / rows)
    median = int(torch.searchsorted(share, 0.5))
    return 1 + 0.5 / torch.trapezoid((1 - share[median:]) / x[median:], x[median:]).item()


def spectrum(rows: int, columns: int, generator: torch.Generator) -> Spectrum:
    """Draw one matrix, and fit its whole spectrum and the pooled spectrum of its square windows."""
    matrix = gaussian(rows, columns, generator)
    eigenvalues = esd(matrix)
    pooled = esd(fixed_aspect_ratio_submatrices(matrix)).flatten()
    return Spectrum(rows, columns, eigenvalues, fit_hill(eigenvalues).alpha.item(), fit_hill(pooled).alpha.item())


def alpha_curve(ratios: list[float], columns: int, draws: int, generator: torch.Generator) -> AlphaCurve:
    """Return the mean alphas of ``draws`` matrices for each ratio rows / columns."""
    curve = AlphaCurve(ratios, [], [], [])
    for ratio in ratios:
        spectra = [spectrum(round(ratio * columns), columns, generator) for _ in range(draws)]
        curve.whole.append(sum(s.alpha for s in spectra) / draws)
        curve.windows.append(sum(s.windows_alpha for s in spectra) / draws)
        curve.limit.append(hill_limit(round(ratio * columns), columns))
    return curve


def distance_to_law(rows: int, columns: int, generator: torch.Generator) -> float:
    """Return the Kolmogorov-Smirnov distance between one matrix's spectrum and the law."""
    share = marchenko_pastur_cdf(esd(gaussian(rows, columns, generator)), rows, columns, 1 / rows)
    steps = torch.arange(columns + 1, dtype=torch.float64) / columns
    return torch.maximum((share - steps[:-1]).abs(), (steps[1:] - share).abs()).max().item()


def draw(spectra: list[Spectrum], curve: AlphaCurve, sizes: list[int], distances: dict[int, list[float]]) -> Figure:
    """Draw histograms with the law above, and below them alpha against ratio and distance to the law against size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=100, layout="constrained")
    grid = figure.add_gridspec(2, 1)
    above, below = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    for index, one in enumerate(spectra):
        panel = above.add_subplot(1, len(spectra), index + 1)
        _draw_spectrum(panel, one)
        panel.set(ylabel="" if index else "density", yticks=[] if index else [0, 0.5, 1, 1.5])
    _draw_alphas(below.add_subplot(1, 2, 1), curve)
    axes = below.add_subplot(1, 2, 2)
    for ratio, values in distances.items():
        axes.loglog(sizes, values, marker="o", markersize=4, label=f"m/n = {ratio}")
    axes.set(
        xlabel="columns n", ylabel="KS distance to the law", title="as Figure 8: the spectrum converges to the law"
    )
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_yticks([0.003, 0.01, 0.03], ["0.003", "0.01", "0.03"])
    axes.minorticks_off()
    axes.legend(fontsize=9)
    return figure


def _draw_spectrum(axes: Axes, one: Spectrum) -> None:
    lower, upper = marchenko_pastur_edges(one.rows, one.columns, 1 / one.rows)
    axes.hist(one.eigenvalues.numpy(), bins=40, density=True, color="0.75")
    x = torch.linspace(max(lower.item(), 0.01), upper.item(), 500, dtype=torch.float64)
    law = marchenko_pastur_density(x, one.rows, one.columns, 1 / one.rows)
    axes.plot(x.numpy(), law.numpy(), color="black", linewidth=1.5)
    axes.set(xlim=(0, 4.2), ylim=(0, 1.6), xlabel=r"eigenvalue $\lambda$")
    axes.set_title(
        f"{one.rows} x {one.columns} (m/n = {one.rows // one.columns})\n"
        rf"$\alpha$: whole {one.alpha:.2f}, FARMS {one.windows_alpha:.2f}",
        fontsize=10,
    )


def _draw_alphas(axes: Axes, curve: AlphaCurve) -> None:
    axes.plot(curve.ratios, curve.limit, color="black", linewidth=1, label="whole, limit by the law")
    axes.plot(curve.ratios, curve.whole, "o", color=WHOLE, label="whole matrix")
    axes.plot(curve.ratios, curve.windows, "s", color=WINDOWS, label="FARMS, square windows")
    axes.set(
        xlabel="aspect ratio m/n", ylabel=r"$\alpha$ (Hill)", title=r"as Figure 2: $\alpha$ of an untrained matrix"
    )
    axes.set_ylim(bottom=1)
    axes.legend(fontsize=9)


def main(out: Path = Path(__file__).parent, seed: int = 0) -> None:
    """Measure, print and draw.

    Args:
        out: folder for figure_2_8.png.
        seed: seed of the matrices.
    """
    generator = torch.Generator().manual_seed(seed)
    spectra = [spectrum(ratio * 500, 500, generator) for ratio in (1, 2, 4, 8)]
    curve = alpha_curve([1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0], 200, 5, generator)
    sizes = [50, 100, 200, 400, 800]
    distances = {ratio: [distance_to_law(ratio * size, size, generator) for size in sizes] for ratio in (1, 2, 4)}
    print("aspect ratio m/n   alpha, limit by the law   alpha, whole matrix   alpha, FARMS   (n = 200, 5 draws)")
    for ratio, whole, windows, limit in zip(curve.ratios, curve.whole, curve.windows, curve.limit, strict=True):
        print(f"{ratio:16.1f} {limit:25.2f} {whole:21.2f} {windows:14.2f}")
    print("Kolmogorov-Smirnov distance between spectrum and law, n =", *sizes)
    for ratio, values in distances.items():
        print(f"  m/n = {ratio}:", *(f"{value:.4f}" for value in values))
    out.mkdir(parents=True, exist_ok=True)
    with complete_or_nothing(out / "figure_2_8.png") as draft:
        draw(spectra, curve, sizes, distances).savefig(draft, format="png")


if __name__ == "__main__":
    auto_cli(main)
