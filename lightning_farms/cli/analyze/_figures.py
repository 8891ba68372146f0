"""Figures of an analysis, written into a folder."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lightning_farms.analysis.comparison import Comparison
from lightning_farms.analysis.layer_spectrum import LayerSpectrum, Status
from lightning_farms.analysis.method import SCANS
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.common.atomic import complete_or_nothing, shortened
from lightning_farms.plotting import alpha_depth_figure, esd_figure, shape_heatmap_figure
from lightning_farms.plotting.alpha_depth_figure import comparison_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_NAME = 100
_MOST_BYTES = 200


class Picture(NamedTuple):
    """A figure to draw: its path within the folder, and the function that draws it."""

    path: str
    draw: Callable[[], Figure]


def report_pictures(report: SpectralReport, *, name: str, fit: str) -> list[Picture]:
    """List the figures: alpha over depth with intervals, alpha by shape, each layer's spectrum and scan of xmin."""
    rows = [row for row in report if row.status is Status.OK]
    if not rows:
        return []
    alphas = {row.name: row.alpha for row in rows}
    shapes = {row.name: _matrix_shape(row) for row in rows}
    intervals = {row.name: row.interval for row in rows}
    errors = "and its bootstrap interval" if math.isfinite(rows[0].alpha_low) else "± 1.96 standard errors"
    title = f"{name}: alpha {errors}"
    return [
        Picture("alpha_depth.png", partial(alpha_depth_figure, alphas, intervals=intervals, title=title)),
        Picture("alpha_by_shape.png", partial(shape_heatmap_figure, shapes, alphas)),
        *_spectra(rows, scanned=fit in SCANS),
    ]


def comparison_pictures(comparison: Comparison, *, names: tuple[str, str]) -> list[Picture]:
    """List the figure of each layer's alpha in both checkpoints, and the difference."""
    if not comparison.layers:
        return []
    after = {layer.name: layer.alpha for layer in comparison.layers}
    before = {layer.name: layer.other_alpha for layer in comparison.layers}
    title = f"{names[0]} against {names[1]}"
    return [Picture("comparison.png", partial(comparison_figure, before, after, labels=names[::-1], title=title))]


def draw(pictures: list[Picture], folder: Path) -> Iterator[Path]:
    """Draw and write the pictures one by one, yielding their paths."""
    for picture in pictures:
        path = folder / picture.path
        with complete_or_nothing(path) as draft:
            picture.draw().savefig(draft, format=path.suffix[1:])
        yield path


def _spectra(rows: list[LayerSpectrum], scanned: bool) -> Iterator[Picture]:
    width = len(str(len(rows)))
    for number, row in enumerate(rows, 1):
        if row.eigenvalues is not None:
            name = re.sub(r"[^\w.-]", "_", row.name)[-_LONGEST_NAME:]
            file = f"{shortened(f'{number:0{width}}_{name}', _MOST_BYTES)}.png"
            figure = partial(
                esd_figure,
                row.eigenvalues,
                alpha=row.alpha,
                xmin=row.xmin,
                ks_distance=row.ks_distance,
                title=row.name,
                mp_edges=(row.mp_lower_edge, row.mp_upper_edge),
                spike_threshold=row.mp_spike_threshold,
            )
            yield Picture(f"esd/{file}", figure)
            if scanned:
                yield Picture(f"xmin/{file}", row.plot_xmin_scan)


def _matrix_shape(row: LayerSpectrum) -> tuple[int, int]:
    letters = row.layout.partition("/")[0]
    if len(letters) == len(row.shape) and {"o", "i"} <= set(letters):
        return row.shape[letters.index("o")], row.shape[letters.index("i")]
    rows, columns = row.shape[-2:]
    return rows, columns
