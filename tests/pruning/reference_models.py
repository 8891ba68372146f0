"""The tiny language models of reference/pruning_llm.json, by the recipe in it (NumPy's frozen legacy generator)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Spec(NamedTuple):
    """Sizes of a model, of its texts, and the windows (num_row_samples, sampling_ops_per_dim) of its alphas."""

    kind: str
    hidden: int
    inter: int
    blocks: int
    heads: int
    kv: int
    vocab: int
    seqlen: int
    nsamples: int
    seed: int
    windows: tuple[int, int]


class ReferenceModel(NamedTuple):
    """A model in float32, its calibration ids (nsamples, seqlen) and its test ids (6, seqlen)."""

    model: nn.Module
    calibration: Tensor
    test: Tensor
    spec: Spec


SPECS = {
    "llama_a": Spec("llama", 64, 176, 3, 4, 2, 256, 48, 32, 11, (48, 3)),
    "opt_a": Spec("opt", 64, 256, 3, 4, 4, 256, 48, 32, 12, (64, 4)),
}


def reference_model(name):
    """Build one of the models; the same at every call."""
    spec = SPECS[name]
    model = _llama(spec) if spec.kind == "llama" else _opt(spec)
    random = np.random.RandomState(spec.seed)
    with torch.no_grad():
        for parameter_name, parameter in sorted(dict(model.named_parameters()).items()):
            values = _values(random, parameter_name, tuple(parameter.shape), spec)
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    calibration = torch.from_numpy(random.randint(0, spec.vocab, (spec.nsamples, spec.seqlen)))
    test = torch.from_numpy(random.randint(0, spec.vocab, (6, spec.seqlen)))
    return ReferenceModel(model.eval(), calibration, test, spec)


def reference_name(weight_name):
    """`model.layers.0.self_attn.q_proj` -> `0.self_attn.q_proj`, as the layers are called in the file."""
    return weight_name.partition("layers.")[2]


def _llama(spec):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=spec.hidden,
            intermediate_size=spec.inter,
            num_hidden_layers=spec.blocks,
            num_attention_heads=spec.heads,
            num_key_value_heads=spec.kv,
            vocab_size=spec.vocab,
            max_position_embeddings=128,
            tie_word_embeddings=False,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    )


def _opt(spec):
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(
        OPTConfig(
            hidden_size=spec.hidden,
            word_embed_proj_dim=spec.hidden,
            ffn_dim=spec.inter,
            num_hidden_layers=spec.blocks,
            num_attention_heads=spec.heads,
            vocab_size=spec.vocab,
            max_position_embeddings=128,
            dropout=0.0,
            activation_function="relu",
            do_layer_norm_before=True,
        )
    )


def _values(random, name, shape, spec):
    values = random.standard_normal(shape)
    if len(shape) == 1:
        return np.exp(0.5 * values) if "norm" in name and name.endswith("weight") else 0.1 * values
    rows, columns = shape
    if ".layers." in name:
        block = int(name.partition(".layers.")[2].partition(".")[0])
        left = random.standard_normal((rows, 4)) * [4, 2, 1, 0.5]
        right = random.standard_normal((4, columns))
        return (values + left @ right * (block + 1) / (2 * spec.blocks)) / np.sqrt(columns) / 2
    scaled = "lm_head" in name or spec.kind == "opt"
    return values / np.sqrt(columns) if scaled else values
