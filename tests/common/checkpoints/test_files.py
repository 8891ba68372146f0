"""Checkpoint files of every format, on tensors of a few numbers."""

import argparse
import json
import pickle
import sys
import weakref
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_farms.analysis import open_checkpoint
from lightning_farms.common.checkpoints import STATE_DICT_KEYS, load_safely, read_stored


class Pickled:
    """A class of the user's own in a checkpoint."""


def state(layers=2):
    torch.manual_seed(0)
    return {f"layer.{i}.weight": torch.randn(4, 3) for i in range(layers)}


def save_shards(folder, tensors, *, kind):
    """Write one file a tensor and the index, as Hugging Face's libraries name them."""
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    weight_map = {}
    for number, (name, tensor) in enumerate(tensors.items(), 1):
        shard = f"{stem}-{number:05d}-of-{len(tensors):05d}.{suffix}"
        (save_file if kind == "safetensors" else torch.save)({name: tensor}, folder / shard)
        weight_map[name] = shard
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}, sort_keys=True))
    return index


def same(opened, expected):
    assert list(opened) == list(expected)
    assert len(opened) == len(expected)
    assert all(torch.equal(opened[name], tensor) for name, tensor in expected.items())


CONTENTS = {
    "plain": lambda tensors: OrderedDict(tensors),
    "lightning": lambda tensors: {"state_dict": tensors, "epoch": 3, "optimizer_states": [{"state": {0: tensors}}]},
    "model": lambda tensors: {"model": tensors, "optimizer": {"exp_avg": torch.ones(9, 9)}},
    "model_state_dict": lambda tensors: {"epoch": 1, "model_state_dict": tensors, "optimizer_state_dict": {}},
    "module": lambda tensors: {"module": tensors, "ds_version": "0.1"},
    "released DPOT": lambda tensors: {"model": tensors, "args": argparse.Namespace(width=512), "optimizer": {}},
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_files_of_torch_save(tmp_path, content, zipped):
    path = tmp_path / "weights.pt"
    torch.save(CONTENTS[content](state()), path, _use_new_zipfile_serialization=zipped)
    same(open_checkpoint(path), state())


def test_one_safetensors_file_in_natural_order(tmp_path):
    save_file(state(12), tmp_path / "model.safetensors")
    same(open_checkpoint(tmp_path / "model.safetensors"), state(12))
    (tmp_path / "model.safetensors").rename(tmp_path / "blob")
    same(open_checkpoint(str(tmp_path / "blob")), state(12))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path, kind):
    index = save_shards(tmp_path, state(12), kind=kind)
    same(open_checkpoint(index), state(12))
    same(open_checkpoint(tmp_path), state(12))


@pytest.mark.parametrize("name", ["last.ckpt", "weights.pth", "pytorch_model.bin", "net.pt"])
def test_a_folder_with_one_file(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "logs").mkdir()
    torch.save(state(), tmp_path / name)
    same(open_checkpoint(tmp_path), state())


def test_a_folder_where_the_usual_name_decides(tmp_path):
    save_file(state(), tmp_path / "model.safetensors")
    torch.save({"other": torch.zeros(2)}, tmp_path / "training_args.bin")
    same(open_checkpoint(tmp_path), state())


def test_unknown_names_are_key_errors(tmp_path):
    save_file(state(), tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", save_shards(tmp_path, state(), kind="bin")):
        with pytest.raises(KeyError):
            open_checkpoint(path)["layer.9.weight"]


@pytest.mark.parametrize("kind", ["safetensors", "bin", "one safetensors", "one bin"])
def test_the_reader_keeps_no_tensor_and_no_copy(tmp_path, kind):
    """Safetensors: no tensor outlives its use. All: the file is mapped, so that nothing is read before it is used."""
    tensors = {f"{i}": torch.full((1024, 1024), float(i)) for i in range(10)}
    path = tmp_path / "weights.pt"
    if kind.startswith("one"):
        (save_file if "safetensors" in kind else torch.save)(tensors, path)
    else:
        path = save_shards(tmp_path, tensors, kind=kind)
    opened = open_checkpoint(path)
    alive = []
    for name in opened:
        tensor = opened[name]
        assert tensor[0, 0] == float(name)
        alive.append(weakref.ref(tensor))
        del tensor
        assert "safetensors" not in kind or not any(reference() is not None for reference in alive)
    if sys.platform == "linux":
        assert str(tmp_path) in Path("/proc/self/maps").read_text()


def cut(path):
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:-200])


def cut_safetensors(path):
    save_file(state(), path)
    path.write_bytes(path.read_bytes()[:-8])


def torchscript(path):
    torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3)), path)


def plain_pickle(protocol):
    def write(path):
        path.write_bytes(pickle.dumps({"weight": Pickled()}, protocol=protocol))

    return write


BROKEN = [
    ("a.pkl", lambda path: path.write_bytes(pickle.dumps(Pickled())), r"holds a .*test_files\.Pickled"),
    ("a.pkl", plain_pickle(2), "holds no tensor there; it has the keys weight"),
    ("a.pkl", plain_pickle(4), "holds no tensor there; it has the keys weight"),
    ("a.pt", cut, r"damaged, cut short or of another format .*copy or download it again"),
    ("a.pt", lambda path: path.write_bytes(b""), "damaged, cut short or of another format"),
    ("a.pt", lambda path: path.write_text("some notes\n"), "damaged, cut short or of another format"),
    ("a.safetensors", lambda path: path.write_text("some notes\n"), "damaged, cut short or of another format"),
    ("a.safetensors", cut_safetensors, "damaged, cut short or of another format"),
    ("a.pt", cut_safetensors, "damaged, cut short or of another format"),
    ("a.pt", lambda path: torch.save([1, 2], path), "holds a list"),
    ("a.pt", lambda path: torch.save(torch.ones(2), path), "holds a Tensor"),
    ("a.pt", lambda path: torch.save({"epoch": 3, "nets": {}}, path), "it has the keys epoch, nets. Save the state"),
    ("a.pt", lambda path: torch.save({}, path), r"it has the keys \(none\)"),
    ("a.safetensors", lambda path: save_file({}, path), "holds none"),
    ("config.json", lambda path: path.write_text('{"hidden_size": 3}'), "has no `weight_map`"),
    ("m.index.json", lambda path: path.write_text('{"weight_map": {"a": 3}}'), "has no `weight_map`"),
    ("m.index.json", lambda path: path.write_text("{"), "damaged, cut short or of another format"),
    ("m.index.json", lambda path: path.write_text('{"weight_map": {}}'), "holds none"),
]


@pytest.mark.parametrize(("name", "write", "message"), BROKEN)
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_what_is_no_checkpoint(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path / name)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_torchscript_has_a_remedy(tmp_path):
    torchscript(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"TorchScript program.*torch\.jit\.load\('a\.pt'\)\.state_dict"):
        open_checkpoint(tmp_path / "a.pt")


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"existing file or folder, but got .*nowhere"):
        open_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(FileNotFoundError, match=r"folder with weights \(.*\*\.safetensors.*holds none"):
        open_checkpoint(tmp_path)
    index = save_shards(tmp_path, state(3), kind="safetensors")
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 are missing: model-00002-of-00003\.safetensors\. Copy"):
        open_checkpoint(index)


def test_a_tensor_missing_from_its_shard(tmp_path):
    index = save_shards(tmp_path, state(2), kind="safetensors")
    save_file({"else": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"'layer\.0\.weight' of .*index\.json': not in model-00001-of-00002\.safet"):
        open_checkpoint(index)["layer.0.weight"]


def test_folders_that_do_not_say_which(tmp_path):
    for name in ("a.ckpt", "b.ckpt"):
        torch.save(state(), tmp_path / name)
    with pytest.raises(ValueError, match=r"holds 2: a\.ckpt, b\.ckpt\. Give one of the files"):
        open_checkpoint(tmp_path)
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a distributed one that is damaged.*dcp_to_torch"):
        open_checkpoint(tmp_path)


def test_safetensors_not_installed(tmp_path, monkeypatch):
    save_file(state(), tmp_path / "a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'pip install "lightning-farms\[safetensors\]"'):
        open_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("key", STATE_DICT_KEYS)
def test_what_stands_beside_the_state_dict(tmp_path, key):
    torch.save({key: state(), "epoch": 7, "args": argparse.Namespace(modes=3)}, tmp_path / "a.ckpt")
    stored = read_stored(tmp_path / "a.ckpt")
    torch.testing.assert_close(dict(stored.tensors), state(), rtol=0, atol=0)
    assert stored.beside == {"epoch": 7, "args": argparse.Namespace(modes=3)}
    assert stored.metadata == {}


def test_a_state_dict_by_itself_has_nothing_beside_it(tmp_path):
    torch.save(state() | {"epoch": 7}, tmp_path / "a.pt")
    stored = read_stored(tmp_path / "a.pt")
    assert stored.tensors.keys() == state().keys()
    assert (stored.beside, stored.metadata) == ({}, {})
    torch.save({"epoch": 7}, tmp_path / "a.pt")
    assert read_stored(tmp_path / "a.pt").tensors == {}


def test_what_a_safetensors_file_says_of_itself(tmp_path):
    save_file(state(), tmp_path / "a.safetensors", metadata={"config": "{}"})
    stored = read_stored(tmp_path / "a.safetensors")
    torch.testing.assert_close(dict(stored.tensors), state(), rtol=0, atol=0)
    assert (stored.beside, stored.metadata) == ({}, {"config": "{}"})


def test_only_tensors_and_plain_values_are_loaded_by_torch(tmp_path):
    torch.save({"args": argparse.Namespace(modes=3)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds pickled objects that are not read"):
        load_safely(tmp_path / "a.pth")
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    assert load_safely(tmp_path / "a.pth") == {"epoch": 3}
