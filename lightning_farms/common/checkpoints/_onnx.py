"""ONNX models, read through the package onnx; the meaning of initialisers follows from the nodes that use them."""

from __future__ import annotations

import math
import mmap
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_farms.common.checkpoints._arrays import GRU_FROM_ZRN, ArrayTensors, StoredArray, in_blocks, to_tensor
from lightning_farms.common.checkpoints._inert_pickle import PickleError
from lightning_farms.common.checkpoints._places import within
from lightning_farms.common.checkpoints.pickled_tensor import UnreadableTensor
from lightning_farms.common.checkpoints.safe_load import damaged
from lightning_farms.common.extras import import_extra

_NO_NAME = re.compile(r"onnx::.*|val_\d+|\d+|.*[Cc]onstant.*|_v_\d+")
_PACKED_OPS = (
    "MatMulInteger",
    "ConvInteger",
    "QLinearMatMul",
    "QLinearConv",
    "QGemm",
    "MatMulNBits",
    "GatherBlockQuantized",
)
_THROUGH = ("Identity", "Cast", "Transpose", "DequantizeLinear")
_PRODUCTS = (
    "Gemm",
    "MatMul",
    "FusedMatMul",
    "Conv",
    "ConvTranspose",
    "LSTM",
    "GRU",
    "RNN",
    "Einsum",
    "Gather",
    *_PACKED_OPS,
)
_LONGEST_WAY = 8
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # field numbers in a model, a graph and a tensor
_LARGE = 2**16  # bytes above which an initialiser is left in the file until it is asked for
_AS_VARINT, _BY_LENGTH = 0, 2  # types of the wire format
_LSTM_FROM_IOFC = (0, 2, 3, 1)
_GATES = {"LSTM": _LSTM_FROM_IOFC, "GRU": GRU_FROM_ZRN, "RNN": (0,)}


class _Use(NamedTuple):
    """A node that uses an initialiser, the position of that input, and the nodes that lie in between."""

    node: Any
    position: int
    through: tuple[Any, ...]


@dataclass
class _Graph:
    """Constants of a graph, and the nodes that use each name."""

    constants: dict[str, Any] = field(default_factory=dict)
    users: dict[str, list[tuple[Any, int]]] = field(default_factory=dict)

    def uses(self, name: str) -> Iterator[_Use]:
        """The uses of a name, also under other names as which nodes pass it on; each name is followed once."""
        seen, waiting = {name}, deque[tuple[str, tuple[Any, ...]]]([(name, ())])
        while waiting:
            passed, through = waiting.popleft()
            for node, position in self.users.get(passed, ()):
                if node.op_type not in _THROUGH or position > 0 or not node.output or len(through) == _LONGEST_WAY:
                    yield _Use(node, position, through)
                elif node.output[0] not in seen:
                    seen.add(node.output[0])
                    waiting.append((node.output[0], (*through, node)))


def read_onnx(path: Path, *, dequantize: bool) -> ArrayTensors:
    """Read the weights of a model in PyTorch's conventions.

    Raises:
        ImportError: the package onnx is not installed.
        ValueError: the file is damaged.
    """
    import_extra("onnx", extra="formats", what=repr(str(path)))
    try:
        return ArrayTensors(_found(_graph(_model(path).graph), path, dequantize), path)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise damaged(path, error) from error


def _model(path: Path) -> Any:  # noqa: ANN401
    """The model, whose large initialisers refer to their place in the file, as the package would copy all numbers."""
    from onnx import ModelProto

    model = ModelProto()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for number, whole, inner in _fields(content, slice(0, len(content))):
            if number == _GRAPH:
                _add_to_graph(model.graph, content, inner)
            else:
                model.MergeFromString(content[whole])
    return model


def _add_to_graph(graph: Any, content: mmap.mmap, place: slice) -> None:  # noqa: ANN401
    for number, whole, inner in _fields(content, place):
        if number == _INITIALIZER and inner.stop - inner.start > _LARGE:
            graph.initializer.append(_initializer(content, inner))
        else:
            graph.MergeFromString(content[whole])


def _initializer(content: mmap.mmap, place: slice) -> Any:  # noqa: ANN401
    from onnx import TensorProto

    tensor = TensorProto()
    numbers = None
    for number, whole, inner in _fields(content, place):
        if number == _RAW_DATA:
            numbers = inner
        else:
            tensor.MergeFromString(content[whole])
    if numbers is None:
        return tensor
    if math.prod(tensor.dims) * _dtype(tensor).itemsize != numbers.stop - numbers.start:  # several numbers in a byte
        tensor.raw_data = content[numbers]
        return tensor
    tensor.data_location = TensorProto.EXTERNAL
    where = {"location": "", "offset": numbers.start, "length": numbers.stop - numbers.start}
    for key, value in where.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _fields(content: mmap.mmap, place: slice) -> Iterator[tuple[int, slice, slice]]:
    """Number of each field of a message, the place of the field, and the place of its content."""
    position = place.start
    while position < place.stop:
        first = position
        tag, start = _varint(content, position)
        if tag & 7 == _BY_LENGTH:
            length, start = _varint(content, start)
            position = start + length
        elif tag & 7 == _AS_VARINT:
            _, position = _varint(content, start)
        else:
            raise PickleError("it has fields of a type that no model has")
        if not tag >> 3 or position > place.stop:
            raise PickleError("it is cut short, or no model")
        yield tag >> 3, slice(first, position), slice(start, position)


def _varint(content: mmap.mmap, position: int) -> tuple[int, int]:
    """A number in the wire format (seven bits per byte), and the position where it ends."""
    value = 0
    for place in range(10):
        byte = content[position + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, position + place + 1
    raise PickleError("it has a number of more than ten bytes")


def _found(graph: _Graph, path: Path, dequantize: bool) -> dict[str, StoredArray]:
    found: dict[str, StoredArray] = {}
    for name in graph.constants:
        for named, array in _arrays(name, graph, path, dequantize):
            found.setdefault(named, array)
    return found


def _graph(graph: Any) -> _Graph:  # noqa: ANN401
    found = _Graph({tensor.name: tensor for tensor in graph.initializer})
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found.constants[node.output[0]] = attribute.t
        for position, name in enumerate(node.input):
            found.users.setdefault(name, []).append((node, position))
    return found


def _arrays(name: str, graph: _Graph, path: Path, dequantize: bool) -> Iterator[tuple[str, StoredArray]]:
    tensor = graph.constants[name]
    shape = tuple(tensor.dims)
    if len(shape) < 2:
        return
    uses = list(graph.uses(name))
    product = min((use for use in uses if use.node.op_type in _PRODUCTS), key=_rank, default=None)
    read = partial(_values, tensor, path)
    if product is None:
        used = ", ".join(sorted({use.node.op_type for use in uses})) or "nothing"
        reason = f"no product of the graph uses it, but {used}"
        if _dtype(tensor).is_floating_point:
            yield name, StoredArray(shape, _dtype(tensor), read, reason=reason)
        return
    named = _name(name, product.node)
    if product.node.op_type in _GATES:
        yield from _recurrent(product, named, shape, _dtype(tensor), read)
        return
    yield named, _of_product(StoredArray(shape, _dtype(tensor), read), product, graph, path, dequantize)


def _rank(use: _Use) -> int:
    """Rank of a use: products come before tables, so that a table that is also a head's weight counts as the head's."""
    return int(use.node.op_type.startswith("Gather"))


def _name(name: str, node: Any) -> str:  # noqa: ANN401
    """The initialiser's name, or, if an exporter lost it, the node's: ``body.fc.weight`` for ``/body/fc/MatMul``."""
    if not _NO_NAME.fullmatch(name) or not node.name:
        return name
    module = [part for part in node.name.split("/") if part][:-1]
    return ".".join([*module, "weight"]) if module else f"{node.name}.weight"


def _of_product(array: StoredArray, use: _Use, graph: _Graph, path: Path, dequantize: bool) -> StoredArray:
    scaled = [node for node in use.through if node.op_type == "DequantizeLinear"]
    if use.node.op_type in _PACKED_OPS or (scaled and not dequantize):
        operation = scaled[0].op_type if scaled else use.node.op_type
        return array._replace(quantised=f"ONNX {operation}")
    for node in use.through:
        if node.op_type == "DequantizeLinear":
            read = partial(_dequantised, array.read, node, graph, path)
            array = array._replace(dtype=torch.float32, read=read, unpacked="ONNX DequantizeLinear")
        elif node.op_type == "Transpose":
            array = _permuted(array, _attribute(node, "perm") or list(range(len(array.shape)))[::-1])
    return _laid_out(array, use)


def _laid_out(array: StoredArray, use: _Use) -> StoredArray:
    """The weight in the order of PyTorch's modules, (outputs, inputs, ...), with its layout."""
    operation, dimensions = use.node.op_type, len(array.shape)
    if operation.startswith("Gather"):
        return array._replace(layout="embedding" if dimensions == 2 else "")
    if operation in ("Conv", "ConvTranspose"):
        groups = _attribute(use.node, "group") or 1
        start = "oi" if operation == "Conv" else "io"
        return array._replace(layout=f"{start}{'k' * (dimensions - 2)}" + (f"/{groups}" if groups > 1 else ""))
    if operation == "Gemm":
        by_inputs = (use.position == 1) != bool(_attribute(use.node, f"trans{'AB'[use.position % 2]}"))
    else:
        by_inputs = use.position == 1
    array = _permuted(array, [*range(dimensions - 2), dimensions - 1, dimensions - 2]) if by_inputs else array
    return array._replace(layout="oi" if dimensions == 2 else "batch")


def _permuted(array: StoredArray, order: list[int]) -> StoredArray:
    if sorted(order) != list(range(len(array.shape))):
        return array._replace(reason="the graph permutes it in a way that does not fit its dimensions")
    read = array.read
    return array._replace(shape=tuple(array.shape[d] for d in order), read=lambda: read().permute(*order))


def _recurrent(
    use: _Use,
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    read: Any,  # noqa: ANN401
) -> Iterator[tuple[str, StoredArray]]:
    """Split W (directions, gates x hidden, inputs), or R, by directions, with the gates in PyTorch's order."""
    if use.position not in (1, 2) or len(shape) != 3:
        return
    order = _GATES[use.node.op_type]
    module = name.rpartition(".")[0] or _recurrent_module(use.node)
    for direction in range(min(shape[0], 2)):
        leaf = f"weight_{'ih' if use.position == 1 else 'hh'}_l0{'_reverse' * direction}"
        array = StoredArray(shape[1:], dtype, partial(_direction, read, direction, order))
        yield f"{module}.{leaf}", array


def _recurrent_module(node: Any) -> str:  # noqa: ANN401
    """A common name for W and R, whose gates are counted together: the node's name, or otherwise that of its W."""
    return _name("0", node).removesuffix(".weight") if node.name else re.sub(r"(?<=.)[._/]?W$", "", node.input[1])


def _direction(read: Any, direction: int, order: tuple[int, ...]) -> Tensor:  # noqa: ANN401
    return in_blocks(read()[direction], order)


def _dequantised(read: Any, node: Any, graph: _Graph, path: Path) -> Tensor:  # noqa: ANN401
    """Dequantise as (x - zero) times the scale, along an axis, or in blocks along it."""
    values = read().to(torch.float32)
    more = [graph.constants.get(name) for name in node.input[1:]]
    if not more or any(each is None for each in more):
        raise UnreadableTensor("quantised, with scales that the graph computes")
    scale, *zero = (_values(each, path).to(torch.float32) for each in more)
    axis, block = _attribute(node, "axis"), _attribute(node, "block_size") or 0
    dimension = (1 if axis is None else axis) % values.ndim
    values = values - _spread(zero[0], values, dimension, block) if zero else values
    unpacked: Tensor = values.mul(_spread(scale, values, dimension, block))
    return unpacked


def _spread(factors: Tensor, values: Tensor, axis: int, block: int) -> Tensor:
    if block:
        if math.ceil(values.shape[axis] / block) != factors.shape[axis]:
            raise UnreadableTensor("damaged: its scales do not fit its blocks")
        return factors.repeat_interleave(block, dim=axis).narrow(axis, 0, values.shape[axis])
    return factors.reshape([-1 if d == axis else 1 for d in range(values.ndim)]) if factors.numel() > 1 else factors


def _attribute(node: Any, name: str) -> Any:  # noqa: ANN401
    for attribute in node.attribute:
        if attribute.name == name:
            return list(attribute.ints) or attribute.i
    return None


def _dtype(tensor: Any) -> torch.dtype:  # noqa: ANN401
    from onnx import TensorProto

    name = TensorProto.DataType.Name(tensor.data_type).lower()
    plain = {"float": torch.float32, "double": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
    found = plain.get(name, getattr(torch, name, torch.uint8))
    return found if isinstance(found, torch.dtype) else torch.uint8


def _values(tensor: Any, path: Path) -> Tensor:  # noqa: ANN401
    """The numbers of an initialiser, from the model's file or from a file beside it that it names."""
    from onnx import TensorProto, numpy_helper

    try:
        if tensor.data_location == TensorProto.EXTERNAL:
            return _beside(tensor, path)
        return to_tensor(np.array(numpy_helper.to_array(tensor)))
    except UnreadableTensor:
        raise
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise UnreadableTensor(f"damaged: {error}") from error


def _beside(tensor: Any, path: Path) -> Tensor:  # noqa: ANN401
    """The numbers of an initialiser that are elsewhere in the file, or in another file of the folder."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    named = Path(where.get("location", ""))
    file = path.parent / named if named.parts else path
    if not file.is_file() or named.is_absolute() or ".." in named.parts:
        raise UnreadableTensor(f"its numbers are in {where.get('location')!r}, which is not beside the model")
    file, dtype = within(path.parent, file) if named.parts else path, _dtype(tensor)
    size = math.prod(tensor.dims) * dtype.itemsize
    start = int(where.get("offset", 0))
    length = int(where.get("length", 0)) or size
    if min(tensor.dims) < 0 or start < 0 or not 0 <= length <= file.stat().st_size - start:
        raise UnreadableTensor(f"damaged: it reaches beyond the end of {file.name!r}")
    with file.open("rb") as stream:
        stream.seek(start)
        raw = bytearray(stream.read(length))
    if length != size:  # several numbers in a byte
        return _values(_with_bytes(tensor, raw), path)
    return torch.frombuffer(raw, dtype=dtype).reshape(tuple(tensor.dims)) if raw else torch.empty(*tensor.dims)


def _with_bytes(tensor: Any, raw: bytearray) -> Any:  # noqa: ANN401
    from onnx import TensorProto

    return TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=bytes(raw))
