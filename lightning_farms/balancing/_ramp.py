"""Ramp of the multipliers from those of one analysis to those of the next."""

from __future__ import annotations

from typing import NamedTuple

from lightning_farms.functional.smoothing import ramp
from lightning_farms.functional.vectors import vector


class MultiplierRamp(NamedTuple):
    """Start, target and timing of a linear ramp of multipliers.

    Attributes:
        start: {layer: multiplier} of the last update before the analysis; layers that are missing had 1.
        target: {layer: multiplier} that the analysis asks for.
        step: number of optimizer steps taken at the analysis.
        steps: length of the ramp in steps.

    Example:
        >>> way = MultiplierRamp({}, {"fc": 3.0}, step=10, steps=4)
        >>> [way.at(step)["fc"] for step in (9, 10, 11, 12, 13, 14)]
        [1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    """

    start: dict[str, float]
    target: dict[str, float]
    step: int
    steps: int

    def at(self, step: int) -> dict[str, float]:
        """Multipliers of the update that follows ``step`` others, by :func:`lightning_farms.functional.ramp`."""
        start = vector(self.start.get(layer, 1.0) for layer in self.target)
        values = ramp(start, vector(self.target.values()), max(0, step + 1 - self.step), self.steps)
        return dict(zip(self.target, values.tolist(), strict=True))
