"""Temporary changes to modules: a replaced forward method, and a model without a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn

_Model: TypeAlias = Any  # transformers.PreTrainedModel


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's forward method temporarily; one set on the instance, as by accelerate, is restored."""
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
    """Keep a model from caching keys and values temporarily, as nothing is generated."""
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
