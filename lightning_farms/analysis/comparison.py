"""Two reports side by side, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from lightning_farms.analysis._names import match_names
from lightning_farms.analysis.layer_spectrum import LayerSpectrum
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.analysis.summary import summarize
from lightning_farms.common.texts import csv_text, json_text, write_if_asked


@dataclass(frozen=True)
class ComparedLayer:
    """Alpha of one layer in both reports.

    Attributes:
        name: name of the layer in the first report.
        kind: kind of the weight.
        shape: shape of the weight.
        alpha: alpha in the first report.
        other_alpha: alpha in the second report.
        delta: alpha - other_alpha.
        delta_error: standard error of the difference: both reports' errors added in quadrature.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    alpha: float
    other_alpha: float
    delta: float
    delta_error: float


@dataclass(frozen=True)
class Comparison:
    """Result of comparing two reports: their common layers, and those that cannot be compared.

    Attributes:
        layers: layers with an alpha in both reports, in the order of the first.
        only: layers that the second report lacks.
        other_only: layers that the first report lacks.
        without_alpha: layers that both reports have, but without an alpha in one of them.
    """

    layers: tuple[ComparedLayer, ...]
    only: tuple[str, ...]
    other_only: tuple[str, ...]
    without_alpha: tuple[str, ...]

    def to_csv(self, path: str | PathLike[str] | None = None) -> str:
        """Return CSV text with one line per layer (and write it to ``path``); ``status`` tells which are compared."""
        return write_if_asked(csv_text(self._records(), _COLUMNS), path)

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """Return JSON text with ``summary`` and ``layers``, missing numbers as ``null`` (and write it to ``path``)."""
        columns = ("alpha", "other_alpha", "delta")
        summary = {name: asdict(summarize(getattr(row, name) for row in self.layers)) for name in columns}
        return write_if_asked(json_text({"summary": summary, "layers": self._records()}), path)

    def _records(self) -> Sequence[Mapping[str, Any]]:
        records = [{**asdict(layer), "status": "ok"} for layer in self.layers]
        nothing = {**dict.fromkeys(_COLUMNS, math.nan), "kind": "", "shape": ()}
        for status in ("only", "other_only", "without_alpha"):
            records += [{**nothing, "name": name, "status": status} for name in getattr(self, status)]
        return records


_COLUMNS = ("name", "kind", "shape", "alpha", "other_alpha", "delta", "delta_error", "status")


def compare(report: SpectralReport, other: SpectralReport) -> Comparison:
    """Compare two reports: a model with its initialisation, a fine-tuned one with its base, two checkpoints of a run.

    Args:
        report: the first report.
        other: the second report. If the two have no name in common, the prefix that all names of either share
            (``network.``) is left out to match them.

    Returns:
        The comparison.

    Example:
        >>> from lightning_farms.analysis import LayerSpectrum
        >>> before = SpectralReport([LayerSpectrum("fc", "linear", (8, 4), alpha=3.0)])
        >>> after = SpectralReport([LayerSpectrum("fc", "linear", (8, 4), alpha=2.5)])
        >>> compare(after, before).layers[0].delta
        -0.5
    """
    partners = match_names(list(report.alphas), list(other.alphas))
    pairs = [(report[name], other[partner]) for name, partner in partners.items()]
    layers = [_compared(row, before) for row, before in pairs]
    known = tuple(layer for layer in layers if math.isfinite(layer.delta))
    return Comparison(
        known,
        tuple(row.name for row in report if row.name not in partners),
        tuple(row.name for row in other if row.name not in partners.values()),
        tuple(layer.name for layer in layers if not math.isfinite(layer.delta)),
    )


def _compared(row: LayerSpectrum, before: LayerSpectrum) -> ComparedLayer:
    error = math.hypot(row.standard_error, before.standard_error)
    return ComparedLayer(row.name, row.kind, row.shape, row.alpha, before.alpha, row.alpha - before.alpha, error)
