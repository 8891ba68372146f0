"""Analysis of a whole model: weights are planned, decomposed in common batches, measured, and written into rows."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from enum import Enum

import torch
from torch import Tensor, nn

from lightning_farms.analysis._decompose import decompose, one_thread_each, promoted
from lightning_farms.analysis._difference import differences
from lightning_farms.analysis._measure import NUMBERS, layer_row, layer_seed, measure
from lightning_farms.analysis._plan import Plan, plan_layer, skipped_row
from lightning_farms.analysis.diagnostics import Diagnostics
from lightning_farms.analysis.layer_spectrum import LayerSpectrum
from lightning_farms.analysis.method import FARMS, SpectralMethod
from lightning_farms.analysis.ranks import Ranks, check_same_layers, owners
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.analysis.selection import Selection
from lightning_farms.analysis.weights.layer_weight import LayerWeight
from lightning_farms.analysis.weights.model import layer_weights
from lightning_farms.functional.random_matrix import shuffle_entries

WORKSPACE = 2**30
"""Default bytes of an analysis for copies of windows, Gram matrices and decompositions: 1 GiB."""

LARGEST_ROUNDING = 7e-5
"""Bound on the error of an alpha from float32 spectra; where it is not sure to hold, float64 spectra are made."""

_DEAREST_STEP = 1e10  # multiplications between two signs of progress: about half a second on two cores
_ROUNDING = NUMBERS.index("rounding")
_NOT_READ = "the weight could not be read on every rank"


class _Failure(Enum):
    """Why a layer that was planned has no numbers; in the table that ranks exchange, by its place from 1."""

    NOT_FINITE = "the weights are not all finite"
    NOT_DECOMPOSED = "the eigenvalue decomposition failed"
    RANK_FAILED = "the analysis failed on the layer's rank, which has warned why"


_FAILURES = tuple(_Failure)
_Found = list[float] | _Failure  # ``NUMBERS``, followed by those of the twin if it is asked for
_Plans = dict[int, Plan]


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
        return differences(weights, layer_weights(base, everything, values=values))

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
        plans = (plan_layer(weight, self.method) for weight in weights)
        for skipped, chunk in self.chunks(enumerate(plans), math.inf if progress is None else _DEAREST_STEP):
            found, spectra = self.found(chunk)
            rows |= skipped
            rows |= {index: self.row(plan, found[index], spectra.get(index)) for index, plan in chunk.items()}
            if progress is not None:
                progress(len(skipped) + len(chunk))
            chunk.clear()  # so that the next weights do not come on top of these
        return SpectralReport([rows[index] for index in sorted(rows)])

    def chunks(
        self, plans: Iterable[tuple[int, Plan | LayerSpectrum]], dearest: float = math.inf
    ) -> Iterator[tuple[dict[int, LayerSpectrum], _Plans]]:
        """Rows of skipped layers and plans of the others, as many as fill half the workspace or cost enough."""
        skipped: dict[int, LayerSpectrum] = {}
        chunk: _Plans = {}
        held, cost = 0, 0.0
        for index, plan in plans:
            if isinstance(plan, LayerSpectrum):
                skipped[index] = plan
                continue
            chunk[index] = plan
            held += plan.matrices.numel() * plan.matrices.element_size()
            cost += plan.cost
            if held > self.workspace // 2 or cost > dearest:
                yield skipped, chunk
                skipped, chunk, held, cost = {}, {}, 0, 0.0
            del plan  # or its weight is still there when later ones are read
        yield skipped, chunk

    @torch.no_grad()
    def found(self, plans: _Plans) -> tuple[dict[int, _Found], dict[int, Tensor]]:
        """What is found of layers, and the eigenvalues to be kept; the numbers leave each device together."""
        finite = _finite(plans)
        spectra, numbers = self._measured(finite)
        if self.diagnostics.twin:
            twins = self._measured({i: self._twin(plan) for i, plan in finite.items() if i in numbers})[1]
            missing = [math.nan] * len(NUMBERS)
            numbers = {i: values + twins.get(i, missing) for i, values in numbers.items()}
        failures = {i: _Failure.NOT_DECOMPOSED if i in finite else _Failure.NOT_FINITE for i in plans}
        kept = {i: each.flatten().sort().values.cpu() for i, each in spectra.items() if self.keep_eigenvalues}
        return {**failures, **numbers}, kept

    def _measured(self, plans: _Plans) -> tuple[dict[int, Tensor], dict[int, list[float]]]:
        """Spectra and numbers; first in float32, then in float64 where that may not do."""
        if not self.method.forgives_rounding or self.keep_eigenvalues:
            return self._pass(plans, quick=False)
        spectra, numbers = self._pass(plans, quick=True)
        sure = {i for i, values in numbers.items() if values[_ROUNDING] <= LARGEST_ROUNDING}
        again = self._pass({i: plan for i, plan in plans.items() if i not in sure}, quick=False)
        return spectra | again[0], numbers | again[1]

    def _pass(self, plans: _Plans, *, quick: bool) -> tuple[dict[int, Tensor], dict[int, list[float]]]:
        spectra = decompose(plans, quick=quick, workspace=self.workspace, workers=self.workers)
        by_device: dict[torch.device, dict[int, Tensor]] = defaultdict(dict)
        with one_thread_each():  # sums over many eigenvalues depend on the number of threads
            for index, eigenvalues in spectra.items():
                numbers_there = measure(eigenvalues, plans[index], self.method, self.diagnostics)
                by_device[eigenvalues.device][index] = numbers_there
        numbers: dict[int, list[float]] = {}
        for on_device in by_device.values():
            numbers.update(zip(on_device, torch.stack(list(on_device.values())).tolist(), strict=True))
        return spectra, numbers

    def _twin(self, plan: Plan) -> Plan:
        """The layer with its entries shuffled, which gives it full rank."""
        matrices = shuffle_entries(plan.weight.matrices, layer_seed(plan.weight.name, self.diagnostics.seed))
        weight = plan.weight._replace(matrices=matrices, rank=None)
        return Plan(weight, self.method.orient(matrices, weight.kind), plan.windows)

    def row(self, plan: Plan, found: _Found, eigenvalues: Tensor | None) -> LayerSpectrum:
        """The row of a layer."""
        if isinstance(found, _Failure):
            return skipped_row(plan.weight, found.value)
        row = layer_row(plan, found[: len(NUMBERS)])
        if self.diagnostics.twin:
            twin = layer_row(plan._replace(weight=plan.weight._replace(rank=None)), found[len(NUMBERS) :])
            row = replace(row, twin=twin, relative_alpha=row.alpha / twin.alpha)
        return replace(row, eigenvalues=eigenvalues)


def _analyze_on_ranks(
    source: Callable[[bool], Iterable[LayerWeight]], analysis: _Analysis, ranks: Ranks
) -> SpectralReport:
    """Every rank goes through all weights (to gather one is a collective) and measures its own; then all is summed."""
    plans = ((weight.name, plan_layer(weight, analysis.method)) for weight in source(False))
    costs = {name: plan.cost for name, plan in plans if isinstance(plan, Plan)}
    owner = owners(costs, 1 if analysis.keep_eigenvalues else ranks.world_size)
    names: list[str] = []
    layers: list[Plan | LayerSpectrum] = []

    def own() -> Iterator[tuple[int, Plan]]:
        for index, weight in enumerate(source(True)):
            plan = plan_layer(weight, analysis.method)
            names.append(weight.name)
            layers.append(plan.without_values() if isinstance(plan, Plan) else plan)
            if isinstance(plan, Plan) and owner.get(weight.name, 0) == ranks.rank:
                yield index, plan

    found: dict[int, _Found] = {}
    spectra: dict[int, Tensor] = {}
    failures: list[Exception] = []
    for _, chunk in analysis.chunks(own()):
        found_now, spectra_now = _attempted(analysis, chunk, failures)
        found, spectra = found | found_now, spectra | spectra_now
        chunk.clear()
    check_same_layers(names, ranks)
    refusals = torch.tensor([[isinstance(layer, LayerSpectrum)] for layer in layers], dtype=torch.float64, device="cpu")
    numbers = torch.zeros(len(layers), 1 + 2 * len(NUMBERS), dtype=torch.float64, device="cpu")
    for index, each in found.items():
        numbers[index] = torch.tensor(_as_numbers(each), dtype=torch.float64)
    table = ranks.sum(torch.cat([refusals.view(-1, 1), numbers], dim=1))
    for error in failures:  # not before: where warnings are errors, the other ranks would wait
        warnings.warn(f"The analysis failed on this rank: {type(error).__name__}: {error}", stacklevel=3)
    rows = []
    for index, (layer, (refused, *shared)) in enumerate(zip(layers, table.tolist(), strict=True)):
        if isinstance(layer, LayerSpectrum):
            reason = layer.reason if refused == ranks.world_size else _NOT_READ
            rows.append(replace(layer, reason=reason))
        elif refused:
            rows.append(skipped_row(layer.weight, _NOT_READ))
        else:
            rows.append(analysis.row(layer, _from_numbers(shared), spectra.get(index)))
    return SpectralReport(rows)


def _attempted(
    analysis: _Analysis, chunk: _Plans, failures: list[Exception]
) -> tuple[dict[int, _Found], dict[int, Tensor]]:
    """What is found; if anything goes wrong, the other ranks must not wait for this one, and learn it from the sum."""
    try:
        return analysis.found(chunk)
    except Exception as error:
        failures.append(error.with_traceback(None))
        return dict.fromkeys(chunk, _Failure.RANK_FAILED), {}


def _as_numbers(found: _Found) -> list[float]:
    """A layer's row of the table that ranks exchange: which failure, and the numbers; what is not known is NaN."""
    failure, known = (_FAILURES.index(found) + 1, []) if isinstance(found, _Failure) else (0, found)
    return [failure, *known, *[math.nan] * (2 * len(NUMBERS) - len(known))]


def _from_numbers(shared: list[float]) -> _Found:
    failure, *known = shared
    return _FAILURES[int(failure) - 1] if failure else known


def _finite(plans: _Plans) -> _Plans:
    """The layers whose weights are all finite, with one transfer from each device."""
    by_device: dict[torch.device, list[int]] = defaultdict(list)
    for index, plan in plans.items():
        by_device[plan.matrices.device].append(index)
    finite: set[int] = set()
    for indices in by_device.values():
        matrices = {index: plans[index].weight.matrices for index in indices}
        sums = torch.stack([promoted(each).sum().isfinite() for each in matrices.values()])  # the quickest test by far
        for (index, each), flag in zip(matrices.items(), sums.tolist(), strict=True):
            if flag or promoted(each).isfinite().all():  # a sum of finite numbers may overflow
                finite.add(index)
    return {index: plan for index, plan in plans.items() if index in finite}
