"""Why a layer has no numbers, and how the failure of one layer is kept from the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import NamedTuple, ParamSpec, TypeVar

import torch

from lightning_farms.functional.eigensolvers import DecompositionError

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_Value = TypeVar("_Value")

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


class Failure(Enum):
    """Why a planned layer has no numbers; the table that ranks exchange holds its position here, counted from 1."""

    NOT_FINITE = "the weights are not all finite"
    NOT_DECOMPOSED = "the eigenvalue decomposition failed"
    WRONG = "the eigenvalues failed a check, also when they were computed again in float64 on the CPU"
    OUT_OF_MEMORY = "out of memory; try a smaller window or workspace, or fewer draws of the diagnostics"
    SQUARES = (
        "float64 does not hold the squares of the weights; multiply them by a power of two, which leaves alpha as it is"
    )
    FAILED = "the analysis failed on another process, whose warning says why"


class Failed(NamedTuple):
    """A layer without numbers; a failure that has no kind of its own is described by its error, if that is known."""

    failure: Failure
    error: Exception | None = None

    @property
    def reason(self) -> str:
        """The reason that the layer's row gives."""
        if self.failure is Failure.FAILED and self.error is not None:
            return f"the analysis failed: {error_text(self.error)}"
        return self.failure.value


Parts = list[list[float] | Failed]
"""Numbers of a layer, and of its twin if that was asked for, or why there are none."""


def errors_of(found: Mapping[int, Parts]) -> Iterator[tuple[int, Exception]]:
    """Yield (index, error) for every layer that failed because of an error."""
    for index, parts in found.items():
        for part in parts:
            if isinstance(part, Failed) and part.error is not None:
                yield index, part.error


def failed(error: Exception) -> Failed:
    """Return the failure that an error stands for."""
    if isinstance(error, DecompositionError):
        return Failed(Failure.NOT_DECOMPOSED)
    return Failed(Failure.OUT_OF_MEMORY if is_out_of_memory(error) else Failure.FAILED, error)


def attempted(
    function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Result | Exception:
    """Return a function's result, or its exception without the frames, which would keep their tensors in memory."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        error.__traceback__ = error.__context__ = error.__cause__ = None
        return error


def separated(outcomes: Mapping[int, _Value | Exception]) -> tuple[dict[int, _Value], dict[int, Exception]]:
    """Separate results from exceptions."""
    values = {index: each for index, each in outcomes.items() if not isinstance(each, Exception)}
    return values, {index: each for index, each in outcomes.items() if isinstance(each, Exception)}


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was lacking; only for texts, as allocators raise several types, the CPU's a RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def error_text(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}".rstrip(": ")


def not_computed(error: Exception) -> str:
    """Return the reason for a weight that could not be read from its module."""
    if is_out_of_memory(error):
        return "out of memory when the weight was computed or gathered; leave it out, or use smaller shards"
    return f"the weight could not be computed: {error_text(error)}"
