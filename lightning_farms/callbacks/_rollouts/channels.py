"""What a run's data module tells of its fields, and what stands for it where there is none."""

from __future__ import annotations

from lightning.pytorch import Trainer


def datamodule_of(trainer: Trainer) -> object:
    """The data module of the run, or None."""
    return getattr(trainer, "datamodule", None)


def channel_names(trainer: Trainer, number: int) -> list[str]:
    """Names of the channels of fields.

    Args:
        trainer: Of the run.
        number: How many channels there are.

    Returns:
        The data module's ``channels``, where it has as many; else "channel 0", "channel 1", ...
    """
    names = getattr(datamodule_of(trainer), "channels", None) or ()
    return list(names) if len(names) == number else [f"channel {i}" for i in range(number)]
