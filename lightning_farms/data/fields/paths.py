"""Names of files as users give them."""

from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from lightning_farms.data.fields._opening import check_local


def file_paths(path: str | Path | Sequence[str | Path] | None) -> Path | list[Path] | None:
    """The same as paths, with `~` and globs expanded, sorted; one path where it is one.

    Args:
        path: a file, a glob, or several of them.

    Returns:
        The files; None for None.

    Raises:
        FileNotFoundError: if a glob matches nothing.
        ValueError: for an address of a file elsewhere, no file, or one twice.

    Example:
        >>> file_paths(["a.hdf5", "b.hdf5"])
        [PosixPath('a.hdf5'), PosixPath('b.hdf5')]
    """
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
