"""Keras models and weights (.keras, .weights.h5, .h5), read through h5py into PyTorch's conventions."""

from __future__ import annotations

import io
import math
import mmap
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_farms.common.checkpoints._arrays import GRU_FROM_ZRN, ArrayTensors, StoredArray, in_blocks, to_tensor
from lightning_farms.common.checkpoints._inert_pickle import PickleError
from lightning_farms.common.checkpoints._json_file import MOST_JSON, JSONError, parse_json
from lightning_farms.common.checkpoints._natural import natural
from lightning_farms.common.checkpoints._zip_archive import ZipArchive, record_names
from lightning_farms.common.checkpoints.pickled_tensor import LARGEST_DENSE, Entry, UnreadableTensor
from lightning_farms.common.checkpoints.safe_load import damaged

if TYPE_CHECKING:
    import h5py

_WEIGHTS_IN_ZIP = "model.weights.h5"
_CONTAINERS = {"layers", "_layer_checkpoint_dependencies", "model_weights", "vars", "_operations", "cell"}
_NO_MODEL = re.compile(
    r"optimizer(_weights)?|metrics|seed_generator.*|_?(loss|metric|random)_tracker|top_level_model_weights"
)
_VARIABLE = re.compile(r"(?P<name>.+?)(:\d+)?")
_CLASS = re.compile(r"(?P<name>.*?)(_\d+)?")
_PROJECTION = re.compile(r"attention|einsum_dense|(^|\.)(query|key|value)[^.]*(\.[^.]*)?$")
_MOST_PACKED = 1032  # largest compression factor of deflate
_MOST_LARGE = 4  # largest compression factor allowed for a weight that is larger than the workspace
_SMALL = 2**20


class _Variable(NamedTuple):
    """A dataset with the layer that holds it, its name in the layer, and the layer's class in snake case."""

    layer: str
    name: str
    kind: str
    data: Any


def is_keras_archive(path: Path) -> bool:
    """Whether a file is a zip archive with weights of Keras 3."""
    return _WEIGHTS_IN_ZIP in record_names(path)


def read_keras(path: Path, *, check: bool = True) -> ArrayTensors:
    """Read the weights of a model.

    Args:
        path: the file.
        check: whether the CRC-32 of an archive is compared, in a separate pass, because HDF5 is not read in order.

    Raises:
        ValueError: the file is damaged, or it is an HDF5 file with other content.
    """
    try:
        file, classes = _opened(path, check)
        variables = list(_variables(file, classes))
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise damaged(path, error) from error
    if not variables:
        raise ValueError(
            f"Expected argument `path` to be a checkpoint, but {str(path)!r} is an HDF5 file that holds no weights of "
            "Keras. Load it with the library that wrote it, and save {name: torch.from_numpy(array)} with torch.save."
        )
    layers: dict[str, list[_Variable]] = {}
    for variable in variables:
        layers.setdefault(variable.layer, []).append(variable)
    found: dict[str, StoredArray] = {}
    for layer, held in layers.items():
        for name, array in _of_layer(held):
            found.setdefault(f"{layer}.{name}" if layer else name, array)
    return ArrayTensors(found, path)


def _opened(path: Path, check: bool) -> tuple[h5py.File, dict[str, str]]:
    """The HDF5 file, and the classes of layers if a configuration with it names them."""
    import h5py

    if not is_keras_archive(path):
        file = h5py.File(path, "r")
        return file, _classes(_json(file.attrs.get("model_config", "")))
    with path.open("rb") as stream:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    archive = ZipArchive(content)
    config = _json(archive.read("config.json", MOST_JSON)) if "config.json" in archive.records else {}
    return h5py.File(_Record(content, archive.entry(_WEIGHTS_IN_ZIP), check), "r"), _classes(config)


class _Record(io.RawIOBase):
    """A record of an archive as a file, mapped into memory if it is not compressed."""

    def __init__(self, content: mmap.mmap, entry: Entry, check: bool) -> None:
        if entry.fault:
            raise PickleError(f"its {_WEIGHTS_IN_ZIP!r} is damaged: {entry.fault}")
        packed = None if entry.unpack is None else memoryview(entry.unpack())
        self._bytes = memoryview(content)[entry.offset : entry.offset + entry.size] if packed is None else packed
        self._position = 0
        if check and entry.crc is not None and zlib.crc32(self._bytes) != entry.crc:
            raise PickleError(f"its {_WEIGHTS_IN_ZIP!r} does not have the CRC-32 that the archive names")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._bytes)}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        part = self._bytes[self._position : self._position + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)


def _json(text: object) -> object:
    content = text.encode(errors="replace") if isinstance(text, str) else text
    try:
        return parse_json(content) if isinstance(content, bytes) and 0 < len(content) <= MOST_JSON else {}
    except JSONError:
        return {}


def _classes(config: object) -> dict[str, str]:
    """Classes {name of a layer: its class in snake case}."""
    found: dict[str, str] = {}
    waiting = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            name = part["config"].get("name") if isinstance(part.get("config"), dict) else None
            if isinstance(name, str) and isinstance(part.get("class_name"), str):
                found[name] = _snake_case(part["class_name"])
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return found


def _snake_case(name: str) -> str:
    """Convert a class name like Keras does: ``Conv2DTranspose`` becomes ``conv2d_transpose``."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _variables(file: h5py.File, classes: Mapping[str, str]) -> Iterator[_Variable]:
    """The datasets that belong to layers, in natural order."""
    import h5py

    data: dict[str, h5py.Dataset] = {}

    def collect(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:  # empty datasets have no shape
            data[name] = item

    file.visititems(collect)
    keras = any(_is_of_keras(name) for name in data) or "layer_names" in file.attrs or "model_weights" in file
    for name in sorted(data, key=natural) if keras else ():
        parts = name.split("/")
        if not any(_NO_MODEL.fullmatch(part) for part in parts):
            yield _variable(parts, data[name], classes)


def _is_of_keras(name: str) -> bool:
    return re.search(r"(^|/)vars/\d+$", name) is not None


def _variable(parts: list[str], data: h5py.Dataset, classes: Mapping[str, str]) -> _Variable:
    match = _VARIABLE.fullmatch(parts[-1])
    own = [part for part in parts[:-1] if part not in _CONTAINERS]
    if len(own) > 1 and own[0] in own[1:]:  # Keras 2 has the layer's name twice: dense/dense/kernel:0
        own = own[1 + own[1:].index(own[0]) :]
    kinds = [classes.get(part) or _CLASS.sub(r"\g<name>", part, count=1) for part in reversed(own)]
    kind = next((each for each in kinds if each != "cell"), "")
    return _Variable(".".join(own), match["name"] if match else parts[-1], kind, data)


def _of_layer(variables: list[_Variable]) -> Iterator[tuple[str, StoredArray]]:
    """The weights of a layer under PyTorch's names."""
    named = _by_names(variables)
    recurrent = _recurrent(named)
    for name, variable in named.items():
        if name in recurrent:
            yield recurrent[name]
        elif len(variable.data.shape) == 1 or name == "bias":
            yield name, _array(variable, [variable.data.shape])
        else:
            yield _weight(name, variable)


def _by_names(variables: list[_Variable]) -> dict[str, _Variable]:
    """Variables by their roles; those of Keras 3, which are only numbered, are named by class and place."""
    if not all(variable.name.isdecimal() for variable in variables):
        return {variable.name: variable for variable in variables}
    kind, dimensions = variables[0].kind, [len(variable.data.shape) for variable in variables]
    names = ["kernel", "bias"]
    if "embedding" in kind and dimensions[0] == 2:
        names = ["embeddings"]
    elif "separable" in kind:
        names = ["depthwise_kernel", "pointwise_kernel", "bias"]
    elif dimensions[:2] == [2, 2] and _gates(variables[0], variables[1]):
        names = ["kernel", "recurrent_kernel", "bias"]
    elif dimensions[0] == 1:
        names = []
    own = {index: name for index, name in enumerate(names) if index < len(variables)}
    return {own.get(index, f"vars.{variable.name}"): variable for index, variable in enumerate(variables)}


def _gates(kernel: _Variable, recurrent: _Variable) -> int:
    """Number of gates of a recurrent layer; 0 if the two variables are not those of one."""
    (_, columns), (units, same) = kernel.data.shape, recurrent.data.shape
    gates, rest = divmod(columns, units) if units else (0, 1)
    return gates if columns == same and not rest and gates in (1, 3, 4) else 0


def _recurrent(named: Mapping[str, _Variable]) -> dict[str, tuple[str, StoredArray]]:
    kernel, recurrent = named.get("kernel"), named.get("recurrent_kernel")
    if kernel is None or recurrent is None or len(kernel.data.shape) != 2 or len(recurrent.data.shape) != 2:
        return {}
    order = {1: (0,), 3: GRU_FROM_ZRN, 4: (0, 1, 2, 3)}.get(_gates(kernel, recurrent))
    if order is None:
        return {}
    return {
        name: (leaf, _array(variable, [1, 0], order))
        for name, variable, leaf in (
            ("kernel", kernel, "weight_ih_l0"),
            ("recurrent_kernel", recurrent, "weight_hh_l0"),
        )
    }


def _weight(name: str, variable: _Variable) -> tuple[str, StoredArray]:
    shape, kind = variable.data.shape, variable.kind
    plain = name == "kernel" or name.endswith("_kernel")
    leaf = "weight" if name in ("kernel", "embeddings") else name.replace("kernel", "weight")
    if name == "embeddings":
        return leaf, _array(variable, [0, 1])._replace(layout="embedding")
    if not plain:
        return leaf, _array(variable, list(range(len(shape))))
    if len(shape) == 2:
        return leaf, _array(variable, [1, 0])._replace(layout="oi")
    if "depthwise" in f"{kind} {name}":
        array = _array(variable, [len(shape) - 2, len(shape) - 1, *range(len(shape) - 2)])
        channels = math.prod(array.shape[:2])
        merged = (channels, 1, *array.shape[2:])
        read = array.read
        groups = f"/{array.shape[0]}" if array.shape[0] > 1 else ""
        layout = "oi" + "k" * (len(shape) - 2) + groups
        return leaf, array._replace(shape=merged, read=lambda: read().reshape(merged), layout=layout)
    if "conv" not in kind and _PROJECTION.search(f"{variable.layer}.{kind}"):
        return leaf, _projection(variable)
    order = [len(shape) - 1, len(shape) - 2, *range(len(shape) - 2)]
    transposed = kind.endswith("transpose")
    return leaf, _array(variable, order)._replace(layout=("io" if transposed else "oi") + "k" * (len(shape) - 2))


def _projection(variable: _Variable) -> StoredArray:
    """Projection of attention: (inputs, heads, size), or (heads, size, outputs) for the output projection."""
    shape = variable.data.shape
    from_heads = re.search(r"output", variable.layer.split(".")[-1]) is not None and len(shape) == 3
    inputs = math.prod(shape[:-1]) if from_heads else shape[0]
    array = _array(variable, list(range(len(shape))))
    read = array.read
    outputs = math.prod(shape) // max(inputs, 1)
    return array._replace(shape=(outputs, inputs), read=lambda: read().reshape(inputs, outputs).T, layout="oi")


def _array(variable: _Variable, order: list[Any], gates: tuple[int, ...] = ()) -> StoredArray:
    data = variable.data
    plain = [dimension for dimension in order if isinstance(dimension, int)]
    plain = plain if len(plain) == len(data.shape) else list(range(len(data.shape)))
    dtype = _dtype(data)
    shape = tuple(data.shape[d] for d in plain)
    quantised = "Keras, integers with scales" if not (dtype.is_floating_point or dtype.is_complex) else ""
    return StoredArray(shape, dtype, partial(_read, data, plain, gates), quantised=quantised)


def _read(data: h5py.Dataset, order: list[int], gates: tuple[int, ...]) -> Tensor:
    if data.external or data.is_virtual:
        raise UnreadableTensor("its numbers are in another file, which is not read")
    stored = data.id.get_storage_size()
    if data.nbytes > max(_MOST_PACKED * stored, _SMALL) or data.nbytes > max(_MOST_LARGE * stored, LARGEST_DENSE):
        raise UnreadableTensor(f"damaged: it claims {data.nbytes} bytes, but {stored} are stored")
    try:
        tensor = to_tensor(data[()]).permute(*order)
    except (OSError, TypeError) as error:
        raise UnreadableTensor(f"damaged: {error}") from error
    return in_blocks(tensor, gates) if gates else tensor


def _dtype(data: h5py.Dataset) -> torch.dtype:
    try:
        return to_tensor(data.dtype.type(0).reshape(1)).dtype
    except (TypeError, ValueError, AttributeError):
        return torch.uint8
