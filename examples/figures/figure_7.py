"""Figure 7 of the paper: the spectrum of a trained 100 x 512 final layer, fitted whole and by FARMS windows.

The paper uses the final layers of ResNet-34 and VGG-16 trained on CIFAR-100 for 200 epochs. Here a small convolutional
network stands in, trained for 12 epochs with the paper's optimizer settings on synthetic images. They have 100 classes
in 20 groups of 5; every class is a smooth random pattern near its group's, and images are shifted, faded and noisy
copies of it.

    python examples/figures/figure_7.py [--out DIR] [--seed 0] [--epochs 12]
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_farms import FARMS, LayerSpectrum, WholeMatrix, analyze
from lightning_farms.common.atomic import complete_or_nothing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUPS, CLASSES, SIDE, FEATURES, BATCH = 20, 100, 16, 512, 128
FINAL = "final"
METHODS = {"whole matrix": WholeMatrix(), "FARMS": FARMS(window=CLASSES, steps=9)}
COLOURS = {"whole matrix": "tab:orange", "FARMS": "tab:blue"}


class Images(NamedTuple):
    """Images (number, 3, 16, 16) and their classes."""

    pixels: Tensor
    classes: Tensor


class SmallNet(nn.Module):
    """Four convolutions with batch normalisation and a linear layer with 512 inputs."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 32, 64, 128, FEATURES)
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(pairwise(channels)):
            layers += [nn.MaxPool2d(2)] if index else []
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.final = nn.Linear(FEATURES, CLASSES)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits of images (batch, 3, height, width)."""
        logits: Tensor = self.final(self.features(pixels).mean(dim=(-2, -1)))
        return logits


def smooth_patterns(number: int, cells: int, generator: torch.Generator) -> Tensor:
    """Draw random colours on a grid of ``cells`` x ``cells``, interpolated to images."""
    coarse = torch.randn(number, 3, cells, cells, generator=generator)
    return F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=False)


def class_patterns(generator: torch.Generator) -> Tensor:
    """Draw a pattern for each class: its group's plus 0.6 times a finer one of its own."""
    groups = smooth_patterns(GROUPS, 4, generator).repeat_interleave(CLASSES // GROUPS, 0)
    return groups + 0.6 * smooth_patterns(CLASSES, 6, generator)


def draw_images(patterns: Tensor, per_class: int, generator: torch.Generator) -> Images:
    """Draw noisy copies: contrast 1 ± 0.5, a smooth background, white noise, and shifts of up to two pixels."""
    classes = torch.arange(CLASSES).repeat(per_class)
    number = len(classes)
    contrast = 1 + 0.5 * torch.randn(number, 1, 1, 1, generator=generator)
    pixels = patterns[classes] * contrast + 0.7 * smooth_patterns(number, 4, generator)
    pixels = pixels + 0.5 * torch.randn(pixels.shape, generator=generator)
    shifts = torch.randint(-2, 3, (number, 2), generator=generator).tolist()
    return Images(
        torch.stack([image.roll(shift, (1, 2)) for image, shift in zip(pixels, shifts, strict=True)]), classes
    )


def train(model: nn.Module, images: Images, epochs: int, generator: torch.Generator) -> None:
    """Train by SGD with the paper's ResNet settings: rate 0.1, cosine, momentum 0.9, decay 5e-4, batches of 128."""
    steps = len(images.classes) // BATCH
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images.classes), generator=generator).split(BATCH)[:steps]:
            loss = F.cross_entropy(model(images.pixels[chosen]), images.classes[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Return the share of images whose class is predicted correctly."""
    model.eval()
    return float((model(images.pixels).argmax(1) == images.classes).float().mean())


def draw(before: dict[str, LayerSpectrum], after: dict[str, LayerSpectrum]) -> Figure:
    """Draw spectrum and fitted tail of the trained final layer, whole and by windows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), dpi=100, layout="constrained")
    for index, label in enumerate(METHODS):
        axes = figure.add_subplot(1, 2, index + 1)
        _draw_tail(axes, after[label], COLOURS[label])
        axes.set_title(
            rf"{label}: $\alpha$ = {after[label].alpha:.2f}, D = {after[label].ks_distance:.3f}"
            f"\n(at initialisation {before[label].alpha:.2f})",
            fontsize=11,
        )
    figure.axes[0].set_ylabel("density")
    return figure


def _draw_tail(axes: Axes, row: LayerSpectrum, colour: str) -> None:
    assert row.eigenvalues is not None
    values = row.eigenvalues
    lowest, highest = math.log10(values.quantile(0.02).item()), math.log10(values.max().item())
    counts, edges = torch.histogram(values, torch.logspace(lowest, highest, 31, dtype=values.dtype))
    density = counts / (len(values) * edges.diff())
    label = f"{len(values)} eigenvalues"
    axes.stairs(density.numpy(), edges.numpy(), fill=True, color=colour, alpha=0.45, label=label)
    x = torch.logspace(math.log10(row.xmin), highest, 50)
    share = (values >= row.xmin).double().mean().item()
    tail = share * (row.alpha - 1) / row.xmin * (x / row.xmin) ** -row.alpha
    axes.plot(x.numpy(), tail.numpy(), color="black", linewidth=2, label=r"fitted tail $\lambda^{-\alpha}$")
    axes.axvline(row.xmin, color="0.3", linestyle=":", label=r"$\lambda_{min}$")
    axes.set(xscale="log", yscale="log", xlabel=r"eigenvalue $\lambda$")
    axes.legend(fontsize=9, loc="lower left")


def print_layers(when: str, model: nn.Module) -> dict[str, LayerSpectrum]:
    """Print every layer's alpha by both methods, and return the final layer's rows."""
    final = {}
    for label, method in METHODS.items():
        report = analyze(model, method, keep_eigenvalues=True)
        final[label] = row = report[FINAL]
        alphas = " ".join(f"{alpha:.2f}" for name, alpha in report.alphas.items() if name != FINAL)
        print(
            f"{when:18} {label:13} final layer: alpha {row.alpha:.2f}, D {row.ks_distance:.3f}, "
            f"number of windows {row.windows}; alpha of the other layers: {alphas}"
        )
    return final


def main(out: Path = Path(__file__).parent, seed: int = 0, epochs: int = 12) -> None:
    """Train, analyse, print and draw.

    Args:
        out: folder for figure_7.png.
        seed: seed of images, weights and batches.
        epochs: number of passes over 6,000 images.
    """
    generator = torch.Generator().manual_seed(seed)
    patterns = class_patterns(generator)
    training, held_out = draw_images(patterns, 60, generator), draw_images(patterns, 10, generator)
    torch.manual_seed(seed)
    model = SmallNet()
    before = print_layers("at initialisation", model)
    train(model, training, epochs, generator)
    print(f"accuracy on {len(held_out.classes)} held-out images: {accuracy(model, held_out):.3f}")
    after = print_layers("trained", model)
    out.mkdir(parents=True, exist_ok=True)
    with complete_or_nothing(out / "figure_7.png") as draft:
        draw(before, after).savefig(draft, format="png")


if __name__ == "__main__":
    auto_cli(main)
