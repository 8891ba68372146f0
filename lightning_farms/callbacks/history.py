"""Per-layer numbers over the analyses of a run: what the heat maps show and the checkpoint keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class LayerHistory:
    """Numbers per layer and analysis, in plain Python types.

    Attributes:
        epochs: how many epochs were complete at each analysis, ascending.

    Example:
        >>> history = LayerHistory()
        >>> history.append(0, {"alpha": {"fc": 2.5}})
        >>> history.append(1, {"alpha": {"fc": 2.4, "head": 3.0}})
        >>> history.layers("alpha"), history.rows("alpha")
        (['fc', 'head'], [[2.5, 2.4], [nan, 3.0]])
    """

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self._quantities: dict[str, dict[str, list[float]]] = {}

    def append(self, epochs: int, values: Mapping[str, Mapping[str, float]]) -> None:
        """Add one analysis: ``{quantity: {layer: value}}`` after ``epochs`` complete epochs."""
        self.epochs.append(epochs)
        for quantity, by_layer in values.items():
            columns = self._quantities.setdefault(quantity, {})
            for layer, value in by_layer.items():
                columns.setdefault(layer, []).extend([math.nan] * (len(self.epochs) - 1 - len(columns[layer])))
                columns[layer].append(value)

    def quantities(self) -> list[str]:
        """Names of what was recorded."""
        return list(self._quantities)

    def layers(self, quantity: str) -> list[str]:
        """Layers for which the quantity was recorded."""
        return list(self._quantities.get(quantity, {}))

    def rows(self, quantity: str) -> list[list[float]]:
        """One row a layer, one column an analysis; NaN where the layer was missing."""
        count = len(self.epochs)
        return [row + [math.nan] * (count - len(row)) for row in self._quantities.get(quantity, {}).values()]

    def state_dict(self) -> dict[str, Any]:
        """Plain types only, so that a checkpoint loads with ``weights_only=True``."""
        quantities = {q: {layer: list(row) for layer, row in rows.items()} for q, rows in self._quantities.items()}
        return {"epochs": list(self.epochs), "quantities": quantities}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> LayerHistory:
        """The history that :meth:`state_dict` described."""
        history = cls()
        history.epochs = list(state["epochs"])
        history._quantities = {
            q: {layer: list(row) for layer, row in rows.items()} for q, rows in state["quantities"].items()
        }
        return history
