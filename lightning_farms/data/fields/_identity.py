"""Identities by which files, and values in them, are recognised."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

_ENDS = 2**16  # bytes at a file's beginning and end that distinguish it from others of its size
_SAMPLED = 32  # files of a set whose ends are read


def identity(path: Path, others: Sequence[Path] = ()) -> str:
    """Return a file's identity, from its size, header and both ends, and from those of other files with its values."""
    digest = hashlib.sha256()
    for each in (path, *others[:: -(-len(others) // _SAMPLED) or 1]):
        _add(digest, each)
    return digest.hexdigest()[:32]


def identity_of_set(paths: Sequence[Path]) -> str:
    """Return the identity of files of one trajectory each, from all names and sizes, and the ends of some files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    for path in paths[:: -(-len(paths) // _SAMPLED)]:
        _add(digest, path)
    return digest.hexdigest()[:32]


def values_identity(frames: Sequence[Tensor]) -> int:
    """Return a number, never 0, that identifies the values of some frames, whatever file they are in."""
    digest = hashlib.blake2b(digest_size=8)
    for frame in frames:
        digest.update(frame.contiguous().numpy().data)
    return int.from_bytes(digest.digest(), "little", signed=True) or 1


def _add(digest: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_ENDS))
        file.seek(max(0, size - _ENDS))
        digest.update(file.read(_ENDS))
