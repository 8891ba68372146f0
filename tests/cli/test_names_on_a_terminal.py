"""Names in a file are printed as they are, but for what a terminal would obey; results to read again have them all."""

import csv
import io
import sys

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from lightning_farms.analysis import analyze_weights, checkpoint_weights
from lightning_farms.cli import main
from lightning_farms.common.progress import progress_bars
from lightning_farms.data import SimulationConfig, simulate_to_file

MEANT = ("fc.[red]x", "fc.[/]", "fc.:smile:", "fc.ок", "fc.$\\alpha$")
OBEYED = (
    "fc.\x1b[31mred",
    "fc.\x1b[2J",
    "fc.a\nfake  linear  8x8  9.9",
    "fc.\rover",
    "fc.\u202ebidi",
    "fc.\x1b]0;me\x07",
)


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tensors = {f"{name}.weight": torch.randn(24, 24) for name in (*MEANT, *OBEYED)}
    tensors |= {
        "fc.not\x1b[1mfinite.weight": torch.full((24, 24), torch.nan),
        "fc.low\x1b[1m.weight": torch.zeros(24, 24),
    }
    save_file(tensors, "net.safetensors")
    save_file({**tensors, "fc.more\x1b[1m.weight": torch.eye(24)}, COMPARED)
    return tensors


def said(capsys, *arguments):
    main(list(arguments))
    return "".join(capsys.readouterr())


def is_plain(text):
    return all(letter.isprintable() or letter == "\n" for letter in text)


COMPARED = "[red]\x1b[31m.safetensors"
OPTIONS = ("", f"--compare {COMPARED}", "--without_outliers", "--out a\x1b[1m.txt", "--plots a\x1b[1m")


@pytest.mark.parametrize("options", OPTIONS)
def test_a_terminal_is_told_nothing_by_a_name(options, hostile, capsys):
    text = said(capsys, "analyze", "net.safetensors", *filter(None, options.split(" ")))
    assert is_plain(text)
    if "--out" not in options:
        assert all(f" {name} " in text for name in MEANT)
        assert r" fc.a\nfake  linear  8x8  9.9 " in text


def test_a_result_that_is_read_again_has_the_names(hostile, capsys, monkeypatch):
    main(["analyze", "net.safetensors", "--format", "csv"])
    names = [row["name"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out, newline=""))]
    assert sorted(names) == sorted(name.removesuffix(".weight") for name in hostile)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    main(["analyze", "net.safetensors", "--format", "csv"])
    assert is_plain(capsys.readouterr().out)


def test_a_report_in_python(hostile):
    report = analyze_weights(checkpoint_weights(hostile))
    assert is_plain(str(report))
    assert is_plain(report._repr_html_())
    assert {"fc.\x1b[2J", "fc.[/]"} < set(report.alphas)


def test_a_bar(capsys, monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr("lightning_farms.common.progress.Console", lambda **_: Console(file=text, width=80))
    with progress_bars(show=True, stays=True) as start:
        start("Analysing [/]\x1b[2J", 1, 0)(1)
    assert r"Analysing [/]\x1b[2J" in text.getvalue()


def test_the_name_of_a_file_of_flows(tmp_path, capsys):
    path = tmp_path / "a\x1b[2J.hdf5"
    simulate_to_file(path, SimulationConfig(trajectories=1, resolution=16, frames=3), progress=False)
    assert is_plain(said(capsys, "check", str(path)))
