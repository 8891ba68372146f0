"""Report of a pruning pass, by layer and by block."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_farms.common.atomic import write_text
from lightning_farms.common.texts import csv_text, json_text
from lightning_farms.pruning.ratios import LayerRatios


@dataclass(frozen=True)
class PrunedLayer:
    r"""One weight that was pruned.

    Attributes:
        name: name of the layer.
        block: name of its block.
        size: number of weights.
        asked: ratio that was asked for, in [0, 1].
        zeros: number of weights that are exactly zero now.
        tokens: number of calibration tokens on which its inputs were measured (for experts, that of the expert with the
            fewest); None without calibration.
        error: :math:`\|(W' - W) X\| / \|W X\|`; for Wanda and magnitudes from the mean squares of single inputs, as if
            they were not correlated; NaN without calibration.
        notes: deviations from what was asked for: experts pruned by magnitude, more damping.
        precision: precision in which SparseGPT factorised the Hessian, ``"float32"`` or, if its condition required it
            (in at least one matrix), ``"float64"``; empty for other methods.
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
        """Share of the weights that are zero."""
        return self.zeros / self.size


@dataclass(frozen=True)
class PrunedBlock:
    """One block that was pruned.

    Attributes:
        name: name of the block.
        layers: its weights.
        error: relative distance of its outputs to those of the dense block, both for inputs from the pruned blocks
            before it, over the first 8 sequences; NaN without calibration.
        seconds: time spent on the block.
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
        """Restore a block from the dictionary that `dataclasses.asdict` made of it."""
        layers = tuple(PrunedLayer(**{**layer, "notes": tuple(layer["notes"])}) for layer in values["layers"])
        return cls(values["name"], layers, float(values["error"]), float(values["seconds"]))


@dataclass(frozen=True)
class PruningReport:
    """Report of a pruning pass.

    Attributes:
        blocks: the blocks in order.
        method: method by which the weights were chosen.
        ratios: ratios that were asked for.
        seconds: wall-clock time of the pass.
        peak_memory: peak memory in bytes of the process, or of the device if it is a GPU; None: not known.
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
        """Number of weights that are zero."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def notes(self) -> list[str]:
        """Deviations from what was asked for, by layer."""
        return [f"{layer.name}: {note}" for layer in self.layers for note in layer.notes]

    def to_rows(self) -> list[dict[str, Any]]:
        """One dictionary per layer."""
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
        """CSV text with one line per layer and a header."""
        rows = self.to_rows()
        return csv_text(rows, list(rows[0]))

    def to_json(self) -> str:
        """JSON text with all results and the overall sparsity asked and reached; null for an unknown error."""
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
        """Write the report to a ``.csv`` or ``.json`` file.

        Args:
            path: path of the file.

        Raises:
            ValueError: the path has another ending.
        """
        target = Path(path)
        if target.suffix not in (".csv", ".json"):
            raise ValueError(f"Expected argument `path` to end in .csv or .json, but got {target.name!r}.")
        write_text(target, self.to_csv() if target.suffix == ".csv" else self.to_json())
