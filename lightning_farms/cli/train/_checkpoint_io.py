"""Writing a training's checkpoints completely or not at all, with one message if that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Trainer

from lightning_farms.common.atomic import UnwrittenFileError, complete_or_nothing
from lightning_farms.common.torch_writing import save_to


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's CheckpointIO, but with the draft beside the file, not on another disk with an incomplete copy."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write a checkpoint to a file; other addresses (s3://...) are left to Lightning."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with complete_or_nothing(Path(path)) as draft:
                save_to(checkpoint, draft)
        except UnwrittenFileError as error:
            raise OSError(
                f"{error} Earlier checkpoints are as they were: make room, or choose another folder "
                "(--trainer.logger.save_dir; without a logger, --trainer.default_root_dir), and go on from the last "
                "one with --ckpt_path."
            ) from error


def write_whole(trainer: Trainer) -> None:
    """Make a trainer write its checkpoints in this way, unless it was given another CheckpointIO."""
    if getattr(trainer.strategy, "_checkpoint_io", trainer) is None:
        trainer.strategy.checkpoint_io = WholeCheckpoints()
