"""Names of the channels of fields in log keys, files and pictures."""

from __future__ import annotations


def channel_names(datamodule: object, number: int) -> list[str]:
    """The data module's `channels` if there are `number` of them, otherwise "channel 0", "channel 1", ...

    Example:
        >>> channel_names(None, 2)
        ['channel 0', 'channel 1']
    """
    names = list(getattr(datamodule, "channels", None) or ())
    return names if len(names) == number else [f"channel {i}" for i in range(number)]
