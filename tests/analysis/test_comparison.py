"""Two reports side by side."""

import csv
import json
import math

import pytest

from lightning_farms.analysis import LayerSpectrum, SpectralReport, compare


def report(**alphas):
    return SpectralReport(
        [LayerSpectrum(name, "linear", (8, 4), alpha=alpha, standard_error=0.3) for name, alpha in alphas.items()]
    )


AFTER = report(a=2.5, b=math.nan, c=2.0, d=3.0)
BEFORE = report(c=2.25, a=3.0, b=2.0, e=1.0)


def test_layers_in_the_order_of_the_first():
    comparison = compare(AFTER, BEFORE)
    assert [(row.name, row.alpha, row.other_alpha, row.delta) for row in comparison.layers] == [
        ("a", 2.5, 3.0, -0.5),
        ("c", 2.0, 2.25, -0.25),
    ]
    assert all(row.delta_error == pytest.approx(math.sqrt(0.18)) for row in comparison.layers)
    assert (comparison.only, comparison.other_only, comparison.without_alpha) == (("d",), ("e",), ("b",))


def test_a_common_beginning_of_names_is_left_out():
    other = SpectralReport([LayerSpectrum(f"network.{name}", "linear", (8, 4), alpha=2.0) for name in "acd"])
    assert [row.name for row in compare(AFTER, other).layers] == ["a", "c", "d"]


def test_csv_and_json(tmp_path):
    comparison = compare(AFTER, BEFORE)
    text = comparison.to_csv(tmp_path / "comparison.csv")
    assert (tmp_path / "comparison.csv").read_text(encoding="utf-8") == text
    rows = list(csv.DictReader(text.splitlines()))
    assert [(row["name"], row["status"]) for row in rows] == [
        ("a", "ok"),
        ("c", "ok"),
        ("d", "only"),
        ("e", "other_only"),
        ("b", "without_alpha"),
    ]
    assert (float(rows[0]["delta"]), rows[2]["delta"]) == (-0.5, "nan")
    content = json.loads(comparison.to_json())
    assert content["summary"]["delta"]["mean"] == -0.375
    assert content["layers"][2]["delta"] is None
