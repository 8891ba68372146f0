"""A table of embeddings that is a language model's head too: as the model has it; Hugging Face's files hold it once."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_farms.analysis import checkpoint_changes, checkpoint_weights, layer_weights


def saved(folder, architecture, names, **config):
    state = {name: torch.randn(shape) for name, shape in names.items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], **config}))
    return {layer.name: layer for layer in checkpoint_weights(folder)}


@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {}])
def test_a_table_that_is_the_head_too_is_the_head(config, tmp_path):
    """Not said, it is the default of programs that leave out defaults."""
    tied = config.get("tie_word_embeddings", True)
    names = {"model.embed_tokens.weight": (40, 12), "model.layers.0.fc.weight": (40, 12)}
    found = saved(tmp_path, "LlamaForCausalLM", names, **config)
    assert list(found) == (["lm_head", "model.layers.0.fc"] if tied else ["model.embed_tokens", "model.layers.0.fc"])
    first = next(iter(found.values()))
    assert first.kind == ("linear" if tied else "embedding")
    assert (first.matrices.numel() > 0) == tied
    assert [change.name for change in checkpoint_changes(tmp_path, tmp_path)] == list(found)


@pytest.mark.parametrize(
    ("architecture", "names", "head"),
    [
        ("T5ForConditionalGeneration", {"shared.weight": (40, 12)}, "lm_head"),
        (
            "BertForMaskedLM",
            {
                "bert.embeddings.word_embeddings.weight": (40, 12),
                "bert.embeddings.position_embeddings.weight": (40, 12),
                "cls.predictions.bias": (40,),
                "cls.predictions.transform.dense.weight": (12, 12),
            },
            "cls.predictions.decoder",
        ),
        (
            "RobertaForMaskedLM",
            {
                "roberta.embeddings.word_embeddings.weight": (40, 12),
                "lm_head.bias": (40,),
                "lm_head.layer_norm.bias": (12,),
            },
            "lm_head.decoder",
        ),
        (
            "DistilBertForMaskedLM",
            {"distilbert.embeddings.word_embeddings.weight": (40, 12), "vocab_projector.bias": (40,)},
            "vocab_projector",
        ),
    ],
)
def test_heads_of_other_models(architecture, names, head, tmp_path):
    table = next(iter(names))
    found = saved(tmp_path, architecture, names)
    assert (found[head].kind, found[head].reason, found[head].matrices.shape) == ("linear", "", (1, 40, 12))
    assert table.removesuffix(".weight") not in found


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("BertModel", {"embeddings.word_embeddings.weight": (40, 12)}),
        ("ElectraForPreTraining", {"electra.embeddings.word_embeddings.weight": (40, 12), "head.bias": (1,)}),
        ("BioGptForCausalLM", {"biogpt.embed_tokens.weight": (40, 12), "output_projection.weight": (40, 12)}),
        ("OtherForCausalLM", {"a.embed_tokens.weight": (40, 12), "b.embed_tokens.weight": (30, 12)}),
    ],
)
def test_tables_that_are_no_heads(architecture, names, tmp_path):
    found = saved(tmp_path, architecture, names)
    assert all(found[name.removesuffix(".weight")].kind == "embedding" for name in names if "embed" in name)


SMALL = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
WITH_DECODER = {
    "d_model": 16,
    "decoder_start_token_id": 1,
    **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 24 for part in ("encoder", "decoder")},
}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("BertForMaskedLM", ENCODER),
        ("BioGptForCausalLM", ENCODER),
        ("GPTNeoXJapaneseForCausalLM", {**ENCODER, "intermediate_multiple_size": 2}),
        ("GitForCausalLM", ENCODER | {"vision_config": ENCODER | {"image_size": 8, "patch_size": 4}}),
        ("WhisperForConditionalGeneration", WITH_DECODER),
        ("BartForConditionalGeneration", WITH_DECODER),
    ],
)
def test_a_tiny_models_file_has_its_rows(model, options, tmp_path):
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, model)
    built: nn.Module = kind(kind.config_class(**SMALL, **options))
    built.save_pretrained(tmp_path)
    assert {weight.name for weight in checkpoint_weights(tmp_path)} == {weight.name for weight in layer_weights(built)}
