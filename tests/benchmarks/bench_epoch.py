"""Time what TB_Sigmoid + FARMS adds to the training of DPOT-Tiny: python tests/benchmarks/bench_epoch.py.

Two Trainers on the same data, one without the callback and one with it, take turns epoch by epoch within one run; both
log to TensorBoard. Printed are the median training step without it and the median ratio of pairs of epochs, the time
that an analysis and its logging take, and the share that these have of an epoch of 500 steps. Labelled figures, which
are drawn every tenth epoch by default, are timed in a third run, which draws them in every epoch: what its logging
takes beyond the second's. `--small` is a form of seconds, on a small network, which the tests run.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_farms import TBSigmoid
from lightning_farms.models import DPOT, OperatorModule


class Steps(pl.Callback):
    """Seconds of every training step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *args: object) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, *args: object) -> None:
        self.seconds.append(time.perf_counter() - self.start)


class Logged(TensorBoardLogger):
    """Also keeps the scalars."""

    def __init__(self, folder: str, name: str) -> None:
        super().__init__(folder, name=name)
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        self.rows.append(dict(metrics))

    def seconds(self, name: str) -> float:
        found = [row[f"farms/time/{name}"] for row in self.rows if f"farms/time/{name}" in row]
        return statistics.median(found[1:])  # the first warms up


class Run:
    """One Trainer that goes on by one epoch at a time."""

    def __init__(self, name: str, callbacks: list[pl.Callback], folder: str, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        width, depth = (64, 1) if args.small else (512, 4)
        network = DPOT(img_size=args.resolution, embed_dim=width, depth=depth, n_blocks=4, out_layer_dim=32)
        self.module = OperatorModule(network, scheduler="none")
        size = (args.batch * args.steps, args.resolution, args.resolution)
        self.loader = DataLoader(TensorDataset(torch.randn(*size, 10, 4), torch.randn(*size, 1, 4)), args.batch)
        self.steps, self.logger = Steps(), Logged(folder, name)
        self.trainer = pl.Trainer(
            max_epochs=1,
            accelerator=args.accelerator,
            devices=1,
            logger=self.logger,
            callbacks=[self.steps, *callbacks],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            log_every_n_steps=1,
        )

    def one_epoch(self, epoch: int) -> float:
        """Train for one epoch; returns the median step."""
        before = len(self.steps.seconds)
        self.trainer.fit_loop.max_epochs = epoch + 1
        self.trainer.fit(self.module, self.loader)
        return statistics.median(self.steps.seconds[before:])


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="of an epoch here")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--small", action="store_true", help="of each as few as will do")
    args = parser.parse_args(arguments)
    if args.small:
        args.resolution, args.batch, args.steps, args.epochs = 32, 1, 1, 2
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        found = measure(folder, args)
    network = "a small DPOT" if args.small else "DPOT-Tiny"
    print(f"{network}, {args.resolution} x {args.resolution}, batch {args.batch}, {torch.get_num_threads()} threads")
    print(f"training step: {found['step']:.3f} s without; ratio with / without: {found['ratio']:.3f}")
    print(f"an epoch's analysis: {found['analysis']:.3f} s, its logging: {found['logging']:.3f} s")
    print(f"share of an epoch of 500 steps: {100 * found['share']:.3f} %")
    print(f"labelled figures, where they are drawn: {found['figures']:.3f} s")
    return found


def measure(folder: str, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step without the callback, of an analysis, its logging and its figures; ratio of steps; share."""
    plain = Run("plain", [], folder, args)
    farms = Run("farms", [TBSigmoid(figures_every_n_epochs=0, summary=False)], folder, args)
    pairs = [(plain.one_epoch(epoch), farms.one_epoch(epoch)) for epoch in range(args.epochs)][1:]
    args.steps = 1
    callback = TBSigmoid(figures_every_n_epochs=1, esd_layers=0 if args.small else 4, summary=False)
    drawing = Run("figures", [callback], folder, args)
    for epoch in range(2 if args.small else 3):
        drawing.one_epoch(epoch)
    step = statistics.median(without for without, _ in pairs)
    analysis, log = farms.logger.seconds("analysis_seconds"), farms.logger.seconds("logging_seconds")
    return {
        "step": step,
        "ratio": statistics.median(with_it / without for without, with_it in pairs),
        "analysis": analysis,
        "logging": log,
        "share": (analysis + log) / (500 * step + analysis + log),
        "figures": drawing.logger.seconds("logging_seconds") - log,
    }


if __name__ == "__main__":
    main()
