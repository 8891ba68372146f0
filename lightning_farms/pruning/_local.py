"""The part of a parameter in this process: all of it, or the local part of a DTensor (FSDP2, tensor parallelism)."""

from __future__ import annotations

import inspect
from typing import cast

from torch import Tensor, nn

from lightning_farms.common.parameters import local


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; for a DTensor this is a collective operation."""
    tensor = tensor.detach()
    return cast(Tensor, tensor.full_tensor()) if _is_distributed(tensor) else tensor  # type: ignore[attr-defined]


def local_part(values: Tensor, parameter: Tensor) -> Tensor:
    """The part of `values` (the same in all processes) that corresponds to this process's part of a parameter.

    (A collective operation in torch 2.5, which cannot cut without sending.)
    """
    device = local(parameter).device
    if not _is_distributed(parameter):
        return values.to(device)
    from torch.distributed.tensor import distribute_tensor

    cut = {"src_data_rank": None} if "src_data_rank" in inspect.signature(distribute_tensor).parameters else {}
    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(values, mesh, placements, **cut).to_local().to(device)


def reshard(model: nn.Module) -> None:
    """Free the parameters that FSDP2 has gathered, such as those of the root module after a validation.

    Otherwise the next forward pass would not see changes to the parts.
    """
    for module in model.modules():
        if callable(getattr(module, "reshard", None)) and callable(getattr(module, "unshard", None)):
            module.reshard()  # type: ignore[operator]


def _is_distributed(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")
