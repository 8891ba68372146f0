"""The closing table at the width of a terminal, of a file and of a notebook."""

import contextlib
import io
import math
import os
import pty
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from lightning_farms import LayerSpectrum, SpectralReport
from lightning_farms.analysis.history import LayerHistory
from lightning_farms.callbacks._spectral.summary import summary_table
from tests.forked import run_forked

LONG = "model.decoder.layers.{}.self_attention.query_key_value_projection"


def make(count, name="blocks.{}.fc"):
    rows = [LayerSpectrum(name.format(i), "linear", (512, 2048), alpha=2.0 + i / 100) for i in range(count)]
    history = LayerHistory()
    history.append(0, {"alpha": {row.name: 1.5 for row in rows}})
    history.append(7, {"alpha": {row.name: row.alpha for row in rows}})
    return rows, history


def shown(table, **options):
    console = Console(file=io.StringIO(), **{"width": 80, **options})
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("options", [{}, {"force_terminal": True}, {"force_jupyter": False}, {"width": 120}])
@pytest.mark.parametrize("name", ["blocks.{}.fc", LONG])
def test_sixty_layers_lose_nothing(name, options):
    rows, history = make(60, name)
    rows.append(LayerSpectrum("norm", "linear", (1, 4), status="skipped", reason="a vector"))
    multipliers = {row.name: 1.25 for row in rows[:-2]}
    table = summary_table(SpectralReport(rows), history, {"lr factor": multipliers}, after="7 epochs")
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown(table, **options))
    assert max(map(len, text.splitlines())) <= options.get("width", 80)
    assert "…" not in text
    columns = [line[1:].split("  ")[0].strip() for line in text.splitlines() if line.startswith(" ")]
    assert all(row.name in "".join(columns) for row in rows)
    for expected in ("512x2048", "1.500", "2.590", "1.250", "not trained", "norm: a vector", "after 7 epochs"):
        assert expected in " ".join(text.split())


def test_one_column_for_each_hyperparameter():
    rows, history = make(1)
    factors = {"lr factor": {rows[0].name: 0.5}, "decay factor": {rows[0].name: 1.75}}
    text = shown(summary_table(SpectralReport(rows), history, factors))
    assert all(expected in " ".join(text.split()) for expected in ("lr decay", "factor factor", "0.500 1.750"))
    assert "factor" not in shown(summary_table(SpectralReport(rows), history))


def test_layers_that_were_left_out_for_one_reason_are_named_together():
    rows, history = make(2)
    rows += [LayerSpectrum(f"emb.{i}", "embedding", (4, 4), status="skipped", reason="on request") for i in range(7)]
    rows.append(LayerSpectrum("dead", "linear", (4, 4), alpha=math.nan, status="skipped", reason="[all] zero"))
    text = " ".join(shown(summary_table(SpectralReport(rows), history)).split())
    assert "emb.0, emb.1, emb.2, emb.3, emb.4 and 2 more: on request dead: [all] zero" in text


def test_the_mean_is_said_to_be_over_the_balanced_layers_and_the_other_stands_beside_it():
    rows, history = make(4)  # alphas 2.00, 2.01, 2.02, 2.03
    rows.append(LayerSpectrum("dead", "linear", (4, 4), alpha=math.nan, status="skipped", reason="all zero"))
    first, names = {"blocks.0.fc", "blocks.1.fc", "dead"}, {row.name for row in rows}

    def caption(*balanced):
        return summary_table(SpectralReport(rows), history, balanced=balanced).caption.splitlines()[0]

    assert caption() == caption(set()) == "mean alpha: 2.015 (std 0.011)"
    two = "mean alpha: 2.005 (std 0.005) over the 2 balanced layers, 2.015 (std 0.011) over all 4 analysed"
    assert caption(first) == caption(set(), first, first) == two
    all_of_them = "2.015 (std 0.011) over the 4 balanced layers"
    assert caption(first, names) == f"{two.partition(', 2.015')[0]}, {all_of_them}"
    assert caption(names) == f"mean alpha: {all_of_them}", "said once"


def test_names_of_a_language_model_fit_on_a_line():
    rows, history = make(1, "net.model.layers.{}.mlp.experts.gate_up_proj_")
    factors = {"lr factor": {rows[0].name: 0.5}}
    assert f"{rows[0].name}  " in shown(summary_table(SpectralReport(rows), history, factors))


def test_in_a_notebook_it_is_html():
    rows, history = make(3)
    bundle = summary_table(SpectralReport(rows), history)._repr_mimebundle_([], [])
    assert "blocks.2.fc" in bundle["text/html"]


TRAINING = """
import sys
import warnings
import torch
from importlib import import_module
from lightning_farms import TempBalance, WeightDecayBalance

warnings.simplefilter("ignore")
pl = import_module(sys.argv[1])

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(3)))

    def training_step(self, batch, batch_idx):
        for i in range(6):
            self.log(f"a_rather_long_name_{i}", float(i), prog_bar=True)
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), weight_decay=0.1)

options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
for bar in ([pl.callbacks.RichProgressBar()], [pl.callbacks.TQDMProgressBar()], []):
    callbacks = [WeightDecayBalance(every_n_steps=2, summary=False), TempBalance(every_n_steps=2), *bar]
    trainer = pl.Trainer(callbacks=callbacks, max_epochs=1, **options)
    trainer.fit(Net(), torch.utils.data.DataLoader(torch.randn(8, 16), 2))
    print("the next bar", flush=True)
"""

BARS = ("rich", "tqdm", "default")


@pytest.fixture(scope="module")
def in_a_terminal(tmp_path_factory):
    """What trainings with each bar, one after the other, write there; by package."""
    written = {}

    def of(package):
        if package not in written:
            folder = tmp_path_factory.mktemp("terminal")
            (folder / "train.py").write_text(TRAINING)
            leader, follower = pty.openpty()
            terminal = {"TERM": "xterm", "COLUMNS": "80", "LINES": "50"}
            with ThreadPoolExecutor(1) as pool:
                output = pool.submit(read_all, leader)
                try:
                    tty = os.ttyname(follower)
                    run_forked(((folder / "train.py", package), terminal), folder=folder, out=tty, err=tty)
                finally:
                    os.close(follower)
            written[package] = dict(zip(BARS, output.result().decode().split("the next bar"), strict=False))
        return written[package]

    return of


def read_all(terminal):
    output = b""
    with contextlib.suppress(OSError):  # at the end of the terminal
        while part := os.read(terminal, 65536):
            output += part
    os.close(terminal)
    return output


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize("bar", BARS)
def test_no_progress_bar_goes_over_the_table(bar, package, in_a_terminal):
    """In a terminal, where a bar that comes later than the callback redraws its lines."""
    before, title, table = in_a_terminal(package)[bar].partition("Spectra after 4 steps")
    assert title
    assert before.endswith(" ")  # on a line of its own
    assert not re.search(r"\x1b\[\d*[AFJK]", table)  # nothing goes up again, or erases
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", table)
    assert all(expected in plain for expected in ("net.2", "lr", "decay", "factor", "mean alpha"))


PRINTING = """
import os, sys, torch, warnings, lightning.pytorch as pl, lightning_farms
warnings.simplefilter("default")
if "closed" in sys.argv:
    reader, pipe = os.pipe()
    os.dup2(pipe, 1)
    os.close(reader)
class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.l = torch.nn.Linear(16, 16)
    def training_step(self, batch, batch_idx):
        return self.l(batch).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)
if "before" in sys.argv:
    print("before the fit")
options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
options |= {"enable_progress_bar": False, "enable_model_summary": False}  # which print by themselves
trainer = pl.Trainer(callbacks=[lightning_farms.SpectralMonitor()], max_epochs=1, **options)
trainer.fit(Net(), torch.utils.data.DataLoader(torch.randn(8, 16), 4))
print("after the fit", file=sys.stderr)
if "before" in sys.argv:
    print("after the fit")
"""


def run_printing(folder, *words, **options):
    (folder / "printing.py").write_text(PRINTING)
    run_forked(((folder / "printing.py", *words), {}), folder=folder, **options)


@pytest.mark.parametrize(
    ("words", "out", "error"),
    [(["closed"], "out.txt", "BrokenPipeError"), ([], "/dev/full", "No space left on device")],
    ids=["closed pipe", "full disk"],
)
def test_a_table_that_cannot_be_printed_does_not_end_the_program(words, out, error, tmp_path):
    """Nor its exit, at which Python would write what is left in a buffer once more."""
    run_printing(tmp_path, *words, out=out)
    said = (tmp_path / "err0.txt").read_text()
    assert "after the fit" in said
    assert re.search(f"the closing table could not be printed.*{error}", said)


def test_the_table_comes_in_its_place_where_the_output_is_a_file(tmp_path):
    run_printing(tmp_path, "before")
    text = (tmp_path / "out0.txt").read_text()
    assert text.startswith("before the fit\n")
    assert text.endswith("after the fit\n")
    assert text.count("Spectra after 1 epoch") == 1
    assert "─" in text
