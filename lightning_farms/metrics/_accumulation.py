"""The base class of all field errors: sums or maxima per frame and channel, exact under any batching."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_farms.metrics._fields import Per, accumulation_dtype, average, check_fields, check_per

if TYPE_CHECKING:
    from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE


class FieldMetric(Metric):
    """An error of fields that follows from the sum or the maximum, over all samples, of a statistic of each sample.

    Batches, processes and `forward` only accumulate that statistic, per frame and channel; roots and means over
    channels and frames come last. The result is thus the function's on all samples at once, however they were divided.
    A process that saw no sample takes part with zeros. Sums are float64, or float32 on devices that lack it (MPS).
    """

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0
    reduction: ClassVar[Literal["sum", "max"]] = "sum"

    count: Tensor

    def __init__(self, per: Per | None, settings: str = "") -> None:
        super().__init__(dist_sync_fn=_gather)
        check_per(per)
        self.per = per
        # collections compare states by name and value: two errors whose values are equal by chance must not share one
        # state, so its name holds the class and whatever settings the statistic depends on
        self._total = re.sub(r"\W", "_", f"{self.reduction}_{type(self).__name__}_{settings}")
        self.add_state(self._total, default=torch.zeros(()), dist_reduce_fx=self.reduction)
        self.add_state("count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def total(self) -> Tensor:
        """The sum or maximum so far, (..., frames, channels); a scalar zero before the first batch."""
        total: Tensor = getattr(self, self._total)
        return total

    @abstractmethod
    def _per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the statistic of each sample, (batch, ..., frames, channels)."""

    def _error(self, statistic: Tensor) -> Tensor:
        """Return the error of each frame and channel, given the statistic's mean (or maximum) over the samples."""
        return statistic

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch of fields.

        Args:
            prediction: Predicted fields, (batch, X, Y, frames, channels).
            target: True fields, the same shape.

        Raises:
            ValueError: If the shapes differ, or if the numbers of frames or channels are not those of earlier batches.
            TypeError: If an argument is not a real floating-point tensor.
        """
        check_fields(prediction, target)
        statistic = self._per_sample(prediction, target).to(accumulation_dtype(target.device))
        _check_same_shape(self.total.shape, statistic.shape[1:])
        if self.reduction == "sum":
            total = self.total + statistic.sum(0)
        else:
            total = torch.maximum(self.total, statistic.amax(0))
        setattr(self, self._total, total)
        self.count = self.count + len(target)

    def compute(self) -> Tensor:
        """Return the error over all samples added since the last reset.

        Returns:
            The error in float32, of the shape that ``per`` asks for; torchmetrics turns a single number into a scalar.

        Raises:
            ValueError: If no batch was added.
        """
        if self.count == 0:
            raise ValueError("Expected at least one sample before `compute`, but got none. Call `update` first.")
        statistic = self.total / self.count if self.reduction == "sum" else self.total
        return average(self._error(statistic), self.per).float()

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Draw the error, or a series of errors, as all metrics of torchmetrics do.

        Args:
            val: What `compute` or `forward` returned, or a list of it, e.g. of every epoch; None calls `compute`.
            ax: Axes to draw into; None makes a figure.

        Returns:
            The figure and its axes.

        Raises:
            ValueError: If `compute` is called and no batch was added, or if errors have more than one dimension.
        """
        values = self.compute() if val is None else val
        rows = [values] if isinstance(values, Tensor) else values
        ndim = max((torch.as_tensor(row).ndim for row in rows), default=0)
        if ndim > 1:
            raise ValueError(
                f"Expected single errors or rows of them, which torchmetrics can draw, but got {ndim} dimensions. "
                "Draw errors by frame and channel with lightning_farms.plotting.error_curves_figure, others slice by "
                "slice (`val=`)."
            )
        return self._plot(values, ax)

    def _reduce_states(self, incoming_state: Mapping[str, Any]) -> None:
        """Merge two states, after a check that their shapes match, as torch would broadcast them."""
        _check_same_shape(incoming_state[self._total].shape, self.total.shape)
        super()._reduce_states(dict(incoming_state))


def _check_same_shape(earlier: torch.Size, later: torch.Size) -> None:
    if earlier and later and earlier != later:
        raise ValueError(
            "Expected all batches to have equal numbers of frames and channels (and Fourier bins), but got "
            f"{tuple(later)} after {tuple(earlier)}. Use a metric of its own for each, or call `reset` between."
        )


def _gather(state: Tensor, group: Any) -> list[Tensor]:  # noqa: ANN401
    """Gather the states of all processes in one shape and dtype, even if a process has seen no sample."""
    shapes: list[tuple[int, ...]] = [()] * dist.get_world_size(group)
    dist.all_gather_object(shapes, tuple(state.shape), group=group)
    shape = max(shapes, key=len)
    for other in shapes:
        _check_same_shape(torch.Size(shape), torch.Size(other))
    if state.is_floating_point():
        state = state.to(accumulation_dtype(state.device))
    return gather_all_tensors(state.expand(shape), group)
