"""Averages of the weights that other callbacks keep, in which pruned weights have to be zero, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averages(trainer: Trainer, pl_module: LightningModule, keys: Mapping[Tensor, str]) -> Iterator[dict[str, Tensor]]:
    """Yield, for each copy of the module that a callback of the Trainer holds, its parameters by the given names.

    Such copies are the averages of Lightning's WeightAveraging, EMAWeightAveraging and StochasticWeightAveraging, and
    any module or AveragedModel with parameters of the same names that another callback keeps in an attribute.
    """
    names = {name: keys[parameter] for name, parameter in pl_module.named_parameters() if parameter in keys}
    for copy in _modules_of_callbacks(trainer):
        held = dict(copy.named_parameters())
        if copy is not pl_module and names.keys() <= held.keys():
            yield {key: held[name] for name, key in names.items()}


def _modules_of_callbacks(trainer: Trainer) -> Iterator[nn.Module]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for value in vars(callback).values():
            if isinstance(value, AveragedModel):
                yield value.module
            elif isinstance(value, nn.Module):
                yield value
