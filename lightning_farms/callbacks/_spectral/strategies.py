"""Checks that refuse strategies and optimizers, and access to parameters in their own shapes under FSDP1."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from torch.optim import Optimizer

from lightning_farms.analysis.weights.fsdp_shards import FLAT_PARAMETERS, FlatParametersError, whole_shapes_of_shards
from lightning_farms.common.lightning_packages import kinds, misconfiguration


def check_strategy(strategy: Strategy, callback: str) -> None:
    """Refuse a strategy that does not keep the model's own parameters."""
    if isinstance(strategy, kinds("strategies.DeepSpeedStrategy")):
        raise misconfiguration(
            f"{callback} cannot use weights that {type(strategy).__name__} partitions and updates as flattened copies. "
            'Use "ddp", "fsdp" or ModelParallelStrategy (FSDP2, tensor parallel), or run analyze(...) on a '
            "consolidated checkpoint."
        )
    if isinstance(strategy, kinds("strategies.FSDPStrategy")) and not _original_parameters(strategy):
        raise misconfiguration(FLAT_PARAMETERS)


def check_optimizers(optimizers: Sequence[Optimizer], callback: str, hyperparameter: str) -> None:
    """Refuse a training without an optimizer, in whose place Lightning puts a mock without hyperparameters."""
    if not any(type(optimizer).__name__ != "_MockOptimizer" for optimizer in optimizers):
        raise misconfiguration(
            f"{callback} has no optimizer whose {hyperparameter} it could adjust: `configure_optimizers` returns none. "
            "Return one, or use SpectralMonitor, which adjusts nothing."
        )


def _original_parameters(strategy: Any) -> bool:  # noqa: ANN401 - FSDPStrategy of whichever package
    return bool(strategy.kwargs.get("use_orig_params", True))


def whole_shapes(trainer: Trainer) -> AbstractContextManager[dict[Tensor, Tensor]]:
    """Within the context, parameters that FSDP1 keeps in flat parts have their own shapes in the model."""
    if not isinstance(trainer.strategy, kinds("strategies.FSDPStrategy")):
        return nullcontext({})
    assert trainer.strategy.model is not None
    try:
        return whole_shapes_of_shards(trainer.strategy.model)
    except FlatParametersError as error:
        raise misconfiguration(str(error)) from error
