"""Where the channels of an HDF5 file are: which dataset, which of its components, and the order of its axes."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

_SOURCE = re.compile(r"(?P<dataset>[^\[\]]*[^\[\]/\s])(?:\[(?P<component>\d+(?:\s*,\s*\d+)*)\])?")


class FieldSource(NamedTuple):
    """Where one channel is.

    Args:
        dataset: the dataset's name, with its groups.
        component: place along the component axes, empty for a scalar dataset.
    """

    dataset: str
    component: tuple[int, ...] = ()


def parse_field(text: str) -> FieldSource:
    """Read the name of a dataset, or of one component of it.

    Example:
        >>> parse_field("t1_fields/velocity[0]")
        FieldSource(dataset='t1_fields/velocity', component=(0,))
    """
    match = _SOURCE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(
            "Expected argument `fields` to name datasets such as 't0_fields/density', or components of them such as "
            f"'t1_fields/velocity[0]', but got {text!r}."
        )
    component = match["component"]
    return FieldSource(match["dataset"], tuple(map(int, component.split(","))) if component else ())


class FieldLayout:
    """The channels of a file by their datasets, whose axes may have any order.

    A dataset has the axes trajectory (b), frame (t), x and y, and, where components are picked, one axis for each of
    their numbers: where `axes` has a "c", else last.

    Example:
        >>> layout = FieldLayout({"u": "velocity[0]", "v": "velocity[1]", "p": "pressure"})
        >>> layout.channels, layout.datasets, layout.sizes("velocity", (5, 21, 32, 32, 2))
        (('u', 'v', 'p'), ('velocity', 'pressure'), (5, 21, 32, 32))
    """

    def __init__(self, fields: Mapping[str, str], axes: str = "btxy") -> None:
        if not isinstance(fields, Mapping) or not fields:
            raise ValueError(
                f"Expected argument `fields` to map at least one channel to a dataset, but got {fields!r}."
            )
        if sorted(axes.replace("c", "", 1)) != list("btxy"):
            raise ValueError(
                "Expected argument `axes` to have each of the letters b (trajectory), t, x, y once and c (component) "
                f"at most once, but got {axes!r}."
            )
        self.axes = axes
        self.channels = tuple(fields)
        self._components: dict[str, dict[int, tuple[int, ...]]] = {}
        for channel, text in enumerate(fields.values()):
            source = parse_field(text)
            self._components.setdefault(source.dataset, {})[channel] = source.component

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets' names, each once, in the order of the channels."""
        return tuple(self._components)

    def sizes(self, dataset: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(B, T, X, Y) of a dataset of a shape that suits its channels."""
        for component in self._components[dataset].values():
            letters = self._letters(len(component))
            extents = [size for size, letter in zip(shape, letters, strict=False) if letter == "c"]
            if len(shape) != len(letters) or any(i >= n for i, n in zip(component, extents, strict=True)):
                raise ValueError(self._misfit(dataset, shape, component, letters))
        return tuple(shape[letters.index(letter)] for letter in "btxy")

    def trajectory_axis(self, dataset: str) -> int:
        """Place of the axis of trajectories in a dataset's shape."""
        return self._letters(self._rank(dataset)).index("b")

    def index(self, dataset: str, trajectory: int, frames: slice) -> tuple[int | slice, ...]:
        """An index to read a dataset with; its components are read together."""
        letters = self._letters(self._rank(dataset))
        chosen: dict[str, int | slice] = {"b": trajectory, "t": frames}
        return tuple(chosen.get(letter, slice(None)) for letter in letters)

    def channel_fields(self, dataset: str, read: np.ndarray[Any, Any]) -> dict[int, np.ndarray[Any, Any]]:
        """{number of the channel: view of shape (T, X, Y)} in what `index` led to."""
        letters = self._letters(self._rank(dataset)).replace("b", "")
        left = letters.replace("c", "")
        order = [left.index(letter) for letter in "txy"]
        first = letters.find("c")
        before = (slice(None),) * max(first, 0)
        return {
            channel: read[before + component].transpose(order)
            for channel, component in self._components[dataset].items()
        }

    def _rank(self, dataset: str) -> int:
        """Number of the component axes."""
        return len(next(iter(self._components[dataset].values())))

    def _letters(self, components: int) -> str:
        axes = self.axes if "c" in self.axes else self.axes + "c"
        return axes.replace("c", "c" * components)

    def _misfit(self, dataset: str, shape: tuple[int, ...], component: tuple[int, ...], letters: str) -> str:
        message = (
            f"Expected dataset `{dataset}` to have the axes ({', '.join(letters.upper())})"
            f"{f' with component {list(component)}' if component else ''}, but it is of shape {shape}."
        )
        if len(shape) > len(letters):
            message += f" Name one of its components, such as '{dataset}[0]'."
        return message
