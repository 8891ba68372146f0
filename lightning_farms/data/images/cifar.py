"""CIFAR-10 and CIFAR-100 from their original python-version archives, or from the folders these unpack to."""

from __future__ import annotations

import gzip
import math
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lightning_farms.data.download._checksum import md5_of
from lightning_farms.data.download.resumable import fetch_file
from lightning_farms.data.images._labelled_images import LabelledImages, TrainAndTest
from lightning_farms.data.images._restricted_pickle import load_arrays

Classes = Literal[10, 100]
Pixels = npt.NDArray[np.uint8]

_SHAPE = (3, 32, 32)
_CHUNK = 1 << 20


class CIFARSource(NamedTuple):
    """Where a set comes from and how its archive is laid out.

    Attributes:
        url: address of the archive.
        md5: MD5 checksum of the archive.
        folder: the archive's only folder.
        train: files of the training images, in order.
        test: file of the test images.
        labels: key of the labels in these files.
    """

    url: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    labels: bytes

    @property
    def archive(self) -> str:
        """The archive's name."""
        return self.url.rpartition("/")[2]


SOURCES: Mapping[int, CIFARSource] = {
    10: CIFARSource(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test="test_batch",
        labels=b"labels",
    ),
    100: CIFARSource(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train=("train",),
        test="test",
        labels=b"fine_labels",
    ),
}
"""The sets by their number of classes."""


def read_cifar(path: str | Path, classes: Classes, *, checksum: bool = True) -> TrainAndTest:
    """Read a set; the files' pickles are read without running any code that they ask for.

    Args:
        path: the archive, the folder that it unpacks to, or a folder that holds either (the unpacked one wins).
        classes: 10 or 100; for 100, the fine labels are read.
        checksum: whether an archive's MD5 must be the original's.

    Returns:
        Training and test images of 3 x 32 x 32 pixels, red, green and blue.

    Raises:
        FileNotFoundError: there is no such archive or folder.
        ValueError: it is another file, damaged, or cut short.
    """
    source = _source(classes)
    place = _locate(Path(path), source)
    if place.is_dir():
        contents = _unpacked(place, source)
    else:
        if checksum:
            _check_md5(place, source)
        contents = _packed(place, source)
    parts = [_labelled_images(contents[name], place / name, classes) for name in (*source.train, source.test)]
    train = LabelledImages(*(torch.cat(tensors) for tensors in zip(*parts[:-1], strict=True)))
    return TrainAndTest(train, parts[-1])


def download_cifar(folder: str | Path, classes: Classes, *, url: str | None = None) -> Path:
    """Download a set's archive unless the folder has it already; the file appears complete and checked, or not at all.

    An interrupted download continues at the next call.

    Args:
        folder: folder to download to; created if need be.
        classes: 10 or 100.
        url: address of a mirror; the original address when left out.

    Returns:
        The archive.

    Raises:
        ImportError: pooch is not installed.
        FileExistsError: there is another file of the archive's name.
        ConnectionError: the archive cannot be downloaded, or what arrived is not the original.
    """
    source = _source(classes)
    address = source.url if url is None else url
    return fetch_file(address, Path(folder) / source.archive, md5=source.md5, extra="images", progress=False)


def _source(classes: int) -> CIFARSource:
    if classes not in SOURCES:
        raise ValueError(f"Expected argument `classes` to be one of {sorted(SOURCES)}, but got {classes!r}.")
    return SOURCES[classes]


def _locate(path: Path, source: CIFARSource) -> Path:
    if path.is_file():
        return path
    for candidate in (path, path / source.folder):
        if (candidate / source.test).is_file():
            return candidate
    if (path / source.archive).is_file():
        return path / source.archive
    if path.is_dir():
        raise FileNotFoundError(
            f"Expected the folder {path} to hold {source.archive}, or what it unpacks to ({source.folder}), but it "
            "holds neither."
        )
    raise FileNotFoundError(f"Expected argument `path` to be an archive or a folder, but there is no {path}.")


def _check_md5(path: Path, source: CIFARSource) -> None:
    found = md5_of(path)
    for kind, other in SOURCES.items():
        if found == other.md5 != source.md5:
            raise ValueError(f"Expected {path} to be the original {source.archive}, but it is {_other(kind)}")
    if found != source.md5:
        raise ValueError(
            f"Expected {path} to be the original {source.archive} with MD5 {source.md5}, but got "
            f"{found} ({path.stat().st_size} bytes): it is cut short, damaged or another file. Fetch it "
            "anew; `checksum=False` reads an archive of your own in the same layout."
        )


def _other(classes: int) -> str:
    return f"the archive of CIFAR-{classes}: use `classes={classes}`."


def _unpacked(folder: Path, source: CIFARSource) -> dict[str, bytes]:
    names = (*source.train, source.test)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"Expected the folder {folder} to hold {', '.join(missing)}, but it does not.")
    return {name: (folder / name).read_bytes() for name in names}


def _packed(path: Path, source: CIFARSource) -> dict[str, bytes]:
    """Return the files' contents; nothing is written to disk."""
    wanted = {f"{source.folder}/{name}": name for name in (*source.train, source.test)}
    try:
        contents = {wanted[name]: content for name, content in _members(path) if name in wanted}
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"Expected {path} to be a complete {source.archive}, but it cannot be read: it is cut short, damaged or "
            f"no tar.gz archive ({type(error).__name__}: {error})."
        ) from error
    missing = [name for name in wanted if wanted[name] not in contents]
    if missing:
        others = [kind for kind, other in SOURCES.items() if other.folder != source.folder and _holds(path, other)]
        hint = f" It is {_other(others[0])}" if others else ""
        raise ValueError(f"Expected {path} to hold {', '.join(missing)}, but it does not.{hint}")
    return contents


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None  # neither folders nor links
            if file is not None:
                yield member.name.removeprefix("./"), file.read()
        while stream.read(_CHUNK):  # to the end, where gzip compares the checksum of the whole
            pass


def _holds(path: Path, source: CIFARSource) -> bool:
    return any(name == f"{source.folder}/{source.test}" for name, _ in _members(path))


def _labelled_images(content: bytes, path: Path, classes: int) -> LabelledImages:
    """Return the images and labels of one file, checked."""
    try:
        data, labels = _checked(load_arrays(content), SOURCES[classes].labels, classes)
    except ValueError as error:
        raise ValueError(f"Expected {path} to be a batch of CIFAR-{classes}, but {error}.") from error
    return LabelledImages(torch.from_numpy(data.copy()).reshape(-1, *_SHAPE), torch.tensor(labels))


def _checked(batch: object, key: bytes, classes: int) -> tuple[Pixels, list[int]]:
    """Return the pixels and labels in a file's content; raise an error that says what is wrong with it."""
    if not isinstance(batch, dict):
        raise ValueError(f"it holds a {type(batch).__name__}, not a dict")
    for name in (b"data", key):
        if name not in batch:
            raise ValueError(f"it has no {name.decode()!r} (it has {', '.join(map(repr, batch))})")
    data, labels = batch[b"data"], batch[key]
    if not isinstance(data, np.ndarray) or data.shape[1:] != (math.prod(_SHAPE),):
        found = getattr(data, "shape", type(data).__name__)
        raise ValueError(f"its data are {found}, not an array of shape (images, {math.prod(_SHAPE)})")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise ValueError(f"its {key.decode()!r} are not a list of {len(data)} numbers")
    if not all(isinstance(label, int) and 0 <= label < classes for label in labels):
        raise ValueError(f"its {key.decode()!r} are not all integers from 0 to {classes - 1}")
    return data, labels
