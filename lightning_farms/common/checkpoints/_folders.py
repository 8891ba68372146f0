"""Resolution of a path to the files of the checkpoint that it stands for."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from lightning_farms.common.checkpoints._config import read_json
from lightning_farms.common.checkpoints._natural import natural
from lightning_farms.common.checkpoints._other_folders import AS_STATE_DICT, other_folder
from lightning_farms.common.checkpoints._places import CACHE, METADATA, within
from lightning_farms.common.checkpoints._zero_files import ZeroFiles, first_words, zero_files
from lightning_farms.common.texts import listed

INDEX_SUFFIX = ".index.json"
_PREFERRED = (
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "model.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
_SUFFIXES = (INDEX_SUFFIX, ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".nemo")
_OTHER_SUFFIXES = (".gguf", ".onnx", ".keras", ".h5", ".hdf5")
WEIGHTS = (*_SUFFIXES, *_OTHER_SUFFIXES)
"""Suffixes of files that hold weights, or say where they are."""

_DEEPEST = 4
_MOST_FOLDERS = 500
_SHARD = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5,6})-of-(?P<count>\d{5,6})(?P<suffix>(\.\w+)?\.(safetensors|bin|pt|gguf))"
)
_SLICE = re.compile(r"(consolidated\.|(mp|tp)_rank_)(?P<rank>\d+)(\.pth|[\w.]*)")
"""Folders and files of single processes in tensor parallelism; those of pipelines have one such number."""

_BESIDE = re.compile(
    r"(training_args|optimizer|scheduler|scaler|sampler.*|random_states.*|rng_state.*|optim.*)\.(bin|pt|pth)"
)


class Meant(NamedTuple):
    """The checkpoint that a path stands for.

    Attributes:
        kind: one file, shards without an index, parts with a prefix each, or a distributed or ZeRO folder.
        path: the file or folder.
        files: the shards, or {prefix: path} of parts.
        zero: the files of a ZeRO checkpoint.
    """

    kind: Literal["file", "shards", "parts", "distributed", "zero"]
    path: Path
    files: Mapping[str, Path] = {}
    zero: ZeroFiles | None = None


def what_is_meant(path: Path) -> Meant:
    """Find the checkpoint that a path stands for: the file itself, or the one in a folder.

    Raises:
        FileNotFoundError: there is no such file or folder, the folder holds no weights, or a shard is missing.
        ValueError: it is not a regular file, the folder holds several checkpoints, or a link leads out of it.
    """
    for place in (path, path.parent):
        if _SLICE.fullmatch(place.name) and place.exists():
            with suppress(PermissionError):
                _check_whole(place.parent, [beside.name for beside in place.absolute().parent.iterdir()])
    if path.is_file():
        return _file_meant(path)
    if str(path) == "-" or (path.exists() and not path.is_dir()):
        raise ValueError(
            f"Expected argument `path` to be a file or folder, but {str(path)!r} is a pipe or device, in which places "
            "cannot be sought. Write the checkpoint to a file first."
        )
    if not path.is_dir():
        raise FileNotFoundError(_not_there(path))
    return _folder_meant(_snapshot(path))


def _not_there(path: Path) -> str:
    text = f"Expected argument `path` to be an existing file or folder, but got {str(path)!r}"
    if path.is_symlink():
        return f"{text}, a link to {os.readlink(path)!r}, which does not exist. Download or copy it again."
    if path.with_name(f"{path.name}.index").is_file():
        return (
            f"{text}. With its .index file it is a TensorFlow checkpoint. Read it by tf.train.load_checkpoint. "
            f"{AS_STATE_DICT}."
        )
    if re.match(r"(https?|s3|gs|hf):/", str(path)):
        return f"{text}, which is an address. Download the file first."
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.suffix and not path.parent.exists():
        return f"{text}. If it is a model of the Hugging Face Hub, download it first: hf download {path}"
    return f"{text}."


def _file_meant(path: Path) -> Meant:
    """The file, or for a file of a distributed or ZeRO checkpoint the folder to which it belongs."""
    if path.name == METADATA or (path.suffix == ".distcp" and (path.parent / METADATA).is_file()):
        return Meant("distributed", path.parent)
    zero = zero_files(path.parent) if path.name.startswith("zero_pp_rank_") else None
    return Meant("zero", path.parent, zero=zero) if zero is not None else Meant("file", path)


def _folder_meant(folder: Path) -> Meant:
    if (folder / METADATA).is_file():
        return Meant("distributed", folder)
    zero = zero_files(folder)
    if zero is not None:
        return Meant("zero", folder, zero=zero)
    if (folder / "model_index.json").is_file():
        return _pipeline(folder)
    for name in _PREFERRED:
        if (folder / name).is_file():
            return Meant("file", within(folder, folder / name))
    return _by_suffix(folder)


def _by_suffix(folder: Path) -> Meant:
    files = sorted((file for file in folder.iterdir() if file.is_file()), key=lambda file: natural(file.name))
    of_torch = [file for file in files if file.name.endswith(_SUFFIXES)]
    of_torch = [file for file in of_torch if not (file.suffix == ".bin" and file.with_suffix(".xml").is_file())]
    weights = [file for file in of_torch if not _BESIDE.fullmatch(file.name)] or of_torch
    chosen = [file for file in weights if file.name.endswith(INDEX_SUFFIX)] or weights
    chosen = chosen or [file for file in files if file.name.endswith(_OTHER_SUFFIXES)]
    if not chosen:
        known = other_folder(folder)
        if known is not None:
            raise ValueError(
                f"Expected argument `path` to be a checkpoint, but {str(folder)!r} is {known.name}. {known.remedy}."
            )
        return _below(folder)
    if len(chosen) == 1 and not _SHARD.fullmatch(chosen[0].name):
        return Meant("file", within(folder, chosen[0]))
    _check_whole(folder, [file.name for file in chosen])
    shards = _shards(folder, chosen)
    if shards is not None:
        return shards
    raise ValueError(
        f"Expected argument `path` to be a folder with one checkpoint, but {str(folder)!r} holds {len(chosen)}: "
        f"{listed(file.name for file in chosen)}. Give one of the files."
    )


def _check_whole(folder: Path, names: Iterable[str]) -> None:
    """Raise an error for slices of matrices, whose spectra are not those of the whole matrices."""
    slices = {name: match["rank"] for name in names if (match := _SLICE.fullmatch(name))}
    if len(set(slices.values())) > 1:
        raise ValueError(
            f"Expected argument `path` to be a checkpoint in one piece, but {str(folder)!r} holds {len(slices)} slices "
            f"of every matrix (tensor parallelism): {listed(sorted(slices))}. Convert it first: transformers' "
            "convert_llama_weights_to_hf.py --input_dir FOLDER --output_dir OTHER, Megatron-LM's "
            "tools/checkpoint/convert.py --target-tensor-parallel-size 1, or the program that wrote it."
        )


def _shards(folder: Path, files: Sequence[Path]) -> Meant | None:
    """All shards of one checkpoint without an index; if there are several series, the safetensors are taken."""
    found: dict[tuple[str, str, int], dict[int, Path]] = {}
    for file in files:
        if match := _SHARD.fullmatch(file.name):
            series = (match["stem"], match["suffix"], int(match["count"]))
            found.setdefault(series, {})[int(match["number"])] = file
    if len(found) > 1:
        found = {series: each for series, each in found.items() if series[1] == ".safetensors"}
    if len(found) != 1 or (len(files) > sum(map(len, found.values())) and not all(map(_is_shard, files))):
        return None
    [((stem, suffix, count), numbered)] = found.items()
    first = min(numbered)  # some programs count from 0
    expected = range(0 if first == 0 else 1, count if first == 0 else count + 1)
    missing = [number for number in expected if number not in numbered] if count < 10**5 else []
    if missing:
        names = [f"{stem}-{number:05d}-of-{count:05d}{suffix}" for number in missing]
        raise FileNotFoundError(
            f"Expected {str(folder)!r} to hold all {count} shards of its checkpoint, but {len(missing)} are missing: "
            f"{listed(names)}. Copy or download them too."
        )
    return Meant("shards", folder, {file.name: within(folder, file) for _, file in sorted(numbered.items())})


def _is_shard(file: Path) -> bool:
    return _SHARD.fullmatch(file.name) is not None


def _below(folder: Path) -> Meant:
    """The checkpoint in the only subfolder with weights; if there are several, the error lists them."""
    found = [place for place in _subfolders(folder) if _holds_weights(place)]
    main = [place for place in found if not place.name.startswith("optim")]
    if len(main) == 1:
        return _folder_meant(_snapshot(main[0]))
    if main:
        _check_whole(folder, [place.name for place in main])
        raise ValueError(
            f"Expected argument `path` to be a folder with one checkpoint, but {str(folder)!r} holds {len(main)} "
            f"folders with weights: {listed(place.name for place in main)}. Give one of them."
        )
    raise FileNotFoundError(
        f"Expected argument `path` to be a folder with weights ({', '.join('*' + s for s in _SUFFIXES)}), but "
        f"{str(folder)!r} holds none{_hint(folder)}."
    )


def _hint(folder: Path) -> str:
    """A hint for the error message: links that lead nowhere, or folders further down that hold weights."""
    broken = sorted(file.name for file in folder.iterdir() if file.is_symlink() and not file.exists())
    broken = [name for name in broken if name.endswith(WEIGHTS)]
    if broken:
        return f": {listed(broken)} is a link to nothing, as after a download that was cut short. Download it again"
    if any(folder.glob("*.distcp")):
        return f", but parts of a distributed checkpoint without their {METADATA}, a hidden file. Copy it there too"
    places = [place for place in _deeper(folder) if _holds_weights(place)]
    if places:
        _check_whole(places[0].parent, [place.name for place in places if place.parent == places[0].parent])
    found = [str(place.relative_to(folder)) for place in places]
    return f"; there are some in {listed(found)}. Give one of these folders" if found else ""


def _deeper(folder: Path) -> Iterator[Path]:
    """Folders below a folder, a few levels down."""
    waiting = deque((place, 1) for place in _subfolders(folder))
    for _ in range(_MOST_FOLDERS):
        if not waiting:
            return
        place, depth = waiting.popleft()
        yield place
        if depth < _DEEPEST:
            waiting += ((child, depth + 1) for child in _subfolders(place))


def _subfolders(folder: Path) -> list[Path]:
    places = (
        place
        for place in folder.iterdir()
        if place.is_dir() and not place.is_symlink() and not place.name.startswith(".")
    )
    return sorted(places, key=lambda place: natural(place.name))


def _holds_weights(folder: Path) -> bool:
    if (folder / METADATA).is_file() or CACHE.fullmatch(folder.name):
        return True
    return any(file.name.endswith((*_SUFFIXES, *_OTHER_SUFFIXES)) for file in folder.iterdir())


def _pipeline(folder: Path) -> Meant:
    """The parts of a diffusers pipeline that hold weights, by their names."""
    content = read_json(folder / "model_index.json")
    names = [name for name, value in content.items() if isinstance(value, list) and _is_plain(name)]
    parts = {f"{name}.": folder / name for name in names if (folder / name).is_dir()}
    held = {prefix: place for prefix, place in parts.items() if _holds_weights(place)}
    if not held:
        raise FileNotFoundError(
            f"Expected argument `path` to be a pipeline with weights in the folders that its model_index.json names, "
            f"but {str(folder)!r} holds none ({listed(names)})."
        )
    return Meant("parts", folder, held)


def _is_plain(name: str) -> bool:
    return bool(name) and "/" not in name and "\\" not in name and "\0" not in name and not name.startswith(("_", "."))


def _snapshot(folder: Path) -> Path:
    """For a model's folder in the Hugging Face cache, the snapshot that `refs/main` names, or the only one."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir() or not ((folder / "refs").is_dir() or CACHE.fullmatch(folder.name)):
        return folder
    revision = _revision(folder / "refs" / "main")
    if revision and (snapshots / revision).is_dir():
        return snapshots / revision
    found = _subfolders(snapshots)
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"Expected argument `path` to be a model with one snapshot, or one that refs/main names, but {str(folder)!r} "
        f"has {listed(place.name for place in found) or 'none'}. Give one of its folders in snapshots, or download the "
        "model again."
    )


def _revision(file: Path) -> str:
    text = first_words(file) if file.is_file() else ""
    return text if _is_plain(text) else ""
