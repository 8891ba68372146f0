"""Checkpoint files as mappings from names to tensors that are read when asked for; nothing is unpickled unsafely."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from lightning_farms.common.checkpoints._config import config_beside
from lightning_farms.common.checkpoints._deepspeed import read_zero
from lightning_farms.common.checkpoints._distributed import read_distributed
from lightning_farms.common.checkpoints._folders import WEIGHTS, Meant, what_is_meant
from lightning_farms.common.checkpoints._gguf import GGUFTensors
from lightning_farms.common.checkpoints._inert_pickle import PickleError, StandIn
from lightning_farms.common.checkpoints._joined import JoinedTensors
from lightning_farms.common.checkpoints._json_file import JSONError, read_json_file
from lightning_farms.common.checkpoints._keras import is_keras_archive, read_keras
from lightning_farms.common.checkpoints._natural import natural
from lightning_farms.common.checkpoints._onnx import read_onnx
from lightning_farms.common.checkpoints._other_formats import holds_several, is_no_checkpoint, other_format
from lightning_farms.common.checkpoints._places import within
from lightning_farms.common.checkpoints._safetensors_file import SafetensorsFile, looks_like_safetensors
from lightning_farms.common.checkpoints._state_dicts import (
    MODULES_EXTRAS,
    STATE_DICT_KEYS,
    StateDicts,
    choose_state_dict,
    is_optimizer,
    listed_state_dicts,
)
from lightning_farms.common.checkpoints._torch_file import TorchFile, read_torch_file
from lightning_farms.common.checkpoints.pickled_tensor import PickledTensor, UnreadableTensor, naming
from lightning_farms.common.checkpoints.safe_load import damaged, is_torchscript, no_torchscript
from lightning_farms.common.checkpoints.shapes import SomeTensors, StoredTensors

__all__ = [
    "MODULES_EXTRAS",
    "STATE_DICT_KEYS",
    "WEIGHTS",
    "StoredCheckpoint",
    "listed_state_dicts",
    "open_checkpoint",
    "read_stored",
]

_JOINS = "torch.distributed.checkpoint.format_utils"
_LONGEST = 250  # characters of a file's name
_SHOWN = 5


class StoredCheckpoint(NamedTuple):
    """The content of a checkpoint file.

    Attributes:
        tensors: the state dict, on the CPU; tensors may be mapped from the file, or read when asked for.
        beside: other entries of a ``torch.save`` file besides the state dict, such as hyperparameters.
        metadata: the metadata of a safetensors file.
        taken: path of the state dict in the file, its keys joined by dots; empty if it is the file itself.
        others: numbers of tensors, and of their entries, in other state dicts of the file, by their paths.
        left_out: number of objects of each class or function that were not read, as that could run code.
        sparse: names of tensors that are stored sparse; they are made dense when they are read.
    """

    tensors: Mapping[str, Tensor]
    beside: Mapping[str, Any]
    metadata: Mapping[str, str]
    taken: str = ""
    others: Mapping[str, tuple[int, int]] = MappingProxyType({})
    left_out: Mapping[str, int] = MappingProxyType({})
    sparse: tuple[str, ...] = ()


def open_checkpoint(
    path: str | os.PathLike[str], *, key: str | None = None, check: bool = True, dequantize: bool = False
) -> Mapping[str, Tensor]:
    """Open a checkpoint of any common format as a mapping from names to tensors on the CPU.

    Tensors are read when they are asked for, and the mapping keeps none: safetensors are read one by one, the files
    that ``torch.save`` writes are mapped into memory (those of torch before 1.6, which cannot be, are read whole).

    Args:
        path: one of

            - a Lightning checkpoint, or any file of ``torch.save`` that holds a state dict by itself or under one of
              the keys of :data:`STATE_DICT_KEYS` (the released DPOT files among them);
            - a ``.safetensors`` file (needs the package safetensors);
            - the index of a sharded checkpoint, ``*.safetensors.index.json`` or ``*.bin.index.json``;
            - a folder that holds one of these, or shards without an index (all of them);
            - the folder of a model in the Hugging Face cache, or of a diffusers pipeline, the names of whose parts get
              the prefixes ``unet.``, ``vae.``, ...;
            - a folder of ``torch.distributed.checkpoint`` (FSDP, FSDP2, Lightning's sharded checkpoints), whose tensors
              are assembled from their parts when they are asked for;
            - a folder of DeepSpeed ZeRO: the model's state, or the parameters in float32 from stage 3's partitions;
            - a GGUF file (needs gguf), an ONNX model (needs onnx), or a ``.keras`` or ``.h5`` file of Keras, whose
              weights get PyTorch's names and layouts: kernels are transposed to (outputs, inputs, ...).

            Objects in a ``torch.save`` file that are not tensors, containers or plain values are left out: nothing
            that a file asks for is looked up or called.
        key: path of the state dict to take if the file has several, its keys joined by dots, such as ``"ema"``; None
            for the first of :data:`STATE_DICT_KEYS`, or the only one.
        check: whether the CRC-32 that a zip archive has for each tensor is compared when the tensor is first read;
            a mismatch is an error of that tensor. (Safetensors has no such number, so that flipped bits in it cannot
            be detected.)
        dequantize: whether packed weights are unpacked when they are read, if possible: GGUF's blocks, ONNX's integers
            with scales; :func:`checkpoint_weights` also does so for fp8 and integers with scales, MXFP4, NVFP4, GPTQ,
            AWQ, compressed-tensors, MLX, HQQ, and bitsandbytes' formats. Otherwise, those of GGUF and ONNX have no
            values.

    Returns:
        The tensors by name. Those of safetensors and of shards are in natural order (``layer.2`` before ``layer.10``),
        as these formats do not keep the model's order.

    Raises:
        FileNotFoundError: there is no such file or folder, the folder holds no weights, or a shard is missing.
        ValueError: the file is damaged, of another format, or holds no tensor, or several state dicts.
        ImportError: the package for a safetensors, GGUF or ONNX file is not installed.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": torch.nn.Linear(3, 2).state_dict(), "epoch": 7}, f"{folder}/last.ckpt")
        ...     {name: tuple(tensor.shape) for name, tensor in open_checkpoint(folder).items()}
        {'weight': (2, 3), 'bias': (2,)}
    """
    return read_stored(path, key=key, check=check, dequantize=dequantize, may_be_empty=False).tensors


class _How(NamedTuple):
    """The options of reading."""

    may_be_empty: bool = False
    key: str | None = None
    check: bool = True
    dequantize: bool = False


def read_stored(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    check: bool = True,
    dequantize: bool = False,
    may_be_empty: bool = True,
) -> StoredCheckpoint:
    """Open a checkpoint like :func:`open_checkpoint`, with all that is stored besides tensors, and even without any.

    Args:
        path: as in :func:`open_checkpoint`.
        key: as in :func:`open_checkpoint`.
        check: as in :func:`open_checkpoint`.
        dequantize: as in :func:`open_checkpoint`.
        may_be_empty: whether a file without tensors is allowed.

    Returns:
        The tensors and the rest.

    Raises:
        FileNotFoundError: there is no such file or folder, the folder holds no weights, or a shard is missing.
        ValueError: the file is damaged, of another format, or it is not clear which state dict to take.
        ImportError: the package for a safetensors, GGUF or ONNX file is not installed.
    """
    meant = what_is_meant(Path(path))
    stored = _read_meant(meant, _How(may_be_empty, key, check, dequantize))
    if not stored.tensors and not may_be_empty:
        raise ValueError(
            f"Expected argument `path` to be a checkpoint with tensors, but {str(meant.path)!r} holds none."
        )
    if isinstance(stored.tensors, StoredTensors):
        stored.tensors.config, stored.tensors.dequantize = config_beside(meant.path), dequantize
    return stored


def _read_meant(meant: Meant, how: _How) -> StoredCheckpoint:
    """Read a file, or the files of a folder as one."""
    if meant.kind == "file":
        return _read(meant.path, how)
    if meant.kind in ("shards", "parts"):
        stored = [(prefix, _read_part(path, how)) for prefix, path in meant.files.items()]
        prefixed = [(prefix if meant.kind == "parts" else "", each.tensors) for prefix, each in stored]
        joined = [(prefix, tensors) for prefix, tensors in prefixed if isinstance(tensors, StoredTensors)]
        return StoredCheckpoint(JoinedTensors(joined), {}, {}, left_out=_counted(each for _, each in stored))
    try:
        if meant.zero is not None:
            file = read_zero(meant.zero, check=how.check)
        else:
            file = TorchFile(read_distributed(meant.path, check=how.check))
        return _of_torch(file, meant.path, how)
    except PickleError as error:
        remedy = "zero_to_fp32.py FOLDER FILE" if meant.zero is not None else f"-m {_JOINS} dcp_to_torch FOLDER FILE"
        raise ValueError(
            f"Expected argument `path` to be a checkpoint, but {str(meant.path)!r} is a distributed one that is "
            f"damaged or cut short ({error}). Copy it again, or join it where it was written: python {remedy}."
        ) from error


def _read_part(path: Path, how: _How) -> StoredCheckpoint:
    return _read_meant(what_is_meant(path), how._replace(may_be_empty=True, key=None))


def _counted(parts: Iterable[StoredCheckpoint]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part.left_out)
    return dict(total)


def _read(path: Path, how: _How) -> StoredCheckpoint:
    if path.suffix == ".json":
        return StoredCheckpoint(_Shards(path, how), {}, {})
    if is_no_checkpoint(path):
        _refuse_other(path)
    other = _of_other_program(path, how)
    if other is not None:
        return StoredCheckpoint(other, {}, {})
    if path.suffix == ".safetensors" or looks_like_safetensors(path):
        try:
            file = SafetensorsFile(path)
        except ValueError as error:
            _refuse_other(path, error)
            raise
        return StoredCheckpoint(file, {}, file.metadata)
    with _refusing(path):
        return _of_torch(read_torch_file(path, check=how.check), path, how)


def _of_other_program(path: Path, how: _How) -> StoredTensors | None:
    """The weights in a file of another program; None if it is not such a file."""
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"GGUF"):
        return GGUFTensors(path, dequantize=how.dequantize)
    if start == b"\x89HDF\r\n\x1a\n" or (start.startswith(b"PK") and is_keras_archive(path)):
        return read_keras(path, check=how.check)
    return read_onnx(path, dequantize=how.dequantize) if path.suffix == ".onnx" else None


def _of_torch(stored: TorchFile, path: Path, how: _How) -> StoredCheckpoint:
    """Choose the state dict from the content of a torch.save file, and collect the rest."""
    chosen = choose_state_dict(stored.content, how.key, str(path))
    if not how.may_be_empty or not isinstance(stored.content, dict):
        _check_not_empty(stored, chosen, path)
    own = chosen.taken.partition(".")[0]
    entries = stored.content if chosen.taken and isinstance(stored.content, dict) else {}
    beside = {str(name): value for name, value in entries.items() if str(name) != own}
    sparse = tuple(name for name, tensor in chosen.tensors.items() if tensor.parts is not None)
    buffers = chosen.buffers.union(name for name in _names(beside.get("buffer_names")) if name in chosen.tensors)
    left_out = Counter(each.name for each in stored.stand_ins if each not in chosen.objects)
    return StoredCheckpoint(_Pickled(chosen, buffers, path), beside, {}, chosen.taken, chosen.others, left_out, sparse)


def _names(listed: object) -> list[str]:
    """Names in a list, such as that of DeepSpeed's buffers."""
    return [name for name in listed if isinstance(name, str)] if isinstance(listed, (list, tuple)) else []


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Raise an error that says what a file is if not one of torch.save, or that it is damaged."""
    if is_torchscript(path):
        raise no_torchscript(path)
    if holds_several(path):
        _refuse_other(path)
    try:
        yield
    except PickleError as error:
        _refuse_other(path, error)
        raise damaged(path, error) from error


def _refuse_other(path: Path, error: Exception | None = None) -> None:
    """Raise an error that names the format of a file if that is known."""
    known = other_format(path) if path.is_file() else None
    if known is not None:
        raise ValueError(
            f"Expected argument `path` to be a checkpoint (torch.save, safetensors, or the index of a sharded one), "
            f"but {str(path)!r} is {known.name}. {known.remedy}."
        ) from error


def _check_not_empty(stored: TorchFile, chosen: StateDicts, path: Path) -> None:
    """Raise an error that says what a file holds if it has no tensors, or only empty ones."""
    content = stored.content
    if chosen.tensors:
        if all(0 in tensor.shape for tensor in chosen.tensors.values()):
            raise ValueError(
                "Expected argument `path` to be a checkpoint with tensors that hold numbers, but those of "
                f"{str(path)!r} are empty, as DeepSpeed ZeRO-3 leaves them while other files hold the numbers. Join "
                "them first: python zero_to_fp32.py FOLDER FILE (the program is in the checkpoint's folder)."
            )
        return
    _refuse_other(path)
    if any(isinstance(held, dict) and is_optimizer(held) for held in (content, *_entries(content))):
        raise ValueError(
            f"Expected argument `path` to be a checkpoint with weights, but {str(path)!r} holds the state of an "
            "optimizer. Give the model's file (it is often in the same folder)."
        )
    if any(each.name.startswith("numpy") and each.name.endswith("_reconstruct") for each in stored.stand_ins):
        raise ValueError(
            f"Expected argument `path` to be a checkpoint with tensors, but {str(path)!r} holds arrays of NumPy. Load "
            "it with the program that wrote it, and save {name: torch.from_numpy(array)} with torch.save."
        )
    if isinstance(content, PickledTensor):
        raise ValueError(
            f"Expected argument `path` to be a checkpoint that holds a dictionary, but {str(path)!r} holds a Tensor. "
            'Save it under a name: torch.save({"layer.weight": tensor}, FILE).'
        )
    if not isinstance(content, dict):
        kind = content.name if isinstance(content, StandIn) else type(content).__name__
        raise ValueError(
            f"Expected argument `path` to be a checkpoint that holds a dictionary, but {str(path)!r} holds a {kind}. "
            "Save what is to be analysed under names: torch.save({name: tensor}, FILE)."
        )
    raise ValueError(
        f"Expected argument `path` to be a checkpoint whose state dict is by itself or under one of the keys "
        f"{', '.join(STATE_DICT_KEYS)}, but {str(path)!r} holds no tensor there; it has the keys "
        f"{_listed([str(name) for name in content]) or '(none)'}. Save the state dict alone."
    )


def _entries(content: object) -> Iterator[object]:
    """The values of a dictionary, and of the lists in it."""
    for held in content.values() if isinstance(content, dict) else ():
        yield from held if isinstance(held, list) else (held,)


class _Pickled(StoredTensors):
    """Tensors of a file of torch.save."""

    def __init__(self, chosen: StateDicts, buffers: frozenset[str], path: Path) -> None:
        self._names = self._tensors = chosen.tensors
        self.buffers = buffers
        self.parameters = frozenset(name for name, tensor in chosen.tensors.items() if tensor.parameter)
        self._path = path

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        with naming(name, self._path):
            return tensor.read()

    def without_values(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        with naming(name, self._path):
            return tensor.outline()

    def identity(self, name: str) -> object:
        return self._tensors[name].identity


class _Shards(JoinedTensors):
    """A checkpoint in several files with a JSON index; tensors that the index does not list are refused."""

    def __init__(self, index: Path, how: _How) -> None:
        listed = _weight_map(index)
        shards = sorted(set(listed.values()))
        outside = [shard for shard in shards if not _is_within(shard)]
        if outside:
            raise ValueError(
                f"Expected the shards that {str(index)!r} names to be in its folder, but {outside[0][:_LONGEST]!r} is "
                "not: a checkpoint has its files beside its index."
            )
        for shard in shards:
            within(index.parent, index.parent / shard)
        special = [shard for shard in shards if _is_special(index.parent / shard)]
        if special:
            raise ValueError(
                f"Expected the shards that {str(index)!r} names to be files of tensors, but {special[0]!r} is none (a "
                "folder, a pipe, a device, or an index)."
            )
        missing = [shard for shard in shards if not (index.parent / shard).is_file()]
        if missing:
            raise FileNotFoundError(
                f"Expected the shards that {str(index)!r} names to be beside it, but {len(missing)} are missing: "
                f"{_listed(missing)}. Copy or download them too."
            )
        of_shard = how._replace(may_be_empty=False, key=None)
        held = {shard: _read(index.parent / shard, of_shard).tensors for shard in shards}
        unlisted = {name: shard for shard, tensors in held.items() for name in tensors if name not in listed}
        shard_of = listed | unlisted
        names: dict[str, dict[str, str]] = {shard: {} for shard in shards}
        for name, shard in shard_of.items():
            names[shard][name] = name
        stored = [(shard, tensors) for shard, tensors in held.items() if isinstance(tensors, StoredTensors)]
        super().__init__([("", SomeTensors(tensors, names[shard])) for shard, tensors in stored])
        self._names = dict.fromkeys(sorted(shard_of, key=natural))
        self._index, self._lacking = index, {n: shard for n, shard in listed.items() if n not in held[shard]}
        self.refused = dict(self.refused) | {
            name: f"it is in {shard}, but not listed in {index.name}; complete the index, or read the shards without it"
            for name, shard in unlisted.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        self._check_held(name)
        return super().__getitem__(name)

    def without_values(self, name: str) -> Tensor:
        self._check_held(name)
        return super().without_values(name)

    def identity(self, name: str) -> object:
        return name if name in self._lacking else super().identity(name)

    def _check_held(self, name: str) -> None:
        if name in self._lacking:
            with naming(name, self._index):
                raise UnreadableTensor(
                    f"not in {self._lacking[name]}, where the index says it is; copy or download both again"
                )


def _is_within(shard: str) -> bool:
    """Whether the name of a shard stays within the folder; for links see `within`."""
    parts = PurePath(shard).parts
    named = bool(parts) and "\0" not in shard and len(shard) <= _LONGEST
    return named and not PurePath(shard).is_absolute() and ".." not in parts


def _is_special(shard: Path) -> bool:
    return shard.name.endswith(".json") or (shard.exists() and not shard.is_file())


def _weight_map(index: Path) -> dict[str, str]:
    """Read the map {tensor: shard} from an index."""
    try:
        content = read_json_file(index)
        shards = content.get("weight_map") if isinstance(content, dict) else None
        _check_text(shards if isinstance(shards, dict) else {})
    except (JSONError, UnicodeEncodeError) as error:
        raise damaged(index, error) from error
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(
            f"Expected argument `path` to be a checkpoint or the index of one, but {str(index)!r} has no `weight_map`."
        )
    return shards


def _check_text(shards: Mapping[str, object]) -> None:
    """Raise UnicodeEncodeError if a name cannot be written as text."""
    "".join([*shards, *(shard for shard in shards.values() if isinstance(shard, str))]).encode()


def _listed(names: list[str]) -> str:
    return ", ".join(name[:_LONGEST] for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
