"""Analysis of a whole model: weights are planned, decomposed in common batches, measured, and written into rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_farms.analysis._decompose import decompose, decompose_again, one_thread_each
from lightning_farms.analysis._difference import differences
from lightning_farms.analysis._failures import Failed, Failure, attempted, error_text, failed, separated
from lightning_farms.analysis._measure import CHECKS, NUMBERS, layer_row, layer_seed, measure, measure_each
from lightning_farms.analysis._plan import Plan, plan_layer, skipped_row
from lightning_farms.analysis._transfers import finite_layers, on_host
from lightning_farms.analysis.apart import Part, model_config, weights_apart
from lightning_farms.analysis.diagnostics import Diagnostics
from lightning_farms.analysis.known_layers import Finding, KnownLayers, Parts
from lightning_farms.analysis.layer_spectrum import LayerSpectrum
from lightning_farms.analysis.method import FARMS, SpectralMethod
from lightning_farms.analysis.ranks import Ranks, check_same_layers, owners
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.analysis.selection import Selection
from lightning_farms.analysis.weights.layer_weight import LayerWeight
from lightning_farms.analysis.weights.model import layer_weights
from lightning_farms.common.texts import listed
from lightning_farms.functional.eigensolvers import Where, check_where
from lightning_farms.functional.random_matrix import shuffle_entries

WORKSPACE = 2**30
"""Default bytes of an analysis for copies of windows, Gram matrices and decompositions: 1 GiB."""

LARGEST_ROUNDING = 7e-5
"""Bound on the error of an alpha from float32 spectra; where it is not sure to hold, float64 spectra are made."""

_DEAREST_STEP = 1e10  # multiplications between two signs of progress: about half a second on two cores
_ROUNDING = NUMBERS.index("rounding")
_NOT_READ = "the weight could not be read on every rank"
_CHECKS = slice(NUMBERS.index(CHECKS[0]), NUMBERS.index(CHECKS[-1]) + 1)
_PASSED = [0.0] * len(CHECKS)

_FAILURES = tuple(Failure)
_Found = list[float] | Failed  # ``NUMBERS``, or why there are none
_Plans = dict[int, Plan]
_Spectra = dict[int, Tensor]


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
    """Spectrum and power-law fit of every weight matrix of a model, on the device the weights are on.

    Nothing is changed and no gradient is recorded. A layer that cannot be analysed (too few eigenvalues, weights that
    are not finite, more than half of the eigenvalues zero, excluded, ...) is a row of status ``"skipped"`` with the
    reason.

    Spectra are computed in float32 where that is sure to change alpha by less than 1e-4 (a bound of 7e-5 on its
    rounding error, from the fit itself; see :func:`lightning_farms.functional.esd`), and in float64 for all other
    layers, for fits that scan over xmin, under ``compat`` and with ``keep_eigenvalues``. Every spectrum is checked by
    the sums of its eigenvalues and of their squares; of a layer of which one fails, or whose decomposition does, all
    are computed again by another routine in float64 on the CPU, and the row's reason says so.

    Args:
        model: any module; :func:`lightning_farms.analysis.module_weights` says which matrices it holds.
        method: :class:`FARMS` or :class:`WholeMatrix`.
        selection: which weights to analyse.
        diagnostics: error bars, goodness of fit and random baselines.
        base: a model with the same layers: the change since, W - W_base, is analysed in the place of W.
        apart: fused weights of which each part has a row of its own: ``"experts"``, and ``"qkv"`` where the model has
            a configuration that tells how they are arranged (see :func:`lightning_farms.analysis.weights_apart`).
        keep_eigenvalues: whether the rows hold their eigenvalues; with ``ranks``, those of rank 0 do, which then does
            all the work.
        workspace: bytes for copies of windows, Gram matrices and decompositions, at least 1.
        workers: threads on the CPU; ``None`` for PyTorch's number of intra-op threads. Windows of at most 2048 rows or
            columns are shared out among them, and the numbers do not depend on how many there are; on larger ones all
            work together, and the last digits depend on it.
        where: where the Gram matrices of weights on a device are decomposed, as in
            :func:`lightning_farms.functional.esd`; alphas agree within 1e-4, and ``row.way`` says which way it was.
        known: what earlier analyses have found of frozen weights, which are not decomposed again while they stay as
            they are, and where what is found now is kept; ``None`` to decompose all.
        ranks: the processes that share the work, every one of which has to make this call, within
            :func:`lightning_farms.analysis.ranks.together`; ``None`` for this one.

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
    analysis = _Analysis(method, diagnostics, keep_eigenvalues, workspace, workers, where, known)

    def source(values: bool) -> Iterable[LayerWeight]:
        weights = layer_weights(model, selection, values=values)
        if base is not None:
            everything = replace(selection, include=(), exclude=())  # the base may lack layers that a pattern names
            weights = differences(weights, layer_weights(base, everything, values=values))
        return weights_apart(weights, apart, model_config(model)) if apart else weights

    return analysis.of(source(True)) if ranks is None else _analyze_on_ranks(source, analysis, ranks)


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
    """Like :func:`analyze`, of weights that come one by one, e.g. from a file: memory holds a few at a time.

    Args:
        weights: the weights; consumed lazily, and let go when half the workspace is full of them.
        method: as in :func:`analyze`.
        diagnostics: as in :func:`analyze`.
        keep_eigenvalues: as in :func:`analyze`.
        workspace: as in :func:`analyze`, and for the weights that wait.
        workers: as in :func:`analyze`.
        where: as in :func:`analyze`.
        known: as in :func:`analyze`.
        progress: called with the number of layers that were finished since the last call.

    Returns:
        The report, one row a weight in the order they come.

    Raises:
        TypeError: ``method`` is not a method.
        ValueError: an argument is out of range.
    """
    return _Analysis(method, diagnostics, keep_eigenvalues, workspace, workers, where, known).of(weights, progress)


class _Analysis:
    """The settings of one analysis, checked."""

    def __init__(
        self,
        method: SpectralMethod,
        diagnostics: Diagnostics,
        keep_eigenvalues: bool,
        workspace: int,
        workers: int | None,
        where: Where,
        known: KnownLayers | None = None,
    ) -> None:
        if not isinstance(method, SpectralMethod):
            raise TypeError(f"Expected argument `method` to be FARMS(...) or WholeMatrix(...), but got {method!r}.")
        if not isinstance(diagnostics, Diagnostics):
            raise TypeError(f"Expected argument `diagnostics` to be Diagnostics(...), but got {diagnostics!r}.")
        if workspace < 1:
            raise ValueError(f"Expected argument `workspace` to be at least 1 byte, but got {workspace}.")
        if workers is not None and workers < 1:
            raise ValueError(f"Expected argument `workers` to be None or at least 1, but got {workers}.")
        check_where(where)
        self.where = where
        self.known = known
        self.method = method
        self.diagnostics = diagnostics
        self.keep_eigenvalues = keep_eigenvalues
        self.workspace = workspace
        self.workers = torch.get_num_threads() if workers is None else workers

    def of(self, weights: Iterable[LayerWeight], progress: Callable[[int], object] | None = None) -> SpectralReport:
        """The report on weights, a workspace of them at a time."""
        rows: dict[int, LayerSpectrum] = {}
        errors: list[tuple[str, Exception]] = []
        planned = lost = 0
        plans = (self.plan(weight, errors) for weight in weights)
        for skipped, chunk in self.chunks(enumerate(plans), math.inf if progress is None else _DEAREST_STEP):
            found, spectra = self.found(chunk)
            rows |= skipped
            rows |= {index: self.row(plan, found[index], spectra.get(index)) for index, plan in chunk.items()}
            errors += [(chunk[index].weight.name, error) for index, error in _errors(found)]
            planned += len(chunk)
            lost += sum(isinstance(each[0], Failed) and each[0].error is not None for each in found.values())
            if progress is not None:
                progress(len(skipped) + len(chunk))
            chunk.clear()  # so that the next weights do not come on top of these
        if errors and lost == planned:  # it is not some layers that fail, but the analysis
            raise errors[0][1]
        if errors:
            names = listed(dict.fromkeys(name for name, _ in errors))
            warnings.warn(f"The analysis failed for {names}: {error_text(errors[0][1])}", stacklevel=3)
        return SpectralReport([rows[index] for index in sorted(rows)])

    def plan(self, weight: LayerWeight, errors: list[tuple[str, Exception]]) -> Plan | LayerSpectrum:
        """The plan of a layer, or the row of one that is skipped; an error is noted."""
        plan = attempted(plan_layer, weight, self.method)
        if isinstance(plan, Exception):
            errors.append((weight.name, plan))
            return skipped_row(weight, failed(plan).reason)
        return plan

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
    def found(self, plans: _Plans) -> tuple[dict[int, Parts], _Spectra]:
        """What is found of layers, and the eigenvalues to be kept, of frozen ones perhaps from an earlier analysis."""
        if self.known is None:
            return self._decomposed(plans)
        keys, findings = self.known.recall(plans, (self.method, self.diagnostics, self.keep_eigenvalues, self.where))
        found, spectra = self._decomposed({index: plan for index, plan in plans.items() if index not in findings})
        for index in keys.keys() - findings.keys():
            self.known.keep(plans[index], keys[index], Finding(found[index], spectra.get(index)))
        for index, finding in findings.items():
            found[index] = finding.parts
            spectra |= {} if finding.eigenvalues is None else {index: finding.eigenvalues}
        return found, spectra

    def _decomposed(self, plans: _Plans) -> tuple[dict[int, Parts], _Spectra]:
        """The numbers leave each device together."""
        finite, failures = finite_layers(plans)
        spectra, numbers = self._measured(finite)
        of_all = failures | numbers
        found: dict[int, Parts] = {index: [of_all[index]] for index in plans}
        if self.keep_eigenvalues:
            spectra, lost = separated({index: attempted(_kept, each) for index, each in spectra.items()})
            found |= {index: [failed(error)] for index, error in lost.items()}
        if self.diagnostics.twin:
            asked = {index: plan for index, plan in finite.items() if not isinstance(found[index][0], Failed)}
            twins, lost = separated({index: attempted(self._twin, plan) for index, plan in asked.items()})
            of_twins = self._measured(twins)[1] | {index: failed(error) for index, error in lost.items()}
            found |= {index: [*found[index], of_twins[index]] for index in asked}
        return found, spectra if self.keep_eigenvalues else {}

    def _measured(self, plans: _Plans) -> tuple[_Spectra, dict[int, _Found]]:
        """Spectra and numbers; first in float32, then in float64 where that may not do, then again where both fail."""
        spectra: _Spectra = {}
        found: dict[int, _Found] = {}
        suspects: dict[int, list[float]] = {}  # errors of the eigenvalues' sums; NaN where there are no eigenvalues
        for quick in (True, False) if self.method.forgives_rounding and not self.keep_eigenvalues else (False,):
            asked = {index: plan for index, plan in plans.items() if index not in found and index not in suspects}
            spectra_now, outcomes = self._pass(asked, quick=quick)
            spectra |= spectra_now
            for index, outcome in outcomes.items():
                errors = _errors_of_sums(outcome)
                if any(error > 0 for error in errors) or (errors != _PASSED and not quick and _may_recover(outcome)):
                    suspects[index] = errors
                elif isinstance(outcome, Exception):
                    found |= {} if quick else {index: failed(outcome)}
                elif not quick or (errors == _PASSED and outcome[_ROUNDING] <= LARGEST_ROUNDING):
                    found[index] = outcome
        for index, errors in suspects.items():
            again = attempted(self._again, plans[index], errors)
            spectra.pop(index, None)
            if isinstance(again, Exception):
                found[index] = failed(again)
            elif isinstance(again, Failed):
                found[index] = again
            else:
                spectra[index], found[index] = again
        return spectra, found

    def _again(self, plan: Plan, errors: list[float]) -> tuple[Tensor, list[float]] | Failed:
        """Spectrum and numbers by another routine, which remember the errors that there were at first."""
        spectrum = decompose_again(plan)
        if [spectrum.sum_error.item(), spectrum.squares_error.item()] != _PASSED:
            return Failed(Failure.WRONG if any(error > 0 for error in errors) else Failure.NOT_DECOMPOSED)
        with one_thread_each():
            numbers: list[float] = measure([spectrum], [plan], self.method, self.diagnostics)[0].tolist()
        numbers[_CHECKS] = errors
        return spectrum.eigenvalues, numbers

    def _pass(self, plans: _Plans, *, quick: bool) -> tuple[_Spectra, dict[int, list[float] | Exception]]:
        outcome = attempted(self._by_groups, plans, quick)
        if not isinstance(outcome, Exception):
            return outcome
        if len(plans) == 1:
            return {}, dict.fromkeys(plans, outcome)
        spectra: _Spectra = {}
        numbers: dict[int, list[float] | Exception] = {}
        for index, plan in plans.items():  # the error is of no one layer: each alone
            spectra_now, numbers_now = self._pass({index: plan}, quick=quick)
            spectra |= spectra_now
            numbers |= numbers_now
        return spectra, numbers

    def _by_groups(self, plans: _Plans, quick: bool) -> tuple[_Spectra, dict[int, list[float] | Exception]]:
        """What is decomposed is measured while the next is decomposed."""
        spectra: _Spectra = {}
        measured: dict[int, Tensor | Exception] = {}
        groups = decompose(plans, quick=quick, workspace=self.workspace, workers=self.workers, where=self.where)
        with closing(groups):
            for group in groups:
                found, errors = separated(group)
                with one_thread_each():  # sums over many eigenvalues depend on the number of threads
                    measured |= errors | measure_each(found, plans, self.method, self.diagnostics)
                spectra |= {index: each.eigenvalues for index, each in found.items()}
        numbers, errors = separated(measured)
        return spectra, errors | on_host(numbers)

    def _twin(self, plan: Plan) -> Plan:
        """The layer with its entries shuffled, which gives it full rank."""
        matrices = shuffle_entries(plan.weight.matrices, layer_seed(plan.weight.name, self.diagnostics.seed))
        weight = plan.weight._replace(matrices=matrices, rank=None)
        return Plan(weight, self.method.orient(matrices, weight.kind), plan.windows)

    def row(self, plan: Plan, found: Parts, eigenvalues: Tensor | None) -> LayerSpectrum:
        """The row of a layer."""
        own, *twins = found
        if isinstance(own, Failed):
            return skipped_row(plan.weight, own.reason)
        row = layer_row(plan, own)
        for found_of_twin in twins:
            if isinstance(found_of_twin, Failed):
                twin = skipped_row(plan.weight, found_of_twin.reason)
            else:
                twin = layer_row(plan._replace(weight=plan.weight._replace(rank=None)), found_of_twin)
            row = replace(row, twin=twin, relative_alpha=row.alpha / twin.alpha)
        return replace(row, eigenvalues=eigenvalues)


def _analyze_on_ranks(
    source: Callable[[bool], Iterable[LayerWeight]], analysis: _Analysis, ranks: Ranks
) -> SpectralReport:
    """Every rank goes through all weights (to gather one is a collective) and measures its own; then all is summed."""
    plans = ((weight.name, analysis.plan(weight, [])) for weight in source(False))
    costs = {name: plan.cost for name, plan in plans if isinstance(plan, Plan)}
    owner = owners(costs, 1 if analysis.keep_eigenvalues else ranks.world_size)
    names: list[str] = []
    layers: list[Plan | LayerSpectrum] = []
    unplanned: list[tuple[str, Exception]] = []

    def own() -> Iterator[tuple[int, Plan]]:
        for index, weight in enumerate(source(True)):
            plan = analysis.plan(weight, unplanned)
            names.append(weight.name)
            layers.append(plan.without_values() if isinstance(plan, Plan) else plan)
            if isinstance(plan, Plan) and owner.get(weight.name, 0) == ranks.rank:
                yield index, plan

    found: dict[int, Parts] = {}
    spectra: dict[int, Tensor] = {}
    failures: list[Exception] = []
    for _, chunk in analysis.chunks(own()):
        found_now, spectra_now = _attempted(analysis, chunk, failures)
        found, spectra = found | found_now, spectra | spectra_now
        chunk.clear()
    refusals = torch.tensor([[isinstance(layer, LayerSpectrum)] for layer in layers], dtype=torch.float64, device="cpu")
    numbers = torch.zeros(len(layers), 2 * (1 + len(NUMBERS)), dtype=torch.float64, device="cpu")
    for index, each in found.items():
        numbers[index] = torch.tensor(_as_numbers(each), dtype=torch.float64)
    check_same_layers(names, ranks)  # the first moment at which ranks wait for each other, unless weights are gathered
    table = ranks.sum(torch.cat([refusals.view(-1, 1), numbers], dim=1))
    if unplanned and not any(isinstance(layer, Plan) for layer in layers):
        raise unplanned[0][1]
    _warn_of([*failures, *(error for _, error in unplanned)])  # not before: where it raises, other ranks would wait
    rows = []
    for index, (layer, (refused, *shared)) in enumerate(zip(layers, table.tolist(), strict=True)):
        if isinstance(layer, LayerSpectrum):
            reason = layer.reason if refused == ranks.world_size else _NOT_READ
            rows.append(replace(layer, reason=reason))
        elif refused:
            rows.append(skipped_row(layer.weight, _NOT_READ))
        else:
            rows.append(analysis.row(layer, _from_numbers(shared, analysis.diagnostics.twin), spectra.get(index)))
    return SpectralReport(rows)


def _warn_of(errors: Iterable[Exception]) -> None:
    for text in dict.fromkeys(map(error_text, errors)):
        warnings.warn(f"The analysis failed on this rank: {text}", stacklevel=4)


def _attempted(analysis: _Analysis, chunk: _Plans, failures: list[Exception]) -> tuple[dict[int, Parts], _Spectra]:
    """What is found; if anything goes wrong, the other ranks must not wait for this one, and learn it from the sum."""
    outcome = attempted(analysis.found, chunk)
    if isinstance(outcome, Exception):
        failures.append(outcome)
        return {index: [failed(outcome)] for index in chunk}, {}
    failures.extend(error for _, error in _errors(outcome[0]))
    return outcome


def _as_numbers(found: Parts) -> list[float]:
    """A layer's row of the table that ranks exchange: which failure, and the numbers, of it and of its twin."""
    parts = [*found, Failed(Failure.FAILED)][:2]
    return [number for part in parts for number in _part_as_numbers(part)]


def _part_as_numbers(found: _Found) -> list[float]:
    if isinstance(found, Failed):
        return [_FAILURES.index(found.failure) + 1.0, *[math.nan] * len(NUMBERS)]
    return [0.0, *found]


def _from_numbers(shared: list[float], twin: bool) -> Parts:
    half = len(shared) // 2
    parts = [shared[:half], shared[half:]] if twin else [shared[:half]]
    return [Failed(_FAILURES[int(failure) - 1]) if failure else known for failure, *known in parts]


def _errors_of_sums(outcome: list[float] | Exception) -> list[float]:
    return [math.nan] * len(CHECKS) if isinstance(outcome, Exception) else outcome[_CHECKS]


def _may_recover(outcome: list[float] | Exception) -> bool:
    """Whether another routine may do what this one did not: not where memory or something else failed."""
    return not isinstance(outcome, Exception) or failed(outcome).failure is Failure.NOT_DECOMPOSED


def _errors(found: dict[int, Parts]) -> Iterator[tuple[int, Exception]]:
    for index, parts in found.items():
        for part in parts:
            if isinstance(part, Failed) and part.error is not None:
                yield index, part.error


def _kept(eigenvalues: Tensor) -> Tensor:
    return eigenvalues.flatten().sort().values.cpu()
