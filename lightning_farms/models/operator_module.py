"""Training of a neural operator: one step ahead in training, autoregressive to the end in evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from lightning_farms.metrics import NormalizedRMSE, RelativeL2Error, relative_l2_error

_ONE_CYCLE_DIVISOR = 1e4
_SIZES = (("img_size", 1), ("img_size", 2), ("in_timesteps", 3), ("in_channels", 4))
_SHOWN = 3
_AXES = ("samples", "points along X", "points along Y", "frames", "channels")


class OperatorModule(LightningModule):
    """Trains a network that maps the last frames of a field to its next ones.

    A batch is a pair (x, y): x of shape (batch, X, Y, T_in, channels), y of shape (batch, X, Y, T, channels) and
    following x in time. Training predicts y at once from x, with the relative L2 error (per channel over space and
    frames, averaged over channels) as its loss. Validation and test roll the network out: its prediction is appended
    to its input, the oldest frames drop out, until y's last frame is reached.

    Logs (all per epoch): ``train/loss``, ``val/l2re``, ``val/nrmse``, ``test/l2re``, ``test/nrmse``.

    Args:
        network: Maps (batch, X, Y, T_in, channels) to (batch, X, Y, T_out, channels), as a tensor or as a named tuple
            with a field ``prediction``. Where it has the attributes ``img_size``, ``in_timesteps`` or ``in_channels``,
            batches are checked against them. A submodule ``cls_head`` is frozen: the loss does not reach it (and
            distributed training would wait for its gradients).
        lr: Learning rate; the largest one of the schedule. Positive.
        betas: Decay rates of Adam's two running means, each in [0, 1).
        weight_decay: Weight decay, at least 0: an L2 penalty's gradient for "adam", decoupled for "adamw".
        optimizer: "adam" or "adamw".
        scheduler: "onecycle": cosine warm-up from lr / 10^4, then cosine to lr / 10^8 (DPOT's); "cosine": from lr to
            0; "none": constant. Schedules advance with every optimizer step and end with the training.
        warmup_fraction: Share of the steps that "onecycle" warms up for, in [0, 1).
        cycle_momentum: Let "onecycle" also swing Adam's first beta from 0.95 to 0.85 and back, as DPOT's released
            training does (by PyTorch's default). False keeps ``betas``.
        noise: Standard deviation of the Gaussian noise added to the training input, in units of each sample's and
            channel's root mean square. At least 0; 0 adds none. It is drawn from the global generator, so that a
            resumed training draws other noise than an uninterrupted one.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If ``network`` is not a module.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> class Persistence(nn.Module):
        ...     def forward(self, x):
        ...         return x[:, :, :, -1:]
        >>> module = OperatorModule(Persistence())
        >>> module.rollout(torch.ones(2, 8, 8, 10, 4), frames=11).shape
        torch.Size([2, 8, 8, 11, 4])

    Reference:
        Hao et al., "DPOT: Auto-Regressive Denoising Operator Transformer for Large-Scale PDE Pre-Training", ICML 2024.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.9),
        weight_decay: float = 1e-6,
        optimizer: Literal["adam", "adamw"] = "adam",
        scheduler: Literal["onecycle", "cosine", "none"] = "onecycle",
        warmup_fraction: float = 0.2,
        cycle_momentum: bool = False,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        _check_settings(network, lr, betas, weight_decay, optimizer, scheduler, warmup_fraction, noise)
        self.save_hyperparameters(ignore=["network"])
        if "_instantiator" in self.hparams:  # built by LightningCLI: the network is then plain settings, not an object
            self.save_hyperparameters()
        self.network = network
        class_head = getattr(network, "cls_head", None)
        if isinstance(class_head, nn.Module):
            class_head.requires_grad_(False)
        self.lr = lr
        self.betas = (betas[0], betas[1])
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.warmup_fraction = warmup_fraction
        self.cycle_momentum = cycle_momentum
        self.noise = noise
        self.val_l2re = RelativeL2Error()
        self.val_nrmse = NormalizedRMSE()
        self.test_l2re = RelativeL2Error()
        self.test_nrmse = NormalizedRMSE()

    def forward(self, x: Tensor) -> Tensor:
        """Predict the frames that follow.

        Args:
            x: Given frames, (batch, X, Y, T_in, channels).

        Returns:
            The network's prediction, (batch, X, Y, T_out, channels).

        Raises:
            ValueError: If ``x`` does not fit the network.
        """
        _check_input(self.network, x)
        output = self.network(x)
        prediction = getattr(output, "prediction", output)
        if not isinstance(prediction, Tensor):
            raise TypeError(
                "Expected argument `network` to return a tensor or a named tuple with a field `prediction`, "
                f"but got {type(output).__name__}."
            )
        return prediction

    def rollout(self, x: Tensor, frames: int) -> Tensor:
        """Predict any number of frames, feeding predictions back as input.

        Args:
            x: Given frames, (batch, X, Y, T_in, channels).
            frames: Frames to predict, at least 1. A last prediction that reaches further is cut.

        Returns:
            (batch, X, Y, frames, channels), in the type of ``x``.

        Raises:
            ValueError: If ``frames`` is below 1, if ``x`` does not fit the network, or if the prediction does not have
                the channels and points of ``x``, so that it cannot be fed back.
        """
        if frames < 1:
            raise ValueError(f"Expected argument `frames` to be at least 1, but got {frames}.")
        given = x.shape[3]
        window, predictions, done = x, [], 0
        while done < frames:
            prediction = self(window).to(x.dtype)
            _check_can_be_fed_back(x, prediction)
            predictions.append(prediction)
            done += prediction.shape[3]
            window = torch.cat((window, prediction), dim=3)[:, :, :, -given:]
        return torch.cat(predictions, dim=3)[:, :, :, :frames]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the network's configuration, which shapes alone do not tell, for `DPOT.from_checkpoint`.

        Args:
            checkpoint: The Lightning checkpoint; gets the key "args" where the network has a mapping `config`.
        """
        config = getattr(self.network, "config", None)
        if isinstance(config, Mapping):
            checkpoint["args"] = dict(config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose tensors have other shapes.

        Args:
            checkpoint: The Lightning checkpoint; not changed.

        Raises:
            ValueError: Naming the first tensors that differ, with both shapes.
        """
        saved = checkpoint.get("state_dict", {})
        wrong = [
            f"{name}: {tuple(saved[name].shape)} in the file, {tuple(value.shape)} in the module"
            for name, value in self.named_parameters()
            if name in saved and not is_lazy(value) and saved[name].shape != value.shape
        ]
        if wrong:
            raise ValueError(
                f"Expected a checkpoint whose tensors have the module's shapes, but {len(wrong)} differ "
                f"({'; '.join(wrong[:_SHOWN])}{'; ...' if len(wrong) > _SHOWN else ''}). Build the network with the "
                "checkpoint's sizes, and give data of the resolution and frames that it was trained on."
            )

    def on_train_start(self) -> None:
        """Refuse to go on with a one-cycle schedule that ends before the training does.

        Raises:
            MisconfigurationException: If a resumed schedule is shorter than the training.
        """
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        planned = self.trainer.estimated_stepping_batches
        for scheduler in schedulers:
            if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < planned:
                raise MisconfigurationException(
                    f"Expected the resumed one-cycle schedule to span the training's {int(planned)} steps, but the "
                    f"checkpoint's ends after {scheduler.total_steps}. Keep the Trainer's `max_epochs` as it was, or "
                    "start a new training from the checkpoint's weights."
                )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Relative L2 error of the next frames.

        Args:
            batch: Given frames (batch, X, Y, T_in, channels) and the next ones (batch, X, Y, T_out, channels).
            batch_idx: Number of the batch in the epoch.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: If the batch does not fit the network.
            FloatingPointError: If the loss is not finite.
        """
        x, y = batch
        prediction = self(self._with_noise(x))
        if prediction.shape != y.shape:
            raise ValueError(_target_message(prediction, y))
        loss = relative_l2_error(prediction, y)
        if not torch.isfinite(loss):
            raise FloatingPointError(self._not_finite_message(x, y, batch_idx))
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(x), sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Roll out to the last frame of y and log ``val/l2re`` and ``val/nrmse``.

        Args:
            batch: Given frames (batch, X, Y, T_in, channels) and all that follow (batch, X, Y, T, channels).
            batch_idx: Number of the batch in the epoch.
        """
        self._evaluate(batch, "val", self.val_l2re, self.val_nrmse)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Roll out to the last frame of y and log ``test/l2re`` and ``test/nrmse``.

        Args:
            batch: Given frames (batch, X, Y, T_in, channels) and all that follow (batch, X, Y, T, channels).
            batch_idx: Number of the batch in the epoch.
        """
        self._evaluate(batch, "test", self.test_l2re, self.test_nrmse)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Roll out over the frames of y.

        Args:
            batch: Given frames (batch, X, Y, T_in, channels) and those that follow, of which only the number is used.
            batch_idx: Number of the batch in the epoch.

        Returns:
            The predicted frames, of the shape of y.
        """
        x, y = batch
        return self.rollout(x, y.shape[3])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam and its schedule, which ends with the training.

        Returns:
            The optimizer, and the schedule to be advanced at every step.

        Raises:
            MisconfigurationException: If the schedule needs the training's length and that is unlimited.
        """
        kind = Adam if self.optimizer == "adam" else AdamW
        optimizer = kind(self.parameters(), lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)
        if self.scheduler == "none":
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._schedule(optimizer), "interval": "step"},
        }

    def _schedule(self, optimizer: Optimizer) -> LRScheduler:
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise MisconfigurationException(
                f"Expected a training of known length for scheduler `{self.scheduler}`, but got an unlimited one. "
                "Set the Trainer's `max_epochs` or `max_steps`, or use scheduler `none`."
            )
        if self.scheduler == "cosine":
            return CosineAnnealingLR(optimizer, T_max=int(steps))
        return OneCycleLR(
            optimizer,
            max_lr=self.lr,
            total_steps=int(steps),
            pct_start=_safe_warmup(self.warmup_fraction, int(steps)),
            cycle_momentum=self.cycle_momentum,
            div_factor=_ONE_CYCLE_DIVISOR,
            final_div_factor=_ONE_CYCLE_DIVISOR,
        )

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, l2re: RelativeL2Error, nrmse: NormalizedRMSE) -> None:
        x, y = batch
        prediction = self.rollout(x, y.shape[3])
        l2re.update(prediction, y)
        nrmse.update(prediction, y)
        self.log(f"{stage}/l2re", l2re, on_epoch=True, prog_bar=True, batch_size=len(x))
        self.log(f"{stage}/nrmse", nrmse, on_epoch=True, batch_size=len(x))

    def _with_noise(self, x: Tensor) -> Tensor:
        if self.noise == 0:
            return x
        root_mean_square = x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return x + self.noise * root_mean_square * torch.randn_like(x)

    def _not_finite_message(self, x: Tensor, y: Tensor, batch_idx: int) -> str:
        where = f"epoch {self.current_epoch}, batch {batch_idx}"
        if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
            return f"The data hold values that are not finite ({where}). Remove or repair the affected trajectories."
        return (
            f"The loss is not finite ({where}), though the data are. Checkpoints written so far are kept. Lower `lr` "
            f"(now {self.lr:g}), clip the gradients more tightly (the Trainer's `gradient_clip_val`), or train in "
            "32-bit precision."
        )


def _check_settings(
    network: object,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    optimizer: str,
    scheduler: str,
    warmup_fraction: float,
    noise: float,
) -> None:
    if not isinstance(network, nn.Module):
        raise TypeError(f"Expected argument `network` to be a torch.nn.Module, but got {type(network).__name__}.")
    rules = (
        ("lr", lr, "positive and finite", 0 < lr < math.inf),
        ("betas", betas, "two numbers in [0, 1)", len(betas) == 2 and all(0 <= beta < 1 for beta in betas)),
        ("weight_decay", weight_decay, "at least 0", 0 <= weight_decay < math.inf),
        ("optimizer", optimizer, '"adam" or "adamw"', optimizer in ("adam", "adamw")),
        ("scheduler", scheduler, '"onecycle", "cosine" or "none"', scheduler in ("onecycle", "cosine", "none")),
        ("warmup_fraction", warmup_fraction, "in [0, 1)", 0 <= warmup_fraction < 1),
        ("noise", noise, "at least 0", 0 <= noise < math.inf),
    )
    for name, value, rule, holds in rules:
        if not holds:
            raise ValueError(f"Expected argument `{name}` to be {rule}, but got {value!r}.")


def _check_input(network: nn.Module, x: Tensor) -> None:
    if x.ndim != 5:
        raise ValueError(
            f"Expected argument `x` to be of shape (batch, X, Y, frames, channels), but got {tuple(x.shape)}."
        )
    for attribute, axis in _SIZES:
        expected = getattr(network, attribute, None)
        if isinstance(expected, int) and x.shape[axis] != expected:
            raise ValueError(
                f"Expected argument `x` to have {expected} {_AXES[axis]}, the network's `{attribute}`, but got "
                f"{x.shape[axis]} (shape {tuple(x.shape)}). Build the network or the data module with the other value."
            )


def _check_can_be_fed_back(x: Tensor, prediction: Tensor) -> None:
    if prediction.ndim != 5 or prediction.shape[:3] != x.shape[:3] or prediction.shape[4] != x.shape[4]:
        raise ValueError(
            f"Expected the network's prediction to have the input's points and channels, as in {tuple(x.shape)}, so "
            f"that it can be fed back, but got {tuple(prediction.shape)}."
        )


def _target_message(prediction: Tensor, y: Tensor) -> str:
    message = (
        f"Expected the target to be of the prediction's shape {tuple(prediction.shape)}, but got {tuple(y.shape)}."
    )
    if prediction.ndim == y.ndim == 5 and prediction.shape[3] != y.shape[3]:
        message += " Make the frames per training sample of the data module and `out_timesteps` of the network equal."
    return message


def _safe_warmup(fraction: float, steps: int) -> float:
    """Warm-up share for OneCycleLR, moved off the one value (a single step) at which it divides zero by zero."""
    return fraction * 1.001 if math.isclose(fraction * steps, 1.0) else fraction
