"""Figure 14 of the paper: is alpha small if training went well? A two-layer student learns a single-index teacher.

The teacher is y = s(<b, x>) + noise with a unit vector b and Gaussian x in 500 dimensions. The student of width N is
f(x) = a s(W x) / sqrt(N), a ~ N(0, 1 / N) and fixed, W ~ N(0, 1 / 500), and only W is trained, by full-batch gradient
descent on half the mean squared error with steps of eta sqrt(N) (the scaling of Ba et al., 2022). "Training quality"
is the alignment |<v, b>| of W's first right singular vector v with b; W is analysed at the step with the highest
alignment. The paper does not give the activation, sample size, rate or widths: those here are ours.

    python examples/figures/figure_14.py [--out DIR] [--activation tanh|relu] [--rate 1.0] [--seeds 3]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from lightning_farms import FARMS, WholeMatrix, analyze
from lightning_farms.analysis import SpectralMethod
from lightning_farms.common.atomic import complete_or_nothing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INPUTS = 500
ALIGN_EVERY = 10
METHODS: dict[str, SpectralMethod] = {
    "whole matrix": WholeMatrix(),
    "FARMS": FARMS(),
    "FARMS, 100 x 100": FARMS(window=100),  # the same window size for all widths, not only the same aspect ratio
}
COLOURS = {"whole matrix": "tab:orange", "FARMS": "tab:blue"}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


class Task(NamedTuple):
    """A teacher's direction (d,), the inputs (n, d) and the teacher's answers (n,)."""

    direction: Tensor
    inputs: Tensor
    answers: Tensor


class Outcome(NamedTuple):
    """The best alignment of a student and its step, and the alphas then and at initialisation, by method."""

    width: int
    alignment: float
    step: int
    alphas: dict[str, float]
    initial_alphas: dict[str, float]


class Student(nn.Module):
    """f(x) = a s(W x) / sqrt(N) with a trained W and a fixed a."""

    second: Tensor

    def __init__(self, inputs: int, width: int, activation: str, generator: torch.Generator) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.first = nn.Linear(inputs, width, bias=False)
        nn.init.normal_(self.first.weight, std=1 / math.sqrt(inputs), generator=generator)
        self.register_buffer("second", torch.randn(width, generator=generator) / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the answers (n,) to inputs (n, d)."""
        return self.activation(self.first(x)) @ self.second / math.sqrt(len(self.second))


def make_task(inputs: int, samples: int, activation: str, generator: torch.Generator) -> Task:
    """Draw a teacher and its noisy answers (noise 0.1)."""
    direction = torch.randn(inputs, generator=generator)
    direction = direction / direction.norm()
    x = torch.randn(samples, inputs, generator=generator)
    answers = ACTIVATIONS[activation](x @ direction) + 0.1 * torch.randn(samples, generator=generator)
    return Task(direction, x, answers)


def alignment(weight: Tensor, direction: Tensor) -> float:
    """Return |<v, b>|, where v is the right singular vector of the largest singular value."""
    _, vectors = torch.linalg.eigh(weight.T @ weight)
    return abs(float(vectors[:, -1] @ direction))


def alphas(student: Student) -> dict[str, float]:
    """Return the first layer's alpha by each method."""
    return {label: analyze(student, method)["first"].alpha for label, method in METHODS.items()}


def train_student(student: Student, task: Task, rate: float, steps: int) -> Outcome:
    """Train the first layer, and analyse its best aligned state."""
    weight = student.first.weight
    initial_alphas = alphas(student)
    best, best_step, best_weight = -1.0, 0, weight.detach().clone()
    for step in range(steps + 1):
        if step % ALIGN_EVERY == 0:
            current = alignment(weight.detach(), task.direction)
            if current > best:
                best, best_step, best_weight = current, step, weight.detach().clone()
        loss = 0.5 * (student(task.inputs) - task.answers).square().mean()
        (gradient,) = torch.autograd.grad(loss, [weight])
        with torch.no_grad():
            weight -= rate * math.sqrt(len(weight)) * gradient
    with torch.no_grad():
        weight.copy_(best_weight)
    return Outcome(len(weight), best, best_step, alphas(student), initial_alphas)


def correlation(outcomes: list[Outcome], label: str) -> float:
    """Return the Pearson correlation of alignment and alpha over widths; NaN for fewer than two."""
    if len(outcomes) < 2:
        return math.nan
    pairs = torch.tensor([[outcome.alignment, outcome.alphas[label]] for outcome in outcomes], dtype=torch.float64)
    return float(torch.corrcoef(pairs.T)[0, 1])


def average(runs: list[list[Outcome]]) -> list[Outcome]:
    """Average the outcomes over seeds, width by width."""
    means = []
    for group in zip(*runs, strict=True):
        trained, initial = (
            {label: sum(getattr(one, name)[label] for one in group) / len(group) for label in METHODS}
            for name in ("alphas", "initial_alphas")
        )
        quality = sum(one.alignment for one in group) / len(group)
        means.append(Outcome(group[0].width, quality, max(one.step for one in group), trained, initial))
    return means


def print_correlations(label: str, outcomes: list[Outcome], runs: list[list[Outcome]]) -> None:
    """Print the correlation over all widths (for means and each seed), and over narrow and wide students separately."""
    narrow = [one for one in outcomes if one.width <= INPUTS]
    wide = [one for one in outcomes if one.width >= INPUTS]
    each = ", ".join(f"{correlation(run, label):+.2f}" for run in runs)
    print(
        f"correlation of alignment and alpha, {label}: {correlation(outcomes, label):+.2f} (seeds: {each}); "
        f"widths up to {INPUTS}: {correlation(narrow, label):+.2f}, from {INPUTS}: {correlation(wide, label):+.2f}"
    )


def draw(outcomes: list[Outcome]) -> Figure:
    """Draw alignment and alpha over widths, with a panel for each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    widths = [outcome.width for outcome in outcomes]
    for index, (label, colour) in enumerate(COLOURS.items()):
        axes = figure.add_subplot(1, 2, index + 1)
        axes.plot(widths, [one.alphas[label] for one in outcomes], "o-", color=colour, label=r"$\alpha$, trained")
        axes.plot(
            widths, [one.initial_alphas[label] for one in outcomes], ":", color=colour, label=r"$\alpha$, untrained"
        )
        axes.set(xscale="log", xlabel=f"student width N (input dimension {INPUTS})")
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.minorticks_off()
        axes.set_ylabel(r"$\alpha$ (Hill)", color=colour)
        twin = axes.twinx()
        twin.plot(widths, [one.alignment for one in outcomes], "s--", color="0.4", label="alignment")
        twin.set_ylabel("alignment", color="0.4")
        axes.set_title(f"{label}: correlation {correlation(outcomes, label):+.2f}")
        handles = [*axes.get_lines(), *twin.get_lines()]
        axes.legend(
            handles,
            [str(line.get_label()) for line in handles],
            fontsize=9,
            ncols=3,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
        )
    return figure


def main(
    out: Path = Path(__file__).parent,
    activation: Literal["tanh", "relu"] = "tanh",
    rate: float = 1.0,
    steps: int = 50,
    samples: int = 2000,
    seeds: int = 3,
    widths: tuple[int, ...] = (125, 200, 320, 500, 800, 1250, 2000),
) -> None:
    """Train students, print and draw.

    Args:
        out: folder for figure_14.png.
        activation: activation of teacher and student.
        rate: eta; a step is eta times the square root of the width.
        steps: steps of gradient descent.
        samples: size of the training set.
        seeds: number of teachers and training sets.
        widths: widths of the students.
    """
    runs = []
    for seed in range(seeds):
        task = make_task(INPUTS, samples, activation, torch.Generator().manual_seed(seed))
        students = (
            Student(INPUTS, width, activation, torch.Generator().manual_seed(1000 * seed + width)) for width in widths
        )
        runs.append([train_student(student, task, rate, steps) for student in students])
    outcomes = average(runs)
    print(f"{activation}, eta {rate}, {steps} steps, {samples} samples; means over {seeds} seeds")
    for one in outcomes:
        shown = ", ".join(
            f"{label} {one.alphas[label]:.3f} (untrained {one.initial_alphas[label]:.3f})" for label in METHODS
        )
        print(f"width {one.width:5}: alignment {one.alignment:.3f} (by step {one.step}); alpha: {shown}")
    for label in METHODS:
        print_correlations(label, outcomes, runs)
    out.mkdir(parents=True, exist_ok=True)
    with complete_or_nothing(out / "figure_14.png") as draft:
        draw(outcomes).savefig(draft, format="png")


if __name__ == "__main__":
    auto_cli(main)
