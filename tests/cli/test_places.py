"""Where a subcommand is going to write is looked at before its work: nothing is lost, and a new folder is told of."""

import os
from pathlib import Path

import pytest
import torch

from lightning_farms.cli import main
from lightning_farms.models import DPOT, save_weights
from tests.pruning.tiny_text import save_tiny, tiny_text

SIZES = {"patch_size": 4, "embed_dim": 8, "depth": 1, "n_blocks": 2, "out_layer_dim": 4}
PRUNE = "prune lm --sparsity 0.5 --method magnitude"
# each command line with the name of the place that it writes to last
PLACES = {
    "analyze net.pt --out": "--out",
    "analyze net.pt --plots": "--plots",
    "simulate --trajectories=1 --resolution=16 --frames=3": "OUT",
    "convert dpot.pth": "OUT",
    "perplexity lm --text text.txt --window 16 --json": "--json",
    f"{PRUNE} --out": "OUT",
    f"{PRUNE} --dry-run --report": "--report",
    f"{PRUNE} --dry-run --figure": "--figure",
    "prune lm --sparsity 0.5 --method wanda --dry-run --recipe": "--recipe",
}
ENDINGS = {"convert": ".pth", "analyze": ".csv", "prune": ".csv", "perplexity": ".json"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save({"fc.weight": torch.randn(32, 32)}, "net.pt")
    save_weights(DPOT(img_size=16, in_timesteps=3, act="silu", modes=1, **SIZES), "dpot.pth")
    Path("text.txt").write_text(tiny_text(300))
    save_tiny("lm", hidden_size=16, intermediate_size=24)


def ending(command):
    return {"--figure": ".png", "--recipe": ".yaml"}.get(PLACES[command], ENDINGS.get(command.split()[0], ""))


def everything():
    return {path: path.stat().st_mtime_ns for path in Path(".").rglob("*")}


@pytest.mark.parametrize("command", PLACES)
def test_a_place_in_a_file_is_refused_before_the_work(command, monkeypatch, capsys):
    before = everything()
    for module in ("perplexity", "prune.command", "convert", "simulate", "analyze.command"):
        for work in ("perplexity", "prune", "allocate", "convert_checkpoint", "simulate_to_file", "analyze_weights"):
            monkeypatch.setattr(f"lightning_farms.cli.{module}.{work}", None, raising=False)
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), f"text.txt/a{ending(command)}"])
    assert ended.value.code == 1
    assert f"{PLACES[command]} to be a folder, but 'text.txt" in capsys.readouterr().err
    assert everything() == before


@pytest.mark.parametrize("command", PLACES)
def test_a_new_folder_is_made_and_told_of(command, capsys):
    main([*command.split(), f"new/er/a{ending(command)}"])
    err = capsys.readouterr().err
    name = "--plots, 'new/er/a.csv'" if "--plots" in command else f"he folder of {PLACES[command]}, 'new/er'"
    assert f"{name}, is not there, and will be made.\n" in err
    assert Path(f"new/er/a{ending(command)}").exists()


def test_a_device_may_lie_in_a_folder_without_the_right_to_write(monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) == os.devnull)
    main(["analyze", "net.pt", "--out", os.devnull, "--format", "csv"])


@pytest.mark.parametrize(
    ("command", "read"),
    [
        ("perplexity lm --text text.txt --window 16 --json text.txt", "text.txt"),
        (f"{PRUNE} --allocation own.csv --dry-run --report own.csv", "own.csv"),
    ],
)
def test_what_is_read_is_not_written_over(command, read, capsys):
    Path("own.csv").write_text("name,ratio\nmodel.layers.0,0.4\nmodel.layers.1,0.6\n")
    before = Path(read).read_bytes()
    with pytest.raises(SystemExit):
        main(command.split())
    assert "another file than the weights and texts that are read" in capsys.readouterr().err
    assert Path(read).read_bytes() == before
