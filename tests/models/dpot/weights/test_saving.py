import argparse
import json
import os
import pickletools
import re
import struct
import sys
import zipfile

import pytest
import torch
from torch import nn

from lightning_farms.analysis import open_checkpoint
from lightning_farms.models import DPOT, load_weights, save_weights

SMALL = {
    "img_size": 8, "patch_size": 4, "in_channels": 2, "out_channels": 2, "in_timesteps": 3, "embed_dim": 8,
    "depth": 2, "n_blocks": 2, "modes": 1, "out_layer_dim": 4, "n_cls": 3, "act": "silu",
}  # fmt: skip


def _model(seed=0, **changes):
    torch.manual_seed(seed)
    return DPOT(**(SMALL | changes))


def _assert_same(first, second):
    assert first.config == second.config
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "changes", [{}, {"normalize": True, "mlp_ratio": 1.5}, {"time_agg": "mlp"}, {"img_size": (8, 12)}]
)
def test_safetensors_and_back(tmp_path, changes):
    model = _model(**changes)
    path = tmp_path / "new" / "model.safetensors"
    save_weights(model, path)
    assert os.listdir(path.parent) == ["model.safetensors"]
    save_weights(model, tmp_path / "model.pth")
    assert path.stat().st_mode == (tmp_path / "model.pth").stat().st_mode
    _assert_same(DPOT.from_checkpoint(path), model)
    other = _model(seed=1, **changes)
    assert len(load_weights(other, path).loaded) == len(model.state_dict())
    _assert_same(other, model)


def test_safetensors_are_what_the_format_says(tmp_path):
    """Read by the format's description: eight bytes of length, a JSON header, numbers."""
    model = _model()
    save_weights(model, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert json.loads(metadata["config"]) == model.config
    assert set(header) == set(model.state_dict())
    entry = header["blocks.1.filter.w2"]
    start, end = entry["data_offsets"]
    stored = torch.frombuffer(bytearray(content[8 + length + start : 8 + length + end]), dtype=torch.float32)
    assert torch.equal(stored.view(entry["shape"]), model.blocks[1].filter.w2)


def test_safetensors_without_settings(tmp_path):
    from safetensors.torch import save_file

    model = _model()
    save_file({f"network.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "a.safetensors")
    _assert_same(DPOT.from_checkpoint(tmp_path / "a.safetensors", modes=1, act="silu"), model)
    with pytest.warns(UserWarning, match="does not tell modes and act"):
        DPOT.from_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"nothing", bytes(100), None])
def test_damaged_safetensors(tmp_path, content):
    path = tmp_path / "model.safetensors"
    save_weights(_model(), path)
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(ValueError, match="is damaged, cut short or of another format"):
        DPOT.from_checkpoint(path)


def test_missing_package(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_weights(_model(), path)
    before = path.read_bytes()
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    for fails in (lambda: save_weights(_model(seed=1), path), lambda: DPOT.from_checkpoint(path)):
        with pytest.raises(ImportError, match=re.escape('pip install "lightning-farms[safetensors]"')):
            fails()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.safetensors"]


# What the original program does with a checkpoint (its finetune.py and utilities.py): torch.load(path)['model'], whose
# first name decides whether 'module.' is cut off, then load_state_dict, or components by the beginnings of names; its
# network is built from the command line, whose names the released files keep as `args`.
ORIGINAL_ARGS = {
    "model": "DPOT", "res": 8, "patch_size": 4, "width": 8, "n_layers": 2, "modes": 1, "n_blocks": 2, "mlp_ratio": 2,
    "out_layer_dim": 4, "act": "silu", "normalize": 1, "T_in": 3, "T_bundle": 1, "n_channels": 2, "n_class": 3,
}  # fmt: skip


class _Original(nn.Module):
    """The original's names and shapes, written down from its state dict (reference/other.json, key "dpot")."""

    def __init__(self, args):
        super().__init__()
        width, hidden, channels = args.width, args.n_channels * args.patch_size + 3, args.n_channels
        grid, block, patch = args.res // args.patch_size, width // args.n_blocks, args.patch_size
        self.pos_embed = nn.Parameter(torch.zeros(1, width, grid, grid))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Sequential(
            nn.Conv2d(channels + 3, hidden, patch, patch), nn.SiLU(), nn.Conv2d(hidden, width, 1)
        )
        self.blocks = nn.ModuleList(self._block(width, args.n_blocks, block, width * args.mlp_ratio) for _ in range(2))
        self.scale_feats_mu, self.scale_feats_sigma = nn.Linear(2 * channels, width), nn.Linear(2 * channels, width)
        self.cls_head = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, args.n_class)
        )
        self.time_agg_layer = nn.Module()
        self.time_agg_layer.w = nn.Parameter(torch.zeros(args.T_in, width, width))
        self.time_agg_layer.gamma = nn.Parameter(torch.zeros(1, width))
        out = args.out_layer_dim
        self.out_layer = nn.Sequential(
            nn.ConvTranspose2d(width, out, patch, patch), nn.SiLU(), nn.Conv2d(out, out, 1), nn.SiLU(),
            nn.Conv2d(out, channels * args.T_bundle, 1),
        )  # fmt: skip

    def _block(self, width, groups, block, hidden):
        part = nn.Module()
        part.norm1, part.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        part.filter = nn.Module()
        for layer in "12":
            setattr(part.filter, f"w{layer}", nn.Parameter(torch.zeros(2, groups, block, block)))
            setattr(part.filter, f"b{layer}", nn.Parameter(torch.zeros(2, groups, block)))
        part.mlp = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, width, 1))
        return part


def test_original_program_reads_the_export(tmp_path):
    model = _model(normalize=True, mlp_ratio=2.0)
    save_weights(model, tmp_path / "model.safetensors")
    save_weights(DPOT.from_checkpoint(tmp_path / "model.safetensors"), tmp_path / "model.pth")
    content = torch.load(tmp_path / "model.pth", weights_only=False)
    args, state = content["args"], content["model"]
    assert type(args) is argparse.Namespace
    assert {name: value for name, value in vars(args).items() if name in ORIGINAL_ARGS} == ORIGINAL_ARGS
    assert {type(vars(args)[name]) for name in ("normalize", "mlp_ratio")} == {int}
    assert not next(iter(state)).startswith("module.")
    original = _Original(args)
    original.load_state_dict(state)
    torch.testing.assert_close(dict(original.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert next(iter(state)) == "pos_embed"


def test_export_needs_nothing_of_ours(tmp_path):
    save_weights(_model(), tmp_path / "model.pth")
    with zipfile.ZipFile(tmp_path / "model.pth") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        operations = list(pickletools.genops(archive.read(name)))
    named = {argument for operation, argument, _ in operations if operation.name == "GLOBAL"}
    assert not any(operation.name == "STACK_GLOBAL" for operation, _, _ in operations)
    assert named == {
        "argparse Namespace", "collections OrderedDict", "torch FloatStorage", "torch._utils _rebuild_tensor_v2",
    }  # fmt: skip


def test_precision_and_layout_are_kept(tmp_path):
    model = _model().bfloat16()
    model.pos_embed.data = model.pos_embed.data.to(memory_format=torch.channels_last)
    for name in ("model.pth", "model.safetensors"):
        save_weights(model, tmp_path / name)
        stored = dict(open_checkpoint(tmp_path / name))
        assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
        torch.testing.assert_close(stored, dict(model.state_dict()), rtol=0, atol=0)
