"""Which strategies callbacks refuse, and how the parameters that FSDP1 flattens are shown in their own shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, Strategy
from torch import Tensor, nn

from lightning_farms.analysis import Selection, layer_weights, parameter_layers

_FLAT_PARAMETERS = (
    "Layers cannot be told apart where FSDP flattens their parameters into one. Leave out `use_orig_params=False`: "
    "Lightning's FSDPStrategy keeps the original parameters by default."
)


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
        raise MisconfigurationException(_FLAT_PARAMETERS)


class Structure(NamedTuple):
    """Which of a model's parameters hold which weight, and belong to which layer.

    Attributes:
        layer_of: {parameter: layer}, as of :func:`lightning_farms.analysis.parameter_layers`.
        holders: {weight: parameters that hold it}, in the report's order.
    """

    layer_of: dict[Tensor, str]
    holders: dict[str, tuple[Tensor, ...]]


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
        weights = layer_weights(pl_module, selection, values=False)
        holders = {weight.name: tuple(original.get(p, p) for p in weight.holders) for weight in weights}
    return Structure({original.get(p, p): layer for p, layer in layer_of.items()}, holders)


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
    return _stand_ins_of_shards(trainer.strategy.model)


class _Shard(nn.Parameter):
    """A parameter of which this process holds a part, or nothing.

    FSDP1 lays the parameters of a unit one behind the other and cuts the row into equal parts, one a process. With
    ``use_orig_params`` each parameter is what lies of it in the process's part. The parts of one parameter are summed
    in zeros of its shape: memory of one parameter, where ``summon_full_params`` needs that of the unit.
    """

    part: nn.Parameter
    start: int
    length: int
    unit: Any

    def full_tensor(self) -> Tensor:
        """All of the parameter, on the device that computes; a collective."""
        whole = torch.zeros(self.shape, dtype=self.part.dtype, device=self.unit.compute_device)
        part = self.part.detach().flatten()
        place = slice(self.start, self.start + self.length)
        whole.view(-1)[place] = part if part.numel() == self.length else part[place]  # all of it while FSDP gathers
        torch.distributed.all_reduce(whole, group=self.unit.process_group)
        return whole


@contextmanager
def _stand_ins_of_shards(model: nn.Module) -> Iterator[dict[Tensor, Tensor]]:
    shards = _shards(model)
    replaced: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for module in model.modules():
            held = cast("dict[str, Any]", module._parameters)
            for name, parameter in list(held.items()):
                if parameter in shards:
                    replaced.append((held, name, parameter))
                    held[name] = shards[parameter]
        yield {shard: parameter for parameter, shard in shards.items()}
    finally:
        for held, name, parameter in replaced:
            held[name] = parameter


def _shards(model: nn.Module) -> dict[Tensor, _Shard]:
    """The stand-in of each parameter that is cut; those of NO_SHARD are whole."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    shards: dict[Tensor, _Shard] = {}
    for unit in FullyShardedDataParallel.fsdp_modules(model):
        handle = unit._handle
        if handle is None:
            continue
        flat = handle.flat_param
        if flat._params is None:
            raise MisconfigurationException(_FLAT_PARAMETERS)
        if handle.uses_sharded_strategy:
            for part, shape, place in zip(flat._params, flat._shapes, flat._shard_param_infos, strict=True):
                shard = _Shard(torch.empty(shape, dtype=part.dtype, device="meta"), part.requires_grad)
                shard.part, shard.unit = part, unit
                shard.start, shard.length = place.intra_param_start_idx or 0, place.numel_in_shard or 0
                shards[part] = shard
    return shards
