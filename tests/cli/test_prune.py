"""`lightning-farms prune` as a shell user meets it."""

import csv
import json
import math
import re
import signal

import pytest
import torch
from torch import nn

from lightning_farms.cli import main
from lightning_farms.pruning import LayerRatios, load_causal_lm, prunable_weights
from tests.forked import run_forked
from tests.pruning.tiny_text import save_tiny, tiny_text, word_tokenizer

CALIBRATED = ("--calibration", "text.txt", "--sequences", "4", "--length", "16")


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model in `model`, a text in text.txt, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIGHTNING_FARMS_TRACEBACK", raising=False)
    (tmp_path / "text.txt").write_text(tiny_text(300))
    return save_tiny(tmp_path / "model", hidden_size=32, intermediate_size=48, num_hidden_layers=3)


def fails(capsys, *args):
    with pytest.raises(SystemExit) as ended:
        main(["prune", *args])
    return ended.value.code, " ".join(capsys.readouterr().err.split())


def zeros(folder):
    weights = prunable_weights(load_causal_lm(folder).model)
    return sum(int((w.matrices == 0).sum()) for w in weights), sum(w.size for w in weights)


@pytest.mark.parametrize(
    ("method", "allocation"),
    [
        ("wanda", "farms"),
        ("sparsegpt", "whole"),
        ("magnitude", "owl"),
        ("wanda", "dlp"),
        ("sparsegpt", "ramp"),
        ("magnitude", "uniform"),
    ],
)
def test_a_folder_of_a_sparser_model(model, capsys, method, allocation):
    main(
        [
            "prune",
            "model",
            "--sparsity",
            "0.6",
            "--method",
            method,
            "--allocation",
            allocation,
            *CALIBRATED,
            "--out",
            "o",
        ]
    )
    found, size = zeros("o")
    assert found == math.floor(0.6 * size + 0.5)
    out, err = capsys.readouterr()
    assert "model.layers.2" in out
    assert f"{found:,} zeros, sparsity {found / size:.6g} (asked 0.6)" in err
    main(["perplexity", "o", "--text", "text.txt", "--window", "16"])


def test_a_dry_run_needs_no_text_and_writes_no_model(model, tmp_path, capsys):
    main(["prune", "model", "--sparsity", "0.5", "--dry-run", "--report", "ratios.json", "--figure", "ratios.png"])
    assert "model.layers.0" in capsys.readouterr().out
    ratios = LayerRatios.from_json((tmp_path / "ratios.json").read_text())
    assert ratios.reached == 0.5
    assert (tmp_path / "ratios.png").stat().st_size > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "ratios.json", "ratios.png", "text.txt"]


def test_ratios_of_a_dry_run_are_an_allocation(model, tmp_path):
    main(["prune", "model", "--sparsity", "0.5", "--epsilon", "0.4", "--dry-run", "--report", "ratios.json"])
    main(["prune", "model", "--sparsity", "0.5", "--allocation", "ratios.json", "--method", "magnitude", "--out", "o"])
    written = LayerRatios.from_json((tmp_path / "ratios.json").read_text())
    for weight in prunable_weights(load_causal_lm("o").model):
        assert int((weight.matrices == 0).sum()) == written[weight.name].zeros


@pytest.mark.parametrize("report", ["pruning_report.json", "pruning_report.csv"])
def test_the_report_of_a_pruned_model_is_an_allocation(model, tmp_path, report):
    common = ("prune", "model", "--sparsity", "0.5", "--method", "magnitude")
    main([*common, "--allocation", "ramp", "--out", "first"])
    main([*common, "--allocation", f"first/{report}", "--out", "second"])
    first, second = (LayerRatios.from_json((tmp_path / out / "ratios.json").read_text()) for out in ("first", "second"))
    assert [layer.zeros for layer in first] == [layer.zeros for layer in second]
    assert len({layer.ratio for layer in second}) > 1


def test_two_of_four(model):
    main(["prune", "model", "--pattern", "2:4", "--allocation", "uniform", *CALIBRATED, "--out", "o"])
    for weight in prunable_weights(load_causal_lm("o").model):
        assert bool(((weight.matrices == 0).unflatten(-1, (-1, 4)).sum(-1) == 2).all())


def test_the_report_by_layer(model, tmp_path):
    main(
        [
            "prune",
            "model",
            "--sparsity",
            "0.5",
            *CALIBRATED,
            "--out",
            "o",
            "--report",
            "report.csv",
            "--recipe",
            "r.yaml",
        ]
    )
    with (tmp_path / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 21
    assert sum(int(row["zeros"]) for row in rows) == zeros("o")[0]
    assert all(0 < float(row["error"]) < 1 for row in rows)
    assert "sparsity" in (tmp_path / "r.yaml").read_text()
    settings = json.loads((tmp_path / "o" / "pruning_settings.json").read_text())
    assert settings["method"] == "wanda"


def test_a_report_without_errors_is_json_that_every_reader_takes(model, tmp_path):
    main(["prune", "model", "--sparsity", "0.5", "--method", "magnitude", "--out", "o"])

    def refuse(constant):
        raise AssertionError(constant)

    written = json.loads((tmp_path / "o" / "pruning_report.json").read_text(), parse_constant=refuse)
    assert {block["error"] for block in written["blocks"]} == {None}


KILLED = """
import os, signal, sys, threading, time, torch
from pathlib import Path
from lightning_farms.cli import main
os.chdir(sys.argv[1])
torch.set_num_threads(1)

def kill():
    while not list(Path().glob(".o.partial/*.block.json")):
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill, daemon=True).start()
main(sys.argv[2:])
"""


def test_a_run_that_was_killed_goes_on(model, tmp_path):
    """Killed by SIGKILL when its first block is there, and started again by the same command."""
    save_tiny(tmp_path / "large", hidden_size=128, intermediate_size=384, num_hidden_layers=12)
    command = ["prune", "large", "--sparsity", "0.5", "--method", "sparsegpt", "--allocation", "uniform", *CALIBRATED]
    (tmp_path / "program.py").write_text(KILLED)
    run_forked(((tmp_path / "program.py", tmp_path, *command, "--out", "o"), {}), folder=tmp_path, code=-signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".o.partial/*.block.json")}
    assert 0 < len(kept) < 12
    assert not (tmp_path / "o").exists()
    main([*command, "--out", "o"])
    main([*command, "--out", "whole"])
    resumed, whole = (load_causal_lm(folder).model.state_dict() for folder in ("o", "whole"))
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    assert not list(tmp_path.glob(".*"))


def test_blocks_left_on_disk(model, tmp_path):
    main(["prune", "model", "--sparsity", "0.5", *CALIBRATED, "--out", "o"])
    main(
        [
            "prune",
            "model",
            "--sparsity",
            "0.5",
            *CALIBRATED,
            "--out",
            "d",
            "--offload_folder",
            "x",
            "--hidden_folder",
            ".",
        ]
    )
    one, other = (load_causal_lm(folder).model.state_dict() for folder in ("o", "d"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_files_in_the_folder_to_be_come_with_it(model, tmp_path):
    files = ["--figure", "o/ratios.svg", "--recipe", "o/more/recipe.yaml", "--report", "o/report.csv"]
    main(["prune", "model", "--sparsity", "0.5", *CALIBRATED, "--out", "o", *files])
    assert (tmp_path / "o" / "model.safetensors.index.json").exists()
    assert all((tmp_path / file).stat().st_size for file in files[1::2])
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_run_goes_on_with_the_same_file_of_ratios_only(model, tmp_path, capsys):
    def run(ratio, *more):
        rows = "".join(f"model.layers.{number},{ratio}\n" for number in range(3))
        (tmp_path / "a.csv").write_text(f"name,ratio\n{rows}")
        return fails(capsys, "model", "--sparsity", "0.5", "--allocation", "a.csv", *CALIBRATED, "--out", "o", *more)

    assert run(0.5, "--method", "sparsegpt", "--column_block", "0")[0] == 1
    (tmp_path / ".o.partial" / "model.layers.0.safetensors").touch()
    assert "they differ in ratios." in run(0.4, "--method", "sparsegpt", "--column_block", "0")[1]


def test_an_interrupted_run_of_other_settings(model, tmp_path, capsys):
    (tmp_path / ".o.partial").mkdir()
    (tmp_path / ".o.partial" / "pruning_settings.json").write_text(json.dumps({"method": "sparsegpt"}))
    (tmp_path / ".o.partial" / "model.layers.0.safetensors").touch()
    code, err = fails(capsys, "model", "--sparsity", "0.5", *CALIBRATED, "--out", "o")
    assert code == 1
    assert "to be of the same settings, but they differ in allocation, " in err


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--sparsity", "1", "--out", "o"], 2, "Expected --sparsity to be in [0, 1), but got 1.0."),
        (["--sparsity", "-0.1", "--out", "o"], 2, "Expected --sparsity to be in [0, 1)"),
        (["--out", "o"], 2, "Expected --sparsity or --pattern, but got neither."),
        (["--sparsity", "0.5"], 2, "Expected --out (the folder to write) or --dry-run"),
        (["--sparsity", "0.5", "--out", "o"], 2, "Expected --calibration to be given (a text file) for --method wanda"),
        (
            ["--sparsity", "0.5", "--dry-run", "--allocation", "owl"],
            2,
            "Expected --calibration to be given (a text file) for --allocation owl",
        ),
        (
            ["--sparsity", "0.5", "--dry-run", "--allocation", "alpha"],
            2,
            "Expected --allocation to be one of farms, whole, owl",
        ),
        (
            ["--pattern", "5:4", "--out", "o"],
            2,
            "Expected --pattern to be N:M, two integers with 0 <= N < M, but got '5:4'.",
        ),
        (
            ["--pattern", "4:4", "--out", "o"],
            2,
            "Expected --pattern to be N:M, two integers with 0 <= N < M, but got '4:4'.",
        ),
        (["--pattern", "2:4", "--sparsity", "0.6", "--out", "o"], 2, "to be that of --pattern 2:4"),
        (["--pattern", "3:7", "--dry-run"], 1, "7"),
        (["--sparsity", "0.9", "--cap", "0.8", "--dry-run"], 1, "cap"),
        (
            ["--sparsity", "0.5", *CALIBRATED, "--out", "model"],
            1,
            "Expected OUT to be a new folder, but 'model' exists.",
        ),
        (["--sparsity", "0.5", "--calibration", "no.txt", "--out", "o"], 1, "a text file, but 'no.txt' is not there"),
        (["--sparsity", "0.5", "--calibration", "model", "--out", "o"], 1, "a text file, but 'model' is a folder."),
        (["--sparsity", "0.5", "--dry-run", "--allocation", "no.csv"], 1, "Expected 'no.csv' to be there, but: No su"),
        (
            ["--sparsity", "0.5", *CALIBRATED, "--length", "33", "--out", "o"],
            1,
            "--length to be at most the model's 32 p",
        ),
        (
            ["--sparsity", "0.5", "--dry-run", "--allocation", "ramp", "--fit", "hill"],
            2,
            "Expected --fit to be left out",
        ),
        (
            ["--sparsity", "0.5", "--dry-run", "--allocation", "a.csv", "--epsilon", "0.1"],
            2,
            "--epsilon to be left out",
        ),
        (["--pattern", "2:4", "--dry-run", "--allocation", "dlp", "--epsilon", "2"], 2, "--epsilon to be in [0, 1]"),
        (["--pattern", "2:4", "--calibration", "model/config.json", "--out", "o"], 1, "Expected --calibration to have"),
        (["--sparsity", "0.5", "--dry-run", "--report", "r.txt"], 2, "Expected --report to end in .csv or .json"),
    ],
)
def test_wrong_arguments(model, tmp_path, capsys, args, code, said):
    found, err = fails(capsys, "model", *args)
    assert (found, said in err) == (code, True), err
    assert "Traceback" not in err
    assert not list(tmp_path.glob(".*"))


def test_a_tokenizer_of_another_model(model, tmp_path, capsys):
    word_tokenizer(words=[f"w{number}" for number in range(100)]).save_pretrained(tmp_path / "model")
    code, err = fails(capsys, "model", "--sparsity", "0.5", *CALIBRATED, "--out", "o")
    assert code == 1
    assert "a tokenizer that fits the model" in err


def test_weights_that_are_not_finite(model, tmp_path, capsys):
    nn.init.constant_(model.model.layers[1].mlp.up_proj.weight, math.nan)
    model.save_pretrained(tmp_path / "model")
    code, err = fails(capsys, "model", "--sparsity", "0.5", *CALIBRATED, "--out", "o")
    assert code == 1
    assert "weights of model.layers.1.mlp.up_proj to be finite" in err


def test_no_model(capsys):
    code, err = fails(capsys, "none", "--sparsity", "0.5", "--dry-run")
    assert (code, "Expected MODEL to be an existing folder of a Hugging Face model" in err) == (1, True)


def test_a_folder_without_weights(model, tmp_path, capsys):
    (tmp_path / "model" / "model.safetensors").unlink()
    code, err = fails(capsys, "model", "--sparsity", "0.5", *CALIBRATED, "--out", "o")
    assert code == 1
    assert "to hold a model's weights" in err


def test_a_quantised_model(model, tmp_path, capsys):
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    code, err = fails(capsys, "model", "--sparsity", "0.5", *CALIBRATED, "--out", "o")
    assert code == 1
    assert "quantised" in err


def test_where_it_computes_by_default(model, capsys):
    """On CUDA where there is any, as the other subcommands do: with a message where a device is not there."""
    for command in ("prune", "perplexity", "evaluate", "simulate"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert re.search(r"--device .*?default: auto\)", " ".join(capsys.readouterr().out.split())), command
    code, err = fails(capsys, "model", "--sparsity", "0.5", "--dry-run", "--device", "cuda:9")
    assert (code, "Expected --device to be one that PyTorch finds, but got 'cuda:9'." in err) == (2, True)
    main(["prune", "model", "--sparsity", "0.5", "--dry-run"])
