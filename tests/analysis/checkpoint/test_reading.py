"""Of a checkpoint with a selection, only the tensors of what is selected are read."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_farms.analysis import Selection, checkpoint_changes, checkpoint_weights, open_checkpoint
from lightning_farms.common.checkpoints import StoredTensors


class Counted(StoredTensors):
    """A file that counts how often each tensor is read."""

    def __init__(self, tensors):
        self._names = self._tensors = tensors
        self.read = []

    def __getitem__(self, name):
        self.read.append(name)
        return self._tensors[name]

    def without_values(self, name):
        return self._tensors[name].to("meta")

    def identity(self, name):
        return name


@pytest.fixture
def model():
    blocks = [nn.ModuleDict({"q": nn.Linear(16, 16), "up": nn.Linear(16, 32)}) for _ in range(10)]
    return nn.ModuleDict({"embed": nn.Embedding(50, 16), "blocks": nn.ModuleList(blocks), "conv": nn.Conv2d(16, 4, 3)})


SELECTIONS = [
    (Selection(include=("blocks.3.q",)), {"blocks.3.q"}),
    (Selection(exclude=("blocks",)), {"conv"}),
    (Selection(kinds=("convolution",)), {"conv"}),
    (Selection(max_size=8), {"conv"}),
    (Selection(include=("blocks.*.up",), min_size=16), {f"blocks.{i}.up" for i in range(10)}),
]


@pytest.mark.parametrize(("selection", "wanted"), SELECTIONS)
def test_only_what_is_selected_is_read(model, selection, wanted):
    file = Counted(dict(model.state_dict()))
    layers = list(checkpoint_weights(file, selection))
    assert {name.rpartition(".")[0] for name in file.read} == wanted
    assert {layer.name for layer in layers if not layer.reason} == wanted
    assert [layer.name for layer in layers] == [layer.name for layer in checkpoint_weights(Counted(file._tensors))]


def test_only_what_is_selected_is_read_of_both_files(model):
    after, before = (Counted({name: each + shift for name, each in model.state_dict().items()}) for shift in (0.5, 0.0))
    changes = list(checkpoint_changes(after, before, Selection(include=("blocks.3.q",))))
    assert [(c.name, bool((c.matrices - 0.5).abs().max() < 1e-6)) for c in changes if not c.reason] == [
        ("blocks.3.q", True)
    ]
    assert {name.rpartition(".")[0] for name in (*after.read, *before.read)} == {"blocks.3.q"}


def test_reasons_are_those_of_the_selection(model):
    file = Counted(dict(model.state_dict()))
    reasons = {w.name: w.reason for w in checkpoint_weights(file, Selection(include=("conv",)))}
    assert reasons.pop("conv") == ""
    assert set(reasons.values()) == {"matches no pattern of `include`, 'conv'"}
    assert all(w.matrices.numel() == 0 for w in checkpoint_weights(file, Selection(include=("conv",))) if w.reason)


def test_values_are_those_of_the_file(model):
    [chosen] = (
        w
        for w in checkpoint_weights(Counted(dict(model.state_dict())), Selection(kinds=("convolution",)))
        if not w.reason
    )
    assert torch.equal(chosen.matrices, model["conv"].weight.flatten(2).permute(2, 0, 1))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_tensor_that_the_index_of_its_shard_does_not_list_is_told(tmp_path, suffix):
    shard, tensors = f"model-00001-of-00001.{suffix}", {"a.weight": torch.ones(3, 3), "b.weight": torch.ones(3, 3)}
    (save_file if suffix == "safetensors" else torch.save)(tensors, tmp_path / shard)
    index = tmp_path / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": shard}}))
    listed, unlisted = checkpoint_weights(index)
    assert (listed.name, listed.reason) == ("a", "")
    assert (unlisted.name, unlisted.reason) == (
        "b",
        f"it is in {shard}, but not listed in {index.name}; complete the index, or read the shards without it",
    )
    assert torch.equal(open_checkpoint(index)["b.weight"], tensors["b.weight"])


def test_shards_with_an_index_know_ties_and_parameters_as_one_file_does(tmp_path):
    table, shard = nn.Parameter(torch.randn(32, 16)), "pytorch_model-00001-of-00001.bin"
    tensors = {"a.weird": nn.Parameter(torch.randn(16, 16)), "embed_tokens.weight": table, "out.weight": table}
    torch.save(tensors, tmp_path / shard)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys([*tensors, "lost.weight"], shard)}))
    lost, *found = sorted(checkpoint_weights(index), key=lambda layer: layer.name != "lost")
    assert [(layer.name, layer.reason, layer.remark) for layer in found] == [("a.weird", "", ""), ("out", "", "")]
    assert lost.reason == f"not in {shard}, where the index says it is; copy or download both again"


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (("weight", ".weight"), ["weight", ".weight"]),
        (("a.weight", "a.weight.tensor"), ["a", "a.weight.tensor"]),
        (("a.b", "a.b.weight", "a.b.weight.tensor"), ["a.b", "a.b.weight", "a.b.weight.tensor"]),
    ],
)
def test_names_that_mean_one_layer_are_each_analysed(names, layers):
    tensors = {name: torch.full((3, 3), float(number)) for number, name in enumerate(names)}
    found = list(checkpoint_weights(tensors))
    assert [layer.name for layer in found] == layers
    assert [layer.matrices[0, 0, 0].item() for layer in found] == list(range(len(names)))


def test_what_modules_put_into_state_dicts_besides_tensors_is_left_out(model):
    others = {"conv._extra_state": b"fp8", "_metadata": {"activation": torch.nn.functional.gelu}, "step": 3}
    state = {**model.state_dict(), **others}
    expected = [layer.name for layer in checkpoint_weights(model.state_dict())]
    assert [layer.name for layer in checkpoint_weights(state)] == expected
    assert [layer.name for layer in checkpoint_changes(state, state)] == expected


@pytest.mark.parametrize("entry", [{"weight": torch.ones(3, 3)}, torch.ones(3, 3).numpy(), [torch.ones(3, 3)]])
def test_a_dictionary_that_is_no_state_dict_is_refused(entry):
    with pytest.raises(TypeError, match=rf"tensors by name, but got a {type(entry).__name__} as 'model'"):
        checkpoint_weights({"model": entry})
