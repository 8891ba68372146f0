"""What a pass of pruning did, by layer and by block."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_farms.common.atomic import complete_or_nothing
from lightning_farms.common.texts import json_text
from lightning_farms.pruning.ratios import LayerRatios


@dataclass(frozen=True)
class PrunedLayer:
    r"""One weight that was pruned.

    Attributes:
        name: of the layer.
        block: name of its block.
        size: number of weights.
        asked: ratio that was asked for, in [0, 1].
        zeros: weights that are exactly zero now.
        tokens: of calibration that its inputs were measured on, the fewest of an expert; None without calibration.
        error: :math:`\|(W' - W) X\| / \|W X\|`; with Wanda and magnitudes from the mean squares of single inputs, as if
            they were not correlated; NaN without calibration.
        notes: what went another way than asked: experts pruned by magnitude, more damping.
        precision: in which SparseGPT factorised the Hessian, ``"float32"`` or, where its condition asked for it (in one
            matrix at least), ``"float64"``; empty with other methods.
    """

    name: str
    block: str
    size: int
    asked: float
    zeros: int
    tokens: int | None
    error: float
    notes: tuple[str, ...] = ()
    precision: str = ""

    @property
    def sparsity(self) -> float:
        """Share of weights that are zero."""
        return self.zeros / self.size


@dataclass(frozen=True)
class PrunedBlock:
    """One block that was pruned.

    Attributes:
        name: of the block.
        layers: its weights.
        error: relative distance of its outputs to those of the dense block, both with the inputs from the pruned blocks
            before, over the first 8 sequences; NaN without calibration.
        seconds: of work.
    """

    name: str
    layers: tuple[PrunedLayer, ...]
    error: float
    seconds: float

    @property
    def sparsity(self) -> float:
        """Share of its weights that are zero."""
        return sum(layer.zeros for layer in self.layers) / max(sum(layer.size for layer in self.layers), 1)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PrunedBlock:
        """The block that `dataclasses.asdict` made a dictionary of."""
        layers = tuple(PrunedLayer(**{**layer, "notes": tuple(layer["notes"])}) for layer in values["layers"])
        return cls(values["name"], layers, float(values["error"]), float(values["seconds"]))


@dataclass(frozen=True)
class PruningReport:
    """What a pass of pruning did.

    Attributes:
        blocks: in order.
        method: how the weights were chosen.
        ratios: what was asked.
        seconds: of the pass, wall clock.
        peak_memory: of the process in bytes, or of the device where that is a GPU; None: not known.
    """

    blocks: tuple[PrunedBlock, ...]
    method: str
    ratios: LayerRatios = field(repr=False)
    seconds: float
    peak_memory: int | None = None

    @cached_property
    def layers(self) -> tuple[PrunedLayer, ...]:
        """All layers, in order."""
        return tuple(layer for block in self.blocks for layer in block.layers)

    @property
    def reached(self) -> float:
        """Share of the prunable weights that are zero."""
        return self.zeros / sum(layer.size for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Number of zeros."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def notes(self) -> list[str]:
        """What went another way than asked, by layer."""
        return [f"{layer.name}: {note}" for layer in self.layers for note in layer.notes]

    def to_rows(self) -> list[dict[str, Any]]:
        """A dictionary a layer."""
        return [
            {
                "layer": layer.name,
                "block": layer.block,
                "size": layer.size,
                "alpha": self.ratios[layer.name].source,
                "asked": layer.asked,
                "sparsity": layer.sparsity,
                "zeros": layer.zeros,
                "tokens": layer.tokens,
                "error": layer.error,
                "precision": layer.precision,
                "notes": "; ".join(layer.notes),
            }
            for layer in self.layers
        ]

    def to_csv(self) -> str:
        """A line a layer, with a head."""
        rows = self.to_rows()
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_json(self) -> str:
        """Everything, with asked and reached sparsity in all; null for an error that is not known."""
        return json_text(
            {
                "method": self.method,
                "sparsity_asked": self.ratios.sparsity,
                "sparsity_reached": self.reached,
                "zeros": self.zeros,
                "seconds": self.seconds,
                "peak_memory": self.peak_memory,
                "blocks": [asdict(block) for block in self.blocks],
            }
        )

    def save(self, path: str | Path) -> None:
        """Write a file: ``.csv`` or ``.json``.

        Args:
            path: the file.

        Raises:
            ValueError: another ending.
        """
        target = Path(path)
        if target.suffix not in (".csv", ".json"):
            raise ValueError(f"Expected argument `path` to end in .csv or .json, but got {target.name!r}.")
        with complete_or_nothing(target) as draft:
            draft.write_text(self.to_csv() if target.suffix == ".csv" else self.to_json(), encoding="utf-8")
