"""Files of torch.save (zip archives and the older format) and plain pickles, which are read but never run."""

from __future__ import annotations

import argparse
import mmap
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import torch

from lightning_farms.common.checkpoints._inert_pickle import (
    MOST_BYTES,
    Name,
    PickleError,
    StandIn,
    plain_key,
    read_pickle,
    shown,
)
from lightning_farms.common.checkpoints._zip_archive import ZipArchive, is_zip
from lightning_farms.common.checkpoints.pickled_tensor import (
    MOST_DIMENSIONS,
    OTHER_BYTE_ORDER,
    Entry,
    PickledTensor,
    Storage,
    StorageFile,
)

_MAGIC = 0x1950A86A20F9469CFC6C

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "QUInt4x2Storage": torch.uint8,
    "QUInt2x4Storage": torch.uint8,
}


class TorchFile(NamedTuple):
    """The content of a file: containers, plain values, tensors that are read when asked for, and stand-ins."""

    content: object
    stand_ins: Sequence[StandIn] = ()


def read_torch_file(path: Path, *, check: bool = True) -> TorchFile:
    """Read the structure of a file.

    Args:
        path: the file.
        check: whether the CRC-32s of a zip archive's tensors are compared, each when its tensor is first read.

    Raises:
        PickleError: the file is damaged, or of another kind.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise PickleError("it is empty")
        content = _mapped(file)
        builder = Builder()
        if is_zip(content):
            return TorchFile(_zipped(ZipArchive(content), content, builder, check), builder.stand_ins)
        storages = StorageFile(content, {})
        return TorchFile(_sequence(file, storages, builder), builder.stand_ins)


def _mapped(file: BinaryIO) -> mmap.mmap:
    """Map a file into memory, where it is read on access; it may be larger than the memory, as none is reserved."""
    try:
        if hasattr(mmap, "MAP_NORESERVE"):
            return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | mmap.MAP_NORESERVE)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise PickleError(f"it cannot be mapped into memory: {error.strerror}") from error


def read_torch_bytes(content: bytearray, *, check: bool = True) -> TorchFile:
    """Like :func:`read_torch_file`, for a zip archive that is a part of a file."""
    builder = Builder()
    return TorchFile(_zipped(ZipArchive(content), content, builder, check), builder.stand_ins)


def _zipped(archive: ZipArchive, content: mmap.mmap | bytearray, builder: Builder, check: bool) -> object:
    pickles = sorted((name for name in archive.records if name.rpartition("/")[2] == "data.pkl"), key=len)
    if not pickles:
        raise PickleError("it is a zip archive without a `data.pkl`")
    root = pickles[0].removesuffix("data.pkl")
    start, order = f"{root}data/", f"{root}byteorder"
    entries = {name.removeprefix(start): archive.entry(name) for name in archive.records if name.startswith(start)}
    swapped = order in archive.records and archive.read(order, 16) == OTHER_BYTE_ORDER.encode()
    storages = StorageFile(content, entries, swapped, check)
    return read_pickle(archive.read(pickles[0], MOST_BYTES), builder.build, _Persistent(storages))


def _sequence(file: BinaryIO, storages: StorageFile, builder: Builder) -> object:
    """Read consecutive pickles followed by the storages (torch before 1.6), or one plain pickle."""
    persistent = _Persistent(storages)
    first = read_pickle(file, builder.build, persistent)
    if first != _MAGIC:
        return first
    for _ in range(2):  # protocol version, and the system's sizes
        read_pickle(file, builder.build, persistent)
    content = read_pickle(file, builder.build, persistent)
    keys = read_pickle(file, builder.build, persistent)
    storages.entries = _consecutive(keys, persistent.storages, file.tell(), storages.content)
    if not persistent.storages.keys() <= storages.entries.keys():
        raise PickleError("it is cut short: some of its storages are not there, or not as long as it says")
    return content


def _consecutive(
    keys: object, sizes: Mapping[str, tuple[int, int]], offset: int, content: mmap.mmap | bytearray
) -> dict[str, Entry]:
    """Consecutive storages, each preceded by the number of its entries, which must match the pickle's."""
    entries: dict[str, Entry] = {}
    for key in map(shown, keys if isinstance(keys, list) else []):
        itemsize, count = sizes.get(key, (0, -1))
        size = count * itemsize
        as_said = int.from_bytes(content[offset : offset + 8], "little") == count
        if key in entries or not as_said or not 0 <= size <= len(content) - offset - 8:
            break
        entries[key] = Entry(offset + 8, size)
        offset += 8 + size
    return entries


class _Persistent:
    """Makes storages from their identifiers in pickles, ("storage", type, key, device, entries, view)."""

    def __init__(self, storages: StorageFile) -> None:
        self._file = storages
        self.storages: dict[str, tuple[int, int]] = {}

    def __call__(self, identifier: object) -> object:
        if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] not in ("storage", b"storage"):
            return StandIn("a persistent object")
        dtype = _STORAGES.get(identifier[1].name) if isinstance(identifier[1], Name) else None
        key, count = shown(identifier[2]), identifier[4]
        if dtype is None or not isinstance(count, int) or not 0 <= count < 2**62:
            return StandIn(f"a storage of type {shown(identifier[1])}")
        if self.storages.setdefault(key, (dtype.itemsize, count)) != (dtype.itemsize, count):
            raise PickleError(f"it has two storages {key!r}, of different sizes")
        return Storage(self._file, key, dtype, count)


class Builder:
    """Makes the results of a pickle's calls: tensors, containers, plain values, or stand-ins, which it keeps."""

    def __init__(self) -> None:
        self.stand_ins: list[StandIn] = []

    def build(self, name: Name, arguments: tuple[Any, ...]) -> object:
        known = _KNOWN.get((name.module, name.name))
        if known is not None:
            made = known(*arguments)
            if made is not None:
                return made
        if (name.module, name.name) == ("torch._tensor", "_rebuild_from_type_v2"):
            return self._subclass(*arguments)
        if (name.module, name.name) in _RECONSTRUCTORS and arguments and isinstance(arguments[0], Name):
            return self.build(arguments[0], ())
        self.stand_ins.append(StandIn(str(name), arguments))
        return self.stand_ins[-1]

    def _subclass(self, function: object, kind: object, arguments: tuple[Any, ...], state: object) -> object:
        """A tensor of a subclass, by its plain numbers, or by its local part if that is the whole tensor."""
        made = self.build(function, arguments) if isinstance(function, Name) else None
        if isinstance(made, PickledTensor) and made.reason:
            local = state.get("_local_tensor") if isinstance(state, dict) else None
            if isinstance(local, PickledTensor) and local.shape == made.shape:
                return local
            return _unreadable(made, shown(kind), local)
        return made if made is not None else StandIn(shown(kind))


def _unreadable(made: PickledTensor, kind: str, local: object) -> PickledTensor:
    held = f", of which this file holds a part of shape {local.shape}" if isinstance(local, PickledTensor) else ""
    return PickledTensor(
        made.shape, made.dtype, reason=f"a {kind}{held}: save its `.full_tensor()`, or join the checkpoint's parts"
    )


_RECONSTRUCTORS = {("copy_reg", "_reconstructor"), ("copyreg", "_reconstructor"), ("copyreg", "__newobj__")}


def _shape(sizes: object) -> tuple[int, ...]:
    return tuple(sizes) if isinstance(sizes, (tuple, list)) else ()


def _are_integers(sizes: object) -> bool:
    """Whether these are 64-bit integers, and no more of them than a tensor can have."""
    few = isinstance(sizes, (tuple, list)) and len(sizes) <= MOST_DIMENSIONS
    return few and all(type(size) is int and abs(size) < 2**63 for size in cast("Sequence[object]", sizes))


def _tensor(storage: object, offset: object = 0, size: object = (), stride: object = (), *more: object) -> object:
    if not isinstance(storage, Storage) or not isinstance(offset, int):
        return None
    flags = more[2] if len(more) > 2 and isinstance(more[2], dict) else {}
    names = tuple(str(name) for name, value in flags.items() if value is True)
    if not _are_integers(size) or not _are_integers(stride):
        return PickledTensor((), storage.dtype, reason="damaged: its shape is none that a tensor can have")
    return PickledTensor(_shape(size), storage.dtype, storage, offset, _shape(stride), flags=names)


def _tensor_of_type(
    storage: object, offset: object, size: object, stride: object, _1: object, _2: object, dtype: object, *_: object
) -> object:
    kind = torch_dtype(dtype)
    made = _tensor(storage, offset, size, stride)
    if kind is None or not isinstance(made, PickledTensor):
        return None
    return PickledTensor(made.shape, kind, made.storage, made.offset, made.stride)


def torch_dtype(name: object) -> torch.dtype | None:
    found = getattr(torch, name.name, None) if isinstance(name, Name) and name.module == "torch" else None
    return found if isinstance(found, torch.dtype) else None


def _parameter(data: object, *_: object) -> object:
    return data.as_parameter() if isinstance(data, PickledTensor) else None


def _meta(dtype: object, size: object, *_: object) -> object:
    kind = torch_dtype(dtype) if _are_integers(size) else None
    return None if kind is None else PickledTensor(_shape(size), kind, reason="on the meta device, without values")


def _wrapper(_: object, dtype: object, size: object, *more: object) -> object:
    kind = torch_dtype(dtype) if _are_integers(size) else None
    return None if kind is None else PickledTensor(_shape(size), kind, reason="its numbers are in other tensors")


def _sparse(layout: object, data: object) -> object:
    if not isinstance(layout, str) or not isinstance(data, tuple):
        return None
    tensors = [part for part in data if isinstance(part, PickledTensor)]
    size = next((part for part in data if _are_integers(part)), ())
    return PickledTensor(_shape(size), tensors[-1].dtype, parts=(layout, tuple(tensors))) if tensors else None


def _layout(name: object, *_: object) -> object:
    text = shown(name).removeprefix("torch.")
    return text if re.fullmatch(r"sparse_(coo|csr|csc|bsr|bsc)|strided", text) else None


def _quantised(storage: object, offset: object, size: object, stride: object, *_: object) -> object:
    made = _tensor(storage, offset, size, stride)
    if not isinstance(made, PickledTensor):
        return None
    return PickledTensor(made.shape, made.dtype, reason="quantised: dequantise it before saving")


def _nested(buffer: object, *_: object) -> object:
    if not isinstance(buffer, PickledTensor):
        return None
    return PickledTensor(buffer.shape, buffer.dtype, reason="nested, of several shapes: save what `.unbind()` gives")


def _of_device(data: object, *_: object) -> object:
    return data if isinstance(data, PickledTensor) else None


def _pairs(*arguments: Any) -> object:  # noqa: ANN401
    items = arguments[0] if arguments else ()
    if isinstance(items, dict):
        items = list(items.items())
    return {plain_key(key): value for key, value in (items if isinstance(items, list) else ())}


def _encoded(text: object, encoding: object, *_: object) -> object:
    return text.encode("latin1") if isinstance(text, str) and encoding == "latin1" else None


_TORCH: dict[str, Callable[..., object]] = {
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_tensor_v3": _tensor_of_type,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
    "_rebuild_sparse_tensor": _sparse,
    "_rebuild_sparse_csr_tensor": _sparse,
    "_rebuild_meta_tensor_no_storage": _meta,
    "_rebuild_wrapper_subclass": _wrapper,
    "_rebuild_qtensor": _quantised,
    "_rebuild_nested_tensor": _nested,
    "_rebuild_device_tensor_from_cpu_tensor": _of_device,
}
_KNOWN: dict[tuple[str, str], Callable[..., object]] = {
    **{("torch._utils", name): function for name, function in _TORCH.items()},
    ("torch.serialization", "_get_layout"): _layout,
    ("torch", "Size"): lambda sizes=(): _shape(sizes),
    ("collections", "OrderedDict"): _pairs,
    ("collections", "defaultdict"): lambda *_: {},
    ("collections", "Counter"): _pairs,
    ("lightning.fabric.utilities.data", "AttributeDict"): _pairs,
    ("lightning_fabric.utilities.data", "AttributeDict"): _pairs,
    ("pytorch_lightning.utilities.parsing", "AttributeDict"): _pairs,
    ("argparse", "Namespace"): lambda *_: argparse.Namespace(),
    ("builtins", "set"): lambda items=(): set(map(plain_key, items)),
    ("__builtin__", "set"): lambda items=(): set(map(plain_key, items)),
    ("builtins", "complex"): lambda real=0.0, imaginary=0.0: complex(float(real), float(imaginary)),
    ("_codecs", "encode"): _encoded,
}
