"""The closing table at the width of a terminal, of a file and of a notebook."""

import io
import math
import re

import pytest
from rich.console import Console

from lightning_farms import LayerSpectrum, SpectralReport
from lightning_farms.callbacks.history import LayerHistory
from lightning_farms.callbacks.summary import summary_table

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
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown(summary_table(SpectralReport(rows), history, multipliers), **options))
    assert max(map(len, text.splitlines())) <= options.get("width", 80)
    assert "…" not in text
    columns = [line[2:].split("  ")[0].strip() for line in text.splitlines() if line.startswith("  ")]
    assert all(row.name in "".join(columns) for row in rows)
    for expected in ("512x2048", "1.500", "2.590", "1.250", "not trained", "a vector", "after 7 epochs"):
        assert expected in " ".join(text.split())


def test_title_of_the_factor_is_the_callers():
    rows, history = make(1)
    text = shown(summary_table(SpectralReport(rows), history, {rows[0].name: 0.5}, factor="decay factor"))
    assert "decay factor" in text
    assert "lr factor" not in text
    assert "factor" not in shown(summary_table(SpectralReport(rows), history, None))


def test_a_run_without_an_analysis_or_with_a_dead_layer():
    rows = [LayerSpectrum("fc", "linear", (4, 4), alpha=math.nan, status="skipped", reason="[all] zero")]
    text = shown(summary_table(SpectralReport(rows), LayerHistory(), None))
    assert "after 0 epochs" in text
    assert "[all] zero" in text


def test_in_a_notebook_it_is_html():
    rows, history = make(3)
    console = Console(file=io.StringIO(), width=115, force_jupyter=True, record=True)
    with console.capture():
        pass
    bundle = summary_table(SpectralReport(rows), history, None)._repr_mimebundle_([], [])
    assert "blocks.2.fc" in bundle["text/html"]
