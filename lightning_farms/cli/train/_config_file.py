"""Saving a run's configuration beside its results."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from lightning_farms.common.atomic import write_text


class WholeConfig(SaveConfigCallback):
    """SaveConfigCallback that writes whole files or none: a full disk does not cost an earlier run's file."""

    _folder: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder in every process, since that communicates between them, and save in the first."""
        self._folder = trainer.log_dir
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the content that Lightning would write."""
        if self._folder is not None:
            write_text(Path(self._folder) / self.config_filename, self.parser.dump(self.config, skip_none=False))
