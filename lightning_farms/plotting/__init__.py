"""Figures and cheap images of spectra; matplotlib is imported when the first one is drawn, and pyplot never."""

from lightning_farms.plotting.alpha_depth import alpha_depth_figure, comparison_figure
from lightning_farms.plotting.canvas import pixels
from lightning_farms.plotting.esd import esd_figure
from lightning_farms.plotting.heatmap_figure import layer_heatmap_figure
from lightning_farms.plotting.heatmap_image import layer_heatmap_image
from lightning_farms.plotting.histogram import HistogramSummary, log_histogram
from lightning_farms.plotting.shape_heatmap import shape_heatmap_figure

__all__ = [
    "HistogramSummary",
    "alpha_depth_figure",
    "comparison_figure",
    "esd_figure",
    "layer_heatmap_figure",
    "layer_heatmap_image",
    "log_histogram",
    "pixels",
    "shape_heatmap_figure",
]
