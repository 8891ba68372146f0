"""The progress bar of an analysis, which advances by the cost of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from lightning_farms.analysis.cost import analysis_cost
from lightning_farms.analysis.method import SpectralMethod
from lightning_farms.analysis.weights.layer_weight import LayerWeight
from lightning_farms.common.progress import Advance, progress_bars, progress_is_shown


@contextmanager
def analysis_bar(
    title: str, outlines: Callable[[], Iterable[LayerWeight]], method: SpectralMethod
) -> Iterator[Callable[[int], object] | None]:
    """Show a bar on a terminal, and yield a function to call with the number of layers newly done, else None.

    `outlines` yields the weights that will be analysed, in order, without values.
    """
    if not progress_is_shown():
        yield None
        return
    costs = [analysis_cost(weight, method) for weight in outlines()]
    with progress_bars(unit="percent", show=True) as start:
        yield by_cost(costs, start(title, sum(costs), 0))


def by_cost(costs: Sequence[int], advance: Advance) -> Callable[[int], None]:
    """Return a function of the number of layers newly done, which calls `advance` with their cost."""
    ahead = iter(costs)
    return lambda layers: advance(sum(islice(ahead, layers)))
