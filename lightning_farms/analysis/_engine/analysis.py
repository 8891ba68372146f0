"""One analysis on one process: layers are decomposed in common batches, measured, and written into rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from lightning_farms.analysis._engine.decompose import decompose, decompose_again, one_thread_each
from lightning_farms.analysis._engine.failures import (
    Failed,
    Failure,
    Parts,
    attempted,
    error_text,
    errors_of,
    failed,
    separated,
)
from lightning_farms.analysis._engine.measure import CHECKS, NUMBERS, layer_row, layer_seed, measure, measure_each
from lightning_farms.analysis._engine.plan import Plan, plan_layer, skipped_row
from lightning_farms.analysis._engine.transfers import finite_layers, on_host
from lightning_farms.analysis.diagnostics import Diagnostics
from lightning_farms.analysis.known_layers import Finding, KnownLayers
from lightning_farms.analysis.layer_spectrum import LayerSpectrum
from lightning_farms.analysis.method import SpectralMethod
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.analysis.weights.layer_weight import LayerWeight
from lightning_farms.common.texts import listed
from lightning_farms.common.warning import warn_user
from lightning_farms.functional.eigensolvers import Where, check_where
from lightning_farms.functional.random_matrix import shuffle_entries

_LARGEST_ROUNDING = 7e-5  # error of an alpha from float32 spectra; layers that may exceed it are computed in float64

_DEAREST_STEP = 1e10  # multiplications between two signs of progress: about half a second on two cores
_ROUNDING = NUMBERS.index("rounding")
_CHECKS = slice(NUMBERS.index(CHECKS[0]), NUMBERS.index(CHECKS[-1]) + 1)
_PASSED = [0.0] * len(CHECKS)

Plans = dict[int, Plan]
"""Layers to analyse, by their place in the report."""
Spectra = dict[int, Tensor]
"""Eigenvalues of layers, by their place in the report."""
_Found = dict[int, list[float] | Failed]  # ``NUMBERS`` of each layer, or why it has none


class Analysis:
    """The checked settings of one analysis, and its steps, each of which takes many layers at once."""

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
        """Analyse the weights, a workspace full of them at a time, and return the report."""
        rows: dict[int, LayerSpectrum] = {}
        errors: dict[str, Exception] = {}  # the first of each layer
        planned = lost = 0
        plans = (self.plan(weight, errors) for weight in weights)
        for skipped, chunk in self.chunks(enumerate(plans), math.inf if progress is None else _DEAREST_STEP):
            found, spectra = self.found(chunk)
            rows |= skipped
            rows |= {index: self.row(plan, found[index], spectra.get(index)) for index, plan in chunk.items()}
            for index, error in errors_of(found):
                errors.setdefault(chunk[index].weight.name, error)
            planned += len(chunk)
            lost += sum(isinstance(each[0], Failed) and each[0].error is not None for each in found.values())
            if progress is not None:
                progress(len(skipped) + len(chunk))
            chunk.clear()  # release these weights before the next are read
        if errors:
            first = next(iter(errors.values()))
            if lost == planned:  # not some layers fail, but the analysis itself
                raise first
            warn_user(f"The analysis failed for {listed(errors)}: {error_text(first)}")
        return SpectralReport([rows[index] for index in sorted(rows)])

    def plan(self, weight: LayerWeight, errors: dict[str, Exception]) -> Plan | LayerSpectrum:
        """Return the plan of a layer, or the row of one that is skipped; an error is added to ``errors``."""
        plan = attempted(plan_layer, weight, self.method)
        if isinstance(plan, Exception):
            errors[weight.name] = plan
            return skipped_row(weight, failed(plan).reason)
        return plan

    def chunks(
        self, plans: Iterable[tuple[int, Plan | LayerSpectrum]], dearest: float = math.inf
    ) -> Iterator[tuple[dict[int, LayerSpectrum], Plans]]:
        """Yield rows of skipped layers and plans of the others, when these fill half the workspace or cost enough."""
        skipped: dict[int, LayerSpectrum] = {}
        chunk: Plans = {}
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
            del plan  # release its weight before the next are read
        yield skipped, chunk

    @torch.no_grad()
    def found(self, plans: Plans) -> tuple[dict[int, Parts], Spectra]:
        """Return the numbers of layers, and the eigenvalues to be kept; those of frozen layers may be known already."""
        if self.known is None:
            return self._decomposed(plans)
        keys, findings = self.known.recall(plans, (self.method, self.diagnostics, self.keep_eigenvalues, self.where))
        found, spectra = self._decomposed({index: plan for index, plan in plans.items() if index not in findings})
        for index in keys.keys() - findings.keys():
            self.known.keep(plans[index], keys[index], Finding(found[index], spectra.get(index)))
        for index, finding in findings.items():
            found[index] = finding.parts
            if finding.eigenvalues is not None:
                spectra[index] = finding.eigenvalues
        return found, spectra

    def _decomposed(self, plans: Plans) -> tuple[dict[int, Parts], Spectra]:
        """Decompose and measure layers, and their twins if these are asked for."""
        with one_thread_each():  # waking others, whose number changes often here, would take longer than the sums
            finite, failures = finite_layers(plans)
        spectra, numbers = self._measured(finite)
        numbers |= failures
        found: dict[int, Parts] = {index: [numbers[index]] for index in plans}
        if self.keep_eigenvalues:
            spectra, lost = separated({index: attempted(_kept, each) for index, each in spectra.items()})
            found |= {index: [failed(error)] for index, error in lost.items()}
        if self.diagnostics.twin:
            asked = {index: plan for index, plan in finite.items() if not isinstance(found[index][0], Failed)}
            twins, lost = separated({index: attempted(self._twin, plan) for index, plan in asked.items()})
            of_twins = self._measured(twins)[1] | {index: failed(error) for index, error in lost.items()}
            found |= {index: [*found[index], of_twins[index]] for index in asked}
        return found, spectra if self.keep_eigenvalues else {}

    def _measured(self, plans: Plans) -> tuple[Spectra, _Found]:
        """Return spectra and numbers: from float32 if precise enough, else from float64, else by another routine."""
        spectra: Spectra = {}
        found: _Found = {}
        suspects: dict[int, list[float]] = {}  # errors of the eigenvalues' sums; NaN if there are no eigenvalues
        float32_may_do = self.method.forgives_rounding and not self.keep_eigenvalues
        for quick in (True, False) if float32_may_do else (False,):
            asked = {index: plan for index, plan in plans.items() if index not in found and index not in suspects}
            spectra_now, outcomes = self._pass(asked, quick=quick)
            spectra |= spectra_now
            for index, outcome in outcomes.items():
                errors = _errors_of_sums(outcome)
                if any(error > 0 for error in errors) or (errors != _PASSED and not quick and _may_recover(outcome)):
                    suspects[index] = errors
                elif not quick:
                    found[index] = failed(outcome) if isinstance(outcome, Exception) else outcome
                elif not isinstance(outcome, Exception) and _is_precise(outcome):
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
        """Return spectrum and numbers by another routine; the numbers keep ``errors``, the checks that failed first."""
        spectrum = decompose_again(plan)
        if [spectrum.sum_error.item(), spectrum.squares_error.item()] != _PASSED:
            return Failed(Failure.WRONG if any(error > 0 for error in errors) else Failure.NOT_DECOMPOSED)
        with one_thread_each():
            numbers: list[float] = measure([spectrum], [plan], self.method, self.diagnostics)[0].tolist()
        numbers[_CHECKS] = errors
        return spectrum.eigenvalues, numbers

    def _pass(self, plans: Plans, *, quick: bool) -> tuple[Spectra, dict[int, list[float] | Exception]]:
        outcome = attempted(self._by_groups, plans, quick)
        if not isinstance(outcome, Exception):
            return outcome
        if len(plans) == 1:
            return {}, dict.fromkeys(plans, outcome)
        spectra: Spectra = {}
        numbers: dict[int, list[float] | Exception] = {}
        for index, plan in plans.items():  # the error may be any layer's: try each alone
            spectra_now, numbers_now = self._pass({index: plan}, quick=quick)
            spectra |= spectra_now
            numbers |= numbers_now
        return spectra, numbers

    def _by_groups(self, plans: Plans, quick: bool) -> tuple[Spectra, dict[int, list[float] | Exception]]:
        """Decompose layers in groups, and measure each group while the next ones are decomposed."""
        spectra: Spectra = {}
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
        """Return the plan of the layer with its entries shuffled, which gives it full rank."""
        matrices = shuffle_entries(plan.weight.matrices, layer_seed(plan.weight.name, self.diagnostics.seed))
        weight = plan.weight._replace(matrices=matrices, rank=None)
        return Plan(weight, self.method.orient(matrices, weight.kind), plan.windows)

    def row(self, plan: Plan, found: Parts, eigenvalues: Tensor | None) -> LayerSpectrum:
        """Return the row of a layer."""
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


def _errors_of_sums(outcome: list[float] | Exception) -> list[float]:
    return [math.nan] * len(CHECKS) if isinstance(outcome, Exception) else outcome[_CHECKS]


def _is_precise(outcome: list[float]) -> bool:
    """Whether numbers from float32 will do."""
    return outcome[_CHECKS] == _PASSED and outcome[_ROUNDING] <= _LARGEST_ROUNDING


def _may_recover(outcome: list[float] | Exception) -> bool:
    """Whether another routine may succeed: not if memory, or anything but the decomposition, was the cause."""
    return not isinstance(outcome, Exception) or failed(outcome).failure is Failure.NOT_DECOMPOSED


def _kept(eigenvalues: Tensor) -> Tensor:
    return eigenvalues.flatten().sort().values.cpu()
