"""Analysis of a whole model, or of weights that come one by one: settings in, a report out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from torch import nn

from lightning_farms.analysis._difference import differences
from lightning_farms.analysis._engine.analysis import Analysis
from lightning_farms.analysis._engine.on_ranks import analyze_on_ranks
from lightning_farms.analysis.apart import Part, model_config, weights_apart
from lightning_farms.analysis.diagnostics import Diagnostics
from lightning_farms.analysis.known_layers import KnownLayers
from lightning_farms.analysis.method import FARMS, SpectralMethod
from lightning_farms.analysis.ranks import Ranks
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.analysis.selection import Selection
from lightning_farms.analysis.weights.layer_weight import LayerWeight
from lightning_farms.analysis.weights.model import layer_weights
from lightning_farms.functional.eigensolvers import Where

WORKSPACE = 2**30
"""Default bytes of an analysis for copies of windows, Gram matrices and decompositions: 1 GiB."""


def analyze(
    model: nn.Module,
    method: SpectralMethod = FARMS(),
    *,
    selection: Selection = Selection(),
    diagnostics: Diagnostics = Diagnostics(),
    base: nn.Module | None = None,
    apart: Collection[Part] = (),
    keep_eigenvalues: bool = False,
    workspace: int = WORKSPACE,
    workers: int | None = None,
    where: Where = "auto",
    known: KnownLayers | None = None,
    ranks: Ranks | None = None,
) -> SpectralReport:
    """Compute the spectrum of every weight matrix of a model and fit its power law, on the device the weights are on.

    The model is not changed and no gradient is recorded. A layer that cannot be analysed (too few eigenvalues, weights
    that are not finite, more than half of the eigenvalues zero, excluded, ...) has a row of status ``"skipped"`` that
    gives the reason.

    Spectra are computed in float32 if that is sure to change alpha by less than 1e-4 (the fit itself gives a bound on
    the rounding error, which has to be at most 7e-5; see :func:`lightning_farms.functional.esd`). Float64 is used for
    all other layers, for fits that scan over xmin, under ``compat`` and with ``keep_eigenvalues``. Every spectrum is
    checked: its eigenvalues have to sum to the squared Frobenius norm of the matrix, and their squares to that of its
    Gram matrix. If a check or a decomposition fails, the layer is computed again in float64 on the CPU by another
    routine, and its row says so.

    Args:
        model: any module; :func:`lightning_farms.analysis.module_weights` says which matrices it holds.
        method: :class:`FARMS` or :class:`WholeMatrix`.
        selection: the weights to analyse.
        diagnostics: error bars, goodness of fit and random baselines.
        base: a model with the same layers, e.g. before fine-tuning; if given, the change W - W_base is analysed instead
            of W.
        apart: fused weights whose parts get a row each: ``"experts"``, and ``"qkv"`` if the model has a configuration
            that tells how they are arranged (see :func:`lightning_farms.analysis.weights_apart`).
        keep_eigenvalues: whether rows hold their eigenvalues. With ``ranks`` only rank 0's rows do, and rank 0 then
            does all the work.
        workspace: bytes for copies of windows, Gram matrices and decompositions, at least 1.
        workers: threads on the CPU; ``None`` for PyTorch's number of intra-op threads. Windows of at most 2048 rows or
            columns are divided among the threads, and the numbers do not depend on how many there are. All threads work
            together on each larger window, and its last digits depend on their number.
        where: where the Gram matrices of weights on a device are decomposed, as in
            :func:`lightning_farms.functional.esd`; alphas agree within 1e-4, and ``row.way`` names the routine used.
        known: results of earlier analyses. Frozen weights that have not changed since are taken from there, not
            decomposed again, and new results are added to it. ``None`` to decompose every weight.
        ranks: the processes that share the work. Each of them has to make this call, within
            :func:`lightning_farms.analysis.ranks.together`. ``None`` for this process alone.

    Returns:
        The report, with one row per weight in the model's order.

    Raises:
        TypeError: ``model`` is not a module, or ``method`` not a method (an instance, not a class).
        ValueError: an argument is out of range, or a pattern of the selection fits no layer.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> report = analyze(nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 64)))
        >>> {name: round(alpha, 2) for name, alpha in report.alphas.items()}
        {'0': 2.08, '2': 2.13}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected argument `model` to be a torch.nn.Module, but got {type(model).__name__}.")
    if base is not None and not isinstance(base, nn.Module):
        raise TypeError(f"Expected argument `base` to be None or a torch.nn.Module, but got {type(base).__name__}.")
    analysis = Analysis(method, diagnostics, keep_eigenvalues, workspace, workers, where, known)

    def source(values: bool) -> Iterable[LayerWeight]:
        weights = layer_weights(model, selection, values=values)
        if base is not None:
            everything = replace(selection, include=(), exclude=())  # the base may lack layers that a pattern names
            weights = differences(weights, layer_weights(base, everything, values=values))
        return weights_apart(weights, apart, model_config(model)) if apart else weights

    return analysis.of(source(True)) if ranks is None else analyze_on_ranks(source, analysis, ranks)


def analyze_weights(
    weights: Iterable[LayerWeight],
    method: SpectralMethod = FARMS(),
    *,
    diagnostics: Diagnostics = Diagnostics(),
    keep_eigenvalues: bool = False,
    workspace: int = WORKSPACE,
    workers: int | None = None,
    where: Where = "auto",
    known: KnownLayers | None = None,
    progress: Callable[[int], object] | None = None,
) -> SpectralReport:
    """Like :func:`analyze`, for weights that come one by one, e.g. from a file: only a few are in memory at a time.

    Args:
        weights: the weights; they are consumed lazily, and released whenever they fill half of the workspace.
        method: as in :func:`analyze`.
        diagnostics: as in :func:`analyze`.
        keep_eigenvalues: as in :func:`analyze`.
        workspace: as in :func:`analyze`; it also bounds the weights that wait to be decomposed.
        workers: as in :func:`analyze`.
        where: as in :func:`analyze`.
        known: as in :func:`analyze`.
        progress: called with the number of layers finished since the last call.

    Returns:
        The report, with one row per weight in the order in which they come.

    Raises:
        TypeError: ``method`` is not a method.
        ValueError: an argument is out of range.
    """
    return Analysis(method, diagnostics, keep_eigenvalues, workspace, workers, where, known).of(weights, progress)
