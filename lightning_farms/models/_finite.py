"""Refusing checkpoints whose weights or optimizer averages are not finite."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_farms.common.texts import listed

_NAMED = 3


def check_finite_weights(tensors: Mapping[str, object], source: object, what: str = "weights") -> None:
    """Refuse to load weights that are not finite, naming them."""
    found = [name for name, value in tensors.items() if isinstance(value, Tensor) and not bool(value.isfinite().all())]
    if found:
        raise ValueError(
            f"Expected the {what} of {source} to be finite, but these tensors have NaN or infinite values: "
            f"{listed(found, _NAMED)}. It was written by a training that had failed, or is damaged: take an "
            "earlier one."
        )


def check_finite_averages(module: LightningModule) -> None:
    """Refuse to continue with optimizer averages that are not finite, naming their parameters."""
    names: dict[object, str] = {parameter: name for name, parameter in module.named_parameters()}
    averages = {
        f"{key} of {names.get(parameter, 'a parameter')}": value
        for optimizer in module.trainer.optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    check_finite_weights(averages, "the checkpoint", "optimizer's averages")
