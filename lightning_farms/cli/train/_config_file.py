"""The configuration that a run leaves beside its results."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from lightning_farms.common.atomic import complete_or_nothing


class WholeConfig(SaveConfigCallback):
    """Lightning's, which writes whole files or none: an earlier run's configuration is not lost on a full disk."""

    _folder: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder in every process, as they tell it each other, and save in the first."""
        self._folder = trainer.log_dir
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write what Lightning would write."""
        if self._folder is not None:
            with complete_or_nothing(Path(self._folder) / self.config_filename) as draft:
                draft.write_text(self.parser.dump(self.config, skip_none=False), encoding="utf-8")
