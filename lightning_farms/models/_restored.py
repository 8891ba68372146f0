"""Restoring modules from checkpoints that do not hold how their network is built."""

from __future__ import annotations

from typing import Any, Self

from lightning.pytorch import LightningModule

from lightning_farms.common.plain_values import plain_ones


class RestoredModule(LightningModule):
    """LightningModule around a network, restored by `load_from_checkpoint(path, network=...)`.

    A checkpoint of `lightning-farms fit` also holds how its network is built, so that `network` may be left out.
    """

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401
        """Restore a module with its settings and weights; see LightningModule.

        Args:
            checkpoint_path: The checkpoint.
            args: See LightningModule.
            kwargs: Likewise; `network` and other settings replace those of the checkpoint.

        Returns:
            The module.

        Raises:
            TypeError: If neither the checkpoint nor the caller says how the network is built.
        """
        try:
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        except TypeError as error:
            if "network" in kwargs:
                raise
            raise TypeError(
                f"Expected argument `network`, since {checkpoint_path} does not tell how to build it: give a network "
                f"of the training's sizes (for a DPOT: `network=DPOT.from_checkpoint(path)`). ({error})"
            ) from error

    def _keep_plain_settings(self) -> None:
        """Turn hyperparameters into plain values, without which no checkpoint could be read again (weights_only)."""
        settings = plain_ones(self.hparams)
        self.hparams.clear()
        self.hparams.update(settings)
