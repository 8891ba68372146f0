"""Names of files as users give them."""

import os
from collections.abc import Sequence
from glob import escape, glob, has_magic
from pathlib import Path

from lightning_farms.common.texts import number_order
from lightning_farms.data.fields._opening import check_local

_SUFFIXES = (".hdf5", ".h5", ".hdf")


def file_paths(path: str | Path | Sequence[str | Path] | None) -> Path | list[Path] | None:
    """Return files as paths, with `~`, globs and folders expanded; one path if a single name stands for one file.

    Args:
        path: a file, a folder (for its HDF5 files), a glob, or several of these; the files of a folder or glob come in
            the order of the numbers in their names.

    Returns:
        The files; None for None.

    Raises:
        FileNotFoundError: if a glob matches nothing, or a folder has no HDF5 file.
        ValueError: for the address of a file that is not on this machine, no file, or a file that is named twice.

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
    if not paths or len({os.path.realpath(each) for each in paths}) < len(paths):
        raise ValueError(
            f"Expected argument `path` to name at least one file, each once, but got {list(map(str, paths))}."
        )
    return paths


def _expanded(path: str | Path) -> list[Path]:
    check_local(path)
    given = Path(path).expanduser()
    if given.is_dir():
        return _files_of(given)
    if not has_magic(str(given)) or given.exists():
        return [given]
    folder = next(each for each in given.parents if each.exists())  # taken literally, even if it looks like a pattern
    pattern = Path(escape(str(folder))) / given.relative_to(folder)
    found = sorted(map(Path, glob(str(pattern), recursive=True)), key=lambda path: number_order(str(path)))
    if not found:
        raise FileNotFoundError(f"Expected argument `path` to match files, but {given} matches none.")
    return found


def _files_of(folder: Path) -> list[Path]:
    found = [each for each in folder.iterdir() if each.suffix.lower() in _SUFFIXES and not each.name.startswith(".")]
    if not found:
        raise FileNotFoundError(
            f"Expected argument `path` to be a file, or a folder of HDF5 files ({', '.join(_SUFFIXES)}), but "
            f"{folder} has none."
        )
    return sorted(found, key=lambda path: number_order(path.name))
