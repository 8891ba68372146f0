"""The progress bar of an analysis, which goes by what layers cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

from lightning_farms.analysis.cost import analysis_cost
from lightning_farms.analysis.method import SpectralMethod
from lightning_farms.analysis.weights.layer_weight import LayerWeight
from lightning_farms.common.progress import progress_bars, progress_is_shown


@contextmanager
def analysis_bar(
    title: str, outlines: Callable[[], Iterable[LayerWeight]], method: SpectralMethod
) -> Iterator[Callable[[int], object] | None]:
    """Show a bar on a terminal, and hand out what is to be told how many more layers are done.

    `outlines`: the weights that will be analysed, in their order, without values.
    """
    if not progress_is_shown():
        yield None
        return
    costs = [analysis_cost(weight, method) for weight in outlines()]
    with progress_bars(unit="percent", show=True) as start:
        advance, ahead = start(title, sum(costs), 0), iter(costs)
        yield lambda layers: advance(sum(islice(ahead, layers)))
