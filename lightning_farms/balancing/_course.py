"""The course of the multipliers from analysis to analysis, as it follows from the signals of the layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_farms.balancing.alpha_map import AlphaMap
from lightning_farms.balancing.control import Control
from lightning_farms.functional.smoothing import moving_average, ramp
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


class Course:
    """Turns signals of layers into multipliers, without knowing weights or optimizers; its state is plain types."""

    def __init__(self, alpha_map: AlphaMap, control: Control) -> None:
        self._map, self._control = alpha_map, control
        self._averages: dict[str, float] = {}  # the last finite averages
        self._first: dict[str, float] = {}  # alphas of the first analysis, for the signal "change"
        self.current: dict[str, float] = {}  # smoothed signals of the last report; NaN: the layer has none
        self._ramp = MultiplierRamp({}, {}, 0, 0)

    def observe(self, signals: Mapping[str, float]) -> None:
        """Take in a report's signals of all layers, trained or not."""
        if self._control.signal == "change":
            for layer, alpha in signals.items():
                if math.isfinite(alpha):
                    self._first.setdefault(layer, alpha)
            signals = {layer: alpha / self._first.get(layer, math.nan) for layer, alpha in signals.items()}
        before = vector(self._averages.get(layer, math.nan) for layer in signals)
        averages = moving_average(before, vector(signals.values()), self._control.ema_decay)
        self.current = dict(zip(signals, averages.tolist(), strict=True))
        self._averages.update({layer: value for layer, value in self.current.items() if math.isfinite(value)})

    def aim(self, sizes: Mapping[str, int], step: int) -> None:
        """Aim, from this step on, at the multipliers of these layers; `sizes` holds their numbers of parameters.

        Raises:
            ValueError: the map fails; the former target stays.
        """
        signals = vector(self.current[layer] for layer in sizes)
        multipliers = self._control.multipliers(signals, self._map, vector(sizes.values()))
        self._go(dict(zip(sizes, multipliers.tolist(), strict=True)), step)

    def stay(self, sizes: Mapping[str, int], step: int) -> None:
        """Keep the present target multipliers of these layers."""
        self._go({layer: self._ramp.target.get(layer, 1.0) for layer in sizes}, step)

    def _go(self, target: dict[str, float], step: int) -> None:
        self._ramp = MultiplierRamp(self._ramp.at(step - 1), target, step, self._control.ramp_steps)

    def join(self, sizes: Mapping[str, int], step: int) -> None:
        """Aim anew after layers have been unfrozen, which get their target multipliers at once, without a ramp."""
        known = set(self._ramp.target)
        self.aim({layer: size for layer, size in sizes.items() if layer in self.current}, step)
        news = {layer: value for layer, value in self._ramp.target.items() if layer not in known}
        self._ramp = self._ramp._replace(start={**self._ramp.start, **news})

    @property
    def target(self) -> dict[str, float]:
        """The multipliers that are aimed at."""
        return self._ramp.target

    def at(self, step: int) -> dict[str, float]:
        """The multipliers of the update that follows the given number of steps."""
        return self._ramp.at(step)

    def state_dict(self) -> dict[str, Any]:
        """The state in plain types."""
        return {
            "averages": dict(self._averages),
            "first": dict(self._first),
            "current": dict(self.current),
            "ramp": self._ramp._asdict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state; one of version 1 held only ``multipliers``, one of 0.1 neither ``first`` nor ``current``."""
        if "ramp" not in state_dict:
            self._ramp = MultiplierRamp({}, dict(state_dict.get("multipliers", {})), 0, 0)
            return
        self._averages, self._ramp = dict(state_dict["averages"]), MultiplierRamp(**state_dict["ramp"])
        self._first, self.current = dict(state_dict.get("first", {})), dict(state_dict.get("current", self._averages))
