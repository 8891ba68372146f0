"""Allocation of sparsity to the weights of a model, from the model itself or from alphas that are already known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lightning_farms.common.arguments import check_share
from lightning_farms.functional import NofM, allocate_n_of_m, allocate_sparsity
from lightning_farms.pruning.allocation.base import Allocation, Figures, Layer, Subject, Weight
from lightning_farms.pruning.allocation.spectral import FARMSAllocation
from lightning_farms.pruning.input_squares import input_mean_squares
from lightning_farms.pruning.prunable import left_dense, prunable_weights
from lightning_farms.pruning.ratios import LayerRatio, LayerRatios

MeanSquares: TypeAlias = Mapping[str, Tensor] | Callable[[], Mapping[str, Tensor]]

DEFAULT_ALLOCATION = FARMSAllocation()

_SHOWN = 5


@dataclass(frozen=True)
class WeightsSubject:
    """Weights, with the mean squares of their inputs if these are known.

    Args:
        weights: the weights in the model's order.
        inputs: mean squares of the dense model's inputs by the name of the weight, (inputs,) or (P, inputs); or a
            function that computes them when they are needed; None: there are none.
    """

    weights: Sequence[Weight]
    inputs: MeanSquares | None = None

    def mean_squares(self) -> Mapping[str, Tensor]:
        """Return the mean squares of the inputs, computing them if necessary.

        Raises:
            ValueError: there are none.
        """
        if self.inputs is None:
            raise ValueError(
                "Expected argument `calibration` to be given (--calibration): this allocation looks at the inputs of "
                "the dense model, but got None."
            )
        return self.inputs() if callable(self.inputs) else self.inputs


def allocate(
    model: nn.Module | Subject | Sequence[Weight],
    sparsity: float | NofM,
    allocation: Allocation = DEFAULT_ALLOCATION,
    *,
    calibration: Tensor | MeanSquares | None = None,
    pattern_m: int | None = None,
    device: torch.device | str | None = None,
) -> LayerRatios:
    r"""Compute how much of each weight in a decoder's blocks to prune, without pruning anything yet.

    The allocation scores the weights; the ratios are in proportion to the scores, within its bounds, and the sparsity
    over all these weights is exact in whole weights (:func:`lightning_farms.functional.allocate_sparsity`). With a
    pattern, each layer has its own n of every m; the total is as near to the target as possible, but never above it.

    Args:
        model: a language model; or its weights; or its weights with what is known of their inputs.
        sparsity: S in [0, 1), the fraction of all these weights to prune; or a pattern ``NofM(n, m)``, which means
            a fraction n / m, with each layer having its own n of every m.
        allocation: the allocation that scores the weights.
        calibration: for allocations that use the inputs of the weights (OWL, DLP): token ids (N, T), on which the
            dense model is run; or the inputs' mean squares by the name of the weight, or a function that returns them.
        pattern_m: m, if the zeros are to be n of every m consecutive inputs; None: zeros may be anywhere.
        device: where the model's blocks run on token ids, one at a time; None: where the model is.

    Returns:
        The ratios.

    Raises:
        ValueError: a sparsity out of range, bounds that do not allow it, numbers of inputs that m does not divide,
            nothing to prune, or no inputs although they are needed.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = nn.ModuleDict({"layers": nn.ModuleList(nn.Sequential(nn.Linear(64, 64)) for _ in range(3))})
        >>> _ = model["layers"][2][0].weight.data[:4].mul_(9)  # heavy-tailed, and so spared
        >>> ratios = allocate(model, 0.7)
        >>> {block: round(ratio, 2) for block, ratio in ratios.by_block().items()}, ratios.zeros, ratios.size
        ({'layers.0': 0.8, 'layers.1': 0.77, 'layers.2': 0.53}, 8602, 12288)
    """
    fraction, m = (sparsity.n / max(sparsity.m, 1), sparsity.m) if isinstance(sparsity, NofM) else (sparsity, pattern_m)
    check_share(sparsity=fraction)
    if isinstance(calibration, Tensor):
        calibration = _on_text(model, calibration, device)
    subject = _subject(model, calibration)
    if m is not None:
        _check_pattern(subject.weights, m)
    ratios = _ratios(allocation, allocation.sources(subject), subject.weights, fraction, m)
    dense = left_dense(model, prunable_weights(model)) if isinstance(model, nn.Module) else ""
    return replace(ratios, notes=(*ratios.notes, dense)) if dense else ratios


def allocate_from_alphas(
    alphas: Mapping[str, float],
    layers: Sequence[Layer],
    sparsity: float,
    allocation: Allocation = DEFAULT_ALLOCATION,
    *,
    pattern_m: int | None = None,
) -> LayerRatios:
    """Like :func:`allocate`, but from figures that are already known, such as the alphas of a report.

    Args:
        alphas: the figures by the name of the layer; not finite for layers that have none.
        layers: the layers to prune, in the model's order.
        sparsity: S in [0, 1).
        allocation: supplies the map, granularity and bounds; it computes no figures of its own.
        pattern_m: m, if the zeros are to be n of every m consecutive inputs.

    Returns:
        The ratios.

    Raises:
        ValueError: a sparsity out of range, bounds that do not allow it, or layers without an entry.

    Example:
        >>> from collections import namedtuple
        >>> Part = namedtuple("Part", "name block size")
        >>> parts = [Part("a", "0", 100), Part("b", "1", 100)]
        >>> allocate_from_alphas({"a": 2.0, "b": 3.0}, parts, 0.5).by_block()
        {'0': 0.4, '1': 0.6}
    """
    check_share(sparsity=sparsity)
    if missing := [layer.name for layer in layers if layer.name not in alphas]:
        raise ValueError(
            f"Expected argument `alphas` to have an entry for every layer, but {len(missing)} of {len(layers)} have "
            f"none: {', '.join(missing[:_SHOWN])}{', ...' if len(missing) > _SHOWN else ''}."
        )
    values = tuple(float(alphas[layer.name]) for layer in layers)
    reasons = {layer.name: "no finite alpha" for layer in layers if not math.isfinite(alphas[layer.name])}
    return _ratios(allocation, Figures(values, reasons), layers, sparsity, pattern_m)


def _on_text(model: object, ids: Tensor, device: torch.device | str | None) -> MeanSquares:
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"Expected argument `model` to be a model where `calibration` is token ids, but got {type(model).__name__}."
        )
    return partial(input_mean_squares, model, ids, device=device)


def _subject(model: nn.Module | Subject | Sequence[Weight], calibration: MeanSquares | None) -> Subject:
    if isinstance(model, nn.Module):
        return WeightsSubject(prunable_weights(model), calibration)
    if isinstance(model, Sequence):
        return WeightsSubject(model, calibration)
    return model if calibration is None else WeightsSubject(model.weights, calibration)


def _check_pattern(weights: Sequence[Weight], m: int) -> None:
    if m < 1:
        raise ValueError(f"Expected argument `pattern_m` to be at least 1, but got {m}.")
    odd = [weight for weight in weights if weight.matrices.shape[-1] % m]
    if odd:
        raise ValueError(
            f"Expected argument `pattern_m` to divide the number of inputs of every layer, but got {m}, and "
            f"{odd[0].matrices.shape[-1]} inputs in {odd[0].name!r}."
        )


def _ratios(
    allocation: Allocation, figures: Figures, layers: Sequence[Layer], sparsity: float, m: int | None
) -> LayerRatios:
    if not layers:
        raise ValueError("Expected argument `model` to have weights to prune, but got none.")
    scores = allocation.scores(figures.values, layers, sparsity)
    sizes = [layer.size for layer in layers]
    bounds = {"floor": allocation.floor, "cap": allocation.cap}
    rows: list[tuple[float, int, NofM | None]]
    if m is None:
        found = allocate_sparsity(scores, sizes, sparsity, **bounds)
        rows = [(ratio, zeros, None) for ratio, zeros in zip(found.ratios.tolist(), found.zeros.tolist(), strict=True)]
    else:
        each = allocate_n_of_m(scores, sizes, sparsity, m, **bounds).tolist()
        rows = [(n / m, size // m * n, NofM(n, m)) for n, size in zip(each, sizes, strict=True)]
    parts = zip(layers, figures.values, scores.tolist(), rows, strict=True)
    return LayerRatios(
        tuple(LayerRatio(layer.name, layer.block, layer.size, a, q, *row) for layer, a, q, row in parts),
        sparsity,
        allocation.name,
        (*_left_out(figures, len(layers)), *figures.notes),
    )


def _left_out(figures: Figures, layers: int) -> list[str]:
    """One note per reason for missing figures, with the names of the layers."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in figures.reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"no figure for {len(names)} of {layers} layers ({reason}), which are left out of their block's mean, or get "
        f"the score 1: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for reason, names in by_reason.items()
    ]
