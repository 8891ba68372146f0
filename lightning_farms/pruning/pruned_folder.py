"""The Hugging Face folder of a pruned model, written block by block, which appears complete or not at all."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_farms.common.atomic import complete_or_nothing, write_text
from lightning_farms.common.extras import import_extra
from lightning_farms.common.quantities import size_text
from lightning_farms.pruning._work_lock import LOCK, work_lock
from lightning_farms.pruning.report import PrunedBlock, PruningReport

_SETTINGS = "pruning_settings.json"
_Model: TypeAlias = Any  # transformers.PreTrainedModel
_Tokenizer: TypeAlias = Any  # transformers.PreTrainedTokenizerBase
_SPARE = 1.02  # factor for headers, the configuration and the tokenizer


class PrunedFolder:
    """Stores finished blocks in ``.NAME.partial`` beside the folder, of which :meth:`finish` makes the final folder.

    A pass that was interrupted, even by ``kill -9``, resumes with the same settings at the first missing block; the
    blocks before it are read, and the hidden states pass through them once more.

    Args:
        target: the folder to create, with its parent if necessary.
        model: a decoder of transformers.
        settings: everything that the result depends on, JSON-serialisable; blocks of a run with others are not used.

    Raises:
        FileExistsError: the folder exists.
        BlockingIOError: another process is creating it.
        ValueError: there are blocks of a run with other settings.
        OSError: the disk has no room for the model.
    """

    def __init__(self, target: str | Path, model: _Model, settings: Mapping[str, Any]) -> None:
        self._target = Path(target)
        self._model = model
        self._partial = self._target.with_name(f".{self._target.name}.partial")
        self._check_new()
        self._check_room()
        self._partial.mkdir(parents=True, exist_ok=True)
        self._lock = work_lock(self._partial)
        self._check_new()  # another process may have ended just now
        self._start(json.loads(json.dumps(dict(settings))))

    @property
    def partial(self) -> Path:
        """The folder of the finished blocks."""
        return self._partial

    def finished(self) -> int:
        """Number of blocks that are already finished."""
        return len(list(self._partial.glob("*.block.json")))

    def load(self, name: str, block: nn.Module) -> PrunedBlock | None:
        """Put a finished block's tensors into the model; return None if it is not finished."""
        facts, values = self._partial / f"{name}.block.json", self._partial / f"{name}.safetensors"
        if facts.exists() and not values.exists():
            self._take_back(name, block, values)
        if not facts.exists() or not values.exists():
            return None
        tensors = _safetensors().load_file(values)
        with torch.no_grad():
            for key, value in block.state_dict(keep_vars=True).items():
                value.copy_(tensors[f"{name}.{key}"])
        return PrunedBlock.from_dict(json.loads(facts.read_text(encoding="utf-8")))

    def _take_back(self, name: str, block: nn.Module, values: Path) -> None:
        """Restore a block's file if it had already become a shard when finishing the folder was interrupted."""
        from transformers.core_model_loading import revert_weight_conversion

        own = {f"{name}.{key}": value for key, value in block.state_dict().items()}
        numbers = _numbered(own)
        went = revert_weight_conversion(self._model, numbers)
        for shard in self._partial.glob("model-*-of-*.safetensors"):
            with _safetensors().safe_open(shard, "pt") as file:
                keys = set(file.keys())
            if keys == set(went) and went is numbers:
                os.replace(shard, values)
            elif keys == set(went):
                with complete_or_nothing(values) as draft:
                    _write(draft, _gathered(own, went, _safetensors().load_file(shard)))
                shard.unlink()

    def save(self, name: str, block: nn.Module, done: PrunedBlock) -> None:
        """Store a finished block: its tensors, then a file that marks it as finished."""
        tensors = {f"{name}.{key}": value for key, value in block.state_dict().items()}
        with complete_or_nothing(self._partial / f"{name}.safetensors") as draft:
            _write(draft, tensors)
        write_text(self._partial / f"{name}.block.json", json.dumps(asdict(done)))

    def finish(self, report: PruningReport, tokenizer: _Tokenizer = None) -> None:
        """Make the final folder: shards in transformers' format, index, configuration, tokenizer and report."""
        from transformers.core_model_loading import revert_weight_conversion
        from transformers.modeling_utils import remove_tied_weights_from_state_dict

        self._describe(report, tokenizer)  # first, so that a failure there costs no block
        blocks = [block.name for block in report.blocks]
        places: dict[str, str] = {}
        size = 0
        for index, name in enumerate([None, *blocks]):
            shard = self._partial / f"model-{index + 1:05d}-of-{len(blocks) + 1:05d}.safetensors"
            kept = None if name is None else self._partial / f"{name}.safetensors"
            rest = remove_tied_weights_from_state_dict(self._rest(blocks), self._model) if kept is None else {}
            tensors = rest if kept is None else _safetensors().load_file(kept)
            stored = revert_weight_conversion(self._model, tensors)
            places |= dict.fromkeys(stored, shard.name)
            size += sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
            if kept is not None and stored is tensors:  # the file is already in the format that transformers reads
                os.replace(kept, shard)
                continue
            with complete_or_nothing(shard) as draft:
                _write(draft, stored)
            if kept is not None:
                kept.unlink()
        index_of_shards = {"metadata": {"total_size": size}, "weight_map": places}
        write_text(self._partial / "model.safetensors.index.json", json.dumps(index_of_shards, indent=2))
        drafts = self._partial.glob(".*.tmp")  # left by processes that were killed
        for leftover in (*drafts, *(self._partial / f"{name}.block.json" for name in blocks)):
            leftover.unlink()
        os.replace(self._partial, self._target)
        if self._lock is not None:
            self._lock.release(self._target)

    def _describe(self, report: PruningReport, tokenizer: _Tokenizer) -> None:
        config = self._model.config
        config.dtype = str(self._model.dtype).removeprefix("torch.")
        config.architectures = [type(self._model).__name__]
        config.save_pretrained(self._partial)
        if getattr(self._model, "generation_config", None) is not None:
            self._model.generation_config.to_json_file(self._partial / "generation_config.json")  # whatever it holds
        if tokenizer is not None:
            tokenizer.save_pretrained(self._partial)
        report.save(self._partial / "pruning_report.json")
        report.save(self._partial / "pruning_report.csv")

    def _rest(self, blocks: list[str]) -> dict[str, Tensor]:
        prefixes = tuple(f"{name}." for name in blocks)
        return {key: value for key, value in self._model.state_dict().items() if not key.startswith(prefixes)}

    def _start(self, settings: dict[str, Any]) -> None:
        file = self._partial / _SETTINGS
        earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        differing = sorted(key for key in settings.keys() | earlier.keys() if settings.get(key) != earlier.get(key))
        if differing and not any(self._partial.glob("*.safetensors")):  # no block is lost
            for path in self._partial.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()
        elif differing:
            raise ValueError(
                f"Expected an interrupted run's blocks in {str(self._partial)!r} to be of the same settings, but "
                f"they differ in {', '.join(differing)}. Remove that folder to begin anew, or take another OUT."
            )
        if not file.exists():
            write_text(file, json.dumps(settings, indent=1))

    def _check_new(self) -> None:
        if os.path.lexists(self._target):  # also true for a broken link
            raise FileExistsError(f"Expected OUT to be a new folder, but {str(self._target)!r} exists.")

    def _check_room(self) -> None:
        needed = sum(tensor.numel() * tensor.element_size() for tensor in self._model.state_dict().values())
        there = sum(file.stat().st_size for file in self._partial.glob("*.safetensors"))
        parent = next(folder for folder in self._target.absolute().parents if folder.exists())
        free = shutil.disk_usage(parent).free
        if needed * _SPARE - there > free:
            raise OSError(
                f"Expected room for the pruned model in {str(parent)!r}, {size_text(needed * _SPARE - there)}, but "
                f"only {size_text(free)} are free. Make room, or take another OUT."
            )


def _numbered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Number the entries of all tensors consecutively, in tensors of the same shapes."""
    sizes = [value.numel() for value in tensors.values()]
    numbers = torch.arange(sum(sizes), dtype=torch.int32 if sum(sizes) < 2**31 else torch.int64, device="cpu")
    parts = zip(tensors.items(), numbers.split(sizes), strict=True)
    return {key: part.view(value.shape) for (key, value), part in parts}


def _gathered(own: Mapping[str, Tensor], went: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert tensors as stored by transformers back to the own form; `went` holds the numbers of their entries."""
    wide = functools.reduce(torch.promote_types, {value.dtype for value in own.values()})
    entries = torch.empty(sum(value.numel() for value in own.values()), dtype=wide, device="cpu")
    for key, numbers in went.items():
        entries[numbers.flatten()] = stored[key].flatten().to(wide)
    parts = zip(own.items(), entries.split([value.numel() for value in own.values()]), strict=True)
    return {key: part.view(value.shape).to(value.dtype) for (key, value), part in parts}


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; tensors that share memory are copied."""
    separate = {
        key: value.detach().to("cpu").clone(memory_format=torch.contiguous_format) for key, value in tensors.items()
    }
    package = import_extra("safetensors", extra="llm", what="Writing a model's folder")
    try:
        _safetensors().save_file(separate, path, metadata={"format": "pt"})
    except package.SafetensorError as error:  # a full disk, for instance
        raise OSError(str(error)) from error


def _safetensors() -> ModuleType:
    return import_extra("safetensors.torch", extra="llm", what="Writing a model's folder")
