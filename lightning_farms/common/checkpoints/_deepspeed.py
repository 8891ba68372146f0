"""Folders of DeepSpeed ZeRO: whole states, or parameters assembled from the partitions of stage 3."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_farms.common.checkpoints._torch_file import TorchFile, read_torch_file
from lightning_farms.common.checkpoints._zero_files import ZeroFiles
from lightning_farms.common.checkpoints.pickled_tensor import PickledTensor, UnreadableTensor

_JOIN = "Join them first: python zero_to_fp32.py FOLDER FILE (the program is in the checkpoint's folder)"
_TENSOR_PARALLEL = re.compile(r".*mp_rank_(?!00_)\d+_.*")


@dataclass(frozen=True)
class PartitionedTensor(PickledTensor):
    """A parameter split over processes as flattened numbers; each process's part is given as (tensors, start)."""

    parts_of_ranks: tuple[tuple[tuple[PickledTensor, ...], int], ...] = ()

    @property
    def identity(self) -> object:
        """Unique, as no two of these tensors are the same numbers of the files."""
        return id(self)

    def read(self) -> Tensor:
        """Read the parameter in one piece.

        Raises:
            UnreadableTensor: a partition is damaged or too short.
        """
        self._check_shape()
        numbers = math.prod(self.shape)
        each = math.ceil(numbers / len(self.parts_of_ranks))
        flat = torch.cat([_narrow(tensors, start, each) for tensors, start in self.parts_of_ranks])
        return flat[:numbers].reshape(self.shape)


def _narrow(tensors: Sequence[PickledTensor], start: int, count: int) -> Tensor:
    """Read the numbers [start, start + count) of consecutive vectors."""
    found = []
    for tensor in tensors:
        size = math.prod(tensor.shape)
        begin, end = max(start, 0), min(start + count, size)
        if begin < end:
            found.append(tensor.read().flatten()[begin:end])
        start -= size
    if sum(map(len, found)) != count:
        raise UnreadableTensor("damaged: the partitions of the flat groups are shorter than `param_shapes` says")
    return torch.cat(found)


def read_zero(files: ZeroFiles, *, check: bool = True) -> TorchFile:
    """Read the content of a checkpoint, with the model's state under `module`.

    Raises:
        PickleError: a file is damaged.
        FileNotFoundError: the file of a process is missing.
        ValueError: the model is also split over processes in another way.
    """
    split = [
        file.name for file in (*files.whole, *files.model, *files.optimizer) if _TENSOR_PARALLEL.fullmatch(file.name)
    ]
    if split:
        raise ValueError(
            f"Expected argument `path` to be a checkpoint of DeepSpeed ZeRO, but {str(files.folder)!r} is one of "
            f"tensor or pipeline parallelism too ({split[0]}). Join it first: python -m "
            "deepspeed.checkpoint.ds_to_universal --input_folder FOLDER --output_folder OTHER, and save the model's "
            "state dict from it."
        )
    if files.whole:
        return read_torch_file(files.whole[0], check=check)
    return _partitioned(files, check)


def _partitioned(files: ZeroFiles, check: bool) -> TorchFile:
    model = [read_torch_file(file, check=check) for file in files.model]
    optimizer = [read_torch_file(file, check=check) for file in files.optimizer]
    first = _mapping(model[0].content)
    ranks = _ranks(optimizer, files)
    flat = [_flat_groups(_mapping(_mapping(each.content).get("optimizer_state_dict"))) for each in optimizer]
    module = _mapping(first.get("module"))
    buffers = {name for name in _sequence(first.get("buffer_names")) if isinstance(name, str)}
    tensors = {name: module[name] for name in buffers if name in module}
    offset = 0
    for name, shape in _shapes(first.get("param_shapes")).items():
        parts = tuple((groups, offset) for groups in flat)
        tensors[name] = PartitionedTensor(shape, torch.float32, parts_of_ranks=parts)
        offset += math.ceil(math.prod(shape) / ranks)
    tensors |= _frozen(first, [_mapping(each.content) for each in model])
    for name, source in _pairs(first.get("shared_params")):
        if source in tensors:
            tensors.setdefault(name, tensors[source])
    if offset == 0 and not tensors:
        raise _refusal(files, "no `param_shapes`")
    content = {"module": {name: tensors[name] for name in _in_order(tensors, module)}}
    return TorchFile({**content, "buffer_names": sorted(buffers)}, model[0].stand_ins)


def _ranks(optimizer: Sequence[TorchFile], files: ZeroFiles) -> int:
    """Number of processes, each of which must have its file."""
    if not optimizer:
        raise _refusal(files, "no *_optim_states.pt, where ZeRO-3 keeps the numbers")
    state = _mapping(_mapping(optimizer[0].content).get("optimizer_state_dict"))
    count = state.get("partition_count")
    counts = [each for each in _sequence(count) if isinstance(each, int)]
    count = max(counts) if counts else count
    stage = state.get("zero_stage")
    if isinstance(stage, int) and stage != 3:
        raise _refusal(files, f"partitions of stage {stage} without mp_rank_00_model_states.pt")
    if isinstance(count, int) and count != len(optimizer):
        raise FileNotFoundError(
            f"Expected {str(files.folder)!r} to hold *_optim_states.pt of {count} processes, but there are "
            f"{len(optimizer)}. Copy them too."
        )
    return len(optimizer)


def _refusal(files: ZeroFiles, what: str) -> ValueError:
    return ValueError(
        f"Expected argument `path` to be a checkpoint of DeepSpeed ZeRO with its partitions, but {str(files.folder)!r} "
        f"has {what}. {_JOIN}."
    )


def _flat_groups(state: Mapping[Any, Any]) -> tuple[PickledTensor, ...]:
    groups = state.get("fp32_flat_groups")
    listed = groups if isinstance(groups, (list, tuple)) else [groups]
    return tuple(group for group in listed if isinstance(group, PickledTensor))


def _shapes(stored: object) -> dict[str, tuple[int, ...]]:
    """Shapes {name: shape} of all groups, in order."""
    groups = stored if isinstance(stored, (list, tuple)) else [stored]
    items = (item for group in groups if isinstance(group, dict) for item in group.items())
    return {str(name): shape for name, shape in items if _is_shape(shape)}


def _is_shape(shape: object) -> bool:
    return isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)


def _frozen(first: Mapping[Any, Any], models: Sequence[Mapping[Any, Any]]) -> dict[str, PickledTensor]:
    """Parameters that are not trained; the model state of each process holds a fragment of them."""
    found: dict[str, PickledTensor] = {}
    for name, shape in _shapes(first.get("frozen_param_shapes")).items():
        fragments = [_mapping(each.get("frozen_param_fragments")).get(name) for each in models]
        known = [each for each in fragments if isinstance(each, PickledTensor)]
        if known and len(known) == len(fragments):
            parts = tuple(((each,), 0) for each in known)
            found[name] = PartitionedTensor(shape, known[0].dtype, parts_of_ranks=parts)
        else:
            found[name] = PickledTensor(shape, torch.float32, reason=f"frozen, and its fragments are missing. {_JOIN}")
    return found


def _pairs(stored: object) -> list[tuple[str, str]]:
    """Pairs (name, name of the parameter to which it is tied)."""
    if isinstance(stored, dict):
        return [(str(name), str(source)) for name, source in stored.items()]
    listed = stored if isinstance(stored, (list, tuple)) else []
    return [(str(pair[0]), str(pair[1])) for pair in listed if isinstance(pair, (list, tuple)) and len(pair) == 2]


def _in_order(tensors: Mapping[str, object], module: Mapping[Any, Any]) -> list[str]:
    """Names in the order of the model, whose state names them; others follow in their own order."""
    known = [str(name) for name in module if name in tensors]
    return [*known, *(name for name in tensors if name not in module)]


def _sequence(value: object) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}
