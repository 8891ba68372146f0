"""Figures of spectra, fields and errors, and cheap images; matplotlib is imported when one is drawn, pyplot never."""

from lightning_farms.plotting.alpha_depth import alpha_depth_figure, comparison_figure
from lightning_farms.plotting.canvas import pixels
from lightning_farms.plotting.error_curves import error_curves_figure
from lightning_farms.plotting.esd import esd_figure
from lightning_farms.plotting.fields import field_figure
from lightning_farms.plotting.heatmap_figure import layer_heatmap_figure
from lightning_farms.plotting.heatmap_image import layer_heatmap_image
from lightning_farms.plotting.histogram import HistogramSummary, log_histogram
from lightning_farms.plotting.shape_heatmap import shape_heatmap_figure

__all__ = [
    "HistogramSummary",
    "alpha_depth_figure",
    "comparison_figure",
    "error_curves_figure",
    "esd_figure",
    "field_figure",
    "layer_heatmap_figure",
    "layer_heatmap_image",
    "log_histogram",
    "pixels",
    "shape_heatmap_figure",
]
