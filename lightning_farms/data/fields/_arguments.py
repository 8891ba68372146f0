"""Checks of the flow data module's arguments, and one form for those that have several."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_farms.common.arguments import check_at_least
from lightning_farms.data.fields._layout import FieldLayout


def check_fields(path: object, fields: Mapping[str, str] | None, axes: str) -> None:
    """Refuse names of datasets that cannot be read, or that belong to no file."""
    if fields is not None:
        FieldLayout(fields, axes)
    if path is None and fields is not None:
        raise ValueError("Expected argument `path` to name a file when `fields` is given, but got None.")
    if fields is None and axes != "btxy":
        raise ValueError(f"Expected argument `axes` to be 'btxy' when `fields` is left out, but got {axes!r}.")


def file_paths(path: str | Path | Sequence[str | Path] | None) -> Path | list[Path] | None:
    """The same as paths; refuse a list without any, or with one twice."""
    if path is None or isinstance(path, (str, Path)):
        return None if path is None else Path(path)
    paths = [Path(each) for each in path]
    if not paths or len({each.absolute() for each in paths}) < len(paths):
        raise ValueError(
            f"Expected argument `path` to name at least one file, each once, but got {list(map(str, paths))}."
        )
    return paths


def file_strides(stride: int | Sequence[int], path: Path | list[Path] | None) -> list[int]:
    """As many strides as files, each at least 1."""
    files = len(path) if isinstance(path, list) else 1
    strides = [stride] * files if isinstance(stride, int) else list(stride)
    if len(strides) != files:
        raise ValueError(
            f"Expected argument `stride` to be one number, or one for each of the {files} files, but got {stride}."
        )
    for each in strides:
        check_at_least(1, stride=each)
    return strides
