"""Tensors of several files joined into one mapping."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_farms.common.checkpoints.shapes import StoredTensors

_KNOWN = ("layouts", "quantised", "unpacked", "refused")


class JoinedTensors(StoredTensors):
    """Tensors of several files, with a prefix to the names of each file.

    Raises:
        ValueError: two files hold a tensor of the same name, as if they were slices of one tensor.
    """

    def __init__(self, parts: Sequence[tuple[str, StoredTensors]]) -> None:
        self._holders: dict[str, tuple[StoredTensors, str]] = {}
        buffers: set[str] = set()
        parameters: set[str] = set()
        known: dict[str, dict[str, str]] = {name: {} for name in _KNOWN}
        for prefix, tensors in parts:
            for name in tensors:
                if f"{prefix}{name}" in self._holders:
                    raise ValueError(
                        f"Expected every tensor to be in one shard, but {prefix + name!r} is in two: slices of tensor "
                        "parallelism, or shards of two checkpoints. Join them with the program that wrote them."
                    )
                self._holders[f"{prefix}{name}"] = tensors, name
            buffers |= {f"{prefix}{name}" for name in tensors.buffers}
            parameters |= {f"{prefix}{name}" for name in tensors.parameters}
            for kind, texts in known.items():
                texts |= {f"{prefix}{name}": text for name, text in getattr(tensors, kind).items()}
        self._names = self._holders
        self.buffers, self.parameters = frozenset(buffers), frozenset(parameters)
        self.layouts, self.quantised, self.unpacked, self.refused = (known[name] for name in _KNOWN)

    def __getitem__(self, name: str) -> Tensor:
        tensors, own = self._holders[name]
        return tensors[own]

    def without_values(self, name: str) -> Tensor:
        tensors, own = self._holders[name]
        return tensors.without_values(own)

    def identity(self, name: str) -> object:
        tensors, own = self._holders[name]
        same = tensors.identity(own)
        return (id(tensors), same) if isinstance(same, str) else same
