"""`lightning-farms analyze` as a shell user meets it, on small checkpoints."""

import csv
import io
import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from lightning_farms.analysis import (
    FARMS,
    Diagnostics,
    Selection,
    WholeMatrix,
    analyze,
    analyze_weights,
    checkpoint_weights,
    open_checkpoint,
)
from lightning_farms.cli import main


def network(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), *(nn.Linear(32, 32) for _ in range(5))]
    return nn.Sequential(*layers, nn.Linear(32, 4))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with checkpoints, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIGHTNING_FARMS_TRACEBACK", raising=False)
    state = network().state_dict()
    torch.save(state, "net.pt")
    torch.save({"state_dict": {f"net.{name}": tensor for name, tensor in network(1).state_dict().items()}}, "b.ckpt")
    save_file(state, "net.safetensors")
    torch.save({"bn.running_mean": torch.ones(3)}, "vectors.pt")
    Path("notes.txt").write_text("no weights")
    return tmp_path


@pytest.fixture
def nothing_analysed(monkeypatch):
    """A matrix that is decomposed fails the test."""
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda *args, **options: pytest.fail("analysed"))


@pytest.fixture
def run(folder, capsys):
    """Run the command in process: (status, stdout, stderr)."""

    def call(*arguments):
        try:
            main(["analyze", *arguments])
        except SystemExit as stop:
            return (stop.code, *capsys.readouterr())
        return (0, *capsys.readouterr())

    return call


def records(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("file", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize(
    ("options", "method"),
    [
        ([], FARMS()),
        (["--method", "whole", "--fit", "ks"], WholeMatrix(fit="ks")),
        (["--aspect_ratio", "2", "--window", "8", "--steps", "3"], FARMS(2.0, 8, 3)),
        (["--compat", "official", "--window", "8", "--steps", "3"], FARMS(1.0, 8, 3, compat="official")),
        (["--blocks", "pooled"], FARMS(blocks="pooled")),
    ],
)
def test_csv_is_what_the_model_gives(run, file, options, method):
    status, out, _ = run(file, "--format", "csv", *options)
    expected = analyze(network(), method)
    rows = records(out)
    assert status == 0
    assert [row["name"] for row in rows] == list(expected.alphas)
    assert [float(row["alpha"]) for row in rows] == pytest.approx(list(expected.alphas.values()), nan_ok=True)
    assert rows[0]["shape"] == "16x3x3x3"


def test_csv_is_that_of_the_report(run, tmp_path):
    _, out, _ = run("net.pt", "--format", "csv")
    analyze(network()).to_csv(tmp_path / "report.csv")
    assert records(out) == records((tmp_path / "report.csv").read_text())


def test_stdout_carries_the_result_only(run):
    status, out, err = run("net.pt", "--format", "json", "--baseline", "--bootstrap", "20")
    content = json.loads(out)
    assert status == 0
    assert content["summary"]["alpha"]["layers"] == 7
    assert content["summary"]["alpha"]["mean"] == pytest.approx(analyze(network()).mean_alpha)
    first = content["layers"][0]
    assert first["alpha_low"] < first["alpha"] < first["alpha_high"]
    assert first["relative_alpha"] > 0
    assert first["mp_variance"] > 0
    assert content["layers"][-1]["p_value"] is None
    assert err.startswith("alpha of net.pt: mean ")


def test_table(run):
    torch.save({**network().state_dict(), "wte.weight": torch.randn(50, 16), "up.weight": torch.randn(3, 2)}, "more.pt")
    status, out, err = run("more.pt")
    assert status == 0
    assert err == ""
    assert all(name in out for name in ("16x3x3x3", "convolution", "stable rank", "more.pt, FARMS(aspect_ratio=1.0"))
    assert "wte (embeddings are analysed on request only: Selection(embeddings=True), or --embeddings)" in out
    assert "Skipped (1): up (it has 4 eigenvalues, fewer than the 10 that a fit takes)" in out
    assert "7 layers analysed, 2 skipped. alpha: mean" in out
    assert "\x1b" not in out
    _, out, _ = run("more.pt", "--embeddings")
    assert "8 layers analysed, 1 skipped" in out
    torch.save({"wte.weight": torch.randn(50, 16)}, "table.pt")
    status, _, err = run("table.pt")
    assert status == 1
    assert "embeddings are analysed on request only: Selection(embeddings=True), or --embeddings (1)." in err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_narrow_terminal_keeps_the_names(run, monkeypatch):
    torch.save({f"encoder.layer.{i}.attention.output.dense.weight": torch.randn(32, 32) for i in range(6)}, "long.pt")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    run("long.pt", "--bootstrap", "20")
    text = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())
    assert text != terminal.getvalue(), "colours"
    assert sum(line.startswith(" encoder.layer.") for line in text.splitlines()) == 6
    assert all(f"encoder.layer.{i}.attention.output.dense " in text for i in range(6))
    assert "Left out for want of room: kind, windows, D, alpha_hat, log norm, stable rank. --format csv has" in text


def test_outliers_are_marked(run):
    state = network().state_dict()
    state["5.weight"] = torch.diag(torch.logspace(0, 6, 32))
    torch.save(state, "odd.pt")
    _, out, _ = run("odd.pt")
    [line] = [line for line in out.splitlines() if line.startswith(" 5 ")]
    assert re.search(r" 1\.\d{3}- ", line)
    assert "+ and - mark layers that stand out: alpha more than 3 robust standard deviations" in out


def test_nothing_analysed_has_no_summary(run):
    status, out, _ = run("net.pt", "--max_size", "2")
    assert status == 1
    assert out.endswith("0 layers analysed, 7 skipped.\n")


def test_selection(run):
    status, out, _ = run("net.pt", "--format", "json", "--include", "3", "5", "--exclude", "5", "--kinds", "linear")
    rows = {row["name"]: row for row in json.loads(out)["layers"]}
    expected = analyze(network(), selection=Selection(include=("3", "5"), exclude=("5",), kinds=("linear",)))
    assert status == 0
    assert {name: row["reason"] for name, row in rows.items()} == {row.name: row.reason for row in expected}
    assert [name for name, row in rows.items() if row["status"] == "ok"] == ["3"]


def test_low_rank_products(run):
    pair = {"q.lora_A.weight": torch.randn(16, 40), "q.lora_B.weight": torch.randn(40, 16)}
    torch.save(pair, "adapter.pt")
    for product in ([], ["--low_rank_products"]):
        _, out, _ = run("adapter.pt", "--format", "csv", "--method", "whole", *product)
        assert [(row["name"], row["kind"]) for row in records(out)] == [("q.lora", "low-rank product")]
    _, out, _ = run("adapter.pt", "--format", "csv", "--no-low_rank_products", "--method", "whole")
    assert [row["name"] for row in records(out)] == ["q.lora_A", "q.lora_B"]
    assert all("it is a factor of a low-rank update; analyse the product" in row["reason"] for row in records(out))


def test_random_products_are_not_said_to_have_the_alpha_of_random_weights(run):
    pair = {"q.lora_A.weight": torch.randn(16, 40), "q.lora_B.weight": torch.randn(40, 16)}
    known = "about 2.1 for random (untrained) weights of any shape"
    for tensors, expected in (
        (pair, "of random products it depends on the rank"),
        ({**pair, "up.weight": torch.randn(40, 40)}, f"{known}, low-rank products apart;"),
        ({"up.weight": torch.randn(40, 40)}, f"{known}; the lower"),
    ):
        torch.save(tensors, "some.pt")
        assert expected in run("some.pt")[1]
    torch.save({"q.lora_A.weight": torch.randn(4, 40), "q.lora_B.weight": torch.randn(40, 4)}, "few.pt")
    assert "it has 4 eigenvalues (rank 4), fewer than the 10 that a fit takes (1)" in run("few.pt")[2]


def test_out_and_its_ending(run):
    status, out, err = run("net.pt", "--out", "made/of/net.csv")
    assert (status, out) == (0, "")
    assert err.startswith(
        "The folder of --out, 'made/of', is not there, and will be made.\nWritten to made/of/net.csv\n"
    )
    assert "\nalpha of net.pt: mean" in err
    assert len(records(Path("made/of/net.csv").read_text())) == 7
    run("net.pt", "--out", "table.txt")
    assert "7 layers analysed, 0 skipped" in Path("table.txt").read_text(encoding="utf-8")
    run("net.pt", "--out", "net.csv", "--format", "json")
    assert json.loads(Path("net.csv").read_text())["layers"]


def test_compare(run):
    after, before = analyze(network(1)).alphas, analyze(network()).alphas
    status, out, _ = run("b.ckpt", "--compare", "net.pt", "--format", "csv")
    rows = records(out)
    assert status == 0
    assert [row["name"] for row in rows] == [f"net.{name}" for name in before]
    assert [float(row["delta"]) for row in rows] == pytest.approx([after[name] - before[name] for name in before])
    _, out, _ = run("b.ckpt", "--compare", "net.pt")
    assert "b.ckpt against net.pt" in out
    assert "delta: mean" in out
    assert "Only in" not in out


class Functions(TorchFunctionMode):
    """Notes the functions of PyTorch that are called, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))

    def __str__(self):
        return " ".join(self.names)


def test_of_the_second_file_only_alphas_are_wanted(run):
    """The command calls what the two analyses call: of the first file with all diagnostics, of the second with none."""
    with_all = {"diagnostics": Diagnostics(20, marchenko_pastur=True), "keep_eigenvalues": True}
    analyses = []
    for file, options in (("net.pt", with_all), ("net.pt", with_all), ("b.ckpt", {})):
        weights = checkpoint_weights(open_checkpoint(file), Selection(kinds=("convolution",)))
        with Functions() as functions:
            analyze_weights((w._replace(matrices=w.matrices.to("cpu")) for w in weights), workers=1, **options)
        analyses.append(str(functions))
    arguments = ("--bootstrap", "20", "--plots", "figures", "--kinds", "convolution", "--workers", "1")
    with Functions() as functions:
        run("net.pt", "--compare", "b.ckpt", *arguments)
    _, first, then = str(functions).partition(analyses[1])  # analyses[0] has computed a threshold that is kept
    assert first
    assert analyses[2] in then
    assert functions.names.count("linalg_eigvalsh") == sum(each.count("linalg_eigvalsh") for each in analyses[1:])


def test_compare_lists_what_has_no_partner(run):
    state = network().state_dict()
    del state["3.weight"]
    state["extra.weight"], state["4.weight"] = torch.randn(20, 20), torch.full((32, 32), torch.nan)
    torch.save(state, "c.pt")
    status, out, _ = run("net.pt", "--compare", "c.pt")
    assert status == 0
    assert "Only in net.pt (1): 3" in out
    assert "Only in c.pt (1): extra" in out
    assert "Without alpha in one or both (1): 4" in out
    _, out, _ = run("net.pt", "--compare", "c.pt", "--format", "json")
    content = json.loads(out)
    assert {row["name"]: row["status"] for row in content["layers"] if row["status"] != "ok"} == {
        "3": "only",
        "extra": "other_only",
        "4": "without_alpha",
    }
    assert content["summary"]["delta"]["layers"] == 5


def test_base(run):
    _, out, err = run("b.ckpt", "--base", "net.pt", "--format", "csv")
    change = network(1)
    for name, parameter in change.named_parameters():
        parameter.data -= network().get_parameter(name)
    expected = analyze(change).alphas
    assert {row["name"]: float(row["alpha"]) for row in records(out)} == pytest.approx(
        {f"net.{name}": alpha for name, alpha in expected.items()}
    )
    assert "alpha of b.ckpt minus net.pt" in err
    status, _, err = run("net.pt", "--base", "net.safetensors")
    assert status == 1
    assert "of 7 none can: unchanged from the base (7)" in err


@pytest.mark.usefixtures("nothing_analysed")
def test_the_file_without_layers_of_a_pattern_is_named(run):
    torch.save({"head.weight": torch.randn(32, 32)}, "head.pt")
    for files in (["net.pt", "--compare", "head.pt"], ["head.pt", "--compare", "net.pt"]):
        status, _, err = run(*files, "--include", "head")
        assert status == 1
        assert "error: In net.pt: Expected --include to match layers, but 'head' matches none." in err
        assert run(*files, "--exclude", "3")[2].startswith("lightning-farms: error: In head.pt: Expected --exclude to")


@pytest.mark.parametrize(
    "arguments", [[], ["--base", "b.ckpt"], ["--kinds", "convolution"], ["--no-low_rank_products"]]
)
def test_progress_reaches_its_total(run, monkeypatch, arguments):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm-256color")
    pair = {"q.lora_A.weight": torch.randn(16, 40), "q.lora_B.weight": torch.randn(40, 16)}
    torch.save({**network().state_dict(), "tied.weight": torch.ones(3, 2), **pair}, "net.pt")
    assert run("net.pt", *arguments)[0] == 0
    shown = re.findall(r"(\d+)% \d:\d\d:\d\d", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.getvalue()))
    assert shown[-1] == "100"


def test_plots(run):
    status, _, err = run("net.pt", "--plots", "figures/here", "--compare", "b.ckpt", "--include", "0", "3")
    assert status == 1, "the pattern 0 matches no layer of b.ckpt"
    status, out, err = run("b.ckpt", "--plots", "figures/here", "--include", "net.0", "net.3")
    assert status == 0
    assert "Written to figures/here: 4 figures\n" in err
    names = {str(path.relative_to("figures/here")) for path in Path("figures/here").rglob("*.png")}
    assert names == {"alpha_depth.png", "alpha_by_shape.png", "esd/1_net.0.png", "esd/2_net.3.png"}
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in Path("figures/here").rglob("*.png"))
    assert "spikes" in out


def test_a_name_that_the_encoding_of_stdout_lacks_is_escaped(run, monkeypatch):
    torch.save({"\u5c42.weight": torch.randn(12, 12)}, "odd.pt")
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding="cp1252"))
    status, _, err = run("odd.pt")
    sys.stdout.flush()
    assert (status, err) == (0, "")
    assert rb"\u5c42" in stream.getvalue()


def test_plots_of_layers_with_names_that_no_file_can_have(run):
    """Of 255 bytes at most, none of them a slash."""
    names = ["\u5c42" * 120, "../../up", "a/b", "a.b", "a_b", "$x^"]
    torch.save({f"{name}.weight": torch.randn(12, 12) for name in names}, "odd.pt")
    status, _, err = run("odd.pt", "--plots", "figures")
    assert (status, "Glyph" in err) == (0, False)
    assert "Written to figures: 8 figures\n" in err
    assert len(list(Path("figures/esd").iterdir())) == len(names)


def test_plots_of_a_scan(run):
    status, _, err = run("net.pt", "--plots", "figures", "--include", "3", "--fit", "ks")
    assert status == 0
    assert "Written to figures: 4 figures\n" in err
    assert {path.name for path in Path("figures/xmin").iterdir()} == {"1_3.png"}


def test_without_outliers_and_distributions(run):
    state = network().state_dict()
    state["3.weight"] = state["3.weight"] + 10 * torch.outer(*torch.randn(2, 32))
    torch.save(state, "spike.pt")
    options = ("spike.pt", "--method", "whole", "--include", "3", "4", "--without_outliers", "--distributions")
    status, out, _ = run(*options)
    assert status == 0
    assert "Without outlier eigenvalues alpha changes in 1 of 2 layers: 3 " in out
    assert all(title in out for title in ("no outliers", "left out", "law"))
    assert "law: the law that describes the fitted tail best" in out
    _, out, err = run(*options, "--format", "csv")
    found = {row["name"]: row for row in records(out)}
    assert [float(found[name]["outlier_eigenvalues"]) for name in "34"] == [1.0, 0.0]
    assert float(found["3"]["alpha"]) < float(found["3"]["alpha_without_outliers"])
    assert all(0 <= float(found["4"][f"{law}_p"]) <= 1 for law in ("lognormal", "exponential", "truncated"))
    assert "Without outlier eigenvalues alpha changes" in err
    _, out, _ = run("spike.pt", "--format", "csv")
    assert not {"outlier_eigenvalues", "lognormal_p"} & set(records(out)[0])


def test_the_last_lines_say_which_layers_stand_out(run):
    state = {f"blocks.{i}.weight": torch.randn(64, 64, generator=torch.Generator().manual_seed(i)) for i in range(7)}
    torch.save(state, "even.pt")
    left, _, right = torch.linalg.svd(state["blocks.5.weight"])
    torch.save(state | {"blocks.5.weight": left * torch.arange(1, 65) ** -1.0 @ right}, "trained.pt")
    _, out, _ = run("even.pt")
    assert out.splitlines()[-1].startswith("7 layers analysed")
    _, out, _ = run("trained.pt")
    assert out.splitlines()[-1].startswith("Heavier tails than the other layers: blocks.5 (alpha 1.")
    assert "Martin and Mahoney" in out
    _, out, _ = run("trained.pt", "--base", "even.pt")
    assert "Martin and Mahoney" not in out


def test_parts_of_fused_weights_have_rows_of_their_own(run):
    torch.manual_seed(0)
    state = {
        "0.attn.qkv_proj.weight": torch.randn(64, 32),
        "0.mlp.experts.up": torch.randn(2, 32, 16),
        "0.attn.attn.weight": torch.randn(64, 32),
    }
    Path("model").mkdir()
    torch.save(state, "model/weights.pt")
    _, out, _ = run("model", "--apart", "experts", "qkv", "--format", "csv")
    found = {row["name"]: row["reason"] for row in records(out)}
    assert list(found) == ["0.attn.qkv_proj", "0.mlp.experts.up[0]", "0.mlp.experts.up[1]", "0.attn.attn"]
    assert "no configuration beside the weights" in found["0.attn.qkv_proj"]
    Path("model/config.json").write_text('{"model_type": "phi3", "hidden_size": 32, "num_attention_heads": 2}')
    Path("model/model_config.yaml").write_text("n_query_groups: 1\nhead_size: 16\n")
    _, out, _ = run("model", "--apart", "qkv", "--format", "csv")
    found = {row["name"]: row["shape"] for row in records(out)}
    assert {name: found[f"0.attn.qkv_proj.{name}"] for name in "qkv"} == {"q": "32x32", "k": "16x32", "v": "16x32"}
    assert found["0.attn.attn.k"] == "16x32"
    assert found["0.mlp.experts.up"] == "2x32x16"
    status, _, err = run("model", "--apart", "heads")
    assert status == 2
    assert "experts" in err


def test_plot_of_a_comparison(run):
    _, _, err = run("net.pt", "--plots", "figures", "--compare", "net.safetensors", "--kinds", "convolution")
    assert "Written to figures: 4 figures\n" in err
    assert Path("figures/comparison.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pt"], "existing file or folder, but got 'nowhere.pt'"),
        (["notes.txt"], "damaged, cut short or of another format"),
        (["vectors.pt"], "a checkpoint with weight matrices, but got vectors"),
        (["net.pt", "--compare", "nowhere.pt"], "but got 'nowhere.pt'"),
        (["net.pt", "--base", "notes.txt"], "'notes.txt' is damaged"),
        (["net.pt", "--include", "fourth"], "Expected --include to match layers, but 'fourth' matches none"),
        (["net.pt", "--min_size", "900"], "of 7 none can: the smaller dimension, 32, is below min_size 900 (5); "),
        (["net.pt", "--out", "."], "--out to be a file, but '.' is a folder"),
        (["net.pt", "--out", "notes.txt/a.csv"], "notes.txt"),
        (["net.pt", "--plots", "notes.txt"], "--plots to be a folder, but 'notes.txt' is a file"),
        (["."], "holds 4: b.ckpt, net.pt, net.safetensors, vectors.pt. Give one of the files"),
    ],
)
def test_mistakes_end_with_one_message(run, arguments, message):
    status, _, err = run(*arguments)
    assert status == 1
    assert err.count("lightning-farms: error:") == 1
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected FILE to be given."),
        (["net.pt", "--fti", "ks"], "--fti"),
        (["net.pt", "--fit", "best"], "hill_paper"),
        (["net.pt", "--format", "xml"], "Expected --format to be one of 'table', 'csv', 'json', but got 'xml'"),
        (["net.pt", "--window", "0"], "Expected --window to be"),
        (["net.pt", "--window", "big"], "window"),
        (["net.pt", "--compat", "official"], "Expected --window and --steps to be given"),
        (
            ["net.pt", "--method", "whole", "--window", "8", "--blocks", "pooled"],
            "Expected --window, --blocks to be left out with",
        ),
        (["net.pt", "--kinds", "liner"], "Expected --kinds to be one of linear, "),
        (["net.pt", "--bootstrap", "-1"], "Expected --bootstrap to be"),
        (["net.pt", "--level", "2"], "Expected --level to be"),
        (["net.pt", "--workspace", "0"], "--workspace to be positive"),
        (["net.pt", "--workers", "0"], "--workers to be at least 1"),
        (["net.pt", "--base", "b.ckpt", "--compare", "b.ckpt"], "Expected --base or --compare, but got both"),
        (["net.pt", "--device", "tpu"], "Expected --device to be one that PyTorch finds, but got 'tpu'. Use 'auto' or"),
        (["net.pt", "--device", "cuda:9"], "but got 'cuda:9'"),
    ],
)
def test_wrong_arguments(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err


@pytest.mark.usefixtures("nothing_analysed")
def test_mistakes_come_before_the_long_work(run):
    for arguments in (["--out", "."], ["--plots", "notes.txt"], ["--compare", "nowhere.pt"], ["--exclude", "fourth"]):
        assert run("net.pt", *arguments)[0] == 1


@pytest.mark.usefixtures("nothing_analysed")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--out", "vectors.pt"],
            "--out to be a place that can be written to, but 'vectors.pt' cannot: Permission denied.",
        ),
        (["--out", "new.csv"], "but '.' cannot: Permission denied."),
        (["--plots", "new"], "--plots to be a place that can be written to, but '.' cannot: Permission denied."),
    ],
)
def test_places_that_cannot_be_written_to(run, monkeypatch, arguments, message):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    status, _, err = run("net.pt", *arguments)
    assert status == 1
    assert message in err


def test_traceback_on_demand(run, monkeypatch):
    monkeypatch.setenv("LIGHTNING_FARMS_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run("nowhere.pt")


def test_interrupted(run, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.linalg, "eigvalsh", interrupt)
    assert run("net.pt") == (130, "", "\nlightning-farms: interrupted\n")


def test_help(run):
    status, out, _ = run("--help")
    assert status == 0
    options = ("--aspect_ratio", "--include", "--bootstrap", "--baseline", "--compare", "--plots", "--workspace")
    assert all(option in out for option in options)
    assert "3 robust standard deviations" in " ".join(out.split())


@pytest.fixture
def shell(folder):
    """Start the command in a process of its own, which is ended with the test."""
    processes = []

    def start(*arguments):
        command = [sys.executable, "-m", "lightning_farms", "analyze", *arguments]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.mark.parametrize("form", ["json", pytest.param("table", marks=pytest.mark.slow)])
def test_a_reader_that_goes_away(shell, form):
    process = shell("net.pt", "--format", form)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 141
    assert not err or err.startswith("alpha of net.pt: ")


@pytest.mark.skipif(os.name != "posix", reason="a shell of POSIX")
@pytest.mark.parametrize("arguments", ["net.pt", "net.pt --out net.csv", "--help"])
def test_stdout_that_is_closed(folder, arguments):
    line = f"{shlex.quote(sys.executable)} -m lightning_farms analyze {arguments} >&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    message = "lightning-farms: error: Expected stdout to be open, but it is closed."
    assert done.returncode == 1
    assert done.stderr.startswith(message)


def test_what_is_taken_and_left_out_is_said(run):
    state = {"a.weight": torch.randn(16, 16).relu().to_sparse(), "b.weight": torch.randn(16, 16)}
    state["c.weight"] = torch.empty(16, 16, device="meta")
    torch.save({"model": state, "ema": network().state_dict(), "config": Path("x"), "call": print}, "two.ckpt")
    status, out, err = run("two.ckpt")
    assert status == 0
    assert "2 layers analysed, 1 skipped" in out
    first, second, third, fourth = err.splitlines()
    assert first.startswith("Taken from two.ckpt: `model`. Also there: ema (")
    assert second == f"Left out of two.ckpt, as to read it could run code: {type(Path('x')).__module__}.PosixPath."
    assert third == "Stored sparse in two.ckpt, made dense: a.weight."
    assert fourth == "Could not be read (1): c (on the meta device, without values)."
    _, out, err = run("two.ckpt", "--key", "ema", "--format", "csv")
    assert [row["name"] for row in records(out)] == list(analyze(network()).alphas)
    status, _, err = run("two.ckpt", "--key", "emma")
    assert status == 1
    assert "Expected --key to be one of the state dicts in 'two.ckpt', but got 'emma'; there are model (3 t" in err


def test_a_flipped_byte_is_known_by_the_crc(run):
    content = bytearray(Path("net.pt").read_bytes())
    content[content.find(network().state_dict()["3.weight"].numpy().tobytes()) + 3] ^= 0x20
    Path("net.pt").write_bytes(content)
    status, out, err = run("net.pt")
    assert status == 0
    assert "6 layers analysed, 1 skipped" in out
    assert err == "Could not be read (1): 3 (damaged: its bytes do not have the CRC-32 that the file names).\n"
    assert "7 layers analysed" in run("net.pt", "--no_crc")[1]


def test_an_earlier_result_is_kept_where_the_new_one_fails(run, monkeypatch):
    Path("a.json").write_text("the earlier report")
    write = Path.write_text

    def full(path, text, **options):
        write(path, text[:20], **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    status, _, err = run("net.pt", "--out", "a.json")
    assert status == 1
    assert "No space left" in err
    assert Path("a.json").read_text() == "the earlier report"
    assert not [path for path in Path().iterdir() if path.name.endswith(".tmp")]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c(shell, folder):
    torch.save({f"{i}.weight": torch.randn(600, 600) for i in range(60)}, "large.pt")
    process = shell("large.pt", "--fit", "ks")
    mapped = folder / "large.pt"
    while str(mapped) not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "\nlightning-farms: interrupted\n")


WHILE_A_STRING_IS_EXECUTED = """
import sys, types
command = types.ModuleType("lightning_farms.cli.check")
command.run = lambda arguments: exec("raise KeyboardInterrupt")
sys.modules["lightning_farms.cli.check"] = command
from lightning_farms.cli import main
main(["check"])
"""


def test_ctrl_c_while_a_string_is_executed(tmp_path):
    """As by what defines named tuples and data classes, whenever something is imported."""
    (tmp_path / "program.py").write_text(WHILE_A_STRING_IS_EXECUTED)
    command = [sys.executable, "-m", "program"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])}
    assert subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=False).returncode == 130


TWO_FILES = """
import sys
from lightning_farms.cli import main
main(["analyze", "net.pt", "--format", "csv"])
heavy = {"lightning", "torchmetrics", "tensorboard", "matplotlib", "h5py"} & set(sys.modules)
if heavy:
    sys.exit(str(heavy))
print("another file", file=sys.stderr)
main(["analyze", "net.pkl"])
"""


def test_only_what_is_needed_is_imported_and_a_plain_pickle_is_no_checkpoint(folder):
    """In one process, which imports PyTorch only once."""
    Path("net.pkl").write_bytes(pickle.dumps([print], protocol=4))
    done = subprocess.run([sys.executable, "-c", TWO_FILES], capture_output=True, text=True, check=False)
    first, _, err = done.stderr.partition("another file\n")
    assert first.startswith("alpha of net.pt: ")
    assert done.returncode == 1
    assert err.startswith("lightning-farms: error: Expected the path to be a checkpoint that holds a dictionary, but")
    assert "'net.pkl' holds a list" in err
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("option", ["", "--base", "--compare"])
def test_weights_are_not_written_over(folder, capsys, option):
    torch.save(network().state_dict(), folder / "one.pt")
    torch.save(network(1).state_dict(), folder / "two.pt")
    before = (folder / "two.pt").read_bytes()
    read = [str(folder / "one.pt"), option, str(folder / "two.pt")] if option else [str(folder / "two.pt")]
    with pytest.raises(SystemExit) as ended:
        main(["analyze", *read, "--out", str(folder / "two.pt")])
    assert ended.value.code == 1
    assert "to be another file than the weights" in capsys.readouterr().err
    assert (folder / "two.pt").read_bytes() == before


PHI = {"model_type": "phi3", "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 4}


@pytest.mark.parametrize(
    ("tensors", "config", "said"),
    [
        ({"fc.weight": (32, 32)}, None, "--apart qkv changes nothing, as no weight analysed in a.pt holds fused"),
        ({"a.qkv_proj.weight": (96, 32)}, None, "leaves 1 fused weight of a.pt whole (a.qkv_proj): there is no conf"),
        ({"a.qkv_proj.weight": (96, 32)}, PHI | {"model_type": "new"}, "(a.qkv_proj): the configuration does not tell"),
        ({"a.qkv_proj.weight": (8, 4), "fc.weight": (32, 32)}, PHI, ""),
    ],
)
def test_parts_that_are_not_taken_apart_are_told_of_once(run, tensors, config, said):
    torch.save({name: torch.randn(shape) for name, shape in tensors.items()}, "a.pt")
    if config is not None:
        Path("config.json").write_text(json.dumps(config))
    _, _, err = run("a.pt", "--apart", "qkv", "--format", "csv")
    assert err.count("--apart") == bool(said)
    assert said in err


def test_experts_that_are_not_there(run):
    assert "--apart experts changes nothing, as no weight" in run("net.pt", "--apart", "experts")[2]
    torch.save({"mlp.experts.up": torch.randn(2, 32, 32)}, "a.pt")
    assert "--apart" not in run("a.pt", "--apart", "experts")[2]
