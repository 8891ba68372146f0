"""Options of an analysis; callbacks with equal options share one analysis."""

from __future__ import annotations

from typing import NamedTuple

from lightning_farms.analysis.diagnostics import Diagnostics
from lightning_farms.analysis.method import SpectralMethod
from lightning_farms.analysis.selection import Selection


class AnalysisOptions(NamedTuple):
    """The method of an analysis, the weights to analyse, and additional diagnostics."""

    analysis: SpectralMethod
    selection: Selection
    diagnostics: Diagnostics

    def columns(self) -> list[str]:
        """Columns of the report that are logged for each layer."""
        wanted = {
            "alpha": True,
            "relative_alpha": self.diagnostics.twin,
            "mp_spikes": self.diagnostics.marchenko_pastur,
            "p_value": self.diagnostics.p_value,
        }
        return [name for name, asked_for in wanted.items() if asked_for]
