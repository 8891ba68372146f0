"""A report shows itself: as text when printed, as a table in a notebook, as a figure."""

import io
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from torch import nn

from lightning_farms import LayerSpectrum, SpectralReport, analyze
from lightning_farms.analysis.table import standing_out
from lightning_farms.cli.analyze._tables import print_report

HOSTILE = "<script>alert('x')</script>&amp;"


class Cells(HTMLParser):
    """Texts of the cells of a page's tables, line by line, and every tag there is."""

    def __init__(self, page):
        super().__init__()
        self.lines, self.tags, self.text = [], set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.lines.append([])
        elif tag in ("td", "th"):
            self.lines[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.lines and self.lasttag in ("td", "th"):
            self.lines[-1][-1] += data


def row(name, alpha, **values):
    return LayerSpectrum(name, "linear", (16, 8), alpha=alpha, windows=2, **values)


@pytest.fixture
def report():
    rows = [row(f"layer{i}", 2.0 + 0.01 * i, standard_error=0.01) for i in range(6)]
    rows += [row("odd", 4.0, standard_error=0.01), row(HOSTILE, 2.02, standard_error=math.nan)]
    rows += [LayerSpectrum(f"norm{i}", "other", (16,), status="skipped", reason="a <vector>") for i in range(12)]
    return SpectralReport(rows)


def test_text(report):
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "kind", "shape", "windows", "alpha", "error"]
    assert lines[1].split() == ["layer0", "linear", "16x8", "2", "2.000", "0.010"]
    assert lines[7].split() == ["odd", "linear", "16x8", "2", "4.000+", "0.010"]
    assert lines[8].split() == [HOSTILE.split()[0], *HOSTILE.split()[1:], "linear", "16x8", "2", "2.020"]
    starts = [line.index("16x8") for line in lines[1:9]]
    assert len(set(starts)) == 1, "columns stand below each other"
    assert lines[9].startswith("Skipped (12): norm0, norm1")
    assert lines[9].endswith("and 4 more (a <vector>)")
    assert lines[10].startswith("8 layers analysed, 12 skipped. alpha: mean 2.2")


def test_html_has_the_same_cells_and_nothing_of_a_layers_name_is_markup(report):
    page = Cells(report._repr_html_())
    assert page.tags == {"div", "table", "thead", "tbody", "tr", "th", "td", "br"}
    text = [line.split() for line in str(report).splitlines()[:9]]
    assert [" ".join(line).split() for line in page.lines] == text
    assert "Skipped (12): norm0" in page.text


def test_it_has_the_cells_that_the_command_prints(report):
    written = io.StringIO()
    print_report(Console(width=200, file=written), report, title="t", fit="hill")
    printed = written.getvalue().splitlines()
    for line in str(report).splitlines()[1:9]:
        assert any(line.split() == other.split() for other in printed), line


def test_a_report_without_a_layer_or_without_an_alpha():
    assert str(SpectralReport([])) == "0 layers analysed, 0 skipped."
    assert "<table>" not in SpectralReport([])._repr_html_()
    skipped = SpectralReport([LayerSpectrum("a", "linear", (1, 4), status="skipped", reason="a vector")])
    assert str(skipped) == "Skipped (1): a (a vector)\n0 layers analysed, 1 skipped."


def test_a_real_report_prints_every_layer():
    report = analyze(nn.Sequential(*(nn.Linear(12, 12) for _ in range(30))))
    assert sum(" linear " in line for line in str(report).splitlines()) == 30
    assert repr(report).startswith("SpectralReport(30 layers")


def test_plot_draws_the_alphas_and_where_they_were():
    before = SpectralReport([row("a", 3.0), row("b", math.nan)])
    now = SpectralReport([row("a", 2.5, standard_error=0.1), row("b", 2.0, standard_error=0.2)])
    axes = now.plot(before=before, title="after").axes[0]
    points = [np.ma.filled(collection.get_offsets(), math.nan) for collection in axes.collections]
    lines = [line.get_xdata() for line in axes.lines]
    drawn = {round(float(x), 6) for x in [*(x for of in points for x in of[:, 0]), *(x for of in lines for x in of)]}
    assert {2.5, 2.0, 3.0} <= drawn
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    with pytest.raises(ValueError, match="at least one layer"):
        SpectralReport([]).plot()


def test_products_stand_out_from_products_only():
    plain = [
        LayerSpectrum(f"{i}", "linear", (64, 64), alpha=alpha) for i, alpha in enumerate((2.0, 2.1, 2.2, 2.1, 9.0))
    ]
    products = [replace(row, name=f"{row.name}.lora", kind="low-rank product", alpha=row.alpha + 3) for row in plain]
    products[4] = replace(products[4], alpha=5.1)
    assert standing_out([*plain, *products]) == {"4": "high"}


def test_columns_stand_below_each_other_beside_chinese_names():
    names = ("\u7f16\u7801\u5668.\u5c42", "plain")
    lines = str(SpectralReport([LayerSpectrum(name, "linear", (8, 8), alpha=2.0) for name in names])).splitlines()
    assert [cell_len(line[: line.index("linear")]) for line in lines[1:3]] == [cell_len(names[0]) + 2] * 2
