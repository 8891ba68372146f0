"""Recognition of files in known formats that are not read here."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from lightning_farms.common.checkpoints._other_folders import AS_STATE_DICT, MADE_FROM
from lightning_farms.common.checkpoints._zip_archive import record_names

_START = 1024
_MOST_MEMBERS = 1000  # members of a tar archive that are looked at
_WHATEVER_THE_NAME = 3  # number of the first formats below that count whatever a file's name is


class OtherFormat(NamedTuple):
    """A format that is recognised by the start of its files or by their names, and the remedy for them."""

    name: str
    remedy: str
    knows: Callable[[bytes, Path], bool]


def _begins(*starts: bytes) -> Callable[[bytes, Path], bool]:
    return lambda start, _: start.startswith(starts)


def _called(*suffixes: str) -> Callable[[bytes, Path], bool]:
    return lambda _, path: path.name.endswith(suffixes)


def _matches(pattern: str) -> Callable[[bytes, Path], bool]:
    return lambda _, path: re.fullmatch(pattern, path.name) is not None


def _zip_with(*names: str) -> Callable[[bytes, Path], bool]:
    return lambda start, path: start.startswith(b"PK") and any(held.endswith(names) for held in record_names(path))


def _other_zip(_: bytes, path: Path) -> bool:
    names = record_names(path)
    return bool(names) and not any(name.endswith("data.pkl") for name in names)


def _is_text(start: bytes, path: Path) -> bool:
    try:
        text = start.decode("ascii")
    except UnicodeDecodeError:
        return False
    return bool(text) and all(letter.isprintable() or letter.isspace() for letter in text)


def _is_tar(start: bytes) -> bool:
    return start[257:262] == b"ustar"


_FORMATS = (
    OtherFormat("a Git LFS pointer", "Fetch the file itself: git lfs pull", _begins(b"version https://git-lfs")),
    OtherFormat(
        "a web page",
        "The download went wrong (an address of a page, or a login): download the file itself",
        lambda start, _: start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")),
    ),
    OtherFormat(
        "an answer of a web server in XML",
        "The download was refused, or went wrong: download the file itself",
        lambda start, path: start.lstrip().startswith(b"<?xml") and path.suffix != ".xml",
    ),
    OtherFormat(
        "an older llama.cpp file (GGML)", "Analyse the checkpoint that it was made from", _begins(b"lmgg", b"tjgg")
    ),
    OtherFormat("a NumPy archive", AS_STATE_DICT, _zip_with(".npy")),
    OtherFormat("a NumPy array", AS_STATE_DICT, _begins(b"\x93NUMPY")),
    OtherFormat("a TensorFlow Lite model", MADE_FROM, lambda s, _: s[4:8] == b"TFL3"),
    OtherFormat(
        "a TensorFlow checkpoint",
        f"Read it by tf.train.load_checkpoint (a graph in .pb by tf.saved_model.load). {AS_STATE_DICT}",
        _matches(r".*(\.pb|\.data-\d{5}-of-\d{5}|\.index)"),
    ),
    OtherFormat(
        "a Flax checkpoint", f"Read it by flax.serialization.msgpack_restore. {AS_STATE_DICT}", _called(".msgpack")
    ),
    OtherFormat(
        "a program of torch.export",
        "Save its weights: torch.save(torch.export.load(FILE).state_dict, 'weights.pt')",
        _zip_with("archive_format", "models/model.json", "serialized_exported_program.json"),
    ),
    OtherFormat(
        "an archive of torch.package",
        "Save its weights: torch.save(torch.package.PackageImporter(FILE).load_pickle(FOLDER, NAME).state_dict(), "
        "'weights.pt')",
        _zip_with(".data/extern_modules"),
    ),
    OtherFormat("an ExecuTorch program", MADE_FROM, _called(".pte")),
    OtherFormat(
        "a Paddle checkpoint",
        "Read it by paddle.load, and save {name: torch.from_numpy(value.numpy())} with torch.save",
        _called(".pdparams", ".pdmodel", ".pdiparams"),
    ),
    OtherFormat(
        "an OpenVINO model", MADE_FROM, lambda _, path: path.suffix == ".bin" and path.with_suffix(".xml").is_file()
    ),
    OtherFormat("a Core ML model", MADE_FROM, _called(".mlmodel")),
    OtherFormat("a TensorRT engine", MADE_FROM, _called(".engine", ".plan", ".trt")),
    OtherFormat("an MXNet checkpoint", AS_STATE_DICT, _called(".params")),
    OtherFormat("a Caffe model", AS_STATE_DICT, _called(".caffemodel")),
    OtherFormat("a scikit-learn model", "Its arrays are no network's weights", _called(".joblib")),
    OtherFormat("a tar archive", "Unpack it: tar -xf FILE", lambda start, _: _is_tar(start)),
    OtherFormat(
        "a compressed file",
        "Unpack it first (gzip -d, xz -d, zstd -d, 7z x)",
        _begins(b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"BZh"),
    ),
    OtherFormat("a picture or document", "Give the checkpoint", _begins(b"\x89PNG", b"\xff\xd8\xff", b"%PDF", b"GIF8")),
    OtherFormat(
        "damaged, cut short or of another format (it is a text)",
        "Look at it: if it is the message of a server, the download went wrong; download the file itself",
        _is_text,
    ),
    OtherFormat("a zip archive of something else", "Unpack it, and give the checkpoint in it", _other_zip),
)


def is_no_checkpoint(path: Path) -> bool:
    """Whether a file is a Git LFS pointer, a web page or a server's answer, whatever its name says."""
    with path.open("rb") as file:
        start = file.read(_START)
    return any(known.knows(start, path) for known in _FORMATS[:_WHATEVER_THE_NAME])


def holds_several(path: Path) -> bool:
    """Whether a file is a tar archive with several zips, the last of which a reader would take for the whole."""
    with path.open("rb") as file:
        if not _is_tar(file.read(_START)):
            return False
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                held = sum(_is_zip(archive, member) for member in islice(archive, _MOST_MEMBERS))
        except (tarfile.TarError, OSError, ValueError):
            return True
    return held != 1


def _is_zip(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    held = archive.extractfile(member) if member.isreg() else None
    return held is not None and held.read(2) == b"PK"


def other_format(path: Path) -> OtherFormat | None:
    """The known format of a file that could not be read; None if it is not recognised."""
    with path.open("rb") as file:
        start = file.read(_START)
    return next((known for known in _FORMATS if known.knows(start, path)), None)
