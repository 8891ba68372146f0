"""Figures of spectra, fields and errors, and cheap images; matplotlib is imported upon drawing, pyplot never.

Figures are in matplotlib's default style whatever style sheet is in force, but in the user's font.
"""

from lightning_farms.plotting.alpha_depth_figure import alpha_depth_figure, comparison_figure
from lightning_farms.plotting.error_curves_figure import error_curves_figure
from lightning_farms.plotting.esd_figure import esd_figure
from lightning_farms.plotting.field_figure import field_figure
from lightning_farms.plotting.layer_heatmap_figure import layer_heatmap_figure
from lightning_farms.plotting.layer_heatmap_image import layer_heatmap_image
from lightning_farms.plotting.log_histogram import HistogramSummary, log_histogram
from lightning_farms.plotting.pixels import pixels
from lightning_farms.plotting.shape_heatmap_figure import shape_heatmap_figure
from lightning_farms.plotting.sparsity_figure import sparsity_figure
from lightning_farms.plotting.xmin_scan_figure import xmin_scan_figure

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
    "sparsity_figure",
    "xmin_scan_figure",
]
