"""Tiny decoders of many families with random weights, built from their configurations."""

import torch

COMMON = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA = {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
MOE = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

FAMILIES = {
    "llama": ("LlamaConfig", COMMON | LLAMA),
    "llama3 rope": (
        "LlamaConfig",
        COMMON
        | LLAMA
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "opt": ("OPTConfig", COMMON | {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32}),
    "opt post-norm, projections": (
        "OPTConfig",
        COMMON
        | {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "mistral": ("MistralConfig", COMMON | LLAMA | {"sliding_window": 8, "head_dim": 8}),
    "qwen2": (
        "Qwen2Config",
        COMMON | LLAMA | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", COMMON | LLAMA | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", COMMON | LLAMA | {"head_dim": 8, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", COMMON | LLAMA | {"head_dim": 8, "sliding_window": 8, "sliding_window_pattern": 2}),
    "phi3": ("Phi3Config", COMMON | LLAMA | {"pad_token_id": 0}),
    "gpt2": ("GPT2Config", {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "gpt-neox": ("GPTNeoXConfig", COMMON | {"intermediate_size": 48, "max_position_embeddings": 64}),
    "bloom": ("BloomConfig", {"vocab_size": 96, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "falcon": ("FalconConfig", COMMON | {"alibi": False, "new_decoder_architecture": False}),
    "mixtral": ("MixtralConfig", COMMON | LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        COMMON | LLAMA | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "llama4": (
        "Llama4TextConfig",
        COMMON | LLAMA | MOE | {"head_dim": 8, "num_local_experts": 4, "interleave_moe_layer_step": 1},
    ),
    "olmoe": ("OlmoeConfig", COMMON | LLAMA | MOE | {"num_experts": 4, "num_experts_per_tok": 2}),
}


def tiny_decoder(family, seed=0):
    """A decoder in evaluation mode; its biases and norms are random too, so that none can be left out unseen."""
    import transformers

    name, settings = FAMILIES[family]
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(3)
    return model.eval()
