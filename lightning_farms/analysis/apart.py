"""Splits fused weights so that each part has its own row: every expert, and queries, keys and values."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, Literal, get_args

from torch import nn

from lightning_farms.analysis._fused import NotTold, fused_rows, is_fused
from lightning_farms.analysis.weights._layouts import _EXPERTS
from lightning_farms.analysis.weights.layer_weight import LayerWeight
from lightning_farms.common.texts import joined

Part = Literal["experts", "qkv"]


def weights_apart(
    weights: Iterable[LayerWeight], apart: Collection[Part], config: Mapping[str, Any]
) -> Iterator[LayerWeight]:
    """Split fused weights into parts that each get their own row.

    - ``"experts"``: experts in one parameter of three dimensions become one weight per expert, ``experts.up[3]``.
      (Experts that are modules of their own have a weight each anyway.)
    - ``"qkv"``: queries, keys and values in one linear weight become ``attn.qkv.q``, ``.k`` and ``.v``. The
      configuration tells how their rows are arranged; known are ``c_attn`` (GPT-2, GPTBigCode), ``query_key_value``
      (GPT-NeoX, BLOOM, Falcon, Persimmon, ChatGLM), ``qkv_proj`` (Phi-3), ``Wqkv`` (MPT, DBRX, ModernBERT), ``W_pack``
      (Baichuan), ``att_proj`` (OLMo), ``wqkv`` (InternLM2), ``qkv`` and ``to_qkv`` (vision transformers, litgpt) and
      ``attn.attn`` (litgpt). A weight whose parts it does not tell stays whole, with a remark in its row.

    Args:
        weights: as :func:`layer_weights` or :func:`checkpoint_weights` give them; those with a reason stay as they are.
        apart: what to split: ``"experts"``, ``"qkv"``, or both.
        config: the model's configuration, as in the ``config.json`` of a Hugging Face model.

    Returns:
        An iterator over the weights in their order.

    Raises:
        ValueError: ``apart`` names something else.

    Example:
        >>> import torch
        >>> from lightning_farms.analysis import checkpoint_weights
        >>> tensors = {"mlp.experts.up": torch.ones(2, 8, 4), "attn.qkv_proj.weight": torch.ones(8, 4)}
        >>> config = {"model_type": "phi3", "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 4}
        >>> [(w.name, w.shape) for w in weights_apart(checkpoint_weights(tensors), ("experts", "qkv"), config)]
        ... # doctest: +NORMALIZE_WHITESPACE
        [('mlp.experts.up[0]', (8, 4)), ('mlp.experts.up[1]', (8, 4)),
         ('attn.qkv_proj.q', (4, 4)), ('attn.qkv_proj.k', (2, 4)), ('attn.qkv_proj.v', (2, 4))]
    """
    unknown = [part for part in apart if part not in get_args(Part)]
    if unknown or isinstance(apart, str):
        raise ValueError(f"Expected argument `apart` to be of {', '.join(get_args(Part))}, but got {apart!r}.")
    return _apart(weights, apart, config)


def _apart(weights: Iterable[LayerWeight], apart: Collection[Part], config: Mapping[str, Any]) -> Iterator[LayerWeight]:
    for weight in weights:
        if weight.reason:
            yield weight
        elif "experts" in apart and _holds_experts(weight):
            yield from _experts(weight)
        elif "qkv" in apart and weight.kind == "linear" and len(weight.matrices) == 1 and is_fused(weight.name):
            yield from _projections(weight, config)
        else:
            yield weight


def _holds_experts(weight: LayerWeight) -> bool:
    one_each = len(weight.shape) == 3 and len(weight.matrices) == weight.shape[0] > 1
    return one_each and weight.kind == "parameter" and re.fullmatch(_EXPERTS, weight.name) is not None


def _experts(weight: LayerWeight) -> Iterator[LayerWeight]:
    for index, matrix in enumerate(weight.matrices.split(1)):
        yield weight._replace(name=f"{weight.name}[{index}]", shape=tuple(matrix.shape[1:]), matrices=matrix)


def _projections(weight: LayerWeight, config: Mapping[str, Any]) -> Iterator[LayerWeight]:
    rows, columns = weight.matrices.shape[1:]
    try:
        parts, guess = fused_rows(weight.name, rows, columns, config)
    except NotTold as error:
        remark = f"queries, keys and values are not taken apart: {error}"
        yield weight._replace(remark=joined(weight.remark, remark))
        return
    for part, places in parts.items():
        chosen = places if isinstance(places, slice) else places.to(weight.matrices.device)
        matrices = weight.matrices[:, chosen]
        rank = None if weight.rank is None or weight.rank >= min(matrices.shape[1:]) else weight.rank
        yield weight._replace(
            name=f"{weight.name}.{part}",
            shape=tuple(matrices.shape[1:]),
            matrices=matrices,
            rank=rank,
            remark=joined(weight.remark, guess),
        )


def model_config(model: nn.Module) -> Mapping[str, Any]:
    """Return the configuration of a model, or of the first of its modules that has one; empty if there is none."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return next((found for config in configs if (found := _as_mapping(config))), {})


def _as_mapping(config: object) -> Mapping[str, Any]:
    to_dict = getattr(config, "to_dict", None)
    if callable(to_dict):
        config = to_dict()
    elif is_dataclass(config) and not isinstance(config, type):
        config = asdict(config)
    return config if isinstance(config, Mapping) else {}
