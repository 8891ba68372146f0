"""Gives the parameters that FSDP1 flattens and cuts their own shapes for a while.

This reads private attributes of torch, as no public interface tells a parameter's place in the flat parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lightning_farms.analysis.weights._replacing import parameters_of, replacing

FLAT_PARAMETERS = (
    "Layers cannot be told apart where FSDP flattens their parameters into one. Leave out `use_orig_params=False` "
    "(in a loop of your own: give `use_orig_params=True`), or use FSDP2 (`fully_shard`)."
)


class FlatParametersError(TypeError):
    """Parameters are parts of flat ones, and cannot be told apart."""


class _Shard(nn.Parameter):
    """Stand-in for a parameter of which this process holds a part, or nothing.

    FSDP1 concatenates the parameters of a unit and cuts the result into equal parts, one per process. With
    ``use_orig_params`` each parameter is the piece of it that lies in the process's part. The pieces of one parameter
    are summed over processes in zeros of its shape, which takes the memory of one parameter, while
    ``summon_full_params`` needs that of the whole unit.
    """

    part: nn.Parameter
    start: int
    length: int
    unit: Any

    @classmethod
    def of(cls, part: nn.Parameter, shape: torch.Size, place: Any, unit: Any) -> _Shard:  # noqa: ANN401
        """Return the stand-in for a parameter of this shape, of which this process holds `part` at `place`."""
        shard = cls(torch.empty(shape, dtype=part.dtype, device="meta"), part.requires_grad)
        shard.part, shard.unit = part, unit
        shard.start, shard.length = place.intra_param_start_idx or 0, place.numel_in_shard or 0
        return shard

    def full_tensor(self) -> Tensor:
        """Return the whole parameter, on the device that computes; a collective."""
        whole = torch.zeros(self.shape, dtype=self.part.dtype, device=self.unit.compute_device)
        part = self.part.detach().flatten()
        place = slice(self.start, self.start + self.length)
        whole.view(-1)[place] = part if part.numel() == self.length else part[place]  # it is whole while FSDP gathers
        distributed.all_reduce(whole, group=self.unit.process_group)
        return whole


def whole_shapes_of_shards(model: nn.Module) -> AbstractContextManager[dict[Tensor, Tensor]]:
    """Replace a model's cut parameters for a while by stand-ins that have the original shapes.

    The values of a stand-in are those of its parts, summed over the ranks (``full_tensor()``, a collective).

    Args:
        model: a model that FSDP1 has wrapped, as a whole or in parts; any other model stays as it is.

    Returns:
        A context manager that gives {stand-in: parameter that an optimizer holds} when it is entered.

    Raises:
        FlatParametersError: the original parameters are not kept, the wrapper that holds them lies outside ``model``,
            or this version of torch keeps them in another way.

    Example:
        >>> with whole_shapes_of_shards(nn.Linear(2, 2)) as original:
        ...     original
        {}
    """
    units = _units(model)
    shards = {part: shard for unit in units for part, shard in unit.items()}
    for name, parameter in model.named_parameters():
        if getattr(parameter, "_fsdp_flattened", False) and parameter not in shards:
            raise FlatParametersError(
                f"Expected argument `model` to be the model that FSDP returned, but got one within it, whose {name!r} "
                "is a part of a flat parameter."
            )
    return _in_their_place(model, {part: shard for part, shard in shards.items() if shard is not None})


@contextmanager
def _in_their_place(model: nn.Module, shards: Mapping[Tensor, _Shard]) -> Iterator[dict[Tensor, Tensor]]:
    with replacing() as put:
        for module in model.modules():
            for name, parameter in list(parameters_of(module).items()):
                if parameter is not None and parameter in shards:
                    put(parameters_of(module), name, shards[parameter])
        yield {shard: parameter for parameter, shard in shards.items()}


def _units(model: nn.Module) -> list[dict[Tensor, _Shard | None]]:
    """Return the stand-ins of the parameters that each FSDP1 unit cuts; None for those that NO_SHARD leaves whole."""
    if not distributed.is_available():
        return []
    from torch.distributed.fsdp import FullyShardedDataParallel

    try:
        return [_shards_of_unit(unit) for unit in FullyShardedDataParallel.fsdp_modules(model)]
    except AttributeError as error:
        raise FlatParametersError(
            f"The FSDP of torch {torch.__version__} keeps its parameters in a way that is not known here ({error}). "
            "Use FSDP2 (`fully_shard`; in Lightning ModelParallelStrategy)."
        ) from error


def _shards_of_unit(unit: Any) -> dict[Tensor, _Shard | None]:  # noqa: ANN401
    handle = unit._handle
    if handle is None:
        return {}
    flat = handle.flat_param
    if flat._params is None:
        raise FlatParametersError(FLAT_PARAMETERS)
    if not handle.uses_sharded_strategy:
        return dict.fromkeys(flat._params)
    parts = zip(flat._params, flat._shapes, flat._shard_param_infos, strict=True)
    return {part: _Shard.of(part, shape, place, unit) for part, shape, place in parts}
