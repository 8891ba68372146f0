"""Tables 1, 2, 6, 8 and 9 of the paper: perplexity of pruned language models, by method, allocation and sparsity.

    python examples/pruning/texts.py texts                                    # two English texts, in parts
    python examples/pruning/tables.py --models FOLDER --texts texts/wikitext texts/brown
    python examples/pruning/tables.py --models llama-7b --texts c4 --windows 2000 4096 --length 2048 --sequences 128

A text is a folder with calibration.txt, heldout.txt and test.txt; every run is calibrated on the first one and evaluated
on all. Of several epsilons, and of several windows, the one with the lowest perplexity on held-out text is taken: with
the first seed, for each method, allocation and sparsity; other seeds run with that one alone. Test text decides nothing.
Every finished run is one row of OUT/runs.csv; started again, finished runs are not repeated. After all runs OUT/table.md
has means and standard deviations over seeds, and differences to the uniform ratio and to a ramp over depth, seed by seed;
OUT/table.png is a plot. Table 2 (zero-shot tasks): `lightning-farms evaluate` on folders of `lightning-farms prune`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from lightning_farms.analysis import FARMS
from lightning_farms.pruning import (
    Calibration,
    DLPAllocation,
    FARMSAllocation,
    OWLAllocation,
    RampAllocation,
    UniformAllocation,
    WholeMatrixAllocation,
    allocate,
    load_causal_lm,
    perplexity,
    prune,
)

Method = Literal["magnitude", "wanda", "sparsegpt"]
Allocation = Literal["uniform", "alphapruning", "farms-paper", "farms", "owl", "dlp", "ramp", "farms-reversed"]

METHODS: tuple[Method, ...] = get_args(Method)
ALLOCATIONS = ("uniform", "alphapruning", "farms-paper", "farms", "owl", "ramp", "farms-reversed")
SPARSITIES = ("0.5", "0.6", "0.7", "2:4")
EPSILONS = (0.1, 0.2, 0.3)
SEEDS = (0, 1, 2)
WINDOWS = (48, 96, 192, 384)
TITLES = {
    "uniform": "uniform",
    "alphapruning": "AlphaPruning",
    "farms-paper": "FARMS, authors'",
    "farms": "FARMS, Hill",
    "owl": "OWL",
    "dlp": "DLP",
    "ramp": "ramp",
    "farms-reversed": "FARMS reversed",
}
CONTROLS = ("uniform", "ramp")
KEY = ("model", "method", "allocation", "window", "sparsity", "epsilon", "seed", "sequences", "length")


class Run(NamedTuple):
    """One pruning and its evaluation."""

    model: str
    method: str
    allocation: str
    window: int  # 0: not one that is searched
    sparsity: str
    epsilon: float  # 0: the allocation has none
    seed: int
    sequences: int
    length: int

    @property
    def key(self) -> dict[str, str]:
        """Everything that tells this run from others, as it stands in the file."""
        return {
            name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in self._asdict().items()
        }

    @property
    def label(self) -> str:
        """A short name."""
        window = f" {self.window}" if self.window else ""
        return f"{self.method} {self.sparsity} {self.allocation}{window} epsilon {self.epsilon:g} (seed {self.seed})"

    @property
    def epochs(self) -> int:
        """One step."""
        return 1


class Job(NamedTuple):
    """What is given on the command line and is the same for all runs."""

    models: Mapping[str, Path]
    texts: Sequence[Path]
    tests: int  # windows of a text that are evaluated, at most
    paper_window: tuple[int, int]
    device: str


def allocation_of(run: Run, job: Job) -> Any:  # noqa: ANN401 (any of the allocations)
    """The allocation of a run."""
    options = {"epsilon": run.epsilon} if run.epsilon else {}
    rows, steps = job.paper_window
    if run.allocation == "farms-paper":
        return FARMSAllocation(method=FARMS(1.0, rows, steps, fit="peak", compat="official"), **options)
    if run.allocation in ("farms", "farms-reversed"):
        return FARMSAllocation(method=FARMS(window=run.window), reverse=run.allocation == "farms-reversed", **options)
    plain = {"uniform": UniformAllocation, "ramp": RampAllocation, "owl": OWLAllocation, "dlp": DLPAllocation}
    if run.allocation in plain:
        return plain[run.allocation](**options)
    return WholeMatrixAllocation(fit="peak", compat="official", **options)


@cache
def dense(folder: Path, device: str) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A model, its tokenizer, and a copy of its weights."""
    model, tokenizer = load_causal_lm(folder, device=device)
    return model, tokenizer, {name: value.clone() for name, value in model.state_dict().items()}


@cache
def sources(folder: Path, allocation: Any, device: str, calibration: tuple[Path, int, int, int]) -> Any:  # noqa: ANN401
    """Alphas, or what else ratios follow from, once for all sparsities and epsilons."""
    raise NotImplementedError


def train(run: Run, job: Job) -> dict[str, float]:
    """Prune once and evaluate on every text."""
    start = time.perf_counter()
    folder = job.models[run.model]
    model, tokenizer, weights = dense(folder, job.device)
    model.load_state_dict(weights)
    ids = Calibration(
        job.texts[0] / "calibration.txt", sequences=run.sequences, length=run.length, seed=run.seed
    ).token_ids(tokenizer)
    sparsity, m = _sparsity(run.sparsity)
    ratios = allocate(model, sparsity, allocation_of(run, job), calibration=ids, pattern_m=m)
    report = prune(model, ratios, run.method, None if run.method == "magnitude" else ids)
    result = {"reached": report.reached}
    for text in job.texts:
        for part in ("heldout", "test"):
            found = perplexity(model, text / f"{part}.txt", tokenizer, window=run.length, max_windows=job.tests)
            result[f"{text.name}_{part}"] = found.token
            if part == "test":
                result[f"{text.name}_test_error"] = found.standard_error
    return {**result, "seconds": time.perf_counter() - start}
