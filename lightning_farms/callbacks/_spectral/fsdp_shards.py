"""The parameters that FSDP1 flattens and cuts, each in its own shape for a while.

It reads attributes that torch keeps to itself: there is no public way to a parameter's place in its flat row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_farms.common.lightning_packages import misconfiguration

FLAT_PARAMETERS = (
    "Layers cannot be told apart where FSDP flattens their parameters into one. Leave out `use_orig_params=False`: "
    "Lightning's FSDPStrategy keeps the original parameters by default."
)


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

    @classmethod
    def of(cls, part: nn.Parameter, shape: torch.Size, place: Any, unit: Any) -> _Shard:  # noqa: ANN401
        """The stand-in of the parameter of this shape, of which `part` is here, at that place."""
        shard = cls(torch.empty(shape, dtype=part.dtype, device="meta"), part.requires_grad)
        shard.part, shard.unit = part, unit
        shard.start, shard.length = place.intra_param_start_idx or 0, place.numel_in_shard or 0
        return shard

    def full_tensor(self) -> Tensor:
        """All of the parameter, on the device that computes; a collective."""
        whole = torch.zeros(self.shape, dtype=self.part.dtype, device=self.unit.compute_device)
        part = self.part.detach().flatten()
        place = slice(self.start, self.start + self.length)
        whole.view(-1)[place] = part if part.numel() == self.length else part[place]  # all of it while FSDP gathers
        torch.distributed.all_reduce(whole, group=self.unit.process_group)
        return whole


@contextmanager
def whole_shapes_of_shards(model: nn.Module) -> Iterator[dict[Tensor, Tensor]]:
    """Have stand-ins of their own shapes take the place of a model's cut parameters."""
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
        try:
            shards.update(_shards_of_unit(unit))
        except AttributeError as error:
            raise misconfiguration(
                f"The FSDP of torch {torch.__version__} keeps its parameters in a way that is not known here ({error})."
                " Use ModelParallelStrategy (FSDP2)."
            ) from error
    return shards


def _shards_of_unit(unit: Any) -> dict[Tensor, _Shard]:  # noqa: ANN401
    handle = unit._handle
    if handle is None:
        return {}
    flat = handle.flat_param
    if flat._params is None:
        raise misconfiguration(FLAT_PARAMETERS)
    if not handle.uses_sharded_strategy:
        return {}
    parts = zip(flat._params, flat._shapes, flat._shard_param_infos, strict=True)
    return {part: _Shard.of(part, shape, place, unit) for part, shape, place in parts}
