"""Analysis of a whole model: weights are planned, decomposed in common batches, measured, and written into rows."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_farms.analysis._decompose import Task, decompose, one_thread_each, promoted
from lightning_farms.analysis._difference import changes
from lightning_farms.analysis._measure import NUMBERS, layer_row, layer_seed, measure
from lightning_farms.analysis._plan import Plan, plan_layer
from lightning_farms.analysis._ranks import Ranks, check_same_layers, owners
from lightning_farms.analysis.diagnostics import Diagnostics
from lightning_farms.analysis.method import FARMS, SpectralMethod
from lightning_farms.analysis.report import LayerSpectrum, SpectralReport
from lightning_farms.analysis.selection import Selection
from lightning_farms.analysis.weights import LayerWeight, layer_weights
from lightning_farms.analysis.weights.matrices import NO_MATRICES
from lightning_farms.functional.random_matrix import shuffle_entries

WORKSPACE = 2**30
"""Default bytes of an analysis for copies of windows, Gram matrices and decompositions: 1 GiB."""

LARGEST_ROUNDING = 7e-5
"""Bound on the error of an alpha from float32 spectra; where it is not sure to hold, float64 spectra are made."""

_DEAREST_STEP = 1e10  # multiplications between two signs of progress: about half a second on two cores
_DONE, _NOT_FINITE, _FAILED, _BROKEN = 0.0, 1.0, 2.0, 3.0  # status of a layer in the table that ranks exchange
_FAILURES = {
    _NOT_FINITE: "the weights are not all finite",
    _FAILED: "the eigenvalue decomposition failed",
    _BROKEN: "the analysis failed on the layer's rank, which has warned why",
}
_ROUNDING = NUMBERS.index("rounding")


class _Outcome(NamedTuple):
    """Status and numbers of a layer (the status, then ``NUMBERS``, then the twin's), and its spectrum."""

    numbers: list[float]
    eigenvalues: Tensor | None = None


_Layers = dict[int, tuple[LayerWeight, Plan]]


def analyze(
    model: nn.Module,
    method: SpectralMethod = FARMS(),
    *,
    selection: Selection = Selection(),
    diagnostics: Diagnostics = Diagnostics(),
    base: nn.Module | None = None,
    keep_eigenvalues: bool = False,
    workspace: int = WORKSPACE,
    workers: int | None = None,
    ranks: Ranks | None = None,
) -> SpectralReport:
    """Spectrum and power-law fit of every weight matrix of a model, on the device the weights are on.

    Nothing is changed and no gradient is recorded. A layer that cannot be analysed (too few eigenvalues, weights that
    are not finite, more than half of the eigenvalues zero, excluded, ...) is a row of status ``"skipped"`` with the
    reason.

    Spectra are computed in float32 where that is sure to change alpha by less than 1e-4 (a bound of 7e-5 on its
    rounding error, from the fit itself; see :func:`lightning_farms.functional.esd`), and in float64 for all other
    layers, for fits that scan over xmin, under ``compat`` and with ``keep_eigenvalues``.

    Args:
        model: any module; :func:`lightning_farms.analysis.module_weights` says which matrices it holds.
        method: :class:`FARMS` or :class:`WholeMatrix`.
        selection: which weights to analyse.
        diagnostics: error bars, goodness of fit and random baselines.
        base: a model with the same layers: the change since, W - W_base, is analysed in the place of W.
        keep_eigenvalues: whether the rows hold their eigenvalues; with ``ranks``, those of rank 0 do, which then does
            all the work.
        workspace: bytes for copies of windows, Gram matrices and decompositions, at least 1.
        workers: threads on the CPU; ``None`` for PyTorch's number of intra-op threads.
        ranks: the processes that share the work, every one of which has to make this call; ``None`` for this one.

    Returns:
        The report, one row a weight in the model's order.

    Raises:
        TypeError: ``model`` is not a module, or ``method`` not a method (an instance, not a class).
        ValueError: an argument is out of range, or a pattern of the selection fits no layer.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> report = analyze(nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 64)))
        >>> {name: round(alpha, 2) for name, alpha in report.alphas.items()}
        {'0': 2.08, '2': 2.13}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected argument `model` to be a torch.nn.Module, but got {type(model).__name__}.")
    if base is not None and not isinstance(base, nn.Module):
        raise TypeError(f"Expected argument `base` to be None or a torch.nn.Module, but got {type(base).__name__}.")
    analysis = _Analysis(method, diagnostics, keep_eigenvalues, workspace, workers)

    def source(values: bool) -> Iterable[LayerWeight]:
        weights = layer_weights(model, selection, values=values)
        if base is None:
            return weights
        everything = replace(selection, include=(), exclude=())  # the base may lack layers that a pattern names
        return changes(weights, layer_weights(base, everything, values=values))

    return analysis.of(source(True)) if ranks is None else _analyze_on_ranks(source, analysis, ranks)


def analyze_weights(
    weights: Iterable[LayerWeight],
    method: SpectralMethod = FARMS(),
    *,
    diagnostics: Diagnostics = Diagnostics(),
    keep_eigenvalues: bool = False,
    workspace: int = WORKSPACE,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> SpectralReport:
    """Like :func:`analyze`, of weights that come one by one, e.g. from a file: memory holds a few at a time.

    Args:
        weights: the weights; consumed lazily, and let go when half the workspace is full of them.
        method: as in :func:`analyze`.
        diagnostics: as in :func:`analyze`.
        keep_eigenvalues: as in :func:`analyze`.
        workspace: as in :func:`analyze`, and for the weights that wait.
        workers: as in :func:`analyze`.
        progress: called with the number of layers that were finished since the last call.

    Returns:
        The report, one row a weight in the order they come.

    Raises:
        TypeError: ``method`` is not a method.
        ValueError: an argument is out of range.
    """
    return _Analysis(method, diagnostics, keep_eigenvalues, workspace, workers).of(weights, progress)


class _Analysis:
    """The settings of one analysis, checked."""

    def __init__(
        self,
        method: SpectralMethod,
        diagnostics: Diagnostics,
        keep_eigenvalues: bool,
        workspace: int,
        workers: int | None,
    ) -> None:
        if not isinstance(method, SpectralMethod):
            raise TypeError(f"Expected argument `method` to be FARMS(...) or WholeMatrix(...), but got {method!r}.")
        if not isinstance(diagnostics, Diagnostics):
            raise TypeError(f"Expected argument `diagnostics` to be Diagnostics(...), but got {diagnostics!r}.")
        if workspace < 1:
            raise ValueError(f"Expected argument `workspace` to be at least 1 byte, but got {workspace}.")
        if workers is not None and workers < 1:
            raise ValueError(f"Expected argument `workers` to be None or at least 1, but got {workers}.")
        self.method = method
        self.diagnostics = diagnostics
        self.keep_eigenvalues = keep_eigenvalues
        self.workspace = workspace
        self.workers = torch.get_num_threads() if workers is None else workers

    def of(self, weights: Iterable[LayerWeight], progress: Callable[[int], object] | None = None) -> SpectralReport:
        """The report on weights, a workspace of them at a time."""
        rows: dict[int, LayerSpectrum] = {}
        for skipped, chunk in self.chunks(weights, dearest=math.inf if progress is None else _DEAREST_STEP):
            rows |= skipped
            rows |= {index: self.row(*chunk[index], outcome) for index, outcome in self.outcomes(chunk).items()}
            if progress is not None:
                progress(len(skipped) + len(chunk))
            chunk.clear()  # so that the next weights do not come on top of these
        return SpectralReport([rows[index] for index in sorted(rows)])

    def chunks(
        self, weights: Iterable[LayerWeight], dearest: float = math.inf
    ) -> Iterator[tuple[dict[int, LayerSpectrum], _Layers]]:
        """Rows of skipped weights and plans for the others, as many as fill half the workspace or cost enough."""
        skipped: dict[int, LayerSpectrum] = {}
        chunk: _Layers = {}
        held, cost = 0, 0.0
        for index, weight in enumerate(weights):
            plan = plan_layer(weight, self.method)
            if isinstance(plan, str):
                skipped[index] = _skipped_row(weight, plan)
                continue
            chunk[index] = weight, plan
            held += weight.matrices.numel() * weight.matrices.element_size()
            cost += plan.cost
            if held > self.workspace // 2 or cost > dearest:
                yield skipped, chunk
                skipped, chunk, held, cost = {}, {}, 0, 0.0
        yield skipped, chunk

    @torch.no_grad()
    def outcomes(self, layers: _Layers) -> dict[int, _Outcome]:
        """What is measured of layers; the numbers leave each device together."""
        finite = _finite(layers)
        spectra, numbers = self._measured(finite)
        twins: dict[int, list[float]] = {}
        if self.diagnostics.twin:
            seed = self.diagnostics.seed
            twins = self._measured({i: _twin(*layer, seed) for i, layer in finite.items() if i in numbers})[1]
        outcomes = {}
        for index in layers:
            if index not in numbers:
                outcomes[index] = _Outcome(_outcome(_FAILED if index in finite else _NOT_FINITE))
                continue
            eigenvalues = spectra[index].flatten().sort().values.cpu() if self.keep_eigenvalues else None
            outcomes[index] = _Outcome(_outcome(_DONE, numbers[index], twins.get(index)), eigenvalues)
        return outcomes

    def _measured(self, layers: _Layers) -> tuple[dict[int, Tensor], dict[int, list[float]]]:
        """Spectra and numbers; first in float32, then in float64 where that may not do."""
        if not self.method.forgives_rounding or self.keep_eigenvalues:
            return self._pass(layers, quick=False)
        spectra, numbers = self._pass(layers, quick=True)
        sure = {i for i, values in numbers.items() if values[_ROUNDING] <= LARGEST_ROUNDING}
        again = self._pass({i: layer for i, layer in layers.items() if i not in sure}, quick=False)
        return spectra | again[0], numbers | again[1]

    def _pass(self, layers: _Layers, *, quick: bool) -> tuple[dict[int, Tensor], dict[int, list[float]]]:
        tasks = {i: Task(self.method.orient(w.matrices, w.kind), plan) for i, (w, plan) in layers.items()}
        spectra = decompose(tasks, quick=quick, workspace=self.workspace, workers=self.workers)
        by_device: dict[torch.device, dict[int, Tensor]] = defaultdict(dict)
        with one_thread_each():  # sums over many eigenvalues depend on the number of threads
            for index, eigenvalues in spectra.items():
                by_device[eigenvalues.device][index] = measure(
                    eigenvalues, *layers[index], method=self.method, wanted=self.diagnostics
                )
        numbers: dict[int, list[float]] = {}
        for on_device in by_device.values():
            numbers.update(zip(on_device, torch.stack(list(on_device.values())).tolist(), strict=True))
        return spectra, numbers

    def row(self, weight: LayerWeight, plan: Plan, outcome: _Outcome) -> LayerSpectrum:
        """The row of a layer."""
        status, *numbers = outcome.numbers
        if status != _DONE:
            return _skipped_row(weight, _FAILURES[status])
        row = layer_row(weight, plan, numbers[: len(NUMBERS)])
        if self.diagnostics.twin:
            twin = layer_row(weight, plan._replace(rank=None), numbers[len(NUMBERS) :])
            row = replace(row, twin=twin, relative_alpha=row.alpha / twin.alpha)
        return replace(row, eigenvalues=outcome.eigenvalues)


def _analyze_on_ranks(
    source: Callable[[bool], Iterable[LayerWeight]], analysis: _Analysis, ranks: Ranks
) -> SpectralReport:
    """Every rank goes through all weights (to gather one is a collective) and measures its own; then all is summed."""
    costs = {w.name: plan.cost for w in source(False) if not isinstance(plan := plan_layer(w, analysis.method), str)}
    owner = owners(costs, 1 if analysis.keep_eigenvalues else ranks.world_size)
    layers: list[tuple[LayerWeight, Plan | str]] = []

    def own() -> Iterator[LayerWeight]:
        for weight in source(True):
            layers.append((weight._replace(matrices=NO_MATRICES), plan_layer(weight, analysis.method)))
            yield weight if owner.get(weight.name, 0) == ranks.rank else weight._replace(reason="another rank's")

    outcomes: dict[int, _Outcome] = {}
    failures: list[Exception] = []
    for _, chunk in analysis.chunks(own()):
        outcomes |= _attempted(analysis, chunk, failures)
        chunk.clear()
    check_same_layers([weight.name for weight, _ in layers], ranks)
    table = torch.zeros(len(layers), 1 + len(_outcome(_DONE)), dtype=torch.float64, device="cpu")
    table[:, 0] = torch.tensor([isinstance(plan, str) for _, plan in layers])
    for index, outcome in outcomes.items():
        table[index, 1:] = torch.tensor(outcome.numbers, dtype=torch.float64)
    table = ranks.sum(table)
    for error in failures:  # not before: where warnings are errors, the other ranks would wait
        warnings.warn(f"The analysis failed on this rank: {type(error).__name__}: {error}", stacklevel=3)
    rows = []
    for index, ((weight, plan), (refusals, *numbers)) in enumerate(zip(layers, table.tolist(), strict=True)):
        if 0 < refusals < ranks.world_size:
            rows.append(_skipped_row(weight, "the weight could not be read on every rank"))
        elif isinstance(plan, str):
            rows.append(_skipped_row(weight, plan))
        else:
            eigenvalues = outcomes[index].eigenvalues if index in outcomes else None
            rows.append(analysis.row(weight, plan, _Outcome(numbers, eigenvalues)))
    return SpectralReport(rows)


def _attempted(analysis: _Analysis, chunk: _Layers, failures: list[Exception]) -> dict[int, _Outcome]:
    """Outcomes; where anything goes wrong the other ranks must not wait for this one, and learn it from the sum."""
    try:
        return analysis.outcomes(chunk)
    except Exception as error:
        failures.append(error.with_traceback(None))
        return dict.fromkeys(chunk, _Outcome(_outcome(_BROKEN)))


def _outcome(status: float, numbers: list[float] | None = None, twin: list[float] | None = None) -> list[float]:
    """One row of the table that ranks exchange; what is not known is NaN."""
    missing = [math.nan] * len(NUMBERS)
    return [status, *(numbers or missing), *(twin or missing)]


def _skipped_row(weight: LayerWeight, reason: str) -> LayerSpectrum:
    return LayerSpectrum(weight.name, weight.kind, weight.shape, status="skipped", reason=reason)


def _finite(layers: _Layers) -> _Layers:
    """The layers whose weights are all finite, with one transfer from each device."""
    by_device: dict[torch.device, list[int]] = defaultdict(list)
    for index, (weight, _) in layers.items():
        by_device[weight.matrices.device].append(index)
    finite: set[int] = set()
    for indices in by_device.values():
        matrices = {index: layers[index][0].matrices for index in indices}
        sums = torch.stack([promoted(each).sum().isfinite() for each in matrices.values()])  # the quickest test by far
        for (index, each), flag in zip(matrices.items(), sums.tolist(), strict=True):
            if flag or promoted(each).isfinite().all():  # a sum of finite numbers may overflow
                finite.add(index)
    return {index: layer for index, layer in layers.items() if index in finite}


def _twin(weight: LayerWeight, plan: Plan, seed: int) -> tuple[LayerWeight, Plan]:
    """The layer with its entries shuffled, which gives it full rank."""
    matrices = shuffle_entries(weight.matrices, layer_seed(weight.name, seed))
    return weight._replace(matrices=matrices), plan._replace(rank=None)
