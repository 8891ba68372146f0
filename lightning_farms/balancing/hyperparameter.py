"""The hyperparameters that can be adjusted layer by layer, and their names."""

from __future__ import annotations

from typing import NamedTuple


class Hyperparameter(NamedTuple):
    """A hyperparameter of an optimizer's groups."""

    key: str  # key in the groups
    name: str  # name in messages
    log_prefix: str  # prefix of its log keys, which begins no other key: LearningRateMonitor writes lr-SGD
    factor: str  # title of its multipliers' column in the closing table

    @property
    def quantity(self) -> str:
        """Name in the history and in heat maps."""
        return self.name.replace(" ", "_")


LEARNING_RATE = Hyperparameter("lr", "learning rate", "layer_lr", "lr factor")
WEIGHT_DECAY = Hyperparameter("weight_decay", "weight decay", "layer_wd", "decay factor")
HYPERPARAMETERS = {each.key: each for each in (LEARNING_RATE, WEIGHT_DECAY)}


def touched(adjusts: Hyperparameter, *, compensated: bool) -> set[Hyperparameter]:
    """All hyperparameters that change with the adjusted one: if it is compensated for, also the weight decay."""
    return {adjusts, WEIGHT_DECAY} if compensated else {adjusts}
