"""Shapes and types of stored tensors, of which no value is read."""

import json
from collections.abc import Mapping

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_farms.analysis import open_checkpoint
from lightning_farms.common.checkpoints import MetaTensors

DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "complex64", "int64", "int8", "uint8", "bool")
FORMATS = ("torch", "safetensors", "shards of torch", "shards of safetensors")


def tensors():
    stored = {f"layer.{dtype}": torch.ones(4, 6).to(getattr(torch, dtype)) for dtype in DTYPES}
    return stored | {"number": torch.tensor(3), "vector": torch.ones(5), "empty": torch.ones(0, 5)}


def write(folder, stored, form):
    save, suffix = (save_file, "safetensors") if "safetensors" in form else (torch.save, "bin")
    if not form.startswith("shards"):
        save(stored, folder / f"model.{suffix}")
        return folder / f"model.{suffix}"
    shard_of = {name: f"shard-{number % 2}.{suffix}" for number, name in enumerate(stored)}
    for shard in set(shard_of.values()):
        save({name: tensor for name, tensor in stored.items() if shard_of[name] == shard}, folder / shard)
    index = folder / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": shard_of}))
    return index


@pytest.mark.parametrize("form", FORMATS)
def test_of_files(tmp_path, form, values_read):
    expected = tensors()
    outlines = MetaTensors(open_checkpoint(write(tmp_path, expected, form)))
    assert outlines.keys() == expected.keys()
    assert len(outlines) == len(expected)
    for name, outline in outlines.items():
        assert outline.is_meta
        assert (outline.shape, outline.dtype) == (expected[name].shape, expected[name].dtype)
    assert values_read == []


@pytest.mark.parametrize("form", ["safetensors", "shards of safetensors"])
def test_values_are_read_when_they_are_asked_for(tmp_path, form, values_read):
    opened = open_checkpoint(write(tmp_path, tensors(), form))
    assert "vector" in opened
    assert "layer.9" not in opened
    assert values_read == []
    assert opened["vector"].sum() == 5
    assert values_read == ["vector"]


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no type of 4 bits")
def test_packed_numbers(tmp_path):
    packed = torch.zeros(4, 6, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    save_file({"weight": packed}, tmp_path / "a.safetensors")
    outline = MetaTensors(open_checkpoint(tmp_path / "a.safetensors"))["weight"]
    assert (outline.shape, outline.dtype) == (packed.shape, packed.dtype)


def test_of_any_other_mapping():
    class Doubled(Mapping):
        state = nn.Linear(3, 2).state_dict()

        def __getitem__(self, name):
            return 2 * self.state[name]

        def __iter__(self):
            return iter(self.state)

        def __len__(self):
            return len(self.state)

    outlines = MetaTensors(Doubled())
    assert {name: (tensor.shape, tensor.is_meta) for name, tensor in outlines.items()} == {
        "weight": ((2, 3), True),
        "bias": ((2,), True),
    }
    with pytest.raises(KeyError):
        outlines["scale"]
    assert "weight" in outlines


@pytest.mark.parametrize("form", FORMATS)
def test_unknown_names_are_key_errors(tmp_path, form):
    outlines = MetaTensors(open_checkpoint(write(tmp_path, tensors(), form)))
    with pytest.raises(KeyError):
        outlines["layer.9"]
