"""One analysis shared by several processes: each measures its own layers, and a sum gives all the same report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lightning_farms.analysis._engine.failures import Failed, Failure, Parts, attempted, error_text, errors_of, failed
from lightning_farms.analysis._engine.measure import NUMBERS
from lightning_farms.analysis._engine.plan import Plan, skipped_row
from lightning_farms.analysis.layer_spectrum import LayerSpectrum
from lightning_farms.analysis.ranks import Ranks, check_same_layers, owners
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.analysis.weights.layer_weight import LayerWeight
from lightning_farms.common.warning import warn_user

if TYPE_CHECKING:
    from lightning_farms.analysis._engine.analysis import Analysis, Plans, Spectra

_NOT_READ = "the weight could not be read on every rank"
_FAILURES = tuple(Failure)


def analyze_on_ranks(
    source: Callable[[bool], Iterable[LayerWeight]], analysis: Analysis, ranks: Ranks
) -> SpectralReport:
    """Share an analysis among processes; a collective.

    Every rank iterates over all weights, as gathering a sharded one is a collective, but measures only the layers it
    owns. A table of one row per layer, with zeros for the layers of other ranks, is then summed over the ranks.

    Args:
        source: called with whether values are needed; gives the weights, in the same order on all ranks.
        analysis: the settings.
        ranks: the processes.
    """
    plans = ((weight.name, analysis.plan(weight, {})) for weight in source(False))
    costs = {name: plan.cost for name, plan in plans if isinstance(plan, Plan)}
    owner = owners(costs, 1 if analysis.keep_eigenvalues else ranks.world_size)
    names: list[str] = []
    layers: list[Plan | LayerSpectrum] = []
    unplanned: dict[str, Exception] = {}

    def own() -> Iterator[tuple[int, Plan]]:
        for index, weight in enumerate(source(True)):
            plan = analysis.plan(weight, unplanned)
            names.append(weight.name)
            layers.append(plan.without_values() if isinstance(plan, Plan) else plan)
            if isinstance(plan, Plan) and owner.get(weight.name, 0) == ranks.rank:
                yield index, plan

    found: dict[int, Parts] = {}
    spectra: Spectra = {}
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
        raise next(iter(unplanned.values()))
    _warn_of([*failures, *unplanned.values()])  # not before: where it raises, other ranks would wait
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
        warn_user(f"The analysis failed on this rank: {text}")


def _attempted(analysis: Analysis, chunk: Plans, failures: list[Exception]) -> tuple[dict[int, Parts], Spectra]:
    """Analyse layers without raising, as the other ranks would wait: they learn of the failure from the sum."""
    outcome = attempted(analysis.found, chunk)
    if isinstance(outcome, Exception):
        failures.append(outcome)
        return {index: [failed(outcome)] for index in chunk}, {}
    failures.extend(error for _, error in errors_of(outcome[0]))
    return outcome


def _as_numbers(found: Parts) -> list[float]:
    """Return a layer's row of the table: the kind of failure (0 for none) and the numbers, of it and of its twin."""
    parts = [*found, Failed(Failure.FAILED)][:2]
    return [number for part in parts for number in _part_as_numbers(part)]


def _part_as_numbers(found: list[float] | Failed) -> list[float]:
    if isinstance(found, Failed):
        return [_FAILURES.index(found.failure) + 1.0, *[math.nan] * len(NUMBERS)]
    return [0.0, *found]


def _from_numbers(shared: list[float], twin: bool) -> Parts:
    half = len(shared) // 2
    parts = [shared[:half], shared[half:]] if twin else [shared[:half]]
    return [Failed(_FAILURES[int(failure) - 1]) if failure else known for failure, *known in parts]
