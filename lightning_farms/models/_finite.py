"""Weights that are not finite."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_farms.common.texts import listed

_NAMED = 3


def check_finite_weights(tensors: Mapping[str, object], source: object) -> None:
    """Refuse to load weights that are not finite, naming them."""
    found = [name for name, value in tensors.items() if isinstance(value, Tensor) and not bool(value.isfinite().all())]
    if found:
        raise ValueError(
            f"Expected the weights of {source} to be finite, but these tensors have NaN or infinite values: "
            f"{listed(found, _NAMED)}. It was written by a training that had failed, or is damaged: take an "
            "earlier one."
        )
