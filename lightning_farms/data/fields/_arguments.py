"""Checks of the flow data module's arguments, and one form for those that have several."""

from collections.abc import Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path

from lightning_farms.common.arguments import check_at_least
from lightning_farms.data.fields._layout import FieldLayout
from lightning_farms.data.fields._opening import check_local


def check_fields(path: object, fields: Mapping[str, str] | None, axes: str) -> None:
    """Refuse names of datasets that cannot be read, or that belong to no file."""
    if fields is not None:
        FieldLayout(fields, axes)
    if path is None and fields is not None:
        raise ValueError("Expected argument `path` to name a file when `fields` is given, but got None.")
    if fields is None and axes != "btxy":
        raise ValueError(f"Expected argument `axes` to be 'btxy' when `fields` is left out, but got {axes!r}.")


def file_paths(path: str | Path | Sequence[str | Path] | None) -> Path | list[Path] | None:
    """The same as paths, with `~` and globs expanded; refuse a list without any, or with one twice."""
    if path is None:
        return None
    if isinstance(path, (str, Path)):
        found = _expanded(path)
        return found[0] if len(found) == 1 else found
    paths = [each for one in path for each in _expanded(one)]
    if not paths or len({each.absolute() for each in paths}) < len(paths):
        raise ValueError(
            f"Expected argument `path` to name at least one file, each once, but got {list(map(str, paths))}."
        )
    return paths


def _expanded(path: str | Path) -> list[Path]:
    check_local(path)
    given = Path(path).expanduser()
    if not has_magic(str(given)) or given.exists():
        return [given]
    found = sorted(map(Path, glob(str(given), recursive=True)))
    if not found:
        raise FileNotFoundError(f"Expected argument `path` to match files, but {given} matches none.")
    return found


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
