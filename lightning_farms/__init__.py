"""Spectra of every weight matrix during training (FARMS), and layer-wise learning rates from them, for Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_farms.analysis import FARMS, LayerSpectrum, SpectralReport, WholeMatrix, analyze
    from lightning_farms.balancing import AlphaMap, Balancer, Control, LinearMap, Log2Map, SigmoidMap, SqrtMap, StepMap
    from lightning_farms.callbacks import (
        LayerwiseLearningRate,
        LayerwisePruning,
        PredictionWriter,
        RolloutMonitor,
        SpectralMonitor,
        TBSigmoid,
        TempBalance,
        WeightDecayBalance,
    )

__version__ = "0.1.0"

__all__ = [
    "FARMS",
    "AlphaMap",
    "Balancer",
    "Control",
    "LayerSpectrum",
    "LayerwiseLearningRate",
    "LayerwisePruning",
    "LinearMap",
    "Log2Map",
    "PredictionWriter",
    "RolloutMonitor",
    "SigmoidMap",
    "SpectralMonitor",
    "SpectralReport",
    "SqrtMap",
    "StepMap",
    "TBSigmoid",
    "TempBalance",
    "WeightDecayBalance",
    "WholeMatrix",
    "analyze",
]

_ROOMS = (
    "analysis",
    "balancing",
    "callbacks",
)  # searched in this order, as the first two need no Lightning, which takes seconds to import


if not TYPE_CHECKING:  # so that type checkers know the names above and no others

    def __getattr__(name: str) -> object:
        """Import the room that a public name comes from when the name is first used."""
        if name in __all__:
            for room in map(import_module, (f"{__name__}.{room}" for room in _ROOMS)):
                if name in room.__all__:
                    return getattr(room, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
