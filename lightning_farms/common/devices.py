"""Choice of the device."""

from __future__ import annotations

import torch


def chosen_device(device: str | torch.device) -> torch.device:
    """Return the chosen device, checked to be usable.

    Args:
        device: a device, its name, such as ``"cuda:1"``, or ``"auto"`` for CUDA if available and otherwise the CPU.

    Raises:
        ValueError: PyTorch does not find it, or nothing can be computed on it ("meta").

    Example:
        >>> chosen_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if chosen.type != "cpu":
            torch.empty(0, device=chosen).tolist()
    except (RuntimeError, AssertionError) as error:  # unknown, not available, or without values
        raise ValueError(
            f"Expected argument `device` to be one that PyTorch finds, but got {str(device)!r}. Use 'auto' or 'cpu'."
        ) from error
    return chosen
