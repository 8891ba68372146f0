"""The cost and the effect of windows and fits: the study behind the default of FARMSAllocation.

    python examples/pruning/windows.py MODEL > windows.md  # alphas only: ten minutes for SmolLM2-135M
    python examples/pruning/windows.py MODEL --texts '[texts/wikipedia]' --sparsities '[0.6, 0.7]' --seeds '[0, 1]'

MODEL is a folder of a Hugging Face model, or a .gguf file. Each setting gets a line. It gives the CPU seconds for the
analysis of all weights of the blocks in one thread, the number of decompositions, and how the scores of the blocks
(epsilon 0.2, so that they range over 0.4) agree with those of the authors' windows (--window, --steps): correlation and
largest difference, under the Hill fit, which is the paper's definition of alpha, and under the peak fit, which their
program uses. Then comes the effect of merely rounding the weights to bfloat16: how many blocks change their place in
    the
order, and the largest difference. With --texts the model is pruned by Wanda, calibrated on TEXT/calibration.txt, and
the line has the perplexity on TEXT/heldout.txt for every sparsity, as the geometric mean over seeds. That text is held
out, as the default is chosen by it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

import torch
from jsonargparse import auto_cli
from torch import Tensor

from lightning_farms.analysis import FARMS
from lightning_farms.pruning import (
    Calibration,
    FARMSAllocation,
    LayerRatios,
    PrunableWeight,
    RampAllocation,
    UniformAllocation,
    WholeMatrixAllocation,
    allocate,
    allocate_from_alphas,
    load_causal_lm,
    perplexity,
    prunable_weights,
    prune,
)

FITS = ("hill", "peak")
REFERENCES = {fit: f"authors' windows, {fit}" for fit in FITS}
CONTROLS = {"uniform": UniformAllocation(), "ramp over depth": RampAllocation()}


@dataclass(frozen=True)
class Rounded:
    """A weight with its values rounded to bfloat16."""

    weight: PrunableWeight

    @property
    def name(self) -> str:
        """Name of the weight."""
        return self.weight.name

    @property
    def block(self) -> str:
        """Block of the weight."""
        return self.weight.block

    @property
    def size(self) -> int:
        """Number of values."""
        return self.weight.size

    @property
    def matrices(self) -> Tensor:
        """The rounded values."""
        return self.weight.matrices.to(torch.bfloat16).to(torch.float32)


class Found(NamedTuple):
    """The results of a setting."""

    seconds: float
    decompositions: int
    ratios: LayerRatios
    rounded: Tensor

    @property
    def scores(self) -> Tensor:
        """The scores of the blocks, (blocks,)."""
        return scores_of(self.ratios)


class Texts(NamedTuple):
    """The texts to calibrate and evaluate on, and how."""

    folders: Sequence[Path]
    sparsities: Sequence[float]
    seeds: Sequence[int]
    sequences: int
    tests: int
    length: int


def settings(windows: Sequence[int], authors: tuple[int, int], *, few: bool) -> Iterator[tuple[str, Any]]:
    """Yield the allocations by name, references first; if `few`, windows only as tiles with the Hill fit."""
    for fit, name in REFERENCES.items():
        yield name, FARMSAllocation(FARMS(1.0, *authors, fit=fit, compat="official"))
    for fit in FITS:
        yield f"whole matrix, {fit}", WholeMatrixAllocation(fit)
        for window in (*windows, None):
            for steps in (None, authors[1]):
                if few and (steps is not None or fit != "hill"):
                    continue
                place = "tiles" if steps is None else f"{steps} steps"
                name = f"{window or 'largest'}, {place}, {fit}"
                yield name, FARMSAllocation(FARMS(1.0, window, steps, fit=fit))


def scores_of(ratios: LayerRatios) -> Tensor:
    """Return the scores of the blocks, (blocks,); the layers of a block share one."""
    return torch.tensor(list({layer.block: layer.score for layer in ratios}.values()), dtype=torch.float64)


def decompositions(allocation: Any, weights: Sequence[PrunableWeight]) -> int:  # noqa: ANN401 (any of the allocations)
    """Return the number of windows of all matrices."""
    shapes = [weight.matrices.shape for weight in weights]
    return sum(count * allocation.spectral_method.windows(rows, cols, "linear").number for count, rows, cols in shapes)


def analyse(allocation: Any, weights: Sequence[PrunableWeight]) -> Found:  # noqa: ANN401
    """Analyse the weights, and again the rounded ones."""
    start = time.process_time()
    ratios = allocate(weights, 0.5, allocation)
    seconds = time.process_time() - start
    rounded = scores_of(allocate([Rounded(weight) for weight in weights], 0.5, allocation))
    return Found(seconds, decompositions(allocation, weights), ratios, rounded)


def agreement(scores: Tensor, others: Tensor) -> str:
    """Format the correlation and the largest difference of scores."""
    return f"{torch.corrcoef(torch.stack([scores, others]))[0, 1]:.3f}, {(scores - others).abs().max():.3f}"


def under_rounding(found: Found) -> str:
    """Format how many blocks change their place under rounding, and the largest difference."""
    places, new_places = found.scores.argsort().argsort(), found.rounded.argsort().argsort()
    return f"{int((places != new_places).sum())}, {(found.scores - found.rounded).abs().max():.4f}"


class Pruner:
    """A model that is pruned and evaluated repeatedly."""

    def __init__(self, model: Any, tokenizer: Any, texts: Texts) -> None:  # noqa: ANN401 (of transformers)
        self.model, self.tokenizer, self.texts = model, tokenizer, texts
        self.dense = {name: values.clone() for name, values in model.state_dict().items()}

    def perplexities(self, ratios_of: Any) -> list[float]:  # noqa: ANN401 (sparsity -> LayerRatios)
        """Return the geometric mean perplexity over seeds, for every text and sparsity."""
        return [
            geometric_mean([self._once(ratios_of(sparsity), folder, seed) for seed in self.texts.seeds])
            for folder in self.texts.folders
            for sparsity in self.texts.sparsities
        ]

    def _once(self, ratios: LayerRatios, folder: Path, seed: int) -> float:
        self.model.load_state_dict(self.dense)
        drawn = Calibration(
            folder / "calibration.txt", sequences=self.texts.sequences, length=self.texts.length, seed=seed
        )
        prune(self.model, ratios, "wanda", drawn.token_ids(self.tokenizer))
        text, (length, tests) = folder / "heldout.txt", (self.texts.length, self.texts.tests)
        return perplexity(self.model, text, self.tokenizer, window=length, max_windows=tests).token


def headings(texts: Texts) -> list[str]:
    """Return the headings of the table."""
    first = ["setting", "seconds", "decompositions", "to Hill", "to peak", "rounded"]
    return first + [f"{folder.name} {sparsity:g}" for folder in texts.folders for sparsity in texts.sparsities]


def line(cells: Sequence[str]) -> str:
    """Format a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main(
    model: str,
    windows: tuple[int, ...] = (48, 96, 192, 384),
    window: int = 192,
    steps: int = 10,
    texts: tuple[Path, ...] = (),
    sparsities: tuple[float, ...] = (0.6, 0.7),
    seeds: tuple[int, ...] = (0,),
    sequences: int = 8,
    tests: int = 8,
    length: int = 512,
    few: bool = False,
) -> None:
    """Print the table.

    Args:
        model: folder of a Hugging Face model, or a .gguf file.
        windows: rows of windows to try.
        window: rows of the authors' windows (2000 for LLaMA).
        steps: number of the authors' windows per dimension.
        texts: folders with calibration.txt and heldout.txt; if there are none, only alphas are analysed.
        sparsities: sparsities to prune to.
        seeds: seeds of calibration.
        sequences: number of calibration sequences.
        tests: number of windows of held-out text.
        length: tokens of a sequence and of a window.
        few: whether to try only tiles with the Hill fit, besides the references and whole matrices.
    """
    torch.set_num_threads(1)
    causal_lm, tokenizer = load_causal_lm(model)
    job = Texts(texts, sparsities if texts else (), seeds, sequences, tests, length)
    pruner = Pruner(causal_lm, tokenizer, job)
    weights = prunable_weights(causal_lm)
    print(line(headings(job)), line(["---", *["---:"] * (len(headings(job)) - 1)]), sep="\n")
    if texts:
        for name, allocation in CONTROLS.items():
            results = pruner.perplexities(lambda sparsity, by=allocation: allocate(weights, sparsity, by))
            print(line([name, *[""] * 5, *(f"{result:.1f}" for result in results)]), flush=True)
    references: dict[str, Tensor] = {}
    for name, allocation in settings(windows, (window, steps), few=few):
        causal_lm.load_state_dict(pruner.dense)
        found = analyse(allocation, weights)
        references |= {name: found.scores} if name in REFERENCES.values() else {}
        figures = {layer.name: layer.source for layer in found.ratios}
        results = pruner.perplexities(
            lambda sparsity, by=allocation, of=figures: allocate_from_alphas(of, weights, sparsity, by)
        )
        against = [
            agreement(found.scores, references[each]) if each in references else "" for each in REFERENCES.values()
        ]
        first = [name, f"{found.seconds:.1f}", str(found.decompositions), *against, under_rounding(found)]
        print(line([*first, *(f"{result:.1f}" for result in results)]), flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
