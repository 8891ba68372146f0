"""How a training's checkpoints are written: whole or not at all, with one message where that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Trainer

from lightning_farms.common.atomic import UnwrittenFileError, complete_or_nothing
from lightning_farms.common.torch_writing import save_to


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's way, but that a draft lies beside the file: Lightning's comes from another disk, perhaps in part."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write a file; an address of another kind (s3://...) is left to Lightning."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with complete_or_nothing(Path(path)) as draft:
                save_to(checkpoint, draft)
        except UnwrittenFileError as error:
            raise OSError(
                f"{error} Earlier checkpoints are as they were: make room, or choose another folder "
                "(--trainer.default_root_dir), and go on from the last one with --ckpt_path."
            ) from error


def write_whole(trainer: Trainer) -> None:
    """Let a trainer write so, unless it was given another way."""
    if getattr(trainer.strategy, "_checkpoint_io", trainer) is None:
        trainer.strategy.checkpoint_io = WholeCheckpoints()
