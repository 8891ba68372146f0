"""Mean squares of the inputs of a dense decoder's weights, for allocations by activations."""

from __future__ import annotations

from contextlib import closing

import torch
from torch import Tensor, nn

from lightning_farms.pruning._memory import block_on_device, device_of
from lightning_farms.pruning._moments import WatchInputs
from lightning_farms.pruning._stream import HiddenStream
from lightning_farms.pruning.prunable import decoder_blocks, prunable_weights


def input_mean_squares(
    model: nn.Module, calibration: Tensor, *, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Compute the mean squares of the inputs of every prunable weight of a dense decoder, for OWL and DLP.

    Args:
        model: as in :func:`prune`.
        calibration: token ids (N, T).
        device: as in :func:`prune`.

    Returns:
        The mean squares by the weight's name, (P, inputs), float64; zero for an expert that saw no token.

    Raises:
        ValueError: the model's blocks cannot be run one by one.
    """
    blocks = decoder_blocks(model)
    weights = prunable_weights(model, blocks)
    where = torch.device(device) if device is not None else device_of(model)
    found: dict[str, Tensor] = {}
    with torch.no_grad(), closing(HiddenStream(model, blocks, calibration, where)) as stream:
        for name, block in blocks.items():
            own = [weight for weight in weights if weight.block == name]
            with block_on_device(block, where):
                watch = WatchInputs(own, products=False)
                stream.advance(name, block, watch=watch)
                for weight in own:
                    found[weight.name] = torch.stack([moments.mean_square for moments in watch.of(weight)]).cpu()
    return found
