"""Folders of pruned models: whole or not at all, resumed at the next block, read back by transformers."""

import json
import os
import shutil
import sys
from collections import namedtuple

import pytest
import torch
import transformers

from lightning_farms.pruning import (
    PrunedFolder,
    UniformAllocation,
    allocate,
    decoder_blocks,
    load_causal_lm,
    perplexity,
    prune,
)
from tests.forked import run_forked
from tests.pruning.families import tiny_decoder
from tests.pruning.tiny_text import save_tiny, tiny_text

IDS = torch.randint(0, 96, (6, 24), generator=torch.Generator().manual_seed(4))
SETTINGS = {"method": "wanda", "sparsity": 0.5}


def pruned(model, target, *, settings=SETTINGS, method="wanda", blocks=None):
    """Prune into a folder; stop as by a crash after so many blocks."""
    done = 0

    def progress(count):
        nonlocal done
        done += count
        if done == blocks:
            raise KeyboardInterrupt

    store = PrunedFolder(target, model, settings)
    report = prune(model, allocate(model, 0.5, UniformAllocation()), method, IDS, store=store, progress=progress)
    store.finish(report)
    return report


def same(one, other):
    theirs = other.state_dict()
    return one.state_dict().keys() == theirs.keys() and all(
        torch.equal(v, theirs[k]) for k, v in one.state_dict().items()
    )


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "mixtral", "gemma3", "phi3"])
def test_a_folder_is_read_back_as_it_was_written(tmp_path, family):
    model = tiny_decoder(family)
    report = pruned(model, tmp_path / "out")
    loaded = load_causal_lm(tmp_path / "out", tokenizer_required=False).model
    assert same(loaded, model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=IDS).logits, model(input_ids=IDS, use_cache=False).logits)
    written = json.loads((tmp_path / "out" / "pruning_report.json").read_text())
    assert written["zeros"] == report.zeros
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("use_cache", [True, False])
def test_what_the_models_own_folder_says_is_said_again(tmp_path, use_cache):
    save_tiny(tmp_path / "model", use_cache=use_cache)
    model, tokenizer = load_causal_lm(tmp_path / "model")
    (tmp_path / "text.txt").write_text(tiny_text(100))
    perplexity(model, tmp_path / "text.txt", tokenizer)
    store = PrunedFolder(tmp_path / "out", model, SETTINGS)
    store.finish(prune(model, allocate(model, 0.5, UniformAllocation()), "magnitude", store=store), tokenizer)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"):
        own, written = (json.loads((tmp_path / folder / name).read_text()) for folder in ("model", "out"))
        assert written == own


@pytest.mark.parametrize("family", ["mixtral", "llama"])
def test_tensors_have_the_names_of_the_original_format(tmp_path, family):
    model = tiny_decoder(family)
    model.save_pretrained(tmp_path / "original")
    pruned(model, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    from safetensors import safe_open

    with safe_open(tmp_path / "original" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(index["weight_map"])


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, method, blocks):
    whole, first, second = (tiny_decoder("gemma2") for _ in range(3))
    pruned(whole, tmp_path / "whole", method=method)
    with pytest.raises(KeyboardInterrupt):
        pruned(first, tmp_path / "out", method=method, blocks=blocks)
    assert not (tmp_path / "out").exists()
    assert PrunedFolder(tmp_path / "out", second, SETTINGS).finished() == blocks
    report = pruned(second, tmp_path / "out", method=method)
    assert same(second, whole)
    assert same(load_causal_lm(tmp_path / "out", tokenizer_required=False).model, whole)
    assert len(report.layers) == 21


@pytest.mark.parametrize("family", ["llama", "mixtral", "llama4"])
@pytest.mark.parametrize("file", ["config.json", "model-00003", "model.safetensors.index"])
def test_a_failure_while_the_folder_is_made_costs_no_block(tmp_path, monkeypatch, file, family):
    whole, first, second = (tiny_decoder(family) for _ in range(3))
    pruned(whole, tmp_path / "whole")
    replace = os.replace

    def full(source, target, *args):
        if str(target).startswith(str(tmp_path / ".out.partial" / file)):
            _no_room()
        return replace(source, target, *args)

    monkeypatch.setattr(os, "replace", full)
    if file == "config.json":
        monkeypatch.setattr(type(first.config), "save_pretrained", _no_room)
    with pytest.raises(OSError, match="No space left"):
        pruned(first, tmp_path / "out")
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    saved = []
    monkeypatch.setattr(
        PrunedFolder,
        "save",
        lambda self, name, *rest, save=PrunedFolder.save: (saved.append(name), save(self, name, *rest)),
    )
    pruned(second, tmp_path / "out")
    assert saved == []
    assert same(load_causal_lm(tmp_path / "out", tokenizer_required=False).model, whole)


def _no_room(*args, **options):
    raise OSError(28, "No space left on device")


def test_options_of_generation_that_transformers_finds_odd_are_kept(tmp_path):
    model = tiny_decoder("llama")
    model.generation_config.temperature, model.generation_config.do_sample = 0.5, False
    pruned(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.5


def test_blocks_of_other_settings_are_not_taken(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pruned(tiny_decoder("llama"), tmp_path / "out", blocks=1)
    with pytest.raises(ValueError, match=r"they differ in sparsity\. Remove that folder to begin anew"):
        pruned(tiny_decoder("llama"), tmp_path / "out", settings=SETTINGS | {"sparsity": 0.6})


def test_settings_of_a_run_without_a_block_stand_in_nobodys_way(tmp_path):
    """A first attempt with a wrong option leaves its settings, and maybe ratios, which are not taken either."""
    first = PrunedFolder(tmp_path / "out", tiny_decoder("llama"), SETTINGS | {"sparsity": 0.6})
    (first.partial / "ratios.json").touch()
    (first.partial / "more").mkdir()
    PrunedFolder(tmp_path / "out", tiny_decoder("llama"), SETTINGS)
    assert sorted(path.name for path in first.partial.iterdir()) == [".lock", "pruning_settings.json"]
    assert json.loads((first.partial / "pruning_settings.json").read_text()) == SETTINGS


def test_what_a_killed_process_was_writing_is_not_part_of_the_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pruned(tiny_decoder("llama"), tmp_path / "out", blocks=1)
    (tmp_path / ".out.partial" / f".layers.1.{'0' * 32}.tmp").touch()
    pruned(tiny_decoder("llama"), tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no locks")
def test_a_folder_that_another_process_makes_is_refused(tmp_path):
    store = PrunedFolder(tmp_path / "out", tiny_decoder("llama"), SETTINGS)
    (store.partial / "ratios.json").touch()
    program = """
import sys
from lightning_farms.pruning import PrunedFolder
from tests.pruning.families import tiny_decoder
PrunedFolder(sys.argv[1], tiny_decoder("llama"), {})
"""
    (tmp_path / "program.py").write_text(program)
    run_forked(((tmp_path / "program.py", tmp_path / "out"), {}), folder=tmp_path, code=1)
    said = (tmp_path / "err0.txt").read_text()
    assert f"but another one does (process {os.getpid()} of " in said
    assert "Wait until it has ended, or take another OUT." in said
    assert (store.partial / "ratios.json").exists()
    del store
    run_forked(((tmp_path / "program.py", tmp_path / "out"), {}), folder=tmp_path)


def test_the_lock_of_a_folder_ends_with_its_making(tmp_path):
    for _ in range(2):
        pruned(tiny_decoder("llama"), tmp_path / "out")
        assert not list(tmp_path.rglob(".*"))
        shutil.rmtree(tmp_path / "out")


def test_a_folder_that_exists_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="to be a new folder"):
        PrunedFolder(tmp_path / "out", tiny_decoder("llama"), SETTINGS)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="to be a new folder"):
        PrunedFolder(tmp_path / "link", tiny_decoder("llama"), SETTINGS)


def test_a_disk_without_room_is_refused_early(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**6, 10**6 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"only 1\.0 kB are free"):
        PrunedFolder(tmp_path / "out", tiny_decoder("llama"), SETTINGS)
    assert not list(tmp_path.iterdir())


def test_a_model_on_disk_is_pruned_block_by_block(tmp_path):
    in_memory = tiny_decoder("llama")
    in_memory.save_pretrained(tmp_path / "model")
    prune(in_memory, allocate(in_memory, 0.5, UniformAllocation()), "wanda", IDS)
    on_disk = load_causal_lm(tmp_path / "model", offload_folder=tmp_path / "offload", tokenizer_required=False).model
    assert any(p.device.type == "meta" for p in on_disk.parameters())
    pruned(on_disk, tmp_path / "out")
    assert all(p.device.type == "meta" for block in decoder_blocks(on_disk).values() for p in block.parameters())
    assert same(load_causal_lm(tmp_path / "out", tokenizer_required=False).model, in_memory)


def test_a_model_on_disk_that_uses_weights_past_their_modules_is_refused(tmp_path):
    config = transformers.JetMoeConfig(
        vocab_size=96, hidden_size=16, num_hidden_layers=2, num_key_value_heads=2, kv_channels=8, intermediate_size=24
    )
    transformers.JetMoeForCausalLM(config).save_pretrained(tmp_path / "model")
    on_disk = load_causal_lm(tmp_path / "model", offload_folder=tmp_path / "offload", tokenizer_required=False).model
    with pytest.raises(
        ValueError,
        match=r"uses weights without calling the modules that hold them.*leave out "
        r"`offload_folder`",
    ):
        prune(on_disk, allocate(on_disk, 0.5, UniformAllocation()), "wanda", IDS)


def test_a_run_on_disk_goes_on_too(tmp_path):
    whole = tiny_decoder("llama")
    whole.save_pretrained(tmp_path / "model")

    def loaded():
        return load_causal_lm(tmp_path / "model", offload_folder=tmp_path / "offload", tokenizer_required=False).model

    with pytest.raises(KeyboardInterrupt):
        pruned(loaded(), tmp_path / "out", blocks=2)
    pruned(loaded(), tmp_path / "out")
    prune(whole, allocate(whole, 0.5, UniformAllocation()), "wanda", IDS)
    assert same(load_causal_lm(tmp_path / "out", tokenizer_required=False).model, whole)
