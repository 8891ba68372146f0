"""Ablations of Section 4.3 of the paper (Tables 3, 5, 7, and Table 13's layer selection) with TempBalance.

    python examples/ablation.py --study all                        # digits, anywhere
    python examples/ablation.py --data cifar100 --network vgg16 --study ratio --path FOLDER

Every finished run is one row of OUT/runs.csv. If the command is started again, finished runs are not repeated, and an
interrupted one continues from its last epoch's checkpoint. After all runs, OUT/tables.md has the tables: means and
standard deviations over seeds. Several calls can share one OUT, since runs are told apart by their settings, but not at
the same time.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple

from experiments import Help, OnEpoch, RunTable, fit, markdown, quiet, run_all, spread, write_text
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch import seed_everything

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


@dataclass(frozen=True)
class Setting:
    """The settings that all runs of a table share."""

    data: Data
    network: Network
    width: int
    epochs: int
    lr: float
    batch_size: int
    min_size: int


@dataclass(frozen=True)
class Treatment:
    """How learning rates follow the spectra; for a uniform rate, only the method has a meaning."""

    method: Literal["uniform", "TB", "FARMS"] = "uniform"
    aspect_ratio: float | None = None
    blocks: Literal["averaged", "pooled"] | None = None
    s1: float | None = None
    s2: float | None = None
    layer_selection: bool = False

    def callback(self, min_size: int) -> TempBalance | None:
        """Build the callback that sets the rates; None for a uniform rate."""
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
    """A cell of a table, and the treatment that it shows."""

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
        """Everything that tells this run from others, as text for the file of runs."""
        values = {**asdict(self.setting), **asdict(self.treatment), "seed": self.seed}
        return {name: "" if value is None else str(value) for name, value in values.items()}

    @property
    def label(self) -> str:
        """A name that tells this run from the others of a call."""
        given = [f"{name} {value}" for name, value in asdict(self.treatment).items() if value and name != "method"]
        listed = ", ".join([*given, f"seed {self.seed}"]).replace("layer_selection True", "LS")
        return f"{self.treatment.method} ({listed})"

    @property
    def epochs(self) -> int:
        """Number of epochs of the run."""
        return self.setting.epochs


class Result(NamedTuple):
    """Accuracy in percent after the last epoch, the highest of all epochs, and the training time."""

    accuracy: float
    best_accuracy: float
    seconds: float


KEY = (*(field.name for kind in (Setting, Treatment) for field in fields(kind)), "seed")


def studies(base: Treatment) -> dict[str, list[Cell]]:
    """Return the cells of the paper's tables, with a uniform rate for comparison in all but the scaling ratios'."""
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
    """Build the data module, whose order, crops and flips follow `seed_everything`."""
    if setting.data == "digits":
        size = 32 if setting.network.startswith("vgg") else 16
        return DigitsDataModule(size=size, test_fraction=0.5, batch_size=setting.batch_size)
    return CIFARDataModule(path, classes=10 if setting.data == "cifar10" else 100, batch_size=setting.batch_size)


def train(run: Run, folder: Path, path: Path | None, on_epoch: OnEpoch) -> Result:
    """Train once, continuing from the checkpoint of an interrupted run if there is one.

    Args:
        run: what to train.
        folder: folder for the run's checkpoint.
        path: path of the CIFAR archive.
        on_epoch: called with the number of epochs done.

    Returns:
        Accuracies and training time.
    """
    setting = run.setting
    seed_everything(run.seed, verbose=False)
    data = images(setting, path)
    module = ImageClassifier(NETWORKS[setting.network](data.num_classes, width=setting.width), lr=setting.lr)
    balance = run.treatment.callback(setting.min_size)
    curve = fit(
        module,
        data,
        folder,
        monitor="val/accuracy",
        on_epoch=on_epoch,
        epochs=setting.epochs,
        callbacks=() if balance is None else (balance,),
    )
    return Result(100 * curve.values[-1], 100 * max(curve.values), curve.seconds)


def _summary(result: Mapping[str, float]) -> str:
    return f"{result['accuracy']:.2f} % in {result['seconds']:.0f} s"


def tables(chosen: dict[str, list[Cell]], setting: Setting, seeds: Sequence[int], table: RunTable) -> str:
    """Return the studies as Markdown tables of accuracy in percent: mean ± standard deviation over seeds."""
    texts = []
    for study, cells in chosen.items():
        columns = list(dict.fromkeys(cell.column for cell in cells))
        mean = ["mean over ratios"] if len(columns) > 1 else []
        lines = []
        for row in dict.fromkeys(cell.row for cell in cells):
            found = [_accuracies(cell, setting, seeds, table) for cell in cells if cell.row == row]
            everything = [accuracy for accuracies in found for accuracy in accuracies]
            means = [spread(everything, len(seeds) * len(columns), 2)] if mean else []
            lines.append([row, *(spread(accuracies, len(seeds), 2) for accuracies in found), *means])
        texts.append(f"### {TITLES[study]}\n\n{markdown(['', *columns, *mean], lines)}")
    return "\n".join(texts)


def _accuracies(cell: Cell, setting: Setting, seeds: Sequence[int], table: RunTable) -> list[float]:
    rows = [table.finished(Run(setting, cell.treatment, seed)) for seed in seeds]
    return [float(row["accuracy"]) for row in rows if row is not None]


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
        network: which network; it determines the default learning rate and the scaling ratios, as in Table 13.
        study: aspect ratios, blocks, scaling ratios, layer selection, or all of them.
        out: folder of runs.csv, tables.md and checkpoints of unfinished runs.
        path: CIFAR archive or folder; by default, it is downloaded to the user's cache folder.
        epochs: epochs of a run; by default 200 for CIFAR, 12 for digits.
        width: channels of the first stage; by default 64 for CIFAR, 8 for digits.
        lr: base learning rate; by default Table 13's (0.1 for ResNets, 0.05 for VGGs).
        batch_size: images in a batch; by default 128 for CIFAR, 32 for digits.
        min_size: with layer selection, the smallest dimension that is tuned; by default 50 for CIFAR, 12 for digits.
        layer_selection: whether the other studies select layers too (the paper's Tables 5 and 7 do for ResNet-18).
        seeds: seeds of initialisation, order, crops and flips.

    Returns:
        The number of runs that failed.
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
    table = RunTable(out / "runs.csv", KEY, Result._fields)
    runs = [Run(setting, treatment, seed) for seed in seeds for treatment in treatments]
    failed = run_all(runs, table, lambda run, folder, on_epoch: train(run, folder, path, on_epoch)._asdict(), _summary)
    text = tables(chosen, setting, seeds, table)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "tables.md", text)
    print(text)
    if failed:
        print(f"{failed} of {len(runs)} runs failed; see {table.path}. The same command tries them again.")
    return failed


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_function_arguments(main, skip={"seeds"})
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of initialisation and order of the data")
    return parser


if __name__ == "__main__":
    quiet()
    sys.exit(1 if main(**_parser().parse_args().as_dict()) else 0)
