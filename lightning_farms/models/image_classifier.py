"""Training of an image classifier with the paper's optimizer settings."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchmetrics import MeanMetric

from lightning_farms.common.lightning_packages import misconfiguration
from lightning_farms.models._checks import check_network, check_rules, check_trainable
from lightning_farms.models._divergence import DivergenceWatch
from lightning_farms.models._restored import RestoredModule
from lightning_farms.models._schedules import check_resumed


class ImageClassifier(RestoredModule):
    r"""Trains a network that maps images to logits with cross entropy, SGD with momentum and a cosine schedule.

    A batch is a pair (images, labels) of shapes (batch, channels, height, width) and (batch,).

    Logs (all per epoch): ``train/loss``, ``train/accuracy`` (on the augmented images that are trained on),
    ``val/loss``, ``val/accuracy``, ``test/loss``, ``test/accuracy``.

    It is a LightningModule of ``lightning.pytorch``. The Trainer of ``pytorch_lightning``, the same package under its
    older name, only takes its own modules ("`model` must be a `LightningModule`"): import ``Trainer`` from
    ``lightning.pytorch``, or train the network in a module of your own.

    Args:
        network: Maps (batch, channels, height, width) to logits (batch, classes).
        lr: Learning rate :math:`\eta` of the first epoch. Positive. The paper uses 0.1 for ResNets and 0.05 for VGGs.
        momentum: SGD's momentum, in [0, 1).
        weight_decay: Weight decay, the gradient of an L2 penalty on all parameters; at least 0.
        scheduler: "cosine" for :math:`\eta (1 + \cos(\pi t / T)) / 2` in epoch t of T, or "none" for a constant rate.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If ``network`` is not a module.

    Example:
        >>> import torch
        >>> from lightning_farms.models import resnet18
        >>> module = ImageClassifier(resnet18(10, width=8), lr=0.1)
        >>> module(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Reference:
        Hu et al., Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias, ICML 2025, Appendix F.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        scheduler: Literal["cosine", "none"] = "cosine",
    ) -> None:
        super().__init__()
        check_network(network)
        _check_settings(lr, momentum, weight_decay, scheduler)
        self.save_hyperparameters(ignore=["network"])
        if "_instantiator" in self.hparams:  # built by LightningCLI: the network is then saved as plain settings
            self.save_hyperparameters()
        self._keep_plain_settings()
        self.network = network
        self.lr, self.momentum, self.weight_decay = float(lr), float(momentum), float(weight_decay)
        self.scheduler = scheduler
        self.train_accuracy = MeanMetric()
        self.val_accuracy = MeanMetric()
        self.test_accuracy = MeanMetric()
        self._watch = DivergenceWatch(lr)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: (batch, channels, height, width).

        Returns:
            Logits, (batch, classes).
        """
        logits: Tensor = self.network(images)
        return logits

    def on_train_start(self) -> None:
        """Refuse to resume a schedule that ends before the training does.

        Raises:
            MisconfigurationException: If a resumed schedule is shorter than the training.
        """
        check_resumed(self.trainer, self.scheduler)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross entropy of a batch.

        Args:
            batch: Images and labels.
            batch_idx: Number of the batch in the epoch.

        Returns:
            The loss, a scalar.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        loss = self._evaluate(batch, "train", self.train_accuracy)
        self._watch.check_loss(self, loss, batch[:1], batch_idx)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save weights that are not finite, so that the last good checkpoint stays.

        Args:
            checkpoint: The Lightning checkpoint; not changed.

        Raises:
            FloatingPointError: If weights or the optimizer's averages are not finite; no file is then written.
        """
        self._watch.check_checkpoint(self, checkpoint)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log ``val/loss`` and ``val/accuracy``.

        Args:
            batch: Images and labels.
            batch_idx: Number of the batch in the epoch.
        """
        self._evaluate(batch, "val", self.val_accuracy)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log ``test/loss`` and ``test/accuracy``.

        Args:
            batch: Images and labels.
            batch_idx: Number of the batch in the epoch.
        """
        self._evaluate(batch, "test", self.test_accuracy)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the most probable class of each image.

        Args:
            batch: Images and labels; the latter are not used.
            batch_idx: Number of the batch in the epoch.

        Returns:
            Classes, int64 (batch,).
        """
        return self(batch[0]).argmax(1)  # type: ignore[no-any-return]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build SGD and its schedule, which ends with the training.

        Returns:
            The optimizer, and the schedule, which advances after every epoch.

        Raises:
            MisconfigurationException: If no parameter can be trained, or if the schedule needs the number of epochs and
                that is unlimited.
        """
        check_trainable(self)
        optimizer = SGD(self.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        if self.scheduler == "none":
            return optimizer
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise misconfiguration(
                "Expected a training of a known number of epochs for scheduler `cosine`, but got an unlimited one. Set "
                "the Trainer's `max_epochs`, or use scheduler `none`."
            )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": CosineAnnealingLR(optimizer, T_max=int(epochs)), "interval": "epoch"},
        }

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, accuracy: MeanMetric) -> Tensor:
        images, labels = batch
        logits = self(images)
        _check_logits(logits, labels)
        loss = F.cross_entropy(logits, labels)
        accuracy.update((logits.detach().argmax(1) == labels).float())
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(labels)}
        self.log(f"{stage}/loss", loss, prog_bar=stage == "train", sync_dist=True, **options)
        self.log(f"{stage}/accuracy", accuracy, prog_bar=stage != "train", **options)
        return loss


def _check_settings(lr: float, momentum: float, weight_decay: float, scheduler: str) -> None:
    check_rules(
        ("lr", lr, "positive and finite", 0 < lr < math.inf),
        ("momentum", momentum, "in [0, 1)", 0 <= momentum < 1),
        ("weight_decay", weight_decay, "at least 0", 0 <= weight_decay < math.inf),
        ("scheduler", scheduler, '"cosine" or "none"', scheduler in ("cosine", "none")),
    )


def _check_logits(logits: Tensor, labels: Tensor) -> None:
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(
            f"Expected the labels to be numbers of classes, int64 of shape (batch,), but got {labels.dtype} of shape "
            f"{tuple(labels.shape)}. Convert them in the data module (from scores of classes: `labels.argmax(1)`)."
        )
    if logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(
            f"Expected the network to return logits of shape ({len(labels)}, classes), but got {tuple(logits.shape)}."
        )
    if labels.device.type == "cpu" and len(labels) and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise ValueError(
            f"Expected the labels to be in [0, {logits.shape[1]}), the classes of the network, but got "
            f"{int(labels.min())} to {int(labels.max())}. Give the network as many classes as the data have."
        )
