"""The rows of an allocation: totals, and the forms in which they are kept."""

import json
import math

import pytest

from lightning_farms.functional import NofM
from lightning_farms.pruning import LayerRatio, LayerRatios

ROWS = (
    LayerRatio("layers.0.q", "layers.0", 100, 1 / 3, 0.8, 0.1 + 0.2, 30),
    LayerRatio("layers.0.k", "layers.0", 50, 2.5, 0.8, 0.3, 15),
    LayerRatio("layers.1.q", "layers.1", 200, 3.0, 1.2, 0.5, 100, NofM(2, 4)),
)
RATIOS = LayerRatios(ROWS, 0.4142, "farms", ("a note", "another, with a comma"))


def test_totals_come_from_whole_numbers():
    assert (RATIOS.size, RATIOS.zeros) == (350, 145)
    assert RATIOS.reached == 145 / 350
    assert RATIOS.by_block() == {"layers.0": 45 / 150, "layers.1": 0.5}
    assert [RATIOS.amount(layer.name) for layer in RATIOS] == [30, 15, NofM(2, 4)]
    assert ROWS[0].reached == 0.3


def test_json_holds_all_of_it(tmp_path):
    text = RATIOS.to_json(tmp_path / "r.json")
    assert LayerRatios.from_json(text) == LayerRatios.from_json(tmp_path / "r.json") == RATIOS
    assert LayerRatios.from_json(str(tmp_path / "r.json")) == RATIOS
    content = json.loads(text)
    assert content["reached"] == 145 / 350
    assert [row["pattern"] for row in content["layers"]] == ["", "", "2:4"]


def test_csv_holds_all_but_the_notes(tmp_path):
    text = RATIOS.to_csv(tmp_path / "r.csv")
    assert text.splitlines()[0] == "name,block,size,source,score,ratio,zeros,pattern,asked,allocation"
    again = LayerRatios.from_csv(text)
    assert again == LayerRatios.from_csv(tmp_path / "r.csv")
    assert again == LayerRatios(ROWS, 0.4142, "farms")


@pytest.mark.parametrize("form", ["json", "csv"])
def test_a_figure_that_is_not_there_stays_so(form):
    ratios = LayerRatios((LayerRatio("a", "b", 10, math.nan, 1.0, 0.5, 5),), 0.5)
    text = getattr(ratios, f"to_{form}")()
    (layer,) = getattr(LayerRatios, f"from_{form}")(text)
    assert math.isnan(layer.source)
    if form == "json":
        assert json.loads(text)["layers"][0]["source"] is None


def test_the_table_is_by_block_where_blocks_have_one_score():
    text = str(RATIOS)
    assert text.splitlines()[:3] == [
        "block     layers  weights  source  score  ratio",
        "layers.0       2      150   1.417  0.800  0.300",
        "layers.1       1      200   3.000  1.200  0.500",
    ]
    assert text.splitlines()[3] == "farms: 0.414200 of 350 weights asked, 0.414286 reached (145 zeros)."
    assert text.splitlines()[4:] == ["Note: a note.", "Note: another, with a comma."]
    other = LayerRatio("layers.1.k", "layers.1", 10, math.nan, 1.0, 0.5, 5)
    lines = str(LayerRatios((*ROWS, other), 0.4)).splitlines()
    assert lines[0].split() == ["layer", "weights", "source", "score", "ratio"]
    assert lines[4].split() == ["layers.1.k", "10", "1.000", "0.500"]
    assert len(lines) == 6


def test_a_name_that_is_not_there():
    with pytest.raises(
        KeyError,
        match=r"no layer 'x' in this allocation of 3 layers, the first of which is "
        r"'layers\.0\.q'",
    ):
        RATIOS.amount("x")


@pytest.mark.parametrize(
    "rows",
    [
        (),
        (ROWS[0], ROWS[0]),
        (LayerRatio("a", "b", 10, 1.0, 1.0, 1.0, 11),),
        (LayerRatio("a", "b", 10, 1.0, 1.0, 1.0, -1),),
        (LayerRatio("a", "b", 0, 1.0, 1.0, 0.0, 0),),
    ],
)
def test_rows_that_cannot_be(rows):
    with pytest.raises(ValueError, match="Expected argument `layers`"):
        LayerRatios(rows, 0.5)


@pytest.mark.parametrize("text", ["{}", '{"layers": [{}], "sparsity": 1}', "{"])
def test_json_that_is_something_else(text):
    with pytest.raises(ValueError, match="Expected argument `source` to be ratios as JSON"):
        LayerRatios.from_json(text)


@pytest.mark.parametrize("text", ["name,block\n", "name,block\na,b\n"])
def test_csv_that_is_something_else(text):
    with pytest.raises(ValueError, match="Expected argument `source` to be ratios as CSV"):
        LayerRatios.from_csv(text)
