"""Which strategies callbacks refuse, and how the parameters of a model have their own shapes under the others."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, Strategy
from torch import Tensor

from lightning_farms.callbacks._spectral.fsdp_shards import FLAT_PARAMETERS, whole_shapes_of_shards


def check_strategy(strategy: Strategy, callback: str) -> None:
    """Refuse a strategy that leaves no parameter of the model as it is.

    Args:
        strategy: the Trainer's.
        callback: name of the callback that asks.

    Raises:
        MisconfigurationException: DeepSpeed's strategy, or FSDP with ``use_orig_params=False``.
    """
    if isinstance(strategy, DeepSpeedStrategy):
        raise MisconfigurationException(
            f"{callback} cannot use weights that {type(strategy).__name__} partitions and updates as flattened copies. "
            'Use "ddp", "fsdp" or ModelParallelStrategy (FSDP2, tensor parallel), or run analyze(...) on a '
            "consolidated checkpoint."
        )
    if isinstance(strategy, FSDPStrategy) and not strategy.kwargs.get("use_orig_params", True):
        raise MisconfigurationException(FLAT_PARAMETERS)


def whole_shapes(trainer: Trainer) -> AbstractContextManager[dict[Tensor, Tensor]]:
    """Have the parameters that FSDP1 keeps in flat parts stand in the model in their own shapes for a while.

    Args:
        trainer: the Trainer, whose strategy is set up.

    Returns:
        A context manager, which yields {stand-in: parameter}; there are none with other strategies. A stand-in is on
        the meta device; its ``full_tensor()``, like a DTensor's, is a collective that returns the values.

    Raises:
        MisconfigurationException: the model contains a module wrapped in FSDP with ``use_orig_params=False``.
    """
    if not isinstance(trainer.strategy, FSDPStrategy):
        return nullcontext({})
    assert trainer.strategy.model is not None
    return whole_shapes_of_shards(trainer.strategy.model)
