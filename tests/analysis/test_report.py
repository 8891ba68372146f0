"""Rows and report: look-up, summary, and what is read back from CSV, JSON and pandas."""

import csv
import json
import math
import pickle
import re
import sys
from dataclasses import fields, replace

import pytest
import torch

from lightning_farms.analysis import LayerSpectrum, SpectralReport
from lightning_farms.analysis.layer_spectrum import ON_REQUEST

GOOD = LayerSpectrum(
    name="blocks.0.conv",
    kind="convolution",
    shape=(64, 3, 3, 3),
    aspect_ratio=1.0,
    windows=22,
    coverage=0.75,
    eigenvalue_count=594,
    alpha=2.125,
    ks_distance=0.1,
    xmin=1 / 3,
    tail_size=297.0,
    standard_error=0.065,
    alpha_low=2.0,
    alpha_high=2.5,
    p_value=0.25,
    spectral_norm=12.5,
    frobenius_norm_squared=100.0,
    log_norm=2.0,
    log_spectral_norm=1.1,
    stable_rank=8.0,
    effective_rank=7.5,
    alpha_hat=2.33,
    mp_variance=0.125,
    mp_lower_edge=0.0,
    mp_upper_edge=4.5,
    mp_spike_threshold=4.75,
    mp_spikes=1.5,
    mp_soft_rank=0.36,
    relative_alpha=0.9,
    reason='window shrunk, "a remark"',
    eigenvalues=torch.arange(3.0),
    twin=LayerSpectrum("blocks.0.conv", "convolution", (64, 3, 3, 3), alpha=2.36),
)
OTHER = LayerSpectrum("fc", "linear", (10, 64), alpha=3.125)
SKIPPED = LayerSpectrum("head", "linear", (2, 2), status="skipped", reason="4 eigenvalues, fewer than the 10")
REPORT = SpectralReport([GOOD, OTHER, SKIPPED])
COLUMNS = [
    "name",
    "kind",
    "shape",
    "aspect_ratio",
    "windows",
    "coverage",
    "eigenvalue_count",
    "alpha",
    "ks_distance",
    "xmin",
    "tail_size",
    "standard_error",
    "alpha_low",
    "alpha_high",
    "p_value",
    "spectral_norm",
    "frobenius_norm_squared",
    "log_norm",
    "log_spectral_norm",
    "stable_rank",
    "effective_rank",
    "alpha_hat",
    "mp_variance",
    "mp_lower_edge",
    "mp_upper_edge",
    "mp_spike_threshold",
    "mp_spikes",
    "mp_soft_rank",
    "relative_alpha",
    "status",
    "reason",
    "layout",
]


def test_is_an_iterable_of_rows_in_order():
    assert [row.name for row in REPORT] == ["blocks.0.conv", "fc", "head"]
    assert len(REPORT) == 3
    assert "fc" in REPORT
    assert "nope" not in REPORT
    assert REPORT["fc"] is OTHER


def test_alphas_and_their_summary():
    assert list(REPORT.alphas) == ["blocks.0.conv", "fc", "head"]
    assert REPORT.alphas["fc"] == 3.125
    assert math.isnan(REPORT.alphas["head"])
    assert REPORT.mean_alpha == 2.625
    assert REPORT.std_alpha == 0.5
    assert repr(REPORT) == "SpectralReport(3 layers, 1 skipped, mean alpha 2.625)"


def test_infinite_alpha_does_not_enter_the_summary():
    report = SpectralReport([OTHER, LayerSpectrum("x", "linear", (2, 2), alpha=math.inf)])
    assert report.mean_alpha == 3.125
    assert report.std_alpha == 0.0


@pytest.mark.parametrize("rows", [[], [SKIPPED]])
def test_summary_of_nothing_is_not_a_number(rows):
    report = SpectralReport(rows)
    assert math.isnan(report.mean_alpha)
    assert math.isnan(report.std_alpha)


def test_unknown_name_lists_the_known():
    with pytest.raises(KeyError, match=r"no layer 'fc1' in this report, which has blocks\.0\.conv, fc, head"):
        REPORT["fc1"]
    many = SpectralReport([LayerSpectrum(f"l{i}", "linear", (2, 2)) for i in range(12)])
    with pytest.raises(KeyError, match=re.escape("which has l0, l1, l2, l3, l4, l5, l6, l7, l8, l9, ...")):
        many["x"]
    with pytest.raises(KeyError, match="which has no layers"):
        SpectralReport([])["x"]


def test_names_must_be_unique():
    with pytest.raises(ValueError, match="Expected argument `rows` to have unique names"):
        SpectralReport([OTHER, OTHER])


def test_rows_are_frozen_and_compare_without_their_eigenvalues():
    with pytest.raises(AttributeError, match="cannot assign to field 'alpha'"):
        OTHER.alpha = 1.0
    again = pickle.loads(pickle.dumps(GOOD))
    assert again == GOOD
    torch.testing.assert_close(again.eigenvalues, GOOD.eigenvalues)
    assert {GOOD, again} == {GOOD}
    assert pickle.loads(pickle.dumps(SKIPPED)) == SKIPPED  # though most of it is NaN
    assert {SKIPPED, pickle.loads(pickle.dumps(SKIPPED))} == {SKIPPED}
    assert GOOD != "blocks.0.conv"


NOT_COMPARED = ("way", "eigenvalues", "layout")


@pytest.mark.parametrize("name", [entry.name for entry in fields(LayerSpectrum) if entry.name not in NOT_COMPARED])
def test_rows_that_differ_in_one_number_are_not_equal(name):
    other = replace(GOOD, **{name: {"twin": None, "status": "skipped"}.get(name, -1.0)})
    assert other != GOOD
    assert other == replace(other)
    assert replace(GOOD, eigenvalues=None, layout="oikk", way="host") == GOOD


def test_every_column_but_the_eigenvalues_and_the_twin_is_written():
    assert {entry.name for entry in fields(LayerSpectrum)} == {*COLUMNS, *ON_REQUEST, "way", "eigenvalues", "twin"}


def test_columns_on_request_are_those_that_a_row_has():
    assert not set(ON_REQUEST) & set(SpectralReport([GOOD]).columns)
    asked = SpectralReport([replace(GOOD, name="a", twin=None), replace(GOOD, twin=None, outlier_eigenvalues=0.0)])
    assert asked.columns == (*COLUMNS, "outlier_eigenvalues")
    assert [line.rpartition(",")[2] for line in asked.to_csv().splitlines()] == ["outlier_eigenvalues", "nan", "0.0"]


def test_a_row_shows_what_was_asked_for():
    assert "outlier_eigenvalues" not in repr(GOOD)
    assert "outlier_eigenvalues=2.0, status=" in repr(replace(GOOD, outlier_eigenvalues=2.0))


OF_TWIN = [
    "random_alpha",
    "random_ks_distance",
    "random_spectral_norm",
    "random_stable_rank",
    "random_effective_rank",
    "random_alpha_hat",
    "random_mp_soft_rank",
]


def test_a_twin_brings_columns_of_its_own():
    assert REPORT.columns == (*COLUMNS, *OF_TWIN)
    assert SpectralReport([OTHER, SKIPPED]).columns == tuple(COLUMNS)


def test_csv_round_trip(tmp_path):
    path = tmp_path / "report.csv"
    assert REPORT.to_csv(path) == REPORT.to_csv()
    with path.open(newline="", encoding="utf-8") as file:
        good, other, skipped = csv.DictReader(file)
    assert list(good) == COLUMNS + OF_TWIN
    assert (float(good["random_alpha"]), other["random_alpha"]) == (2.36, "nan")
    assert good["shape"] == "64x3x3x3"
    assert good["reason"] == GOOD.reason
    for name in COLUMNS:
        value = getattr(GOOD, name)
        if isinstance(value, (int, float)):
            assert type(value)(good[name]) == value
    assert float(other["alpha"]) == 3.125
    assert skipped["alpha"] == "nan"
    assert skipped["status"] == "skipped"


def test_csv_accepts_a_path_as_text(tmp_path):
    REPORT.to_csv(str(tmp_path / "report.csv"))
    assert len((tmp_path / "report.csv").read_text(encoding="utf-8").splitlines()) == 4


def test_json_round_trip(tmp_path):
    path = tmp_path / "report.json"
    text = REPORT.to_json(path)
    assert REPORT.to_json() == text

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    good, _, skipped = content["layers"]
    of_twin = dict.fromkeys(OF_TWIN) | {"random_alpha": 2.36}
    assert good == {name: getattr(GOOD, name) for name in COLUMNS} | {"shape": [64, 3, 3, 3]} | of_twin
    assert content["summary"]["alpha"]["mean"] == (2.125 + 3.125) / 2
    assert content["summary"]["alpha"]["quantiles"]["0.5"] == (2.125 + 3.125) / 2
    assert skipped["alpha"] is None
    assert skipped["reason"] == SKIPPED.reason


def test_pandas_round_trip():
    frame = REPORT.to_pandas()
    assert list(frame.columns) == COLUMNS + OF_TWIN
    assert list(frame["name"]) == ["blocks.0.conv", "fc", "head"]
    assert frame["alpha"].dtype == "float64"
    assert frame["alpha"].isna().tolist() == [False, False, True]
    assert frame.set_index("name").loc["blocks.0.conv", "xmin"] == 1 / 3
    assert list(SpectralReport([]).to_pandas().columns) == COLUMNS


def test_missing_pandas_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "lightning-farms\[pandas\]"'):
        REPORT.to_pandas()


def test_infinite_numbers_are_missing_in_json_and_infinite_in_csv(tmp_path):
    report = SpectralReport([replace(OTHER, log_norm=-math.inf, alpha_high=math.inf)])
    report.to_csv(tmp_path / "report.csv")
    (row,) = csv.DictReader((tmp_path / "report.csv").read_text(encoding="utf-8").splitlines())
    assert (float(row["log_norm"]), float(row["alpha_high"])) == (-math.inf, math.inf)
    (record,) = json.loads(report.to_json())["layers"]
    assert record["log_norm"] is None
    assert record["alpha_high"] is None


def test_interval_is_the_bootstraps_or_else_that_of_the_standard_error():
    assert GOOD.interval == (2.0, 2.5)
    assert replace(OTHER, standard_error=0.5).interval == pytest.approx((3.125 - 0.98, 3.125 + 0.98))
    assert all(math.isnan(end) for end in SKIPPED.interval)
