"""The pictures of an analysis: each is drawn once and handed to all loggers that accept it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from lightning_farms.analysis.history import LayerHistory
from lightning_farms.analysis.layer_spectrum import LayerSpectrum
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.loggers.sinks import Pixels, Sink
from lightning_farms.plotting import (
    alpha_depth_figure,
    esd_figure,
    layer_heatmap_figure,
    layer_heatmap_image,
    log_histogram,
    sparsity_figure,
)
from lightning_farms.plotting.pixels import pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAP_COLUMNS = 120


class Picture(NamedTuple):
    """A picture to draw, with its key and the kind under which a sink takes it."""

    kind: Literal["histogram", "image", "figure"]  # name of the sink's method that takes it
    key: str
    draw: Callable[[], Any]


def analysis_pictures(label: str, report: SpectralReport, histories: Sequence[LayerHistory]) -> list[Picture]:
    """List the cheap pictures of every analysis: a histogram of alpha, and unlabelled maps of layers by time."""
    alphas = [alpha for alpha in report.alphas.values() if math.isfinite(alpha)]
    histogram = Picture("histogram", f"{label}/alpha_histogram", partial(log_histogram, alphas, scale="linear"))
    maps = [
        Picture("image", f"{label}/{quantity}_map", partial(_map_image, history, quantity))
        for history in histories
        for quantity in filter(history.layers, history.quantities())
    ]
    return [histogram, *maps] if alphas else maps


def run_figures(
    label: str, report: SpectralReport, histories: Sequence[LayerHistory], spectra: Iterable[LayerSpectrum]
) -> list[Picture]:
    """List the labelled figures: maps of layers by time, alpha over depth, and spectra."""
    drawings: dict[str, Callable[[], Figure]] = {
        f"{label}/{quantity}_map_labelled": partial(_map_figure, history, quantity)
        for history in histories
        for quantity in filter(history.layers, history.quantities())
    }
    if report.alphas:
        drawings[f"{label}/alpha_over_depth"] = partial(_depth_figure, report, histories[0])
    for row in spectra:
        if row.status == "ok" and row.eigenvalues is not None:
            drawings[f"{label}/esd/{row.name}"] = partial(_esd_figure, row)
    return [Picture("figure", key, partial(_drawn, draw)) for key, draw in drawings.items()]


def ratio_picture(key: str, label: str, ratios: Mapping[str, float], sparsity: float, title: str) -> Picture:
    """The labelled figure of how much of each block or layer is pruned."""
    return Picture(
        "figure", key, partial(_drawn, partial(sparsity_figure, {label: ratios}, sparsity=sparsity, title=title))
    )


def hand_out(pictures: Iterable[Picture], sinks: Sequence[Sink], step: int) -> list[Exception]:
    """Draw each picture once and give it to every sink; if one fails, the others are still given."""
    errors: list[Exception] = []
    for picture in pictures if sinks else ():
        try:
            drawn = picture.draw()
        except Exception as error:
            errors.append(error)
            continue
        for sink in sinks:
            try:
                getattr(sink, picture.kind)(picture.key, drawn, step)
            except Exception as error:
                errors.append(error)
    return errors


def spread_over_depth(report: SpectralReport, number: int) -> list[str]:
    """Names of ``number`` analysed layers, evenly spread from the first to the last."""
    names = [row.name for row in report if row.status == "ok"]
    if number >= len(names):
        return names
    return [names[round(i * (len(names) - 1) / max(1, number - 1))] for i in range(number)]


def _map_image(history: LayerHistory, quantity: str) -> Pixels:
    """Draw the map of a quantity, with only every k-th analysis (counted from the last) if the history is long."""
    stride = math.ceil(len(history.epochs) / _MAP_COLUMNS)
    rows = [row[::-1][::stride][::-1] for row in history.rows(quantity)]
    return np.moveaxis(layer_heatmap_image(rows, logarithmic=_is_logarithmic(history, quantity)), 0, -1)


def _is_logarithmic(history: LayerHistory, quantity: str) -> bool:
    """Whether colours follow the logarithm: of rates and multipliers, and of alphas that span more than a decade."""
    if quantity != "alpha":
        return quantity != "sparsity"
    alphas = np.array(history.rows(quantity))
    finite = alphas[np.isfinite(alphas)]
    return bool(finite.size and 0 < 10 * finite.min() < finite.max())


def _map_figure(history: LayerHistory, quantity: str) -> Figure:
    unit, numbers = history.positions()
    return layer_heatmap_figure(
        history.rows(quantity),
        layers=history.layers(quantity),
        epochs=numbers,
        unit=unit,
        title=f"{quantity.replace('_', ' ')} of every layer",
        label="PL_Alpha_Hill" if quantity == "alpha" else quantity.replace("_", " "),
        logarithmic=_is_logarithmic(history, quantity),
    )


def _depth_figure(report: SpectralReport, history: LayerHistory) -> Figure:
    first = {layer: row[0] for layer, row in zip(history.layers("alpha"), history.rows("alpha"), strict=True)}
    unit, numbers = history.positions()
    began = "before training" if numbers[0] == 0 else f"after {numbers[0]}"
    return alpha_depth_figure(
        report.alphas,
        before=first,
        intervals={row.name: row.interval for row in report},
        title=f"alpha {began} and after {numbers[-1]} {unit}{'' if numbers[-1] == 1 else 's'}",
    )


def _esd_figure(row: LayerSpectrum) -> Figure:
    assert row.eigenvalues is not None
    return esd_figure(
        row.eigenvalues,
        alpha=row.alpha,
        xmin=row.xmin,
        ks_distance=row.ks_distance,
        title=row.name,
        mp_edges=(row.mp_lower_edge, row.mp_upper_edge),
        spike_threshold=row.mp_spike_threshold,
    )


def _drawn(draw: Callable[[], Figure]) -> Pixels:
    return pixels(draw())
