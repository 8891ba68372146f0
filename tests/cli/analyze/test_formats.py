"""Options of `lightning-farms analyze` on how a file is read and what its dimensions mean."""

import csv
import io

import pytest
import torch
from safetensors.torch import save_file

from lightning_farms.analysis import FARMS, Selection, analyze_weights, checkpoint_weights
from lightning_farms.cli import main


@pytest.fixture
def rows(tmp_path, monkeypatch, capsys):
    """Run the command in a folder: rows of its CSV by layer, and what it says beside."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        main(["analyze", *arguments, "--format", "csv"])
        out, err = capsys.readouterr()
        return {row["name"]: row for row in csv.DictReader(io.StringIO(out))}, err

    return call


def test_layout_is_an_option_and_a_column(rows):
    tensors = {"up.weight": torch.randn(12, 24, 20), "fc.weight": torch.randn(20, 30)}
    torch.save(tensors, "net.pt")
    guessed, _ = rows("net.pt")
    assert {name: row["layout"] for name, row in guessed.items()} == {"up": "oik", "fc": "oi"}
    assert "its layout is guessed" in guessed["up"]["reason"]
    said, _ = rows("net.pt", "--layout", "u*=batch", "fc=io")
    assert {name: row["layout"] for name, row in said.items()} == {"up": "batch", "fc": "io"}
    assert said["up"]["reason"] == ""
    selection = Selection(layout=("u*=batch", "fc=io"))
    expected = analyze_weights(checkpoint_weights(tensors, selection), FARMS())
    assert float(said["up"]["alpha"]) == expected["up"].alpha != float(guessed["up"]["alpha"])


@pytest.mark.parametrize("text", ["up", "up=", "=oi", "up=xy"])
def test_layouts_that_are_none(rows, capsys, text):
    torch.save({"up.weight": torch.randn(12, 24, 20)}, "net.pt")
    with pytest.raises(SystemExit) as stop:
        rows("net.pt", "--layout", text)
    assert stop.value.code == 2
    assert "Expected --layout to be PATTERN=LAYOUT" in capsys.readouterr().err


def test_dequantize_is_an_option(rows):
    weight = torch.randn(40, 30)
    scale = weight.abs().amax() / 448
    packed = {"fc.weight": (weight / scale).to(torch.float8_e4m3fn), "fc.weight_scale": scale}
    save_file({**packed, "q.weight": torch.randn(20, 20)}, "model.safetensors")
    plain, _ = rows("model.safetensors")
    assert plain["fc"]["status"] == "skipped"
    unpacked, _ = rows("model.safetensors", "--dequantize")
    expected = analyze_weights(checkpoint_weights({"fc.weight": packed["fc.weight"].float() * scale}))["fc"]
    assert float(unpacked["fc"]["alpha"]) == expected.alpha


def test_one_of_several_shards_says_so(rows):
    save_file({"fc.weight": torch.randn(40, 30)}, "model-00002-of-00003.safetensors")
    _, err = rows("model-00002-of-00003.safetensors")
    assert "model-00002-of-00003.safetensors is one of 3 shards: give the folder" in err
