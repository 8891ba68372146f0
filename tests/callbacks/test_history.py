import math

from lightning_farms.callbacks.history import LayerHistory


def test_layers_that_come_and_go_are_nan_elsewhere():
    history = LayerHistory()
    history.append(0, {"alpha": {"a": 1.0, "b": 2.0}})
    history.append(2, {"alpha": {"a": 1.5}, "learning_rate": {"a": 0.1}})
    history.append(4, {"alpha": {"b": 2.5}})
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


def test_state_round_trip():
    history = LayerHistory()
    history.append(0, {"alpha": {"a": 1.0}})
    copy = LayerHistory.from_state_dict(history.state_dict())
    copy.append(1, {"alpha": {"a": 2.0}})
    assert copy.rows("alpha") == [[1.0, 2.0]]
    assert history.rows("alpha") == [[1.0]]
    assert history.state_dict() == {"epochs": [0], "quantities": {"alpha": {"a": [1.0]}}}
