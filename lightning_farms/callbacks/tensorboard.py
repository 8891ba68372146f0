"""What goes to TensorBoard beside scalars: histograms, heat maps, spectra."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_farms.analysis.report import LayerSpectrum, SpectralReport
from lightning_farms.callbacks.history import LayerHistory
from lightning_farms.plotting import (
    alpha_depth_figure,
    esd_figure,
    layer_heatmap_figure,
    layer_heatmap_image,
    log_histogram,
)

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_MAP_LABELS = {"alpha": "PL_Alpha_Hill", "learning_rate": "effective learning rate"}
_MAP_COLUMNS = 240
_LOGARITHMIC = {"learning_rate"}


def writers(trainer: Trainer) -> list[SummaryWriter]:
    """Writers of the trainer's TensorBoard loggers, on rank zero; none elsewhere."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def write_histogram(writer: SummaryWriter, tag: str, values: Sequence[float], step: int) -> None:
    """Histogram of the finite values; nothing where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        writer.add_histogram_raw(tag, **log_histogram(finite, scale="linear")._asdict(), global_step=step)


def write_maps(writer: SummaryWriter, prefix: str, history: LayerHistory, step: int) -> None:
    """Layers by epochs, one cheap image a quantity, without labels; nothing where a quantity has no layer.

    Of a long history every k-th analysis is shown, counted from the last, so that images stay small.
    """
    stride = math.ceil(len(history.epochs) / _MAP_COLUMNS)
    for quantity in filter(history.layers, history.quantities()):
        rows = [row[::-1][::stride][::-1] for row in history.rows(quantity)]
        image = layer_heatmap_image(rows, logarithmic=quantity in _LOGARITHMIC)
        writer.add_image(f"{prefix}/{quantity}_map", image, step)


def write_map_figures(writer: SummaryWriter, prefix: str, history: LayerHistory, step: int) -> None:
    """Layers by epochs, one labelled figure a quantity; nothing where a quantity has no layer."""
    for quantity in filter(history.layers, history.quantities()):
        figure = layer_heatmap_figure(
            history.rows(quantity),
            layers=history.layers(quantity),
            epochs=history.epochs,
            title=f"{quantity.replace('_', ' ')} of every layer",
            label=_MAP_LABELS.get(quantity, quantity),
            logarithmic=quantity in _LOGARITHMIC,
        )
        writer.add_figure(f"{prefix}/{quantity}_map_labelled", figure, step)


def write_depth_figure(
    writer: SummaryWriter, prefix: str, report: SpectralReport, history: LayerHistory, step: int
) -> None:
    """Alpha of every layer over depth, now and at the first analysis; nothing where there is no layer."""
    if not report.alphas:
        return
    first = {layer: row[0] for layer, row in zip(history.layers("alpha"), history.rows("alpha"), strict=True)}
    figure = alpha_depth_figure(
        report.alphas,
        before=first,
        intervals={row.name: row.interval for row in report},
        title=f"alpha before training and after {history.epochs[-1]} epochs",
    )
    writer.add_figure(f"{prefix}/alpha_over_depth", figure, step)


def write_esd_figures(writer: SummaryWriter, prefix: str, rows: Iterable[LayerSpectrum], step: int) -> None:
    """ESD with fitted tail and random bulk, one figure an analysed layer; the rows hold their eigenvalues."""
    for row in rows:
        if row.status == "ok" and row.eigenvalues is not None:
            figure = esd_figure(
                row.eigenvalues,
                alpha=row.alpha,
                xmin=row.xmin,
                ks_distance=row.ks_distance,
                title=row.name,
                mp_edges=(row.mp_lower_edge, row.mp_upper_edge),
                spike_threshold=row.mp_spike_threshold,
            )
            writer.add_figure(f"{prefix}/esd/{row.name}", figure, step)


def spread_over_depth(report: SpectralReport, number: int) -> list[str]:
    """Names of ``number`` analysed layers, evenly spread from the first to the last."""
    names = [row.name for row in report if row.status == "ok"]
    if number >= len(names):
        return names
    return [names[round(i * (len(names) - 1) / max(1, number - 1))] for i in range(number)]
