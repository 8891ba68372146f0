"""The parts of a study: its settings, its runs, and the columns of its file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments import key_texts
from fine_tuning.methods import AS_HERE, Deviations, Method

from lightning_farms.data.simulation.flows import SIMULATOR_VERSION

REDUCED_NETWORK = {
    "patch_size": 4, "embed_dim": 96, "depth": 4, "n_blocks": 4, "out_layer_dim": 16, "normalize": True,
}  # fmt: skip
BASELINE: Method = "adam"
TRIVIAL = ("persistence", "drift_free")
"""Predictions without a network, which a study treats as methods with one run each."""
CHOICE_SEED = 0
"""Seed of the trainings by which rates are chosen; never one of the reported seeds."""


@dataclass(frozen=True)
class Regime:
    """A kind of flow; the bulk viscosity equals the shear viscosity.

    Args:
        mach: mean initial speed in units of the speed of sound.
        eta: kinematic viscosity, both shear and bulk.
    """

    mach: float = 0.1
    eta: float = 0.01

    @property
    def name(self) -> str:
        """The regime's name in the file of runs."""
        return f"M{self.mach:g} eta{self.eta:g}"


@dataclass(frozen=True)
class Study:
    """Settings of a study; the defaults are those of the reduced study, full.yaml has the paper's size.

    Args:
        methods: see fine_tuning/methods.py; the others are compared with `adam`, one rate for all layers.
        rates: rates to try, ascending; each method uses the one with the lowest validation error at seed 0.
        extensions: number of rates to try beyond an end of `rates`, in its own steps, if the best is at that end.
        matched: methods at whose mean rates (chosen rate times mean multiplier) Adam is also trained.
        seeds: seeds of the reported trainings, for windows, their order and a random subset; without 0.
        fractions: shares of the training flows.
        regimes: flows to fine-tune on.
        subset: how a share is taken: `random` by the seed, or `every` k-th flow as in ModelBalancing's program.
        network: arguments of DPOT.
        resolution: cells along each side of simulated flows.
        flows: training, validation and test flows of each regime.
        flows_a_file: most flows in a file that is simulated at once; a slice has to be long enough for one file.
        epochs: epochs of a fine-tuning.
        batch_size: items of a batch.
        windows: training items per flow and epoch.
        evaluations: validations during a training, evenly spaced; the last one counts.
        pretrain_regimes: flows to pre-train on.
        pretrain_flows: number of flows of each of these regimes.
        pretrain_epochs: epochs of the pre-training.
        pretrain_lr: learning rate of the pre-training.
        path: PDEBench file to fine-tune on instead of `regimes`; a tenth of its training flows is for validation.
        start: weights instead of the pre-training: a checkpoint, or the name of a released one (extra `hub`).
        deviations: details in which the authors' programs differ.
    """

    methods: Sequence[Method] = ("adam", "whole_ls", "whole", "farms", "whole_mean", "farms_mean", "farms_relative")
    rates: Sequence[float] = (1e-3, 2e-3, 4e-3)
    extensions: int = 2
    matched: Sequence[Method] = ()
    seeds: Sequence[int] = (1, 2, 3, 4, 5)
    fractions: Sequence[float] = (1.0,)
    regimes: Sequence[Regime] = (Regime(0.1, 0.1), Regime(0.1, 0.01))
    subset: Literal["random", "every"] = "random"
    network: Mapping[str, Any] = field(default_factory=lambda: dict(REDUCED_NETWORK))
    resolution: int = 32
    flows: tuple[int, int, int] = (40, 16, 32)
    flows_a_file: int = 64
    epochs: int = 10
    batch_size: int = 4
    windows: int = 4
    evaluations: int = 1
    pretrain_regimes: Sequence[Regime] = (Regime(1.0, 0.1), Regime(1.0, 0.01), Regime(0.1, 0.03))
    pretrain_flows: int = 24
    pretrain_epochs: int = 60
    pretrain_lr: float = 2e-3
    path: Path | None = None
    start: str | None = None
    deviations: Deviations = AS_HERE

    def __post_init__(self) -> None:
        if CHOICE_SEED in self.seeds:
            raise ValueError(f"Expected argument `seeds` not to hold {CHOICE_SEED}, by which rates are chosen.")
        if list(self.rates) != sorted(set(self.rates)) or not self.rates or min(self.rates) <= 0:
            raise ValueError(f"Expected argument `rates` to be positive and ascending, but got {list(self.rates)}.")
        if not all(0 < fraction <= 1 for fraction in self.fractions):
            raise ValueError(f"Expected argument `fractions` to be in (0, 1], but got {list(self.fractions)}.")
        if BASELINE not in self.methods:
            raise ValueError(f"Expected argument `methods` to hold adam, but got {list(self.methods)}.")

    @property
    def started_from(self) -> str:
        """A description of the starting weights."""
        if self.start is not None:
            return self.start
        names = ", ".join(regime.name for regime in self.pretrain_regimes)
        return f"{self.pretrain_epochs} epochs at {self.pretrain_lr:g} on {self.pretrain_flows} flows each of {names}"

    @property
    def start_digest(self) -> str:
        """A short hash of everything that pre-trained weights depend on."""
        items = (self.batch_size, self.windows, self.resolution, self.flows_a_file)
        text = repr((sorted(self.network.items()), self.started_from, items, SIMULATOR_VERSION))
        return hashlib.sha256(text.encode()).hexdigest()[:10]


class Run(NamedTuple):
    """One training, given by the first columns of its row."""

    setting: str
    data: str
    fraction: float
    method: str
    lr: float
    seed: int
    epochs: int

    @property
    def key(self) -> dict[str, str]:
        """Everything that tells this run from others, as text for the file of runs."""
        return key_texts(self._asdict())

    @property
    def label(self) -> str:
        """A name that tells this run from the others of a call."""
        return f"{self.data} {100 * self.fraction:g} % {self.method} {self.lr:g} (seed {self.seed})"


def setting_of(study: Study) -> str:
    """Return the settings that all runs of a call share, as one text without commas, for the file of runs."""
    network = " ".join(f"{name}={value}" for name, value in sorted(study.network.items())) or "DPOT-Tiny"
    flows = "/".join(map(str, study.flows)) + f" in files of {study.flows_a_file}"
    flows = flows if study.path is None else "of the file"
    parts = [
        network, f"{study.resolution} cells", f"flows {flows}", f"batch {study.batch_size} of {study.windows} windows",
        f"{study.subset} subset", f"start: {study.started_from}", study.deviations.text,
    ]  # fmt: skip
    return "; ".join(part for part in parts if part).replace(",", " and")


class Result(NamedTuple):
    """The results of a run.

    Attributes:
        val_l2re: L2RE of rollouts over the validation flows after the last epoch.
        best_val_l2re: the lowest of the evaluations.
        test_l2re: L2RE over the test flows.
        test_vrmse: RMSE divided by the fields' standard deviation, over the test flows.
        mean_multiplier: mean multiplier of the rate, over all trained parameters and over the epochs.
        seconds: duration of the training.
        layers: name:mean multiplier:alpha at the start:alpha at the end:relative change of the weight, joined by ";".
    """

    val_l2re: float
    best_val_l2re: float
    test_l2re: float
    test_vrmse: float
    mean_multiplier: float = 1.0
    seconds: float = 0.0
    layers: str = ""
