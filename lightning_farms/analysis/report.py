"""Result of an analysis for all layers, and the forms in which it is shown and saved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from os import PathLike
from typing import TYPE_CHECKING, Any

from lightning_farms.analysis._engine.failures import Failure
from lightning_farms.analysis.guidance import guidance
from lightning_farms.analysis.layer_spectrum import COLUMNS, ON_REQUEST, LayerSpectrum, Status
from lightning_farms.analysis.summary import Summary, summarize
from lightning_farms.analysis.table import html_table, text_table, ways
from lightning_farms.common.texts import csv_text, json_text, write_if_asked

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


_OF_TWIN = ("alpha", "ks_distance", "spectral_norm", "stable_rank", "effective_rank", "alpha_hat", "mp_soft_rank")


class SpectralReport:
    """Report of an analysis: one row per layer, in the model's order.

    Args:
        rows: one row per layer; names are unique.

    Raises:
        ValueError: two rows have the same name.

    Example:
        >>> report = SpectralReport([LayerSpectrum("fc", "linear", (8, 4), alpha=2.5)])
        >>> report["fc"].alpha, report.alphas
        (2.5, {'fc': 2.5})
        >>> print(report)  # doctest: +ELLIPSIS
        layer  kind    shape  windows  alpha
        fc     linear    8x4        0  2.500
        1 layer analysed, 0 skipped. alpha: mean 2.500  std 0.000  quantiles 5% 2.500  25% 2.500 ...
    """

    def __init__(self, rows: list[LayerSpectrum]) -> None:
        self._rows = {row.name: row for row in rows}
        if len(self._rows) < len(rows):
            raise ValueError("Expected argument `rows` to have unique names.")

    def __iter__(self) -> Iterator[LayerSpectrum]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __getitem__(self, name: str) -> LayerSpectrum:
        try:
            return self._rows[name]
        except KeyError:
            known = ", ".join(list(self._rows)[:10]) + (", ..." if len(self) > 10 else "")
            raise KeyError(f"no layer {name!r} in this report, which has {known or 'no layers'}") from None

    def __str__(self) -> str:
        """A table of all layers, as `lightning-farms analyze` prints it."""
        return text_table(list(self), self.summary)

    def _repr_html_(self) -> str:
        """The same table as HTML, for notebooks."""
        return html_table(list(self), self.summary)

    def plot(self, *, before: SpectralReport | None = None, title: str = "Alpha over depth") -> Figure:
        """Draw alpha of every layer over depth, with its interval (needs no display).

        Args:
            before: an earlier report, whose alphas are drawn as hollow marks.
            title: title of the figure.

        Returns:
            A matplotlib figure.

        Raises:
            ValueError: the report has no layer.
        """
        from lightning_farms.plotting import alpha_depth_figure

        intervals = {row.name: row.interval for row in self}
        earlier = None if before is None else before.alphas
        return alpha_depth_figure(self.alphas, before=earlier, intervals=intervals, title=title)

    def __repr__(self) -> str:
        skipped = sum(row.status is Status.SKIPPED for row in self)
        return f"SpectralReport({len(self)} layers, {skipped} skipped, mean alpha {self.mean_alpha:.3f})"

    @property
    def alphas(self) -> dict[str, float]:
        """{layer: alpha}, NaN for skipped layers."""
        return {row.name: row.alpha for row in self}

    @property
    def summary(self) -> Summary:
        """Distribution of the finite alphas over layers: mean, standard deviation, quantiles."""
        return summarize(self.alphas.values())

    @property
    def mean_alpha(self) -> float:
        """Mean of the finite alphas; NaN if there is none."""
        return self.summary.mean

    @property
    def std_alpha(self) -> float:
        """Standard deviation of the finite alphas over layers (divided by their number); NaN if there is none."""
        return self.summary.std

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table: a row's attributes, and those of its twin (``random_...``) if there is one."""
        twins = any(row.twin is not None for row in self)
        asked = tuple(name for name in ON_REQUEST if any(not math.isnan(getattr(row, name)) for row in self))
        return COLUMNS + asked + tuple(f"random_{name}" for name in _OF_TWIN if twins)

    @property
    def not_finite(self) -> list[str]:
        """Names of the layers whose weights hold NaN or infinity, and which have therefore no alpha."""
        return [row.name for row in self if row.reason == Failure.NOT_FINITE.value]

    @property
    def guidance(self) -> list[str]:
        """Lines that say which layers stand out, in which direction, and what it may mean; empty if none does."""
        return guidance(self)

    def _records(self) -> list[Mapping[str, Any]]:
        columns = self.columns
        return [{name: _value(row, name) for name in columns} for row in self]

    def to_csv(self, path: str | PathLike[str] | None = None) -> str:
        """Return CSV text with one line per layer (and write it to ``path``).

        Shapes are written as ``64x3x3x3``, missing numbers as ``nan``.
        """
        return write_if_asked(csv_text(self._records(), self.columns), path)

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """Return JSON text with ``summary`` and ``layers``, missing numbers as ``null`` (and write it to ``path``)."""
        summary: dict[str, Any] = {"alpha": asdict(self.summary)}
        if by_way := ways(self):
            summary["ways"] = by_way
        return write_if_asked(json_text({"summary": summary, "layers": self._records()}), path)

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a data frame.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                'SpectralReport.to_pandas() needs pandas: pip install "lightning-farms[pandas]"'
            ) from error
        return pd.DataFrame.from_records(self._records(), columns=self.columns)


def _value(row: LayerSpectrum, column: str) -> object:
    if not column.startswith("random_"):
        return getattr(row, column)
    return math.nan if row.twin is None else getattr(row.twin, column.removeprefix("random_"))
