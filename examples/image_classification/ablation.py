"""Ablations of Section 4.3 of the paper (Tables 3, 5, 7, and Table 13's layer selection) with TempBalance.

    python examples/image_classification/ablation.py --study all                        # digits, anywhere
    python examples/image_classification/ablation.py --data cifar100 --network vgg16 --study ratio --path FOLDER

Every finished run is one row of OUT/runs.csv. Started again, finished runs are not repeated, and an interrupted one
goes on from its last epoch's checkpoint. After all runs OUT/tables.md has the tables, means and standard deviations
over seeds. Runs of several calls with one OUT are kept apart by their settings; those at the same time need an
OUT each.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import shutil
import statistics
import sys
import time
import warnings
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jsonargparse import ArgumentParser, DefaultHelpFormatter
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lightning_farms import FARMS, TempBalance, WholeMatrix
from lightning_farms.analysis import Selection
from lightning_farms.callbacks import Control
from lightning_farms.data import CIFARDataModule, DigitsDataModule, ImageDataModule
from lightning_farms.models import ImageClassifier, resnet18, resnet34, vgg16, vgg19

Data = Literal["digits", "cifar10", "cifar100"]
Network = Literal["resnet18", "resnet34", "vgg16", "vgg19"]
Study = Literal["ratio", "blocks", "scaling", "selection", "all"]

NETWORKS = {"resnet18": resnet18, "resnet34": resnet34, "vgg16": vgg16, "vgg19": vgg19}
PAPER_LR = {"resnet18": 0.1, "resnet34": 0.1, "vgg16": 0.05, "vgg19": 0.05}
PAPER_SCALING = {"resnet18": (0.1, 1.9), "resnet34": (0.2, 1.8), "vgg16": (0.2, 1.8), "vgg19": (0.2, 1.8)}
RATIOS = (0.5, 0.75, 1.0, 1.5, 2.0)
SCALINGS = ((0.1, 1.9), (0.2, 1.8), (0.3, 1.7), (0.4, 1.6), (0.5, 1.5))
SEEDS = [43, 37, 13]
CHECKPOINT = "last.ckpt"


@dataclass(frozen=True)
class Setting:
    """What the runs of a table have in common."""

    data: Data
    network: Network
    width: int
    epochs: int
    lr: float
    batch_size: int
    min_size: int


@dataclass(frozen=True)
class Treatment:
    """How learning rates follow the spectra; all but the method is meaningless for a uniform rate."""

    method: Literal["uniform", "TB", "FARMS"] = "uniform"
    aspect_ratio: float | None = None
    blocks: Literal["averaged", "pooled"] | None = None
    s1: float | None = None
    s2: float | None = None
    layer_selection: bool = False

    def callback(self, min_size: int) -> TempBalance | None:
        """The callback that does it; none for a uniform rate."""
        if self.method == "uniform":
            return None
        assert self.s1 is not None
        assert self.s2 is not None
        method: FARMS | WholeMatrix = WholeMatrix()
        if self.method == "FARMS":
            assert self.aspect_ratio is not None
            assert self.blocks is not None
            method = FARMS(aspect_ratio=self.aspect_ratio, blocks=self.blocks)
        control = Control()
        if self.layer_selection:
            control = Control(first_layer=False, last_layer=False, layers=Selection(min_size=min_size))
        return TempBalance(self.s1, self.s2, method, control=control, summary=False)


class Cell(NamedTuple):
    """A place in a table."""

    row: str
    column: str
    treatment: Treatment


class Run(NamedTuple):
    """One training."""

    setting: Setting
    treatment: Treatment
    seed: int

    @property
    def key(self) -> dict[str, str]:
        """Everything that tells this run from others, as it stands in the file."""
        values = {**asdict(self.setting), **asdict(self.treatment), "seed": self.seed}
        return {name: "" if value is None else str(value) for name, value in values.items()}

    @property
    def name(self) -> str:
        """A folder's name."""
        return "-".join(value for value in self.key.values() if value)


class Result(NamedTuple):
    """Accuracy in percent after the last epoch and the highest of all epochs, and the time it took."""

    accuracy: float
    best_accuracy: float
    seconds: float


KEY = (*(field.name for kind in (Setting, Treatment) for field in fields(kind)), "seed")
COLUMNS = (*KEY, "status", *Result._fields, "error")


class Record(Callback):
    """Accuracy of every epoch and time so far; kept in checkpoints, so that a resumed run has them too."""

    def __init__(self, on_epoch: Callable[[int], None]) -> None:
        self.accuracies: list[float] = []
        self.seconds = 0.0
        self._on_epoch = on_epoch
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.perf_counter()
        self._on_epoch(len(self.accuracies))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the epoch's accuracy."""
        self.accuracies.append(100 * float(trainer.callback_metrics["val/accuracy"]))
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        self._on_epoch(len(self.accuracies))

    def state_dict(self) -> dict[str, Any]:
        """Accuracies and time."""
        return {"accuracies": list(self.accuracies), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.accuracies, self.seconds = list(state_dict["accuracies"]), state_dict["seconds"]


class Table:
    """The file of runs: one row for each run that ended, the last one counts; written through to the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and (header := path.read_text(encoding="utf-8").partition("\n")[0]) != ",".join(COLUMNS):
            raise ValueError(f"Expected {path} to have the columns {', '.join(COLUMNS)}, but it has {header!r}.")

    def rows(self) -> list[dict[str, str]]:
        """All whole rows; one that a killed process left unfinished is passed over."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        return [row for row in csv.DictReader(io.StringIO(text)) if None not in row and None not in row.values()]

    def finished(self, run: Run) -> dict[str, str] | None:
        """The row of a run that finished, None where it has not."""
        same = [row for row in self.rows() if all(row.get(name) == value for name, value in run.key.items())]
        return same[-1] if same and same[-1]["status"] == "finished" else None

    def append(self, run: Run, result: Result | None, error: str = "") -> None:
        """Add the row of a run that ended; the header too where the file is new."""
        figures = {} if result is None else {name: f"{value:.4f}" for name, value in result._asdict().items()}
        row = {**run.key, "status": "failed" if result is None else "finished", **figures, "error": error}
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        if not self.path.exists() or self.path.stat().st_size == 0:
            writer.writeheader()
        elif not self.path.read_bytes().endswith(b"\n"):
            text.write("\n")
        writer.writerow(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, text.getvalue().encode())  # a whole row at once, or a row that is passed over
            os.fsync(handle)
        finally:
            os.close(handle)


def studies(base: Treatment) -> dict[str, list[Cell]]:
    """The tables: the paper's, and in each a uniform rate to compare with."""
    uniform, whole = Treatment(), replace(base, method="TB", aspect_ratio=None, blocks=None)
    none = Cell("uniform rate", "accuracy", uniform)
    return {
        "ratio": [none, *(Cell(f"FARMS, Q = {q:g}", "accuracy", replace(base, aspect_ratio=q)) for q in RATIOS)],
        "blocks": [
            none,
            Cell("FARMS, fit of all blocks pooled", "accuracy", replace(base, blocks="pooled")),
            Cell("FARMS, fits of the blocks averaged", "accuracy", replace(base, blocks="averaged")),
        ],
        "scaling": [
            Cell(row, f"({s1:g}, {s2:g})", replace(treatment, s1=s1, s2=s2))
            for row, treatment in (("TB", whole), ("FARMS", base))
            for s1, s2 in SCALINGS
        ],
        "selection": [
            none,
            *(
                Cell(row, "accuracy", replace(treatment, layer_selection=selection))
                for row, treatment, selection in (
                    ("TB (no LS)", whole, False),
                    ("LS + TB", whole, True),
                    ("FARMS (no LS)", base, False),
                    ("LS + FARMS", base, True),
                )
            ),
        ],
    }


TITLES = {
    "ratio": "Aspect ratio of the windows (Table 5)",
    "blocks": "Convolutions: blocks pooled or averaged (Table 7)",
    "scaling": "Scaling ratios (s1, s2) (Table 3, Figure 9)",
    "selection": "Layer selection (Table 13, Figure 4)",
}


def images(setting: Setting, path: Path | None) -> ImageDataModule:
    """The data module; its order, crops and flips follow `seed_everything`."""
    if setting.data == "digits":
        size = 32 if setting.network.startswith("vgg") else 16
        return DigitsDataModule(size=size, test_fraction=0.5, batch_size=setting.batch_size)
    return CIFARDataModule(path, classes=10 if setting.data == "cifar10" else 100, batch_size=setting.batch_size)


def train(run: Run, folder: Path, path: Path | None, on_epoch: Callable[[int], None]) -> Result:
    """Train once, from the checkpoint of a run that was interrupted if there is one; it is removed at the end.

    Args:
        run: what to train.
        folder: for the run's checkpoint.
        path: of the CIFAR archive.
        on_epoch: called with the number of epochs done.

    Returns:
        What came out.
    """
    setting = run.setting
    seed_everything(run.seed, verbose=False)
    data = images(setting, path)
    module = ImageClassifier(NETWORKS[setting.network](data.num_classes, width=setting.width), lr=setting.lr)
    balance, record = run.treatment.callback(setting.min_size), Record(on_epoch)
    saver = ModelCheckpoint(
        folder, filename=Path(CHECKPOINT).stem, enable_version_counter=False, save_on_train_epoch_end=True
    )
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=setting.epochs,
        logger=False,
        callbacks=[record, *(() if balance is None else (balance,)), saver],
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=_checkpoint(folder / CHECKPOINT))
    if len(record.accuracies) != setting.epochs:
        raise RuntimeError(f"the training ended after {len(record.accuracies)} of {setting.epochs} epochs")
    shutil.rmtree(folder, ignore_errors=True)
    return Result(record.accuracies[-1], max(record.accuracies), record.seconds)


def _checkpoint(path: Path) -> Path | None:
    """The file, unless it is missing or was cut short when its run was killed."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file can fail in any way inside the reader
        return None
    return path


def run_all(runs: Sequence[Run], table: Table, path: Path | None) -> int:
    """Do all runs that have not finished yet; one that fails is noted, and the others go on.

    Returns:
        How many failed.
    """
    failed = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        total = progress.add_task("runs", total=len(runs))
        for run in runs:
            failed += table.finished(run) is None and not _attempt(run, table, path, progress)
            progress.advance(total)
    return failed


def _attempt(run: Run, table: Table, path: Path | None, progress: Progress) -> bool:
    """Do a run and note what came of it; whether it finished."""
    epochs = progress.add_task(_label(run), total=run.setting.epochs)

    def on_epoch(done: int) -> None:
        progress.update(epochs, completed=done)

    try:
        result = train(run, table.path.parent / "checkpoints" / run.name, path, on_epoch)
    except Exception as error:  # the other runs go on, whatever it is
        table.append(run, None, " ".join(f"{type(error).__name__}: {error}".split()))
        progress.print(f"{_label(run)}: failed: {error}", markup=False)
        return False
    finally:
        progress.remove_task(epochs)
    table.append(run, result)
    progress.print(f"{_label(run)}: {result.accuracy:.2f} % in {result.seconds:.0f} s", soft_wrap=True)
    return True


def _label(run: Run) -> str:
    given = [f"{name} {value}" for name, value in asdict(run.treatment).items() if value and name != "method"]
    return f"{run.treatment.method} ({', '.join([*given, f'seed {run.seed}'])})".replace("layer_selection True", "LS")


def tables(chosen: dict[str, list[Cell]], setting: Setting, seeds: Sequence[int], table: Table) -> str:
    """The studies as markdown tables of accuracy in percent: mean ± standard deviation over seeds."""
    texts = []
    for study, cells in chosen.items():
        columns = list(dict.fromkeys(cell.column for cell in cells))
        mean = "mean over ratios" if len(columns) > 1 else None
        lines = [f"### {TITLES[study]}", "", _line(["", *columns, *([mean] if mean else [])])]
        lines.append("|" + "---|" * (lines[-1].count("|") - 1))
        for row in dict.fromkeys(cell.row for cell in cells):
            found = [_accuracies(cell, setting, seeds, table) for cell in cells if cell.row == row]
            everything = [accuracy for accuracies in found for accuracy in accuracies]
            lines.append(_line([row, *(_entry(accuracies, len(seeds)) for accuracies in found),
                                *([_entry(everything, len(seeds) * len(columns))] if mean else [])]))  # fmt: skip
        texts.append("\n".join(lines) + "\n")
    return "\n".join(texts)


def _accuracies(cell: Cell, setting: Setting, seeds: Iterable[int], table: Table) -> list[float]:
    rows = [table.finished(Run(setting, cell.treatment, seed)) for seed in seeds]
    return [float(row["accuracy"]) for row in rows if row is not None]


def _entry(accuracies: Sequence[float], wanted: int) -> str:
    if not accuracies:
        return "-"
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{statistics.mean(accuracies):.2f}{spread}" + ("" if len(accuracies) == wanted else f" ({len(accuracies)})")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(
    data: Data = "digits",
    network: Network = "resnet18",
    study: Study = "all",
    out: Path = Path("ablation"),
    path: Path | None = None,
    epochs: PositiveInt | None = None,
    width: PositiveInt | None = None,
    lr: PositiveFloat | None = None,
    batch_size: PositiveInt | None = None,
    min_size: PositiveInt | None = None,
    layer_selection: bool = False,
    seeds: Sequence[int] = SEEDS,
) -> int:
    """Run the studies and write their tables.

    Args:
        data: digits (1,797 images of scikit-learn, half of them for testing), cifar10 or cifar100.
        network: which network; with it come Table 13's learning rate and scaling ratios.
        study: aspect ratios, blocks, scaling ratios, layer selection, or all of them.
        out: folder of runs.csv, tables.md and checkpoints of unfinished runs.
        path: CIFAR archive or folder; downloaded to the user's cache folder when left out.
        epochs: epochs of a run; 200 for CIFAR, 12 for digits.
        width: channels of the first stage; 64 for CIFAR, 8 for digits.
        lr: base learning rate; Table 13's (0.1 for ResNets, 0.05 for VGGs).
        batch_size: images in a batch; 128 for CIFAR, 32 for digits.
        min_size: with layer selection, smallest dimension that is tuned; 50 for CIFAR, 12 for digits.
        layer_selection: whether the other studies select layers too (the paper's Tables 5 and 7 do for ResNet-18).
        seeds: of initialisation, order, crops and flips.

    Returns:
        How many runs failed.
    """
    small = data == "digits"
    setting = Setting(
        data, network, width or (8 if small else 64), epochs or (12 if small else 200), lr or PAPER_LR[network],
        batch_size or (32 if small else 128), min_size or (12 if small else 50),
    )  # fmt: skip
    s1, s2 = PAPER_SCALING[network]
    chosen = studies(Treatment("FARMS", 1.0, "averaged", s1, s2, layer_selection))
    chosen = chosen if study == "all" else {study: chosen[study]}
    treatments = dict.fromkeys(cell.treatment for cells in chosen.values() for cell in cells)
    table = Table(out / "runs.csv")
    runs = [Run(setting, treatment, seed) for seed in seeds for treatment in treatments]
    failed = run_all(runs, table, path)
    with suppress(OSError):  # there is none, or it is not empty
        (out / "checkpoints").rmdir()
    text = tables(chosen, setting, seeds, table)
    out.mkdir(parents=True, exist_ok=True)
    (out / "tables.md").write_text(text, encoding="utf-8")
    print(text)
    if failed:
        print(f"{failed} of {len(runs)} runs failed; see {table.path}. The same command tries them again.")
    return failed


class _Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the description."""


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=_Help)
    parser.add_function_arguments(main, skip={"seeds"})
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of initialisation and order of the data")
    return parser


def _quiet() -> None:
    """Leave out what Lightning says about every single run."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="The '.*_dataloader' does not have many workers")
    warnings.filterwarnings("ignore", message=".* has no logger to write to")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")


if __name__ == "__main__":
    _quiet()
    sys.exit(1 if main(**_parser().parse_args().as_dict()) else 0)
