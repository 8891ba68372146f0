"""A head that is tied to the table of embeddings, and therefore not stored: the table gets the head's name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_farms.analysis.checkpoint._stored_layers import is_embedding
from lightning_farms.common.checkpoints.pickled_tensor import UnreadableTensor
from lightning_farms.common.checkpoints.shapes import MetaTensors, SomeTensors, StoredTensors

_GENERATORS = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$")
_MASKED = re.compile(r"(ForMaskedLM|ForPreTraining)$")
_HEADS = {  # where transformers gives it another name than lm_head
    re.compile("Whisper|Moonshine|Canary|CohereAsr"): "proj_out",
    re.compile("BioGpt|TrOCR"): "output_projection",
    re.compile("T5Gemma"): "lm_head.out_proj",
    re.compile("GPTNeoXJapanese"): "embed_out",
}
_TABLE = re.compile(
    r"(.*\.)?(shared|embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|backbone\.embeddings)\.weight"
)
_IN_BLOCK = re.compile(r"\.\d+\.")


def with_its_head(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Rename the table to the head, as in the model, if the configuration beside the file names a language model.

    The head is tied if it is not stored, unless ``tie_word_embeddings`` is off: programs leave the setting out if it is
    the default. A head that has a bias is named after it.
    """
    model = " ".join(map(str, config.get("architectures") or ()))
    tables = [name for name in tensors if _TABLE.fullmatch(name)]
    known = _GENERATORS.search(model) or _MASKED.search(model)
    if not known or config.get("tie_word_embeddings") is False or len(tables) != 1:
        return tensors
    usual = next((name for family, name in _HEADS.items() if family.match(model)), "lm_head")
    head = _head(tensors, tables[0], default=usual if _GENERATORS.search(model) else "")
    if not head or not isinstance(tensors, StoredTensors):
        return tensors
    return SomeTensors(tensors, {f"{head}.weight" if name == tables[0] else name: name for name in tensors})


def _head(tensors: Mapping[str, Tensor], table: str, default: str) -> str:
    """Return the name of the head that has no weight of its own; empty if there is a head with one."""
    outlines = MetaTensors(tensors)
    others = [name for name in tensors if name.endswith((".weight", ".bias")) and not _IN_BLOCK.search(name)]
    try:
        shape = outlines[table].shape
        sizes = {name: tuple(outlines[name].shape) for name in others if not is_embedding(name.rpartition(".")[0])}
    except UnreadableTensor:
        return ""
    if len(shape) != 2 or any(len(size) == 2 and size[0] == shape[0] for size in sizes.values()):
        return ""
    modules = [name.removesuffix(".bias") for name, size in sizes.items() if size == shape[:1]]
    if not modules:
        return default
    within = any(name.startswith(f"{modules[0]}.") and name != f"{modules[0]}.bias" for name in tensors)
    return f"{modules[0]}.decoder" if within else modules[0]
