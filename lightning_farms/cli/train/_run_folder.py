"""The numbered folder of a run's results, which no other run may take for its own."""

from __future__ import annotations

import os

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


@rank_zero_only
def claim_folders(trainer: Trainer) -> None:
    """Make the folders that loggers number by what is there already; a number that another run has just taken is not.

    Lightning makes them after the data are prepared, so that runs that are started together (while a set is simulated)
    would have the same number, and one folder of checkpoints.
    """
    for logger in trainer.loggers:
        if not isinstance(logger, (CSVLogger, TensorBoardLogger)) or logger._version is not None:
            continue
        while "://" not in str(logger.log_dir):
            try:
                os.makedirs(str(logger.log_dir))
                break
            except FileExistsError:
                logger._version = None
