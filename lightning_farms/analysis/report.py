"""What an analysis found: one row a layer, and the rows together."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LayerSpectrum:
    """Spectrum of one layer's weight.

    All quantities are in units of the squared weight. Norms and stable rank are those of a window (of the matrix, for
    a whole-matrix analysis), averaged over windows, so that they too can be compared between layers; under
    ``compat="official"`` they are those of the pooled spectrum, averaged over a convolution's blocks.

    Attributes:
        name: layer's name: the module's, with the parameter's where the module has several weights.
        kind: ``"linear"``, ``"convolution"``, ``"transposed convolution"`` or ``"parameter"``.
        shape: the weight's shape as stored.
        aspect_ratio: realised aspect ratio n'/m' of the windows.
        windows: number of windows on each matrix.
        eigenvalue_count: number of eigenvalues of all windows and matrices.
        alpha: exponent PL_Alpha_Hill (or of the fit asked for); NaN where ``status`` is ``"skipped"``.
        ks_distance: Kolmogorov-Smirnov distance between the spectrum's tail and the fit.
        xmin: where the tail starts.
        spectral_norm: largest eigenvalue, the square of the largest singular value (as in WeightWatcher).
        frobenius_norm_squared: sum of the eigenvalues.
        stable_rank: sum of the eigenvalues by the largest.
        alpha_hat: alpha * log10(spectral_norm).
        status: ``"ok"`` or ``"skipped"``.
        reason: why the layer was skipped, or a remark (a window that was shrunk); empty where there is none.
        eigenvalues: all eigenvalues, ascending, float64 on the CPU; None unless asked for.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    aspect_ratio: float = math.nan
    windows: int = 0
    eigenvalue_count: int = 0
    alpha: float = math.nan
    ks_distance: float = math.nan
    xmin: float = math.nan
    spectral_norm: float = math.nan
    frobenius_norm_squared: float = math.nan
    stable_rank: float = math.nan
    alpha_hat: float = math.nan
    status: Literal["ok", "skipped"] = "ok"
    reason: str = ""
    eigenvalues: Tensor | None = field(default=None, compare=False)


COLUMNS = tuple(entry.name for entry in fields(LayerSpectrum) if entry.name != "eigenvalues")


class SpectralReport:
    """Rows of an analysis, in the model's order.

    Args:
        rows: one row a layer; names are unique.

    Raises:
        ValueError: two rows have one name.

    Example:
        >>> report = SpectralReport([LayerSpectrum("fc", "linear", (8, 4), alpha=2.5)])
        >>> report["fc"].alpha, report.alphas
        (2.5, {'fc': 2.5})
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
            raise KeyError(f"no layer {name!r} in this report; it has {known or 'no layers'}") from None

    def __repr__(self) -> str:
        skipped = sum(row.status == "skipped" for row in self)
        return f"SpectralReport({len(self)} layers, {skipped} skipped, mean alpha {self.mean_alpha:.3f})"

    @property
    def alphas(self) -> dict[str, float]:
        """{layer: alpha}, NaN for skipped layers."""
        return {row.name: row.alpha for row in self}

    @property
    def mean_alpha(self) -> float:
        """Mean of the finite alphas; NaN where there is none."""
        finite = self._finite_alphas()
        return fmean(finite) if finite else math.nan

    @property
    def std_alpha(self) -> float:
        """Standard deviation of the finite alphas over layers (divided by their number); NaN where there is none."""
        finite = self._finite_alphas()
        return pstdev(finite) if finite else math.nan

    def _finite_alphas(self) -> list[float]:
        return [row.alpha for row in self if math.isfinite(row.alpha)]

    def _records(self) -> list[Mapping[str, Any]]:
        return [{name: getattr(row, name) for name in COLUMNS} for row in self]

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write one line a layer; shapes as ``64x3x3x3``, missing numbers as ``nan``."""
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=COLUMNS)
            writer.writeheader()
            for record in self._records():
                writer.writerow({**record, "shape": "x".join(map(str, record["shape"]))})

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """The rows as a JSON list, missing numbers as ``null`` (and written to ``path``, if given)."""
        text = json.dumps([{k: _finite_or_none(v) for k, v in record.items()} for record in self._records()], indent=2)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a data frame.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('to_pandas needs pandas: pip install "lightning-farms[pandas]"') from error
        return pd.DataFrame.from_records(self._records(), columns=COLUMNS)


def _finite_or_none(value: Any) -> Any:  # noqa: ANN401
    return None if isinstance(value, float) and not math.isfinite(value) else value
