"""A custom allocation that is read from a file."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from lightning_farms.functional.vectors import vector
from lightning_farms.pruning.allocation.base import Figures, Granularity, Layer, LinearAllocation, Subject

Column = Literal["ratio", "score", "source"]

_NAMES = ("name", "layer", "block")  # headers of the column of names; the first that is there is taken
_SHOWN = 5


@dataclass(frozen=True)
class FileAllocation(LinearAllocation):
    r"""Allocation by ratios, scores or raw figures from a JSON or CSV file, keyed by the names of layers or blocks.

    JSON: an object of names and numbers, or a file that :meth:`LayerRatios.to_json` or, for ratios,
    :meth:`PruningReport.save` wrote. CSV: one line per name, with a header that has a column ``name``, ``layer`` or
    ``block`` and a column with the name given by ``column``, as in the files that these two classes write. A layer's
    own name takes precedence over its block's; every layer needs a number, and no name may occur twice.

    Args:
        path: path of the file, ``.json`` or ``.csv``.
        column: meaning of the numbers. ``"ratio"``: fractions to prune in [0, 1], scaled to the requested sparsity;
            ``"score"``: shares in the pruning, not negative; ``"source"``: raw figures such as alphas, mapped like
            those of FARMS: the larger the figure, the more is pruned.
        epsilon: half the range of the scores computed from raw figures.
        granularity: ``"layer"``, the default here, or ``"block"``, the mean over the block.
        floor: least ratio of a layer.
        cap: greatest ratio of a layer.
        reverse: whether the order is reversed; for raw figures only.

    Raises:
        ValueError: an argument is out of range.

    Reference:
        :class:`lightning_farms.pruning.LayerRatios`, for the files it writes.
    """

    path: str | os.PathLike[str]
    column: Column = "ratio"
    granularity: Granularity = field(default="layer", kw_only=True)

    label: ClassVar[str] = "file"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.column not in get_args(Column):
            raise ValueError(f"Expected argument `column` to be one of {get_args(Column)}, but got {self.column!r}.")
        if self.reverse and self.column != "source":
            raise ValueError(f'Expected argument `reverse` to be False with column="{self.column}", but got True.')

    def sources(self, subject: Subject) -> Figures:
        """See the base class; the figures are the file's numbers.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file cannot be read, has unknown names, leaves layers out, or has numbers out of range.
        """
        numbers = _read(Path(self.path), self.column)
        self._check(numbers)
        _check_names(numbers, subject.weights, os.fspath(self.path))
        return Figures(tuple(numbers.get(w.name, numbers.get(w.block, math.nan)) for w in subject.weights))

    def scores(self, figures: Sequence[float], layers: Sequence[Layer], sparsity: float) -> Tensor:
        """See the base class; ratios and scores are used as they are, or averaged over their block."""
        if self.column == "source":
            return super().scores(figures, layers, sparsity)
        values = vector(figures)
        if self.granularity == "block":
            blocks = [layer.block for layer in layers]
            means = {b: values[[other == b for other in blocks]].mean() for b in dict.fromkeys(blocks)}
            values = torch.stack([means[block] for block in blocks])
        return values / sparsity if self.column == "ratio" and sparsity > 0 else values

    def _check(self, numbers: Mapping[str, float]) -> None:
        if self.column == "source":  # any number is allowed, and none too
            return
        most, rule = (1.0, "in [0, 1]") if self.column == "ratio" else (math.inf, "finite and not negative")
        for name, number in numbers.items():
            if not (0 <= number <= most and number < math.inf):
                raise ValueError(
                    f"Expected every {self.column} in {os.fspath(self.path)!r} to be {rule}, but got {number} for "
                    f"{name!r}."
                )


def _read(path: Path, column: str) -> dict[str, float]:
    """Read {name: number} from the file; a missing number is NaN."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _from_csv(text, column) if path.suffix == ".csv" else _from_json(text, column)
        if twice := next((name for name, times in Counter(name for name, _ in rows).items() if times > 1), None):
            raise ValueError(f"{twice!r} is there more than once")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Expected argument `path` to be a JSON object of names and numbers, or a table with the columns `name` "
            f"and `{column}`, but {str(path)!r} is not ({type(error).__name__}: {error})."
        ) from error
    return dict(rows)


def _from_json(text: str, column: str) -> list[tuple[str, float]]:
    content: Any = dict(pairs := json.loads(text, object_pairs_hook=list))
    tables = [content, *map(dict, content["blocks"])] if isinstance(content.get("blocks"), list) else [content]
    tables = [table for table in tables if isinstance(table.get("layers"), list)]  # a layer may be called `layers`
    rows: list[Mapping[str, Any]] = [dict(row) for table in tables for row in table["layers"]]
    return _numbers(rows, column) if rows else [(name, _number(value)) for name, value in pairs]


def _from_csv(text: str, column: str) -> list[tuple[str, float]]:
    rows = list(csv.DictReader(io.StringIO(text), skipinitialspace=True))
    if not rows:
        raise ValueError("it has no line")
    return _numbers(rows, column)


def _numbers(rows: Sequence[Mapping[str, Any]], column: str) -> list[tuple[str, float]]:
    """Return the names and numbers of a table; that of a `PruningReport` has the ratios as `asked`."""
    key = next((name for name in _NAMES if name in rows[0]), _NAMES[0])
    column = "asked" if column == "ratio" and "ratio" not in rows[0] and "asked" in rows[0] else column
    return [(row[key], _number(row[column])) for row in rows]


def _number(value: str | float | None) -> float:
    return math.nan if value is None or value == "" else float(value)


def _check_names(numbers: Mapping[str, float], layers: Sequence[Layer], path: str) -> None:
    """Raise an error for unknown names, suggesting similar ones, and for layers without a number."""
    known = dict.fromkeys([layer.block for layer in layers] + [layer.name for layer in layers])
    if unknown := [name for name in numbers if name not in known]:
        near = {name: get_close_matches(name, known, n=1, cutoff=0.5) for name in unknown[:_SHOWN]}
        listed = ", ".join(
            f"{name!r}" + (f" (did you mean {close[0]!r}?)" if close else "") for name, close in near.items()
        )
        raise ValueError(
            f"Expected the names in {path!r} to be those of layers or blocks of the model, but {len(unknown)} of "
            f"{len(numbers)} are not: {listed}{_more(unknown)}. The model has {layers[0].name!r} in "
            f"{layers[0].block!r}, for example."
        )
    if missing := [layer.name for layer in layers if layer.name not in numbers and layer.block not in numbers]:
        raise ValueError(
            f"Expected {path!r} to have a number for every layer or its block, but {len(missing)} of {len(layers)} "
            f"have none: {', '.join(missing[:_SHOWN])}{_more(missing)}."
        )


def _more(names: Sequence[str]) -> str:
    return ", ..." if len(names) > _SHOWN else ""
