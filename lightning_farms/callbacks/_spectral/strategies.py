"""Which strategies callbacks refuse, and which parameters of a model belong together under the others."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, Strategy
from torch import Tensor

from lightning_farms.analysis import Selection, layer_weights, parameter_layers
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


class Structure(NamedTuple):
    """Which of a model's parameters hold which weight, and belong to which layer.

    Attributes:
        layer_of: {parameter: layer}, as of :func:`lightning_farms.analysis.parameter_layers`.
        holders: {weight: parameters that hold it}, in the report's order.
        selected: weights that are selected, in the same order.
    """

    layer_of: dict[Tensor, str]
    holders: dict[str, tuple[Tensor, ...]]
    selected: list[str]


def structure(
    trainer: Trainer, pl_module: LightningModule, selection: Selection, *, norms: bool = True, biases: bool = True
) -> Structure:
    """The parameters that optimizers hold, by layer and by weight; nothing is communicated.

    Args:
        trainer: the Trainer, whose strategy is set up.
        pl_module: the model.
        selection: which weights are analysed.
        norms: as in :func:`lightning_farms.analysis.parameter_layers`.
        biases: as there.

    Returns:
        The structure.

    Raises:
        MisconfigurationException: the model contains a module wrapped in FSDP with ``use_orig_params=False``.
    """
    with whole_shapes(trainer) as original:
        layer_of = parameter_layers(pl_module, selection, norms=norms, biases=biases)
        holders, selected = {}, []
        for weight in layer_weights(pl_module, selection, values=False):
            holders[weight.name] = tuple(original.get(p, p) for p in weight.holders)
            if not weight.reason:
                selected.append(weight.name)
    return Structure({original.get(p, p): layer for p, layer in layer_of.items()}, holders, selected)


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
