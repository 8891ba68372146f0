"""Coordinates of a file: which it has, whether they can be right, and what is odd about them."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_farms.data.fields._values import Array

_UNEVEN = 1e-3  # of a time step
_SAME_STEP = 1e-3  # relative


class Grid(NamedTuple):
    """Coordinates of a file's values, None if unknown or impossible, and remarks on what is odd about them."""

    x: Tensor | None
    y: Tensor | None
    t: Tensor | None
    remarks: tuple[str, ...]


def checked_grid(
    found: Mapping[str, Array | None],
    sizes: Mapping[str, int],
    path: Path,
    *,
    own: Collection[str] = (),
    left_out: Collection[int] = (),
) -> Grid:
    """Return coordinates that fit the fields; raise an error if they show that the fields' axes are in another order.

    `own` names the coordinates with a row for each trajectory, such as a table of times; the rows of trajectories that
    are left out do not count.
    """
    own = {"t", *own}
    kept = [number for number in range(sizes["b"]) if number not in left_out]
    found = {name: _kept(values, sizes["b"], kept) if name in own else values for name, values in found.items()}
    lines = {name: _line(values, either_way=name not in own) for name, values in found.items()}
    _check_order(lines, sizes, path)
    remarks, usable = [], {}
    for name, values in lines.items():
        given = found[name]
        fault, unlike = _fault(name, values, sizes[name]) if values is not None else "", ""
        if values is None and given is not None and given.size:
            fault = "differs between trajectories" if name in own else "varies along two dimensions"
            unlike = _unlike_rows(name, given, kept, sizes[name]) if name in own else ""
        usable[name] = None if fault or values is None else torch.from_numpy(values.astype(np.float32))
        if fault:
            remarks.append(f"the {name}-coordinate {fault}, and is not used{unlike and '; '}{unlike}")
        elif values is None:
            continue
        elif name == "t" and _uneven(values[: sizes["t"]]):
            steps = np.diff(values[: sizes["t"]])
            remarks.append(
                f"the frames are not equally spaced in time, but {steps.min():.4g} to {steps.max():.4g} apart"
            )
        elif name != "t" and _uneven(values):
            remarks.append(
                f"the cells are not equally spaced along {name}, but errors, totals and Fourier modes weigh all alike"
            )
    if _may_be_turned(lines, sizes):
        remarks.append(
            f"the fields have {sizes['t']} frames of {sizes['x']} x {sizes['y']} cells and no coordinates, so that "
            "their axes may be in another order (then give `axes`, such as 'bxyt')"
        )
    return Grid(usable["x"], usable["y"], usable["t"], tuple(remarks))


def time_step(t: Tensor | None, frames: int, stride: int = 1) -> float | None:
    """Return the mean time from frame to frame; None if it is unknown.

    Example:
        >>> time_step(torch.tensor([0.0, 0.5, 1.0, 1.5]), frames=3)
        0.5
    """
    if t is None or frames < 2:
        return None
    return float(t[frames - 1] - t[0]) / (frames - 1) * stride


def unlike_steps(axis: str, first: tuple[str, float | None], other: tuple[str, float | None]) -> str:
    """Describe the difference of two flows' time steps or cell widths, each given with the flow's name.

    The text is empty if they agree or if one is unknown.

    Example:
        >>> unlike_steps("t", ("a", 0.5), ("b", 0.5001)), unlike_steps("t", ("a", 0.5), ("b", 0.25))[:54]
        ('', 'b has a time step of 0.25, but a of 0.5, and a network')
    """
    (first_name, expected), (name, step) = first, other
    if step is None or expected is None or abs(step - expected) <= _SAME_STEP * abs(expected):
        return ""
    return (
        f"{name} has {'a time step' if axis == 't' else f'cells along {axis}'} of {step:.4g}, but {first_name} of "
        f"{expected:.4g}, and a network that is trained on both learns neither. Leave out the flows of one step, or "
        "resample them"
    )


def spacing(values: Tensor | None) -> float | None:
    """Return the mean distance of cells, below 0 if the coordinates descend; None if it is unknown."""
    return None if values is None or len(values) < 2 else float(values[-1] - values[0]) / (len(values) - 1)


def _line(values: Array | None, *, either_way: bool) -> Array | None:
    """Return a coordinate as one line: of a table, the common row or, `either_way`, column; None if there is none."""
    if values is None or values.size in values.shape:  # a single row, or column
        return None if values is None else values.ravel()
    for rows in (values, values.T) if either_way else (values,):
        largest = np.abs(np.diff(rows[0])).max(initial=0)  # of steps, not values: steps may be nanoseconds
        if np.allclose(rows, rows[:1], rtol=0, atol=_UNEVEN * largest, equal_nan=True):
            row: Array = rows[0]
            return row
    return None


def _kept(values: Array | None, trajectories: int, kept: Sequence[int]) -> Array | None:
    """Return the rows of some trajectories if the values are a table with a row for each trajectory."""
    return values[kept] if kept and values is not None and values.ndim == 2 and len(values) == trajectories else values


def _unlike_rows(axis: str, rows: Array, numbers: Sequence[int], count: int) -> str:
    """Describe the first trajectory whose time step or cell width differs from that of the first known one."""
    if rows.ndim != 2 or rows.shape[1] < count or len(rows) != len(numbers):
        return ""
    known = [(number, row) for number, row in zip(numbers, rows, strict=True) if np.isfinite(row).all()]
    steps = [(f"trajectory {number}", time_step(torch.from_numpy(row), count)) for number, row in known]
    return next(filter(None, (unlike_steps(axis, steps[0], step) for step in steps)), "")


def _fault(name: str, values: Array, cells: int) -> str:
    kind = "frames" if name == "t" else "cells"
    if not np.isfinite(values).all():
        return "has values that are not finite"
    if not _fits(values, cells):
        return f"has {len(values)} entries for {cells} {kind}"
    steps = np.diff(values)
    if not ((steps > 0).all() or (name != "t" and (steps < 0).all())):
        return "does not increase"
    lost = np.abs(np.diff(values.astype(np.float32).astype(np.float64)) - steps)
    if len(steps) and lost.max() > _UNEVEN * np.abs(steps).max():
        return f"has steps of {np.abs(steps).max():.4g} at {values[-1]:.4g}, which float32 does not tell apart"
    return ""


def _fits(values: Array, cells: int) -> bool:
    """Whether there is an entry for each cell, or one more, as in PDEBench's times and in edges of cells."""
    return len(values) in (cells, cells + 1)


def _uneven(values: Array) -> bool:
    steps = np.abs(np.diff(values))
    return len(steps) > 0 and float(steps.max() - steps.min()) > _UNEVEN * float(steps.max())


def _may_be_turned(lines: Mapping[str, Array | None], sizes: Mapping[str, int]) -> bool:
    """Whether a side of a square grid may have been taken for time, without any coordinates to tell."""
    told = any(lines.get(name) is not None for name in "txy")
    return not told and sizes["x"] != sizes["y"] and sizes["t"] in (sizes["x"], sizes["y"])


def _check_order(lines: Mapping[str, Array | None], sizes: Mapping[str, int], path: Path) -> None:
    lengths = {name: len(values) for name, values in lines.items() if values is not None}
    for name in "xy":
        values = lines[name]
        others = [other for other in "txy" if other != name and values is not None and _fits(values, sizes[other])]
        if values is not None and not _fits(values, sizes[name]) and others:
            raise ValueError(
                f"Expected the axes of the fields of {path} to be as long as its coordinates, {lengths}, but they are "
                f"{ {axis: sizes[axis] for axis in 'txy'} }: the fields' axes may be in another order. Give `fields` "
                "and `axes`, such as 'bxyt'."
            )
