"""The trainings of a study, and the pre-training that all of them start from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from experiments import Clock, OnEpoch, fit
from fine_tuning.flows import data_module, files, simulated
from fine_tuning.methods import analysis, callbacks
from fine_tuning.study import TRIVIAL, Regime, Result, Run, Study
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_farms import analyze
from lightning_farms.analysis import parameter_layers
from lightning_farms.callbacks import LayerwiseLearningRate
from lightning_farms.data import CFDDataModule
from lightning_farms.metrics import VRMSE, RelativeL2Error, trivial_predictions
from lightning_farms.models import DPOT, OperatorModule, load_weights, save_weights

CLIP = 1e4  # largest norm of the gradient, as in DPOT's program


class LayerLog(Callback):
    """Records the mean multiplier of every layer over the epochs, also in checkpoints.

    Args:
        balance: the callback that sets the rates; None if all layers have one rate.
    """

    def __init__(self, balance: LayerwiseLearningRate | None) -> None:
        self.sums: dict[str, float] = {}
        self.epochs, self.mean = 0, 0.0
        self._balance = balance

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Record the multipliers of an epoch at its first step."""
        if batch_idx:
            return
        multipliers = {} if self._balance is None else self._balance.multipliers
        for layer, multiplier in multipliers.items():
            self.sums[layer] = self.sums.get(layer, 0.0) + multiplier
        norms = self._balance is None or self._balance.control.norms
        self.mean += weighted_mean(pl_module, multipliers, norms=norms)
        self.epochs += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far."""
        return {"sums": dict(self.sums), "epochs": self.epochs, "mean": self.mean}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from saved sums."""
        self.sums, self.epochs, self.mean = dict(state_dict["sums"]), state_dict["epochs"], state_dict["mean"]


def weighted_mean(module: torch.nn.Module, multipliers: Mapping[str, float], *, norms: bool = True) -> float:
    """Return the mean multiplier of all trained parameters, weighted by size; 1 for those without a multiplier."""
    layer_of = parameter_layers(module, norms=norms)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    total = sum(parameter.numel() * multipliers.get(layer_of.get(parameter, ""), 1.0) for parameter in trained)
    return total / sum(parameter.numel() for parameter in trained)


def layer_text(
    before: Mapping[str, float], after: Mapping[str, float], means: Mapping[str, float], moved: Mapping[str, float]
) -> str:
    """Format a run's log by layer, "name:mean multiplier:alpha at the start:at the end:relative change", by ";".

    Args:
        before: {layer: alpha at the start}.
        after: {layer: alpha at the end}.
        means: {layer: mean multiplier}; 1 for layers that are missing.
        moved: {layer: norm of the weight's change divided by the weight's norm}.

    Example:
        >>> layer_text({"fc": 2.1}, {"fc": 2.0}, {"fc": 1.5}, {"fc": 0.25})
        'fc:1.5:2.1:2:0.25'
    """
    rows = (
        (name, means.get(name, 1.0), alpha, after.get(name, math.nan), moved.get(name, math.nan))
        for name, alpha in before.items()
    )
    return ";".join(":".join([name, *(f"{value:.4g}" for value in values)]) for name, *values in rows)


def _changes(before: Mapping[str, Tensor], module: torch.nn.Module) -> dict[str, float]:
    """Return {layer: relative change of its parameters in the Frobenius norm}."""
    layer_of = parameter_layers(module)
    squares: dict[str, list[float]] = {}
    for name, parameter in module.named_parameters():
        if parameter in layer_of:
            then, now = before[name], parameter.detach().cpu()
            both = squares.setdefault(layer_of[parameter], [0.0, 0.0])
            both[0] += (now - then).abs().square().sum().item()
            both[1] += then.abs().square().sum().item()
    return {layer: math.sqrt(change / size) if size else math.nan for layer, (change, size) in squares.items()}


class Laboratory:
    """Trains the runs of a study, on one machine and in one folder.

    Args:
        study: settings of the study.
        folder: folder for flows, the pre-trained weights and checkpoints.
        clock: tells when to stop.
        device: where flows are simulated.
        workers: number of processes that read data.
    """

    def __init__(
        self, study: Study, folder: Path, clock: Clock | None = None, device: str = "auto", workers: int = 0
    ) -> None:
        self.study, self.folder, self.clock = study, folder, clock or Clock()
        self._device, self._workers = device, workers
        self._files: dict[str, dict[str, Any]] = {}

    @property
    def regimes(self) -> dict[str, Regime | None]:
        """The regimes to fine-tune on, by name; None for the study's own file."""
        if self.study.path is not None:
            return {self.study.path.name: None}
        return {regime.name: regime for regime in self.study.regimes}

    def prepare(self) -> None:
        """Simulate all missing flows, and pre-train.

        Raises:
            OutOfTimeError: the time is over before that is done.
            ValueError: the given file does not have the study's resolution.
        """
        for name, regime in self.regimes.items():
            self._files[name] = files(self.study, regime, self.folder / "flows", self.clock, self._device)
            if (cells := self.data(name).img_size) != self.study.resolution:
                raise ValueError(f"Expected argument `resolution` to be {cells}, as {name} has it, but got another.")
        if self.study.start is None and not self._pretrained.exists():
            self._pretrain()

    def data(self, name: str, fraction: float = 1.0, seed: int = 0) -> CFDDataModule:
        """Build the data module of a regime."""
        return data_module(self.study, self._files[name], fraction=fraction, seed=seed, workers=self._workers)

    def network(self) -> DPOT:
        """Build the network with the starting weights of every fine-tuning: released, from a file, or pre-trained."""
        study = self.study
        if study.start is not None:
            return DPOT.from_pretrained(study.start, img_size=study.resolution)
        network = self._fresh()
        load_weights(network, self._pretrained)
        return network

    def _fresh(self) -> DPOT:
        return DPOT(img_size=self.study.resolution, **self.study.network)

    @property
    def _pretrained(self) -> Path:
        return self.folder / f"pretrained-{self.study.start_digest}.pth"

    def _pretrain(self) -> None:
        study = self.study
        paths = [
            path
            for regime in study.pretrain_regimes
            for path in simulated(
                study, regime, "pretrain", study.pretrain_flows, self.folder / "flows", self.clock, self._device
            )
        ]
        seed_everything(0, verbose=False)
        network = self._fresh()
        smallest = study.pretrain_flows % study.flows_a_file or study.flows_a_file
        data = data_module(study, {"path": paths, "test_fraction": 1.5 / smallest}, workers=self._workers)
        fit(
            OperatorModule(network, lr=study.pretrain_lr, cycle_momentum=True), data,
            self.folder / "checkpoints" / self._pretrained.stem, monitor="train/loss", on_epoch=lambda _: None,
            epochs=study.pretrain_epochs, clock=self.clock, gradient_clip_val=CLIP, limit_val_batches=0,
        )  # fmt: skip
        save_weights(network, self._pretrained)

    def trivial(self, run: Run) -> Result:
        """Return the errors of a trivial predictor over the flows that networks are evaluated on."""
        data = self.data(run.data)
        for stage in ("validate", "test"):
            data.setup(stage)
        val = self._trivial_errors(run.method, data, data.val_dataloader())
        test = self._trivial_errors(run.method, data, data.test_dataloader())
        return Result(val["l2re"], val["l2re"], test["l2re"], test["vrmse"])

    @staticmethod
    def _trivial_errors(method: str, data: CFDDataModule, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        errors = MetricCollection({"l2re": RelativeL2Error(), "vrmse": VRMSE()}, compute_groups=False)
        for given, target in batches:
            errors.update(trivial_predictions(given, target.shape[3], data.channels)[method], target)
        return {name: float(error) for name, error in errors.compute().items()}

    def train(self, run: Run, folder: Path, on_epoch: OnEpoch) -> Result:
        """Fine-tune once (or predict trivially), continuing from an interrupted run's checkpoint if there is one.

        Args:
            run: what to train.
            folder: folder for the run's checkpoint.
            on_epoch: called with the number of epochs done.

        Returns:
            The results.

        Raises:
            OutOfTimeError: the time is over before the training ends.
        """
        if run.method in TRIVIAL:
            return self.trivial(run)
        seed_everything(run.seed, verbose=False)
        network = self.network()
        module = OperatorModule(network, lr=run.lr, cycle_momentum=True)  # which freezes the class head
        start = {name: value.detach().clone() for name, value in network.named_parameters()}
        method = analysis(run.method, self.study.deviations)
        trained = {layer for parameter, layer in parameter_layers(network).items() if parameter.requires_grad}
        before = {name: alpha for name, alpha in analyze(network, method).alphas.items() if name in trained}
        balance = next(iter(callbacks(run.method, self.study.deviations)), None)
        log = LayerLog(balance)
        curve = fit(
            module,
            self.data(run.data, run.fraction, run.seed),
            folder,
            monitor="val/l2re",
            on_epoch=on_epoch,
            epochs=run.epochs,
            evaluate_every=max(1, run.epochs // self.study.evaluations),
            callbacks=[log] if balance is None else [balance, log],
            clock=self.clock,
            test=True,
            gradient_clip_val=CLIP,
        )
        network.cpu()
        prefix = len("network.")
        means = {layer[prefix:]: total / log.epochs for layer, total in log.sums.items()}
        text = layer_text(before, analyze(network, method).alphas, means, _changes(start, network))
        return Result(
            curve.values[-1], min(curve.values), curve.test["test/l2re"], curve.test["test/vrmse"],
            log.mean / log.epochs, curve.seconds, text,
        )  # fmt: skip
