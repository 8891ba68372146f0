"""Where the channels of an HDF5 file are: which dataset, which of its components, and the order of its axes."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

_SOURCE = re.compile(r"(?P<dataset>[^\[\]]*[^\[\]/\s])(?:\[(?P<component>\d+(?:\s*,\s*\d+)*)\])?")

_TAKEN = ("state", "trajectory", "source-file", "x-coordinate", "y-coordinate", "t-coordinate", ".", "..", "")
"""Names that a file of predictions uses for its other datasets, or that mean something else to HDF5."""

Sizes = Mapping[str, int]
"""{axis, one of b, t, x and y: its length}"""


class FieldSource(NamedTuple):
    """Where the values of one channel are.

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


class Varying(NamedTuple):
    """What a dataset of The Well says it varies with; it may lack an axis that it does not vary with.

    Args:
        sample: whether it varies from trajectory to trajectory.
        time: whether it varies from frame to frame.
        space: whether it varies along x and along y; neither for a number without a place.
    """

    sample: bool
    time: bool
    space: tuple[bool, bool]


def check_channel_names(names: Iterable[str]) -> None:
    """Refuse names of channels that cannot be names of datasets in a file of predictions."""
    bad = [name for name in names if name in _TAKEN or "/" in name]
    if bad:
        raise ValueError(
            f"Expected the names of the channels to be names of datasets, without '/' and other than "
            f"{', '.join(_TAKEN[:-1])}, which a file of predictions has besides, but got {', '.join(map(repr, bad))}. "
            "Call such channels otherwise in `fields`."
        )


class FieldLayout:
    """The channels of a file and the datasets that hold them, whose axes may have any order.

    A dataset has the axes trajectory (b), frame (t), x and y. If components are picked, it also has an axis for each of
    their numbers, in the place of the "c" in `axes`, or else last. Without a "b" in `axes`, a file is one trajectory. A
    dataset that does not vary along an axis may lack it: its values are then repeated along that axis.

    Example:
        >>> layout = FieldLayout({"u": "velocity[0]", "v": "velocity[1]", "p": "pressure"})
        >>> layout.channels, layout.datasets, layout.sizes("velocity", (5, 21, 32, 32, 2))
        (('u', 'v', 'p'), ('velocity', 'pressure'), {'b': 5, 't': 21, 'x': 32, 'y': 32})
    """

    def __init__(self, fields: Mapping[str, str], axes: str = "btxy") -> None:
        if not isinstance(fields, Mapping) or not fields:
            raise ValueError(
                f"Expected argument `fields` to map at least one channel to a dataset, but got {fields!r}."
            )
        if sorted(axes.replace("c", "", 1).replace("b", "", 1)) != list("txy"):
            raise ValueError(
                "Expected argument `axes` to have each of the letters t, x, y once and b (trajectory) and c "
                f"(component) at most once, but got {axes!r}."
            )
        check_channel_names(fields)
        self.axes, self.fields = axes, dict(fields)
        self.channels = tuple(fields)
        self._components: dict[str, dict[int, tuple[int, ...]]] = {}
        for channel, text in enumerate(fields.values()):
            source = parse_field(text)
            if source.dataset.count("*") > 1:
                raise ValueError(
                    f"Expected argument `fields` to have one * at most, which stands for the trajectories, but got "
                    f"{text!r}."
                )
            chosen = self._components.setdefault(source.dataset, {})
            if source.component in chosen.values():
                raise ValueError(f"Expected argument `fields` to name each source once, but {text!r} stands twice.")
            chosen[channel] = source.component

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets' names, each once, in the order of the channels."""
        return tuple(self._components)

    def channels_of(self, dataset: str) -> dict[int, tuple[int, ...]]:
        """Return {number of the channel: its component} for the channels of a dataset."""
        return self._components[dataset]

    def letters(self, dataset: str) -> str:
        """Return all axes that a dataset may have, in order; b comes first if each trajectory has its own dataset."""
        components = len(next(iter(self._components[dataset].values())))
        axes = self.axes if "c" in self.axes else self.axes + "c"
        axes = f"b{axes.replace('b', '')}" if "*" in dataset else axes
        return axes.replace("c", "c" * components)

    def sizes(self, dataset: str, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the lengths of a dataset's axes; refuse one that lacks axes or does not suit its channels."""
        letters = self.letters(dataset)
        extents = [size for size, letter in zip(shape, letters, strict=False) if letter == "c"]
        for component in self._components[dataset].values():
            if len(component) != letters.count("c"):
                raise ValueError(
                    f"Expected argument `fields` to give dataset `{dataset}` one number of components, but got "
                    f"{list(self._components[dataset].values())}."
                )
            if len(shape) != len(letters) or any(i >= n for i, n in zip(component, extents, strict=True)):
                raise ValueError(self._misfit(dataset, shape, component, letters))
        found = {letter: size for size, letter in zip(shape, letters, strict=True) if letter != "c"}
        return {"b": 1, **found}

    def axes_of(self, dataset: str, shape: tuple[int, ...], varying: Varying | None, sizes: Sizes) -> str:
        """Return the axes of a dataset that may lack some of them, such that its shape fits the sizes.

        Example:
            >>> layout = FieldLayout({"u": "u", "force": "force"})
            >>> layout.axes_of("force", (5, 32, 32), None, {"b": 5, "t": 21, "x": 32, "y": 32})
            'bxy'
        """
        letters = self.letters(dataset)
        fitting: dict[tuple[str, ...], str] = {}
        for left_out in _candidates(letters, varying):
            kept = "".join(letter for letter in letters if letter not in left_out)
            if self._fits(dataset, shape, kept, varying, sizes):
                fitting[left_out] = kept
        if varying is None and {("b",), ("t",)} <= set(fitting):
            raise ValueError(
                f"Expected dataset `{dataset}` to have all of the axes ({', '.join(letters.upper())}), but it is of "
                f"shape {shape}, and as there are as many trajectories as frames, it may be that each trajectory or "
                "each frame has its own. Give it the attributes `sample_varying` and `time_varying` of The Well."
            )
        if varying is None:
            fitting.pop(("b",), None)
        if not fitting:
            raise ValueError(self._misfit(dataset, shape, next(iter(self._components[dataset].values())), letters))
        return next(iter(fitting.values()))

    def _fits(self, dataset: str, shape: tuple[int, ...], letters: str, varying: Varying | None, sizes: Sizes) -> bool:
        if len(shape) != len(letters):
            return False
        extents = [size for size, letter in zip(shape, letters, strict=True) if letter == "c"]
        components = self._components[dataset].values()
        if any(len(component) != len(extents) for component in components):
            return False
        if not all(i < n for component in components for i, n in zip(component, extents, strict=True)):
            return False
        single = () if varying is None else _constant(varying)
        return all(
            size == sizes[letter] or (size == 1 and letter in single)
            for size, letter in zip(shape, letters, strict=True)
            if letter != "c"
        )

    def _misfit(self, dataset: str, shape: tuple[int, ...], component: tuple[int, ...], letters: str) -> str:
        message = (
            f"Expected dataset `{dataset}` to have the axes ({', '.join(letters.upper())})"
            f"{f' with component {list(component)}' if component else ''}, but it is of shape {shape}."
        )
        more = len(shape) - len(letters)
        if more > 0:
            place = ", ".join(["0"] * (more + letters.count("c")))
            message += f" Name one of its components, such as '{dataset}[{place}]'."
        elif more == -1 and "b" in self.axes:
            message += f" If the file is one trajectory, give `fields`, and `axes` '{self.axes.replace('b', '')}'."
        return message


@dataclass(frozen=True)
class DatasetAxes:
    """The axes that one dataset actually has.

    Args:
        letters: letters of its axes, in order.
        shape: lengths of its axes.
    """

    letters: str
    shape: tuple[int, ...]

    @property
    def trajectory_axis(self) -> int | None:
        """Position of the trajectory axis; None if all trajectories have the same values, or the file is one."""
        return self.letters.index("b") if "b" in self.letters else None

    def varies_in_time(self, frames: int) -> bool:
        """Whether each of `frames` frames has values of its own."""
        return "t" in self.letters and self.shape[self.letters.index("t")] == frames

    def index(self, trajectory: int, frames: slice) -> tuple[int | slice, ...]:
        """Return an index to read the dataset with; all its components are read together."""
        chosen: dict[str, int | slice] = {"b": trajectory, "t": frames}
        single: dict[str, int | slice] = {"b": 0, "t": slice(None)}
        return tuple(
            (single if size == 1 else chosen).get(letter, slice(None))
            for letter, size in zip(self.letters, self.shape, strict=True)
        )

    def fields(
        self, read: np.ndarray[Any, Any], components: Mapping[int, tuple[int, ...]], size: tuple[int, int, int]
    ) -> dict[int, np.ndarray[Any, Any]]:
        """Return {number of the channel: view (T, X, Y)} of what was read by `index`, repeated along missing axes."""
        letters = self.letters.replace("b", "")
        left = letters.replace("c", "")
        order = [left.index(letter) for letter in "txy" if letter in left]
        missing = [place for place, letter in enumerate("txy") if letter not in left]
        before = (slice(None),) * max(letters.find("c"), 0)
        return {
            channel: np.broadcast_to(np.expand_dims(read[before + component].transpose(order), missing), size)
            for channel, component in components.items()
        }


def _candidates(letters: str, varying: Varying | None) -> Iterator[tuple[str, ...]]:
    """Yield the combinations of axes that may be missing, the shortest first."""
    may = [letter for letter in ("bt" if varying is None else _constant(varying)) if letter in letters]
    for number in range(len(may) + 1):
        yield from combinations(may, number)


def _constant(varying: Varying) -> list[str]:
    flags = zip("btxy", (varying.sample, varying.time, *varying.space), strict=True)
    return [letter for letter, varies in flags if not varies]
