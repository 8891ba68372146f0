"""What of a parameter lies in this process: all of it, or the local part of a DTensor (FSDP2, tensor parallelism)."""

from __future__ import annotations

import inspect
from typing import cast

from torch import Tensor, nn


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; a collective where it is a DTensor."""
    tensor = tensor.detach()
    return cast(Tensor, tensor.full_tensor()) if _is_distributed(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is here; what is written to it, the tensor has."""
    tensor = tensor.detach()
    return cast(Tensor, tensor.to_local()) if _is_distributed(tensor) else tensor  # type: ignore[attr-defined]


def local_part(values: Tensor, parameter: Tensor) -> Tensor:
    """The part of values, the same in all processes, that belongs to what is here of a parameter.

    (A collective in torch 2.5, which knows no way of cutting without sending.)
    """
    device = local(parameter).device
    if not _is_distributed(parameter):
        return values.to(device)
    from torch.distributed.tensor import distribute_tensor

    cut = {"src_data_rank": None} if "src_data_rank" in inspect.signature(distribute_tensor).parameters else {}
    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(values, mesh, placements, **cut).to_local().to(device)


def reshard(model: nn.Module) -> None:
    """Let go of the parameters that FSDP2 has gathered, as it has those of the root module after a validation.

    What is changed in the parts would otherwise not be seen by the next forward pass.
    """
    for module in model.modules():
        if callable(getattr(module, "reshard", None)) and callable(getattr(module, "unshard", None)):
            module.reshard()  # type: ignore[operator]


def _is_distributed(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")
