"""Logging of scalars directly to all loggers of a Trainer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import islice

from lightning.pytorch import Trainer

from lightning_farms.common.lightning_packages import kinds

_MOST_SCALARS = 1000  # largest number that MLflow takes at a time


def log_scalars(trainer: Trainer, scalars: Mapping[str, float], step: int) -> list[Exception]:
    """Give finite scalars to every logger, all at once; if one logger fails, the others still get them.

    A CSVLogger rewrites its file whenever a later call brings new keys.
    """
    finite = {key: value for key, value in scalars.items() if math.isfinite(value)}
    errors: list[Exception] = []
    for logger in trainer.loggers if finite else ():
        given, most = finite, len(finite)
        if isinstance(logger, kinds("loggers.MLFlowLogger")):
            given, most = {mlflow_key(key): value for key, value in finite.items()}, _MOST_SCALARS
        try:
            for part in _parts(given, most):
                logger.log_metrics(part, step=step)
        except Exception as error:
            errors.append(error)
    return errors


def mlflow_key(key: str) -> str:
    """A key with the code in place of a letter that MLflow forbids; its logger would merge the keys of two layers.

    Example:
        >>> mlflow_key("farms/alpha/encoder.\u5c42")
        'farms/alpha/encoder.u5C42'
    """
    return re.sub(r"[^\w/. -]", lambda letter: f"u{ord(letter[0]):04X}", key, flags=re.ASCII)


def _parts(scalars: Mapping[str, float], most: int) -> Iterator[dict[str, float]]:
    left = iter(scalars.items())
    while part := dict(islice(left, most)):
        yield part
