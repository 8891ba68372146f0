"""Time what RolloutMonitor and PredictionWriter add to rollouts of DPOT-Tiny: tests/benchmarks/bench_rollouts.py.

Trainers with and without the callback take turns on the same data. Printed are the median seconds of a validation
without and with RolloutMonitor (which then only sums up errors), of drawing once what it draws every tenth epoch, and
of a prediction without and with PredictionWriter, with the megabytes of its file.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_farms import PredictionWriter, RolloutMonitor
from lightning_farms.models import DPOT, OperatorModule

Batches = DataLoader[tuple[torch.Tensor, ...]]


class Summing(RolloutMonitor):
    """Draws when it is told to."""

    def _draw(self, trainer: pl.Trainer) -> None:
        """Later."""

    def seconds_of_drawing(self, trainer: pl.Trainer) -> float:
        return seconds(lambda: super(Summing, self)._draw(trainer))


def seconds(job: Callable[[], object]) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def make_trainer(callbacks: list[pl.Callback], folder: str, args: argparse.Namespace) -> pl.Trainer:
    return pl.Trainer(
        accelerator=args.accelerator,
        devices=1,
        logger=TensorBoardLogger(folder),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    network = DPOT(img_size=args.resolution, embed_dim=512, depth=4, n_blocks=4, out_layer_dim=32)
    module = OperatorModule(network)
    size = (args.batch * args.batches, args.resolution, args.resolution)
    data: Batches = DataLoader(TensorDataset(torch.randn(*size, 10, 4), torch.randn(*size, 11, 4)), args.batch)
    with tempfile.TemporaryDirectory() as folder:
        path, summing = Path(folder) / "predicted.hdf5", Summing()
        monitored = make_trainer([summing], folder, args)
        written = make_trainer([PredictionWriter(path, overwrite=True)], folder, args)
        plain = make_trainer([], folder, args)
        jobs: dict[str, Callable[[], object]] = {
            "validation": lambda: plain.validate(module, data, verbose=False),
            "with RolloutMonitor": lambda: monitored.validate(module, data, verbose=False),
            "drawing": lambda: summing.seconds_of_drawing(monitored),
            "prediction": lambda: plain.predict(module, data, return_predictions=False),
            "with PredictionWriter": lambda: written.predict(module, data, return_predictions=False),
        }
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(args.repeats + 1):
            for name, job in jobs.items():
                times[name].append(seconds(job))
        megabytes = path.stat().st_size / 1e6
    for name, found in times.items():
        print(f"{name:<22} {statistics.median(found[1:]):8.3f} s")  # the first warms up
    for name, base in (("with RolloutMonitor", "validation"), ("with PredictionWriter", "prediction")):
        ratios = [long / short for long, short in zip(times[name][1:], times[base][1:], strict=True)]
        print(f"{name:<22} {statistics.median(ratios):8.3f} times the {base}")
    print(f"{'file':<22} {megabytes:8.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    main(parser.parse_args())
