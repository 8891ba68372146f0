"""Checks of the flow data module's arguments, and one form for those that have several."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_farms.common.arguments import check_at_least
from lightning_farms.data.fields._layout import FieldLayout


def check_fields(path: object, fields: Mapping[str, str] | None, axes: str) -> None:
    """Refuse names of datasets that cannot be read, or that belong to no file.

    Args:
        path: the file or files; None for a simulated set.
        fields: {channel: dataset}, or None for PDEBench's.
        axes: order of the datasets' axes.

    Raises:
        ValueError: for a field that is not named as `parse_field` reads it, for fields without a file, or for axes
            without fields.
    """
    if fields is not None:
        FieldLayout(fields, axes)
    if path is None and fields is not None:
        raise ValueError("Expected argument `path` to name a file when `fields` is given, but got None.")
    if fields is None and axes != "btxy":
        raise ValueError(f"Expected argument `axes` to be 'btxy' when `fields` is left out, but got {axes!r}.")


def file_paths(path: str | Path | Sequence[str | Path] | None) -> Path | list[Path] | None:
    """One path, or several.

    Args:
        path: a file, several, or None.

    Returns:
        The same as paths.

    Raises:
        ValueError: for no file in a list, or one that is there twice.
    """
    if path is None or isinstance(path, (str, Path)):
        return None if path is None else Path(path)
    paths = [Path(each) for each in path]
    if not paths or len({each.absolute() for each in paths}) < len(paths):
        raise ValueError(
            f"Expected argument `path` to name at least one file, each once, but got {list(map(str, paths))}."
        )
    return paths


def file_strides(stride: int | Sequence[int], path: Path | list[Path] | None) -> list[int]:
    """One stride for each file.

    Args:
        stride: one for all files, at least 1, or one for each.
        path: the file or files; None for a simulated set.

    Returns:
        As many strides as files.

    Raises:
        ValueError: for another number of strides, or one below 1.
    """
    files = len(path) if isinstance(path, list) else 1
    strides = [stride] * files if isinstance(stride, int) else list(stride)
    if len(strides) != files:
        raise ValueError(
            f"Expected argument `stride` to be one number, or one for each of the {files} files, but got {stride}."
        )
    for each in strides:
        check_at_least(1, stride=each)
    return strides
