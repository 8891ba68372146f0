"""Next-token losses, computed without holding the logits of a whole window at once."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_farms.pruning._forward import replaced_forward, without_cache

_MOST_LOGITS = 1 << 25
"""Largest number of logits held at once: 128 MB in float32, and as much again for their losses."""

_Model: TypeAlias = Any  # transformers.PreTrainedModel


def next_token_losses(model: _Model, ids: Tensor, first: int = 1, most_logits: int = _MOST_LOGITS) -> Tensor:
    """Losses (B, T - first) in float32 of the tokens of (B, T) ids from `first` on, each given the tokens before it."""
    positions = torch.arange(first - 1, ids.shape[1] - 1, device=ids.device)
    chunks = positions.split(max(1, most_logits // (len(ids) * _vocabulary(model))))
    targets = ids[:, first:].split([len(chunk) for chunk in chunks], dim=1)
    logits = _chunks_of_logits(model, ids, chunks)
    with without_cache(model):
        return torch.cat([_losses(part, target) for part, target in zip(logits, targets, strict=True)], dim=1)


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in float32, with the vocabulary last, since PyTorch sums less exactly over another dimension."""
    flat = cross_entropy(logits.flatten(0, 1).float(), targets.flatten().to(logits.device), reduction="none")
    return flat.view(targets.shape)


def _vocabulary(model: _Model) -> int:
    return int(model.config.get_text_config().vocab_size)


def _chunks_of_logits(model: _Model, ids: Tensor, chunks: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """The logits, chunk by chunk of positions; the blocks run once, the head once per chunk."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        logits = model(ids).logits
        yield from (logits[:, chunk] for chunk in chunks)
        return
    with _decoder_runs_once(model):
        for chunk in chunks:
            yield model(ids, logits_to_keep=chunk).logits


@contextmanager
def _decoder_runs_once(model: _Model) -> Iterator[None]:
    """Let the decoder under the head answer every call with its first answer, temporarily."""
    decoder: nn.Module = model.get_decoder()
    if decoder is model:
        yield
        return
    forward = decoder.forward
    answers: list[Any] = []

    def answer(*args: object, **options: object) -> object:
        if not answers:
            answers.append(forward(*args, **options))
        return answers[0]

    with replaced_forward(decoder, answer):
        yield
