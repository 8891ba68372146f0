"""A LLaMA of one block in a GGUF file."""

import gguf
import numpy as np

WIDTH, HEADS, INNER, VOCABULARY = 32, 2, 64, 40


def write_gguf(file, *, kind=gguf.GGMLQuantizationType.F32, seed=0):
    """Write the file; its tensors by name, as transformers is to find them (q and k in the order of GGUF)."""
    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([chr(97 + i) if i < 26 else f"<{i}>" for i in range(VOCABULARY - 3)] + ["ab", "<s>", "</s>"])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(VOCABULARY - 2)
    writer.add_eos_token_id(VOCABULARY - 1)
    shapes = {
        "token_embd.weight": (VOCABULARY, WIDTH), "output.weight": (VOCABULARY, WIDTH), "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,), "blk.0.ffn_norm.weight": (WIDTH,), "blk.0.attn_q.weight": (WIDTH, WIDTH),
        "blk.0.attn_k.weight": (WIDTH, WIDTH), "blk.0.attn_v.weight": (WIDTH, WIDTH),
        "blk.0.attn_output.weight": (WIDTH, WIDTH), "blk.0.ffn_gate.weight": (INNER, WIDTH),
        "blk.0.ffn_up.weight": (INNER, WIDTH), "blk.0.ffn_down.weight": (WIDTH, INNER),
    }  # fmt: skip
    tensors = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, values in tensors.items():
        packed = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(values, packed), raw_dtype=packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
