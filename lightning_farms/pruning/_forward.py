"""A module that computes something else, or a model that keeps less, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn

_Model: TypeAlias = Any  # transformers.PreTrainedModel


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Have a module answer with another function meanwhile; one of its own, as accelerate's, is put back."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


@contextmanager
def without_cache(model: _Model) -> Iterator[None]:
    """Have a model keep no keys and values of the tokens it was given meanwhile: where nothing is generated."""
    config = model.config.get_text_config()
    kept = getattr(config, "use_cache", None)
    if kept is None:
        yield
        return
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = kept
