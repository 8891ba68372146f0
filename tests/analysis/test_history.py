import math
import pickle

import pandas as pd
import pytest
import torch

from lightning_farms.analysis.history import LayerHistory


@pytest.fixture
def history():
    """Layers that come and go: a, b at first; b is missing once, then a; rates from the second analysis on."""
    history = LayerHistory()
    history.append(0, {"alpha": {"a": 1.0, "b": 2.0}}, step=0)
    history.append(2, {"alpha": {"a": 1.5}, "learning_rate": {"a": 0.1}}, step=20)
    history.append(4, {"alpha": {"b": 2.5}}, step=40)
    return history


def test_layers_that_come_and_go_are_nan_elsewhere(history):
    a, b = history.rows("alpha")
    assert a[:2] == [1.0, 1.5]
    assert b[0] == 2.0
    assert b[2] == 2.5
    assert all(math.isnan(x) for x in (a[2], b[1]))
    (rate,) = history.rows("learning_rate")
    assert rate[1] == 0.1
    assert math.isnan(rate[0])
    assert math.isnan(rate[2])
    assert history.epochs == [0, 2, 4]
    assert history.steps == [0, 20, 40]


def test_state_round_trip(tmp_path):
    history = LayerHistory()
    history.append(0, {"alpha": {"a": 1.0}}, step=0)
    torch.save(history.state_dict(), tmp_path / "state.pt")
    copy = LayerHistory.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    copy.append(1, {"alpha": {"a": 2.0}}, step=5)
    assert copy.rows("alpha") == [[1.0, 2.0]]
    assert copy.steps == [0, 5]
    assert history.rows("alpha") == [[1.0]]
    assert history.state_dict() == {"epochs": [0], "steps": [0], "quantities": {"alpha": {"a": [1.0]}}}


def test_a_state_without_steps_loads():
    history = LayerHistory.from_state_dict({"epochs": [0, 1], "quantities": {"alpha": {"a": [1.0, 2.0]}}})
    history.append(1, {"alpha": {"a": 3.0}}, step=7)
    assert history.steps == [None, None, 7]
    assert history.positions() == ("epoch", [0, 1, 1])
    assert history.to_pandas()["step"].isna().tolist() == [True, True, False]


def test_positions_are_steps_where_an_epoch_has_two_analyses(history):
    assert history.positions() == ("epoch", [0, 2, 4])
    history.append(4, {"alpha": {"a": 1.0}}, step=45)
    assert history.positions() == ("step", [0, 20, 40, 45])
    assert LayerHistory().positions() == ("epoch", [])


def test_long_form(history):
    expected = pd.DataFrame(
        [
            (0, 0, "alpha", "a", 1.0),
            (0, 0, "alpha", "b", 2.0),
            (2, 20, "alpha", "a", 1.5),
            (2, 20, "learning_rate", "a", 0.1),
            (4, 40, "alpha", "b", 2.5),
        ],
        columns=["epochs", "step", "quantity", "layer", "value"],
    ).astype({"step": "Int64"})
    pd.testing.assert_frame_equal(history.to_pandas(), expected, check_dtype=True, check_column_type=False)
    wide = history.to_pandas().query("quantity == 'alpha'").pivot(index="layer", columns="epochs", values="value")
    assert wide.to_numpy().tolist()[0][:2] == history.rows("alpha")[0][:2]


def test_long_form_of_nothing_has_the_same_columns(history):
    empty = LayerHistory().to_pandas()
    assert empty.empty
    assert empty.dtypes.drop(["quantity", "layer"]).equals(history.to_pandas().dtypes.drop(["quantity", "layer"]))


def test_long_form_without_pandas(history, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs pandas: pip install "lightning-farms\[pandas\]"'):
        history.to_pandas()


def test_repr_is_short(history):
    text = "LayerHistory(3 analyses, epochs 0 to 4, alpha of 2 layers, learning rate of 1 layer)"
    assert repr(history) == repr(pickle.loads(pickle.dumps(history))) == text
    assert repr(LayerHistory()) == "LayerHistory(no analysis)"
    one = LayerHistory()
    one.append(3, {})
    assert repr(one) == "LayerHistory(1 analysis, after 3 epochs)"
