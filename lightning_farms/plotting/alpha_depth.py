"""Alpha of each layer over the depth of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lightning_farms.plotting.labels import shortened, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def alpha_depth_figure(
    alphas: Mapping[str, float], *, before: Mapping[str, float] | None = None, title: str = "Alpha over depth"
) -> Figure:
    """Draw each layer's alpha, the first layer at the top, and where it was before.

    Args:
        alphas: Alpha of each layer, in the network's order; layers without a finite alpha keep an empty row.
        before: Earlier alphas, drawn as hollow marks joined to the later ones; layers that `alphas` lacks are left out.
        title: Title of the figure.

    Returns:
        The figure, unknown to pyplot: nothing has to be closed.

    Raises:
        ValueError: If there is no layer.

    Example:
        >>> figure = alpha_depth_figure({"conv": 2.1, "fc": 3.4}, before={"fc": 2.9})
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['before', 'now', 'mean 2.75']
    """
    from matplotlib.figure import Figure

    if not alphas:
        raise ValueError("Expected argument `alphas` to be at least one layer's alpha, but got none.")
    size = (6.8, float(np.clip(1.5 + 0.24 * len(alphas), 3.0, 11.0)))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.add_subplot()
    _draw_marks(axes, alphas, before or {})
    rows, names = thinned(len(alphas), int(size[1] / 0.19)), list(alphas)
    axes.set_yticks(rows, [shortened(names[row]) for row in rows], fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(r"$\alpha$", fontsize=12)
    axes.set_ylabel("layer", fontsize=11)
    axes.set_title(title, fontsize=12)
    axes.grid(visible=True, axis="both", alpha=0.25)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def _draw_marks(axes: Axes, alphas: Mapping[str, float], before: Mapping[str, float]) -> None:
    depth = np.arange(len(alphas))
    now = np.array(list(alphas.values()), dtype=np.float64)
    if before:
        earlier = np.array([before.get(layer, np.nan) for layer in alphas], dtype=np.float64)
        axes.hlines(depth, earlier, now, color="0.6", linewidth=1.5, zorder=1)
        axes.scatter(earlier, depth, s=26, facecolor="white", edgecolor="tab:blue", zorder=2, label="before")
    axes.scatter(now, depth, s=30, color="tab:blue", zorder=3, label="now" if before else r"$\alpha$")
    if np.isfinite(now).any():
        mean = float(now[np.isfinite(now)].mean())
        axes.axvline(mean, color="tab:red", linestyle="--", linewidth=1.2, zorder=0, label=f"mean {mean:.2f}")
