"""Training of a neural operator on its own predictions, and its evaluation by whole rollouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Adam, AdamW
from torchmetrics import MetricCollection

from lightning_farms.common.channels import channel_names
from lightning_farms.common.evaluation_shares import evaluation_loaders, own_items
from lightning_farms.common.lightning_packages import misconfiguration
from lightning_farms.common.noise import add_noise
from lightning_farms.common.seeding import seeded_generator
from lightning_farms.metrics import (
    RMSE,
    VRMSE,
    BoundaryRMSE,
    ConservedRMSE,
    FourierRMSE,
    MaxError,
    NormalizedRMSE,
    RelativeL2Error,
    relative_l2_error,
)
from lightning_farms.models._checks import (
    advanced,
    check_input,
    check_network,
    check_optimization,
    check_regime,
    check_target,
    check_trainable,
)
from lightning_farms.models._data_of_training import DataOfTraining
from lightning_farms.models._divergence import DivergenceWatch
from lightning_farms.models._finite import check_finite_averages, check_finite_weights
from lightning_farms.models._fused_adam import make_adam, may_fuse
from lightning_farms.models._restored import RestoredModule
from lightning_farms.models._schedules import check_resumed, make_schedule
from lightning_farms.models._trivial_errors import TrivialErrors

_SHOWN = 3
_BLOWN_UP = 1e15  # a relative error this large means a rollout that blew up, not a target of zeros
_BANDS = ("low", "mid", "high")


class OperatorModule(RestoredModule):
    r"""Trains a network that maps the last frames of a field to its next ones.

    A batch is a pair (x, y): x has shape (batch, X, Y, T_in, channels), y has shape (batch, X, Y, T, channels) and
    follows x in time. If the network predicts T_out frames at once, a training batch spans k = T / T_out predictions
    (CFDDataModule's `autoregressive_steps`); each is appended to the input, from which the oldest frames are dropped.
    The loss is the mean of the k predictions' relative L2 errors (per channel over space and frames, averaged over
    channels and samples), with the gradient through the whole rollout. Validation and test roll the network out until
    y's last frame is reached.

    The loss is in the network's units. Metrics and the results of `validation_step`, `test_step` and `predict_step` are
    in physical units, obtained from the data module's `denormalize` if it has one.

    Logs (all per epoch): ``train/loss``, ``val/l2re``, ``val/nrmse``, ``val/vrmse``; ``test/l2re``, ``test/nrmse``,
    ``test/l2re_channel/<channel>``, ``test/rmse``, ``test/vrmse``, ``test/conserved_rmse``, ``test/max_error``,
    ``test/boundary_rmse``, and, from 26 x 26 points, ``test/fourier_low``, ``test/fourier_mid``, ``test/fourier_high``.
    Errors of trivial predictors on the same flows are logged as ``val/l2re_persistence``, ``val/vrmse_persistence``,
    and, if channels are called "Vx" or "Vy", ``val/l2re_drift_free``, ``val/vrmse_drift_free``; likewise ``test/``.

    A training whose loss or weights are no longer finite stops with a FloatingPointError that names the last good
    checkpoint; weights that are not finite are never saved. Under a gradient scaler (precision 16-mixed) a loss that
    is not finite only makes the scaler skip the step; ten in a row stop the training. A rollout that blows up in
    validation does not stop it: the metric is then huge or NaN, which no checkpoint callback takes for the best.

    For averaged weights (an exponential moving average), give the Trainer Lightning's `EMAWeightAveraging`. Validation
    then sees the averaged weights, and checkpoints hold them (as does a DPOT loaded from one); the analysis callbacks
    see the current weights, and their learning rates act on those.

    It is a LightningModule of ``lightning.pytorch``. The Trainer of ``pytorch_lightning``, the same package under its
    older name, only takes its own modules ("`model` must be a `LightningModule`"): import ``Trainer`` from
    ``lightning.pytorch``, or train the network in a module of your own.

    Differences from DPOT's program: its loss is the sum over samples and predictions, ours the mean. Adam's step does
    not depend on that, but clipping does (its threshold of 10^4 is 10^4 / (k batch) here). Its noise is in units of
    the norm, not of the root mean square (0.0005 there is 0.0005 sqrt(X Y T_in) here, 0.2 for 128 x 128 x 10).

    Args:
        network: Maps (batch, X, Y, T_in, channels) to (batch, X, Y, T_out, channels), as a tensor or as a named tuple
            with a field ``prediction``. If it has the attributes ``img_size``, ``in_timesteps`` or ``in_channels``,
            batches are checked against them. A submodule ``cls_head`` is frozen, since the loss does not depend on it
            (and distributed training would wait for its gradients).
        lr: Learning rate; the schedule's largest one. Positive.
        betas: Decay rates of Adam's two running means, each in [0, 1).
        weight_decay: Weight decay, at least 0: the gradient of an L2 penalty for "adam", decoupled for "adamw".
        optimizer: "adam", as in DPOT's program since its release with the paper, or "adamw", as in its first version.
        fused: Update all parameters in one call where PyTorch can (not if they are complex or mixed precision clips),
            which makes layer-wise rates cheap; the last bits differ. A resumed run goes on as it began.
        scheduler: "onecycle" (DPOT's) for a cosine warm-up from lr / 10^4, then a cosine to lr / 10^8; "cosine" for a
            cosine from lr to 0 without warm-up; "none" for a constant rate. Schedules advance with every optimizer
            step and end with the training.
        warmup_fraction: Share of the steps that "onecycle" warms up for, in [0, 1).
        cycle_momentum: Let "onecycle" also swing Adam's first beta from 0.95 to 0.85 and back, as DPOT's released
            training does (by PyTorch's default). False keeps ``betas``.
        noise: Standard deviation of the Gaussian noise added to the input of every training prediction, in units of
            each sample's and channel's root mean square. At least 0; 0 adds none. As in DPOT, noise stays in the
            frames that remain in the input for the next prediction.
        noise_seed: Seed of the noise, at least 0. Noise depends on it, the epoch, the batch and the process alone, so
            that a resumed training draws what an uninterrupted one draws.
        pushforward: Train for stability at the cost of two predictions: the loss is the mean of the first and the last
            prediction's errors, and predictions are fed back without their gradient. Needs batches that span at least
            two predictions.
        compile_network: Compile the network with torch.compile when a run is set up. Names in checkpoints stay.

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
        Hao et al., "DPOT: Auto-Regressive Denoising Operator Transformer for Large-Scale PDE Pre-Training", ICML 2024;
        Brandstetter et al., "Message Passing Neural PDE Solvers", ICLR 2022, Section 3.1 (the pushforward trick).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.9),
        weight_decay: float = 1e-6,
        optimizer: Literal["adam", "adamw"] = "adam",
        fused: bool = True,
        scheduler: Literal["onecycle", "cosine", "none"] = "onecycle",
        warmup_fraction: float = 0.2,
        cycle_momentum: bool = False,
        noise: float = 0.0,
        noise_seed: int = 0,
        pushforward: bool = False,
        compile_network: bool = False,
    ) -> None:
        super().__init__()
        check_network(network)
        check_optimization(lr, betas, weight_decay, optimizer)
        check_regime(scheduler, warmup_fraction, noise, noise_seed)
        self.save_hyperparameters(ignore=["network"])
        if "_instantiator" in self.hparams:  # built by LightningCLI: the network is then saved as plain settings
            self.save_hyperparameters()
        self._keep_plain_settings()
        self.network = network
        class_head = getattr(network, "cls_head", None)
        if isinstance(class_head, nn.Module):
            class_head.requires_grad_(False)
        self.lr, self.betas, self.weight_decay = float(lr), (float(betas[0]), float(betas[1])), float(weight_decay)
        self.optimizer, self.fused = optimizer, fused
        self.scheduler: Literal["onecycle", "cosine", "none"] = scheduler
        self.warmup_fraction, self.cycle_momentum = float(warmup_fraction), cycle_momentum
        self.noise, self.noise_seed = noise, int(noise_seed)
        self.pushforward, self.compile_network = pushforward, compile_network
        self.val_l2re, self.val_nrmse, self.val_vrmse = RelativeL2Error(), NormalizedRMSE(), VRMSE()
        self.trivial_errors = TrivialErrors()
        self.test_l2re = RelativeL2Error(per="channel")
        self.test_fourier = FourierRMSE()
        self.test_errors = MetricCollection(
            {
                "nrmse": NormalizedRMSE(),
                "rmse": RMSE(),
                "vrmse": VRMSE(),
                "conserved_rmse": ConservedRMSE(),
                "max_error": MaxError(),
                "boundary_rmse": BoundaryRMSE(),
            },
            compute_groups=False,
        )
        self._watch = DivergenceWatch(lr)
        self._data_of_training = DataOfTraining()
        self._blew_up = False

    def setup(self, stage: str) -> None:
        """Compile the network if asked for, at any `stage` of the run."""
        if self.compile_network:
            self.network.compile()

    def forward(self, x: Tensor) -> Tensor:
        """Predict the next frames.

        Args:
            x: Given frames, (batch, X, Y, T_in, channels).

        Returns:
            The network's prediction, (batch, X, Y, T_out, channels).

        Raises:
            ValueError: If ``x`` does not fit the network.
        """
        check_input(self.network, x)
        output = self.network(x)
        prediction = getattr(output, "prediction", output)
        if not isinstance(prediction, Tensor) or not prediction.is_floating_point():
            raise TypeError(
                "Expected argument `network` to return a float tensor or a named tuple with a field `prediction`, "
                f"but got {getattr(prediction, 'dtype', type(output).__name__)}."
            )
        return prediction

    def rollout(self, x: Tensor, frames: int) -> Tensor:
        """Predict any number of frames, feeding predictions back as input.

        Args:
            x: Given frames, (batch, X, Y, T_in, channels).
            frames: Frames to predict, at least 1. If the last prediction reaches further, it is cut off.

        Returns:
            The predicted frames, (batch, X, Y, frames, channels), in the dtype of ``x``.

        Raises:
            ValueError: If ``frames`` is below 1, if ``x`` does not fit the network, or if the prediction does not have
                the channels and points of ``x``, so that it cannot be fed back.
        """
        if frames < 1:
            raise ValueError(f"Expected argument `frames` to be at least 1, but got {frames}.")
        window, predictions, done = x, [], 0
        while done < frames:
            prediction = self(window).to(x.dtype)
            predictions.append(prediction)
            window = advanced(window, prediction)
            done += prediction.shape[3]
        return torch.cat(predictions, dim=3)[:, :, :, :frames]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the network's configuration too, since `DPOT.from_checkpoint` cannot tell all of it from shapes.

        Args:
            checkpoint: The Lightning checkpoint; gets the key "args" if the network has a mapping `config`.

        Raises:
            FloatingPointError: If weights or the optimizer's averages are not finite; no file is then written.
        """
        self._watch.check_checkpoint(self, checkpoint)
        config = getattr(self.network, "config", None)
        if isinstance(config, Mapping):
            checkpoint["args"] = dict(config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose tensors have other shapes than the module's, or values that are not finite.

        Args:
            checkpoint: The Lightning checkpoint; not changed.

        Raises:
            ValueError: If tensors differ in shape (it names the first, with both shapes) or are not finite.
        """
        self._data_of_training.remember(checkpoint)
        saved = checkpoint.get("state_dict", {})
        own = dict(self.named_parameters())
        check_finite_weights({name: value for name, value in saved.items() if name in own}, "the checkpoint")
        wrong = [
            f"{name}: {tuple(saved[name].shape)} in the file, {tuple(value.shape)} in the module"
            for name, value in own.items()
            if name in saved and not is_lazy(value) and saved[name].shape != value.shape
        ]
        if wrong:
            raise ValueError(
                f"Expected a checkpoint whose tensors have the module's shapes, but {len(wrong)} differ "
                f"({'; '.join(wrong[:_SHOWN])}{'; ...' if len(wrong) > _SHOWN else ''}). Build the network with the "
                "checkpoint's sizes, and give data of the resolution and frames that it was trained on."
            )

    def on_train_start(self) -> None:
        """Refuse to resume a schedule that ends before the training does, or averages that are not finite.

        Raises:
            MisconfigurationException: If a resumed schedule is shorter than the training.
            ValueError: If an optimizer's averages in a checkpoint are not finite.
        """
        self._data_of_training.forget()
        check_finite_averages(self)
        check_resumed(self.trainer, self.scheduler)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean relative L2 error of the next predictions.

        Args:
            batch: Given frames (batch, X, Y, T_in, channels) and the next ones (batch, X, Y, k * T_out, channels).
            batch_idx: Number of the batch in the epoch.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: If the batch does not fit the network.
            FloatingPointError: If the loss is not finite, in any of the processes.
        """
        loss = torch.stack(self._prediction_errors(*batch, batch_idx)).mean()
        self._watch.check_loss(self, loss, batch, batch_idx)
        size = len(batch[0])
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=size, sync_dist=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Stop if the weights are no longer finite, before a checkpoint callback runs."""
        self._watch.check_weights(self)

    def on_validation_start(self) -> None:
        """Stop a training if the weights are no longer finite."""
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._watch.check_weights(self)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Roll out to the last frame of y and log ``val/l2re``, ``val/nrmse`` and ``val/vrmse``.

        Args:
            batch: Given frames (batch, X, Y, T_in, channels) and all that follow (batch, X, Y, T, channels).
            batch_idx: Number of the batch in the epoch.

        Returns:
            Fields in physical units: "given", "prediction" and "target".
        """
        fields = self._rolled_out(batch)
        size = len(fields["given"])
        given, prediction, target = self._without_repetitions(fields, batch_idx)
        if len(target):
            for metric in (self.val_l2re, self.val_nrmse, self.val_vrmse):
                metric.update(prediction, target)
            self.trivial_errors.update(given, target, self._channels(given))
        self.log("val/l2re", self.val_l2re, on_epoch=True, prog_bar=True, batch_size=size)
        self.log("val/nrmse", self.val_nrmse, on_epoch=True, batch_size=size)
        self.log("val/vrmse", self.val_vrmse, on_epoch=True, batch_size=size)
        return fields

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics, which an interrupted validation, or a test, may have left filled."""
        for metric in (self.val_l2re, self.val_nrmse, self.val_vrmse, self.trivial_errors):
            metric.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the trivial predictors' errors, and warn, once, about rollouts that blow up."""
        self._log_trivial("val")
        error = float(self.val_l2re.compute())
        if not self._blew_up and not error < _BLOWN_UP:
            self._blew_up = True
            rank_zero_warn(
                f"val/l2re is {error:.1g} (epoch {self.current_epoch}): rollouts blow up, though single predictions "
                "may be good. Lower `lr`, or raise the data module's `autoregressive_steps`."
            )

    def on_test_epoch_start(self) -> None:
        """Reset the metrics, which an interrupted test, or a validation, may have left filled."""
        for metric in (self.test_l2re, self.test_errors, self.test_fourier, self.trivial_errors):
            metric.reset()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Roll out to the last frame of y and add the errors to the test metrics.

        Args:
            batch: Given frames (batch, X, Y, T_in, channels) and all that follow (batch, X, Y, T, channels).
            batch_idx: Number of the batch in the epoch.

        Returns:
            Fields in physical units: "given", "prediction" and "target".
        """
        fields = self._rolled_out(batch)
        given, prediction, target = self._without_repetitions(fields, batch_idx)
        if len(target) == 0:
            return fields
        self.trivial_errors.update(given, target, self._channels(given))
        self.test_l2re.update(prediction, target)
        self.test_errors.update(prediction, target)
        least = 2 * (self.test_fourier.high + 1)
        if min(target.shape[1:3]) >= least:
            self.test_fourier.update(prediction, target)
        elif batch_idx == 0:
            rank_zero_info(
                f"Leaving out test/fourier_low, _mid and _high: the highest band needs {least} x {least} points, but "
                f"the fields have {target.shape[1]} x {target.shape[2]}."
            )
        return fields

    def _without_repetitions(self, fields: dict[str, Tensor], batch_idx: int) -> list[Tensor]:
        """Given, predicted and target fields, without the items that a distributed sampler repeats to fill up."""
        parts = [fields[name] for name in ("given", "prediction", "target")]
        if self._trainer is None:
            return parts
        loader = evaluation_loaders(self.trainer)[0]
        size, items = getattr(loader, "batch_size", None) or 0, len(parts[0])
        own = own_items(loader, batch_idx * size, items) if size else items
        return [part[:own] for part in parts]

    def _channels(self, fields: Tensor) -> list[str]:
        return channel_names(self._datamodule(), fields.shape[4])

    def _log_trivial(self, stage: str) -> None:
        errors = self.trivial_errors.compute(list(getattr(self._datamodule(), "channels", None) or ()))
        self.log_dict({f"{stage}/{name}": error for name, error in errors.items()}, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Log the errors of the whole test set."""
        per_channel = self.test_l2re.compute().reshape(-1)  # torchmetrics gives a scalar for one channel
        names = channel_names(self._datamodule(), len(per_channel))
        errors = {"l2re": per_channel.mean(), **self.test_errors.compute()}
        errors |= {f"l2re_channel/{name}": error for name, error in zip(names, per_channel, strict=True)}
        if self.trainer.strategy.reduce_boolean_decision(self.test_fourier.update_called, all=False):
            bands = zip(_BANDS, self.test_fourier.compute(), strict=True)
            errors |= {f"fourier_{band}": error for band, error in bands}
        self.log_dict({f"test/{name}": error for name, error in errors.items()}, sync_dist=True)
        self._log_trivial("test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Roll out over the frames of y.

        Args:
            batch: Given frames (batch, X, Y, T_in, channels) and those that follow, of which only the number is used.
            batch_idx: Number of the batch in the epoch.

        Returns:
            The predicted frames in physical units, of the shape of y.
        """
        x, y = batch
        return self._physical(self.rollout(x, y.shape[3]))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build Adam and its schedule, which ends with the training.

        Returns:
            The optimizer, and the schedule, which advances at every step.

        Raises:
            MisconfigurationException: If no parameter can be trained, or if the schedule needs the training's length
                and that is unlimited.
        """
        check_trainable(self)
        kind = Adam if self.optimizer == "adam" else AdamW
        fused = self.fused and may_fuse(self._trainer)
        options = {"lr": self.lr, "betas": self.betas, "weight_decay": self.weight_decay}
        optimizer = make_adam(kind, self.parameters(), fused=fused, **options)
        if self.scheduler == "none":
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise misconfiguration(
                f"Expected a training of known length for scheduler `{self.scheduler}`, but got an unlimited one. "
                "Set the Trainer's `max_epochs` or `max_steps`, or use scheduler `none`."
            )
        schedule = make_schedule(
            optimizer,
            self.scheduler,
            max(1, int(steps)),  # none with limit_train_batches=0
            lr=self.lr,
            warmup_fraction=self.warmup_fraction,
            cycle_momentum=self.cycle_momentum,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _prediction_errors(self, x: Tensor, y: Tensor, batch_idx: int) -> list[Tensor]:
        """Relative L2 errors of the predictions that count towards the loss, in order."""
        generator = seeded_generator((self.noise_seed, self.current_epoch, batch_idx, self.global_rank), x.device)
        window = add_noise(x, self.noise, generator)
        prediction = self(window)
        check_target(prediction, y, self.pushforward)
        first, *others = y.split(prediction.shape[3], dim=3)
        errors = [relative_l2_error(prediction, first)]
        for number, target in enumerate(others, 1):
            counts = not self.pushforward or number == len(others)
            fed_back = prediction.detach() if self.pushforward else prediction
            window = add_noise(advanced(window, fed_back), self.noise, generator)
            with nullcontext() if counts else torch.no_grad():
                prediction = self(window)
            if counts:
                errors.append(relative_l2_error(prediction, target))
        return errors

    def _rolled_out(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, y = batch
        fields = {"given": x, "prediction": self.rollout(x, y.shape[3]), "target": y}
        return {name: self._physical(values) for name, values in fields.items()}

    def _physical(self, fields: Tensor) -> Tensor:
        self._data_of_training.compare(self._trainer, fields)
        denormalize: Callable[[Tensor], Tensor] | None = getattr(self._datamodule(), "denormalize", None)
        return fields if denormalize is None else denormalize(fields)

    def _datamodule(self) -> object:
        return getattr(self._trainer, "datamodule", None)
