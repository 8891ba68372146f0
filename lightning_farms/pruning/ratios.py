"""The ratios of an allocation: how much of each layer is pruned, with conversion to text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_farms.common.texts import csv_text, json_text, write_if_asked
from lightning_farms.functional import NofM

COLUMNS = ("name", "block", "size", "source", "score", "ratio", "zeros", "pattern")


@dataclass(frozen=True)
class LayerRatio:
    """How much of one weight is pruned.

    Attributes:
        name: name of the weight, unique in the model.
        block: the block to which it belongs.
        size: its number of weights p.
        source: the figure from which its score is computed (an alpha, an outlier ratio, ...); NaN if there is none.
        score: q, its share in the pruning: the fraction pruned is in proportion to it, before bounds apply.
        ratio: the fraction pruned before it is rounded to whole weights; n / m for a pattern.
        zeros: the number of weights pruned.
        pattern: n of every m consecutive inputs; None: any ``zeros`` of the weights.
    """

    name: str
    block: str
    size: int
    source: float
    score: float
    ratio: float
    zeros: int
    pattern: NofM | None = None

    @property
    def reached(self) -> float:
        """The fraction pruned, in whole weights."""
        return self.zeros / self.size


@dataclass(frozen=True)
class LayerRatios:
    """How much of each weight of a model is pruned, in the model's order.

    Args:
        layers: one row per weight; names are unique.
        sparsity: S, the fraction of all these weights that was asked for.
        allocation: name of the allocation, e.g. ``"farms"``.
        notes: remarks about it, such as layers without a figure, or a fit that depends on rounding.

    Raises:
        ValueError: there is no row, two rows have the same name, or a number of zeros is out of range.

    Example:
        >>> rows = (LayerRatio("a", "0", 60, 2.0, 0.8, 0.4, 24), LayerRatio("b", "1", 40, 3.0, 1.2, 0.6, 24))
        >>> ratios = LayerRatios(rows, 0.48, "farms")
        >>> ratios.reached, ratios.by_block(), ratios.amount("b")
        (0.48, {'0': 0.4, '1': 0.6}, 24)
        >>> LayerRatios.from_json(ratios.to_json()) == LayerRatios.from_csv(ratios.to_csv()) == ratios
        True
        >>> print(ratios)
        block  layers  weights  source  score  ratio
        0           1       60   2.000  0.800  0.400
        1           1       40   3.000  1.200  0.600
        farms: 0.480000 of 100 weights asked, 0.480000 reached (48 zeros).
    """

    layers: tuple[LayerRatio, ...]
    sparsity: float
    allocation: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"Expected argument `layers` to have at least one row, of unique names, but got {names}.")
        for layer in self.layers:
            if not 0 <= layer.zeros <= layer.size or layer.size < 1:
                raise ValueError(
                    f"Expected argument `layers` to prune between none and all of a layer's weights, but got "
                    f"{layer.zeros} of {layer.size} in {layer.name!r}."
                )

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerRatio]:
        return iter(self.layers)

    def __getitem__(self, name: str) -> LayerRatio:
        try:
            return self._by_name[name]
        except KeyError:
            first = self.layers[0].name
            raise KeyError(
                f"no layer {name!r} in this allocation of {len(self)} layers, the first of which is {first!r}"
            ) from None

    @cached_property
    def _by_name(self) -> dict[str, LayerRatio]:
        return {layer.name: layer for layer in self.layers}

    def __str__(self) -> str:
        """A table with a line per block if all layers of a block have the same score, otherwise a line per layer."""
        title = f"{self.allocation}: " if self.allocation else ""
        total = (
            f"{title}{self.sparsity:.6f} of {self.size} weights asked, {self.reached:.6f} reached ({self.zeros} zeros)."
        )
        return "\n".join([*_table(self.layers), total, *(f"Note: {note}." for note in self.notes)])

    @property
    def size(self) -> int:
        """Total number of weights."""
        return sum(layer.size for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Total number of pruned weights."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def reached(self) -> float:
        """The fraction of all weights that is pruned, computed from whole numbers."""
        return self.zeros / self.size

    def by_block(self) -> dict[str, float]:
        """{block: the fraction of its weights that is pruned}, computed from whole numbers, in the model's order."""
        zeros: dict[str, int] = {}
        sizes: dict[str, int] = {}
        for layer in self.layers:
            zeros[layer.block] = zeros.get(layer.block, 0) + layer.zeros
            sizes[layer.block] = sizes.get(layer.block, 0) + layer.size
        return {block: zeros[block] / size for block, size in sizes.items()}

    def amount(self, name: str) -> int | NofM:
        """How much of a weight to prune, in the form that :mod:`lightning_farms.functional.pruning_masks` takes.

        Args:
            name: name of the weight.

        Returns:
            The number of zeros in all its matrices, or the pattern.

        Raises:
            KeyError: there is no such weight.
        """
        layer = self[name]
        return layer.zeros if layer.pattern is None else layer.pattern

    def to_rows(self) -> list[dict[str, Any]]:
        """One dictionary per weight, with the keys of :data:`COLUMNS`; a pattern as ``"2:4"``, none as ``""``."""
        return [{**{name: getattr(row, name) for name in COLUMNS}, "pattern": _pattern_text(row)} for row in self]

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """CSV text (and written to ``path``), one line per weight, numbers with all their digits, without the notes."""
        of_all = {"asked": self.sparsity, "allocation": self.allocation}
        rows = [{**row, **of_all} for row in self.to_rows()]
        return write_if_asked(csv_text(rows, [*COLUMNS, *of_all]), path)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """JSON text (and written to ``path``) with ``sparsity``, ``reached``, ``allocation``, ``notes``, ``layers``."""
        content = {
            "sparsity": self.sparsity,
            "reached": self.reached,
            "allocation": self.allocation,
            "notes": list(self.notes),
            "layers": self.to_rows(),
        }
        return write_if_asked(json_text(content), path)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> LayerRatios:
        """Read ratios that :meth:`to_json` wrote.

        Args:
            source: the text, or the path of the file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the text was not written by :meth:`to_json`.
        """
        try:
            content = json.loads(_text(source, "{"))
            layers = tuple(_layer(row) for row in content["layers"])
            return cls(layers, float(content["sparsity"]), content["allocation"], tuple(content["notes"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"Expected argument `source` to be ratios as JSON, but got {error!r}.") from error

    @classmethod
    def from_csv(cls, source: str | os.PathLike[str]) -> LayerRatios:
        """Read ratios that :meth:`to_csv` wrote.

        Args:
            source: the text, or the path of the file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the text was not written by :meth:`to_csv`.
        """
        rows = list(csv.DictReader(io.StringIO(_text(source, "name,"))))
        try:
            layers = tuple(_layer(row) for row in rows)
            return cls(layers, float(rows[0]["asked"]), rows[0]["allocation"])
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"Expected argument `source` to be ratios as CSV, but got {error!r}.") from error


def _pattern_text(layer: LayerRatio) -> str:
    return "" if layer.pattern is None else f"{layer.pattern.n}:{layer.pattern.m}"


def _layer(row: dict[str, Any]) -> LayerRatio:
    pattern = NofM(*map(int, row["pattern"].split(":"))) if row["pattern"] else None
    source = math.nan if row["source"] is None else float(row["source"])
    numbers = int(row["size"]), source, float(row["score"]), float(row["ratio"]), int(row["zeros"])
    return LayerRatio(row["name"], row["block"], *numbers, pattern)


def _text(source: str | os.PathLike[str], beginning: str) -> str:
    """The source itself if it is a text with the expected beginning, otherwise the text of the file at this path."""
    if isinstance(source, str) and source.lstrip().startswith(beginning):
        return source
    return Path(source).read_text(encoding="utf-8")


def _table(layers: Sequence[LayerRatio]) -> list[str]:
    """The lines of the table: one per block if all layers of a block have the same score, otherwise one per layer."""
    blocks: dict[str, list[LayerRatio]] = {}
    for layer in layers:
        blocks.setdefault(layer.block, []).append(layer)
    if all(len({layer.score for layer in block}) == 1 for block in blocks.values()):
        lines = [["block", "layers", "weights", "source", "score", "ratio"]]
        lines += [[name, str(len(block)), *_cells(block)] for name, block in blocks.items()]
    else:
        lines = [["layer", "weights", "source", "score", "ratio"]]
        lines += [[layer.name, *_cells([layer])] for layer in layers]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]


def _cells(layers: Sequence[LayerRatio]) -> list[str]:
    """Number of weights, mean figure, score and reached ratio of layers with the same score."""
    size = sum(layer.size for layer in layers)
    figures = [layer.source for layer in layers if math.isfinite(layer.source)]
    mean = f"{sum(figures) / len(figures):.3f}" if figures else ""
    return [str(size), mean, f"{layers[0].score:.3f}", f"{sum(layer.zeros for layer in layers) / size:.3f}"]
