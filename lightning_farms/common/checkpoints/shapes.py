"""Shapes and types of a checkpoint's tensors, without their values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from lightning_farms.common.checkpoints.pickled_tensor import UnreadableTensor


class StoredTensors(Mapping[str, Tensor]):
    """Base class of mappings of a file's tensors, which know names, shapes and types without reading values.

    Attributes:
        config: content of a ``config.json`` beside the file; empty if there is none.
        buffers: names of tensors that are known to be buffers, not parameters.
        parameters: names of tensors that are known to be parameters.
        layouts: meaning of the dimensions of tensors, if the format tells, as in ``Selection(layouts=...)``.
        quantised: the format of tensors that the file's own format packs.
        unpacked: the format of packed tensors that are unpacked when they are read.
        refused: reasons why tensors are known not to be weights.
        dequantize: whether packed weights are to be unpacked, if possible.
    """

    config: Mapping[str, Any] = MappingProxyType({})
    buffers: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()
    layouts: Mapping[str, str] = MappingProxyType({})
    quantised: Mapping[str, str] = MappingProxyType({})
    unpacked: Mapping[str, str] = MappingProxyType({})
    refused: Mapping[str, str] = MappingProxyType({})
    dequantize: bool = False
    _names: Collection[str]  # names of all tensors, in order; set by the subclasses

    def identity(self, name: str) -> object:
        """A value that is equal for tied tensors, which are the same numbers of the file."""
        return name

    @abstractmethod
    def without_values(self, name: str) -> Tensor:
        """A tensor of the same shape and type on the meta device."""

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping would read the tensor to see

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class SomeTensors(StoredTensors):
    """Some of a file's tensors.

    Args:
        tensors: the tensors of the file.
        names: {new name: name in the file} of the tensors that are kept, in order.
    """

    def __init__(self, tensors: StoredTensors, names: Mapping[str, str]) -> None:
        self._tensors = tensors
        self._names = self._own = dict(names)
        self.config, self.buffers, self.parameters = tensors.config, tensors.buffers, tensors.parameters
        self.layouts, self.quantised, self.refused = tensors.layouts, tensors.quantised, tensors.refused
        self.dequantize, self.unpacked = tensors.dequantize, tensors.unpacked

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._own[name]]

    def without_values(self, name: str) -> Tensor:
        """See the base class; the tensor is that of the file."""
        return self._tensors.without_values(self._own[name])

    def identity(self, name: str) -> object:
        """See the base class; the identity is that of the file's tensor."""
        return self._tensors.identity(self._own[name])


class MetaTensors(Mapping[str, Tensor]):
    """Tensors by name on the meta device, where products and norms have shapes and types but cost nothing.

    No values are read, neither of a file's tensors (:func:`open_checkpoint`) nor of tensors in memory or mapped into
    it; ``stored`` holds the original tensors.

    Args:
        tensors: the tensors by name.

    Example:
        >>> import torch
        >>> MetaTensors({"weight": torch.ones(2, 3)})["weight"]
        tensor(..., device='meta', size=(2, 3))
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.stored = self._tensors = tensors
        self.dequantize: bool = getattr(tensors, "dequantize", False)
        self.config: Mapping[str, Any] = getattr(tensors, "config", {})
        self.buffers: frozenset[str] = getattr(tensors, "buffers", frozenset())
        self.parameters: frozenset[str] = getattr(tensors, "parameters", frozenset())
        self.layouts: Mapping[str, str] = getattr(tensors, "layouts", {})
        self.quantised: Mapping[str, str] = getattr(tensors, "quantised", {})
        self.unpacked: Mapping[str, str] = getattr(tensors, "unpacked", {})
        self.refused: Mapping[str, str] = getattr(tensors, "refused", {})

    def __getitem__(self, name: str) -> Tensor:
        if isinstance(self._tensors, StoredTensors):
            return self._tensors.without_values(name)
        try:
            return self._tensors[name].to("meta")
        except (RuntimeError, ValueError) as error:  # quantised, nested, not initialised
            if self._tensors[name].is_quantized:
                raise UnreadableTensor("quantised: dequantise it before saving") from error
            first_line = (str(error).splitlines() or [""])[0]
            raise UnreadableTensor(f"its shape cannot be told ({type(error).__name__}: {first_line[:100]})") from error

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
