"""Table 4 of the paper: fine-tuning DPOT on compressible flow with a uniform rate, TB_Sigmoid, and TB_Sigmoid + FARMS.

    python examples/table_4.py                                                   # reduced, simulated data, any machine
    python examples/table_4.py --path M0.1_64.hdf5 --pretrain_path M1.0_64.hdf5  # reduced, on PDEBench files
    python examples/table_4.py --sizes tiny small --path 2D_CFD_Rand_M0.1_Eta0.01_Zeta0.01_periodic_128_Train.hdf5

The third is the paper's setting, from the released weights (it needs the extra `hub`, and a GPU). Every finished run is
one row of OUT/runs.csv. Started again, finished runs are not repeated, and an interrupted one goes on from its last
checkpoint. After all runs OUT/table.md has means and standard deviations over seeds, OUT/table.png a plot. Runs of
several calls with one OUT are kept apart by their settings; those at the same time need an OUT each.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from experiments import Help, OnEpoch, RunTable, fit, markdown, quiet, run_all, spread
from jsonargparse import ArgumentParser
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt
from lightning.pytorch import Trainer, seed_everything

from lightning_farms import FARMS, TBSigmoid, WholeMatrix
from lightning_farms.cli.train.pretraining import Pretraining, pretrain, pretrained_path
from lightning_farms.data import CFDDataModule, SimulationConfig
from lightning_farms.models import DPOT, OperatorModule, load_weights

Size = Literal["reduced", "tiny", "small", "medium", "large", "huge"]
Method = Literal["FT", "TB_Sigmoid", "FARMS"]

REDUCED = {"patch_size": 8, "embed_dim": 128, "depth": 4, "n_blocks": 4, "out_layer_dim": 32, "normalize": True}
REDUCED_LR = 2e-3  # between the best for FT on a quarter (4e-3) and on all of the data (1e-3)
FRACTIONS = [0.05, 0.1, 0.25, 0.5, 1.0]
SEEDS = [43, 37, 13]
METHODS: tuple[Method, ...] = get_args(Method)
COLOURS = {"FT": "tab:grey", "TB_Sigmoid": "tab:orange", "FARMS": "tab:blue"}
TITLES = {"FT": "FT", "TB_Sigmoid": "TB_Sigmoid", "FARMS": "TB_Sigmoid + FARMS"}
EDGE = 2.5  # times the lowest error: what is beyond is drawn here
EVALUATIONS = 20  # of the test trajectories during a training


@dataclass(frozen=True)
class Setting:
    """What the runs of a row have in common; the data by name and size, the starting weights by name."""

    size: Size
    data: str
    start: str
    epochs: int
    batch_size: int
    windows_per_trajectory: int
    stride: int


class Run(NamedTuple):
    """One training."""

    setting: Setting
    fraction: float
    lr: float
    method: Method
    seed: int

    @property
    def key(self) -> dict[str, str]:
        """Everything that tells this run from others, as it stands in the file."""
        values = {**asdict(self.setting), **self._asdict()}
        del values["setting"]
        return {name: str(value) for name, value in values.items()}

    @property
    def label(self) -> str:
        """What tells it from the other runs of a call."""
        return f"{self.setting.size} {100 * self.fraction:g} % {self.method} (seed {self.seed})"

    @property
    def epochs(self) -> int:
        """How many it takes."""
        return self.setting.epochs


class Result(NamedTuple):
    """L2RE of rollouts over the test trajectories, after the last epoch and the lowest of all evaluations; the time."""

    l2re: float
    best_l2re: float
    seconds: float


KEY = (*(field.name for field in fields(Setting)), *Run._fields[1:])


class Job(NamedTuple):
    """What is given on the command line and is the same for all runs of a size."""

    setting: Setting
    data: dict[str, object]
    pretraining: Pretraining
    workers: int


def paper_lr(size: Size, fraction: float) -> float:
    """Table 14's learning rate; that of the reduced size is ours, as are those of sizes that the paper leaves out."""
    if size == "reduced":
        return REDUCED_LR
    if size == "tiny":
        return 2.5e-4 if fraction <= 0.25 else 5e-4
    return 1e-4 if fraction <= 0.1 else 2.5e-4


def callbacks(method: Method) -> list[TBSigmoid]:
    """What sets the learning rates; Table 14's scaling (1, 1)."""
    if method == "FT":
        return []
    return [TBSigmoid(1.0, 1.0, analysis=FARMS() if method == "FARMS" else WholeMatrix(), summary=False)]


def data_module(job: Job, run: Run | None = None) -> CFDDataModule:
    """The data of a run: its seed chooses the subset, the windows and their order."""
    options = {} if run is None else {"train_fraction": run.fraction, "subset_seed": run.seed, "seed": run.seed}
    return CFDDataModule(
        **job.data,
        batch_size=job.setting.batch_size,
        windows_per_trajectory=job.setting.windows_per_trajectory,
        stride=job.setting.stride,
        num_workers=job.workers,
        **options,
    )


def starting_network(job: Job) -> DPOT:
    """The network with the weights that every fine-tuning starts from: released, from a file, or pre-trained here."""
    data = data_module(job)
    sizes = {"img_size": data.img_size, "in_channels": data.n_channels, "out_channels": data.n_channels}
    if job.pretraining.checkpoint is not None:
        return DPOT.from_pretrained(job.pretraining.checkpoint, **sizes)
    network = DPOT(**REDUCED, **sizes)
    path = pretrained_path(job.pretraining, network, data)
    if not path.exists():
        print(f"Pre-training for {job.pretraining.epochs} epochs; the weights will be kept in {path}")
        trainer = Trainer(
            accelerator="auto", devices=1, max_epochs=job.pretraining.epochs, gradient_clip_val=1e4,
            limit_val_batches=0, logger=False, enable_checkpointing=False, enable_model_summary=False,
            enable_progress_bar=False,  # Lightning's takes down that of the runs
        )  # fmt: skip
        pretrain(job.pretraining, network, data, trainer, path)
    load_weights(network, path)
    return network


def train(run: Run, job: Job, folder: Path, on_epoch: OnEpoch) -> Result:
    """Fine-tune once, from the checkpoint of a run that was interrupted if there is one.

    Args:
        run: what to train.
        job: on what.
        folder: for the run's checkpoint.
        on_epoch: called with the number of epochs done.

    Returns:
        What came out.
    """
    seed_everything(run.seed, verbose=False)
    curve = fit(
        OperatorModule(starting_network(job), lr=run.lr, cycle_momentum=True),
        data_module(job, run),
        folder,
        monitor="val/l2re",
        on_epoch=on_epoch,
        epochs=run.epochs,
        evaluate_every=max(1, run.epochs // EVALUATIONS),
        callbacks=callbacks(run.method),
        gradient_clip_val=1e4,
    )
    return Result(curve.values[-1], min(curve.values), curve.seconds)


def tables_of(runs: Sequence[Run], table: RunTable) -> str:
    """The errors after the last epoch, and the lowest of all evaluations, as Markdown."""
    last = _table_of(runs, table, "l2re")
    lowest = _table_of(runs, table, "best_l2re")
    return (
        f"Test L2RE (%) after the last epoch, mean ± standard deviation over seeds\n\n{last}\n"
        f"The lowest of the {EVALUATIONS} evaluations (a choice by the test trajectories themselves)\n\n{lowest}"
    )


def _table_of(runs: Sequence[Run], table: RunTable, column: str) -> str:
    """Means and standard deviations over seeds, and the differences to the uniform rate, seed by seed."""
    found = {run: 100 * float(row[column]) for run in runs if (row := table.finished(run)) is not None}
    methods = list(dict.fromkeys(run.method for run in runs))
    seeds = list(dict.fromkeys(run.seed for run in runs))
    lines = []
    for row in dict.fromkeys(run._replace(method="FT", seed=0) for run in runs):
        errors = {
            method: {seed: found[run] for seed in seeds if (run := row._replace(method=method, seed=seed)) in found}
            for method in methods
        }
        uniform = errors.get("FT", {})
        differences = [
            [error - uniform[seed] for seed, error in errors[method].items() if seed in uniform]
            for method in methods
            if method != "FT"
        ]
        cells = [*(list(errors[method].values()) for method in methods), *differences]
        percent = f"{100 * row.fraction:g} %"
        lines.append([row.setting.size, percent, *(spread(values, len(seeds), 3) for values in cells)])
    titles = [TITLES[method] for method in methods]
    header = ["DPOT", "data", *titles, *(f"{title} - FT" for title in titles if title != "FT")]
    return markdown(header, lines)


def plot(runs: Sequence[Run], table: RunTable, path: Path) -> None:
    """L2RE over the fraction of the data: medians, and every run as a point, at the edge where it went wrong."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = list(dict.fromkeys(run.setting.size for run in runs))
    figure = Figure(figsize=(1 + 4.5 * len(sizes), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        points: dict[Method, dict[float, list[float]]] = {}
        for run in runs:
            row = table.finished(run)
            if row is not None and run.setting.size == size:
                of_method = points.setdefault(run.method, {})
                of_method.setdefault(100 * run.fraction, []).append(100 * float(row["l2re"]))
        values = [value for fractions in points.values() for found in fractions.values() for value in found]
        edge = EDGE * min(values, default=1.0)
        for place, (method, fractions) in enumerate(points.items()):
            shift = 1 + 0.03 * (place - 1)  # so that methods do not hide each other
            medians = [min(statistics.median(found), edge) for found in fractions.values()]
            axes.plot([shift * at for at in fractions], medians, color=COLOURS[method], label=TITLES[method])
            for fraction, found in fractions.items():
                for value in found:
                    axes.plot(shift * fraction, min(value, edge), "." if value < edge else "^", color=COLOURS[method])
        ticks = sorted({100 * run.fraction for run in runs})
        axes.set(xscale="log", xlabel="training data (%)", ylabel="test L2RE (%)", title=f"DPOT, {size}")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.legend()
    figure.savefig(path, dpi=110)


def _summary(result: Mapping[str, float]) -> str:
    return f"L2RE {100 * result['l2re']:.3f} % in {result['seconds']:.0f} s"


def _job(
    size: Size, path: Path | None, pretrained: str | None, pretrain_path: Path | None, *, epochs: int | None,
    pretrain_epochs: int, batch_size: int | None, windows: int | None, stride: int, resolution: int, workers: int,
) -> Job:  # fmt: skip
    reduced = size == "reduced"
    checkpoint = pretrained if pretrained is not None or reduced else size
    windows = windows or (4 if reduced else 1)
    batch_size = batch_size or (8 if reduced else 32)
    simulation = SimulationConfig(trajectories=40, resolution=resolution, mach=0.1, eta=0.01, zeta=0.01, seed=0)
    data: dict[str, object] = {"path": path, "simulation": simulation}
    pretraining = Pretraining(
        checkpoint=checkpoint,
        epochs=pretrain_epochs,
        batch_size=8,
        windows_per_trajectory=11,
        path=None if pretrain_path is None else str(pretrain_path),
        simulation=SimulationConfig(trajectories=16, resolution=resolution, mach=1.0, eta=0.1, zeta=0.1, seed=1),
    )
    pretraining_set = "a simulated set" if pretrain_path is None else pretrain_path.name
    start = checkpoint or f"{pretrain_epochs} epochs on {pretraining_set}"
    name = CFDDataModule(path, simulation=simulation).data_path.name
    setting = Setting(size, name, start, epochs or (40 if reduced else 200), batch_size, windows, stride)
    return Job(setting, data, pretraining, workers)


def main(
    sizes: Sequence[Size] = ("reduced",),
    fractions: Sequence[ClosedUnitInterval] = FRACTIONS,
    methods: Sequence[Method] = METHODS,
    seeds: Sequence[int] = SEEDS,
    out: Path = Path("table_4"),
    path: Path | None = None,
    pretrained: str | None = None,
    pretrain_path: Path | None = None,
    pretrain_epochs: PositiveInt = 100,
    epochs: PositiveInt | None = None,
    batch_size: PositiveInt | None = None,
    windows: PositiveInt | None = None,
    lr: PositiveFloat | None = None,
    stride: PositiveInt = 1,
    resolution: PositiveInt = 64,
    workers: int = 0,
) -> int:
    """Run the fine-tunings and write the table.

    Args:
        sizes: reduced (128 wide, normalised; trains in minutes on a CPU) or released sizes.
        fractions: shares of the training trajectories; the subsets of a seed are nested.
        methods: a uniform rate (FT), TB_Sigmoid on whole matrices, TB_Sigmoid on FARMS's windows.
        seeds: of the subset, the windows and their order; runs of one seed differ in the method only.
        out: folder of runs.csv, table.md, table.png and checkpoints of unfinished runs.
        path: PDEBench file to fine-tune on; 40 trajectories at Mach 0.1 are simulated when left out.
        pretrained: starting weights: a checkpoint or the name of a released one; for released sizes their own.
        pretrain_path: for the reduced size, PDEBench file to pre-train on; a set at Mach 1 is simulated when left out.
        pretrain_epochs: epochs of this pre-training.
        epochs: epochs of a fine-tuning; 200 for released sizes, 40 for the reduced one.
        batch_size: 32 for released sizes, 8 for the reduced one.
        windows: training items per trajectory and epoch; 1 for released sizes, 4 for the reduced one.
        lr: learning rate; Table 14's by size and fraction, 2e-3 for the reduced size.
        stride: every stride-th cell along x and y.
        resolution: cells along each side of simulated sets.
        workers: processes that read data.

    Returns:
        How many runs failed.
    """
    jobs = {
        size: _job(
            size, path, pretrained, pretrain_path, epochs=epochs, pretrain_epochs=pretrain_epochs,
            batch_size=batch_size, windows=windows, stride=stride, resolution=resolution, workers=workers,
        )
        for size in sizes
    }  # fmt: skip
    table = RunTable(out / "runs.csv", KEY, Result._fields)
    runs = [
        Run(jobs[size].setting, fraction, lr or paper_lr(size, fraction), method, seed)
        for size in sizes
        for fraction in fractions
        for seed in seeds
        for method in methods
    ]
    failed = run_all(
        runs,
        table,
        lambda run, folder, on_epoch: train(run, jobs[run.setting.size], folder, on_epoch)._asdict(),
        _summary,
    )
    text = tables_of(runs, table)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text, encoding="utf-8")
    plot(runs, table, out / "table.png")
    print(text)
    if failed:
        print(f"{failed} of {len(runs)} runs failed; see {table.path}. The same command tries them again.")
    return failed


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument(
        "--sizes", choices=get_args(Size), nargs="+", default=["reduced"],
        help="reduced (128 wide, normalised; trains in minutes on a CPU) or released sizes",
    )  # fmt: skip
    parser.add_argument(
        "--fractions", type=ClosedUnitInterval, nargs="+", default=FRACTIONS,
        help="shares of the training trajectories; the subsets of a seed are nested",
    )  # fmt: skip
    parser.add_argument(
        "--methods", choices=METHODS, nargs="+", default=list(METHODS),
        help="a uniform rate (FT), TB_Sigmoid on whole matrices, TB_Sigmoid on FARMS's windows",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=SEEDS,
        help="of the subset, the windows and their order; runs of one seed differ in the method only",
    )  # fmt: skip
    parser.add_function_arguments(main, skip={"sizes", "fractions", "methods", "seeds"})
    return parser


if __name__ == "__main__":
    quiet()
    sys.exit(1 if main(**_parser().parse_args().as_dict()) else 0)
