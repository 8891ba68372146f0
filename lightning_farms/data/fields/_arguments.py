"""Checks of the flow data module's arguments, and conversion of those that can be given in several forms."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_farms.common.arguments import check_at_least
from lightning_farms.data.fields._layout import FieldLayout


def check_fields(path: object, fields: Mapping[str, str] | None, axes: str) -> None:
    """Refuse dataset names that cannot be parsed, `fields` without a `path`, and `axes` without `fields`."""
    if fields is not None:
        FieldLayout(fields, axes)
    if path is None and fields is not None:
        raise ValueError("Expected argument `path` to name a file when `fields` is given, but got None.")
    if fields is None and axes != "btxy":
        raise ValueError(f"Expected argument `axes` to be 'btxy' when `fields` is left out, but got {axes!r}.")


def skipped(skip: Sequence[int] | Mapping[str, Sequence[int]] | None, paths: Sequence[Path]) -> dict[Path, set[int]]:
    """Return {file: numbers of the trajectories to leave out}; a list is allowed for a single file only."""
    if not skip:
        return {}
    if not isinstance(skip, Mapping):
        if len(paths) != 1:
            raise ValueError(
                f"Expected argument `skip` to name the file of each list of flows, where there are {len(paths)} files, "
                f"but got {skip}. Give a mapping such as {{{paths[0].name}: [3]}}."
            )
        skip = {str(paths[0]): skip}
    found: dict[Path, set[int]] = {}
    for name, numbers in skip.items():
        matching = [path for path in paths if name in (str(path), path.name)]
        if not matching or any(number < 0 for number in numbers):
            raise ValueError(
                f"Expected argument `skip` to map names of {[path.name for path in paths]} to numbers of trajectories, "
                f"but got {name!r}: {list(numbers)}."
            )
        found |= {path: set(numbers) for path in matching}
    return found


Paths = Path | list[Path] | None


def check_extra_paths(path: Paths, strides: Sequence[int], val: Paths, test: Paths, val_fraction: float) -> None:
    """Refuse validation or test files that are given without training files, or that are among these."""
    for name, extra in (("val_path", val), ("test_path", test)):
        if extra is None:
            continue
        if path is None or len(set(strides)) > 1:
            raise ValueError(
                f"Expected argument `path` to name files, of one `stride`, when `{name}` is given, but got {path} and "
                f"{list(strides)}."
            )
        own = {os.path.realpath(each) for each in (path if isinstance(path, list) else [path])}
        both = [each for each in (extra if isinstance(extra, list) else [extra]) if os.path.realpath(each) in own]
        if both:
            raise ValueError(
                f"Expected argument `{name}` to name other files than `path`, which are trained on, but got {both[0]}."
            )
    if val is not None and val_fraction > 0:
        raise ValueError(f"Expected argument `val_fraction` to be 0 when `val_path` is given, but got {val_fraction}.")


def source_of(purpose: str, val: Paths, test: Paths, val_fraction: float) -> str:
    """Return which files a purpose reads: those for "train", "val" or "test"."""
    if purpose == "val" and val is not None:
        return "val"
    tests = purpose in ("test", "predict") or (purpose == "val" and val_fraction == 0)
    return "test" if tests and test is not None else "train"


def without(parts: Sequence[Sequence[int]], left_out: Sequence[set[int]]) -> list[Sequence[int]]:
    """Return the numbers of each file that are not left out."""
    return [
        [number for number in numbers if number not in skip] if skip else numbers
        for numbers, skip in zip(parts, left_out, strict=True)
    ]


def file_strides(stride: int | Sequence[int], path: Path | list[Path] | None) -> list[int]:
    """Return a stride for each file, each at least 1."""
    files = len(path) if isinstance(path, list) else 1
    strides = [stride] * files if isinstance(stride, int) else list(stride)
    if len(strides) != files:
        raise ValueError(
            f"Expected argument `stride` to be one number, or one for each of the {files} files, but got {stride}."
        )
    for each in strides:
        check_at_least(1, stride=each)
    return strides
