"""Per-layer numbers over the analyses of a run, as heat maps show them and checkpoints keep them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


class Positions(NamedTuple):
    """Where the analyses lie on a time axis.

    Attributes:
        unit: What the numbers count.
        numbers: One number per analysis, ascending.
    """

    unit: Literal["epoch", "step"]
    numbers: list[int]


class LayerHistory:
    """History of numbers per layer and analysis, in plain Python types.

    Attributes:
        epochs: how many epochs were complete at each analysis, ascending.
        steps: how many steps the optimizer had done at each analysis; None if unknown.

    Example:
        >>> history = LayerHistory()
        >>> history.append(0, {"alpha": {"fc": 2.5}}, step=0)
        >>> history.append(1, {"alpha": {"fc": 2.4, "head": 3.0}}, step=500)
        >>> history
        LayerHistory(2 analyses, epochs 0 to 1, alpha of 2 layers)
        >>> history.layers("alpha"), history.rows("alpha")
        (['fc', 'head'], [[2.5, 2.4], [nan, 3.0]])
    """

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.steps: list[int | None] = []
        self._quantities: dict[str, dict[str, list[float]]] = {}

    def __repr__(self) -> str:
        if not self.epochs:
            return "LayerHistory(no analysis)"
        unit, numbers = self.positions()
        count = f"{len(numbers)} analyses, {unit}s {numbers[0]} to {numbers[-1]}"
        if len(numbers) == 1:
            count = f"1 analysis, after {numbers[0]} {unit}s"
        return f"LayerHistory({', '.join([count, *self._layer_counts()])})"

    def append(self, epochs: int, values: Mapping[str, Mapping[str, float]], *, step: int | None = None) -> None:
        """Add one analysis: ``{quantity: {layer: value}}``.

        Args:
            epochs: How many epochs are complete.
            values: The numbers that the analysis found.
            step: How many steps the optimizer has done; None if unknown.
        """
        self.epochs.append(epochs)
        self.steps.append(step)
        for quantity, by_layer in values.items():
            columns = self._quantities.setdefault(quantity, {})
            for layer, value in by_layer.items():
                columns.setdefault(layer, []).extend([math.nan] * (len(self.epochs) - 1 - len(columns[layer])))
                columns[layer].append(value)

    def quantities(self) -> list[str]:
        """Return the names of the quantities that were recorded."""
        return list(self._quantities)

    def without(self, *quantities: str) -> LayerHistory:
        """Return this history without some quantities; the others' numbers stay shared with this one."""
        history = LayerHistory()
        history.epochs, history.steps = self.epochs, self.steps
        history._quantities = {name: rows for name, rows in self._quantities.items() if name not in quantities}
        return history

    @classmethod
    def merged(cls, histories: Iterable[LayerHistory], quantity: str) -> LayerHistory:
        """Merge one quantity of several histories: every analysis once, in chronological order.

        Args:
            histories: Histories of one run.
            quantity: Name of the quantity.

        Returns:
            A new history.

        Example:
            >>> odd, even = LayerHistory(), LayerHistory()
            >>> odd.append(1, {"alpha": {"fc": 2.5}}, step=10)
            >>> even.append(0, {"alpha": {"fc": 2.6}}, step=0)
            >>> LayerHistory.merged([odd, even], "alpha").rows("alpha")
            [[2.6, 2.5]]
        """
        analyses: dict[tuple[int, int], tuple[int | None, dict[str, float]]] = {}
        for history in histories:
            for index, (epochs, step) in enumerate(zip(history.epochs, history.steps, strict=True)):
                columns = history._quantities.get(quantity, {}).items()
                values = {layer: row[index] for layer, row in columns if index < len(row)}
                analyses.setdefault((epochs, -1 if step is None else step), (step, values))
        merged = cls()
        for (epochs, _), (step, values) in sorted(analyses.items(), key=lambda item: item[0]):
            merged.append(epochs, {quantity: values}, step=step)
        return merged

    def ends_at(self, epochs: int, step: int) -> bool:
        """Tell whether the last analysis was made after this many epochs and steps."""
        return bool(self.epochs) and (self.epochs[-1], self.steps[-1]) == (epochs, step)

    def layers(self, quantity: str) -> list[str]:
        """Return the layers for which the quantity was recorded."""
        return list(self._quantities.get(quantity, {}))

    def rows(self, quantity: str) -> list[list[float]]:
        """Return one row per layer, with one column per analysis; NaN where the layer was missing."""
        count = len(self.epochs)
        return [row + [math.nan] * (count - len(row)) for row in self._quantities.get(quantity, {}).values()]

    def positions(self) -> Positions:
        """Return the analyses' epochs, or their steps if two analyses lie in one epoch and all steps are known.

        Returns:
            The unit and one number per analysis.

        Example:
            >>> history = LayerHistory()
            >>> for step in (0, 250, 500):
            ...     history.append(step // 500, {}, step=step)
            >>> history.positions()
            Positions(unit='step', numbers=[0, 250, 500])
        """
        known = [step for step in self.steps if step is not None]
        if len(set(self.epochs)) < len(self.epochs) == len(known):
            return Positions("step", known)
        return Positions("epoch", list(self.epochs))

    def to_pandas(self) -> pd.DataFrame:
        """Return all values in long form, analysis by analysis; a layer that an analysis lacks has no line there.

        Returns:
            A data frame with columns ``epochs``, ``step`` (``<NA>`` if unknown), ``quantity``, ``layer`` and
            ``value``.

        Raises:
            ModuleNotFoundError: If pandas is not installed.

        Example:
            >>> history = LayerHistory()
            >>> history.append(1, {"alpha": {"conv": 2.5, "fc": 3.0}}, step=40)
            >>> print(history.to_pandas().to_string(index=False))
             epochs  step quantity layer  value
                  1    40    alpha  conv    2.5
                  1    40    alpha    fc    3.0
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                'LayerHistory.to_pandas() needs pandas: pip install "lightning-farms[pandas]".'
            ) from error
        lines = []
        for analysis, when in enumerate(zip(self.epochs, self.steps, strict=True)):
            for quantity, by_layer in self._quantities.items():
                values = {layer: row[analysis] for layer, row in by_layer.items() if analysis < len(row)}
                lines += [(*when, quantity, layer, value) for layer, value in values.items() if not math.isnan(value)]
        frame = pd.DataFrame(lines, columns=["epochs", "step", "quantity", "layer", "value"])
        return frame.astype({"epochs": "int64", "step": "Int64", "value": "float64"})

    def state_dict(self) -> dict[str, Any]:
        """Return the history in plain types only, so that a checkpoint loads with ``weights_only=True``."""
        quantities = {q: {layer: list(row) for layer, row in rows.items()} for q, rows in self._quantities.items()}
        return {"epochs": list(self.epochs), "steps": list(self.steps), "quantities": quantities}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> LayerHistory:
        """Rebuild a history from its :meth:`state_dict`; the steps of a state older than steps are unknown."""
        history = cls()
        history.epochs = list(state["epochs"])
        history.steps = list(state.get("steps", [None] * len(history.epochs)))
        history._quantities = {
            q: {layer: list(row) for layer, row in rows.items()} for q, rows in state["quantities"].items()
        }
        return history

    def _layer_counts(self) -> list[str]:
        counts = {quantity: len(by_layer) for quantity, by_layer in self._quantities.items()}
        return [
            f"{quantity.replace('_', ' ')} of {count} layer{'s' if count != 1 else ''}"
            for quantity, count in counts.items()
        ]
