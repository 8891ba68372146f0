"""What `Control` does to the rates that updates really use, step by step."""

import math

import pytest
import torch

from lightning_farms import Control, TempBalance, analyze
from lightning_farms.analysis import Selection
from lightning_farms.functional import tb_linear_map
from tests.callbacks.conftest import Alphas, Tower, is_linear, weights


@pytest.mark.parametrize("index", [0, 4])
def test_norms_and_biases_follow_their_layer(index, used):
    follow = used(TempBalance(summary=False))[0]
    parts = [follow[f"layers.{index + i}.{part}"] for i in (0, 1) for part in ("weight", "bias")]
    assert parts == pytest.approx([follow[f"layers.{index}.weight"]] * 4, rel=1e-6)


def is_weight(name):
    return is_linear(name) and name.endswith("weight")


@pytest.mark.parametrize(
    ("control", "at_base"),
    [
        (Control(norms=False), lambda name: not is_linear(name)),
        (Control(biases=False), lambda name: is_linear(name) and name.endswith("bias")),
        (Control(norms=False, biases=False), lambda name: not is_weight(name)),
    ],
    ids=["norms", "biases", "both"],
)
def test_norms_and_biases_keep_the_base_rate_on_request(control, at_base, used):
    follow = used(TempBalance(summary=False))[0]
    partly = used(TempBalance(control=control, summary=False))[0]
    assert partly == pytest.approx({name: 1.0 if at_base(name) else m for name, m in follow.items()}, rel=1e-6)


@pytest.mark.parametrize(
    ("control", "kept"),
    [
        (Control(first_layer=False), [0]),
        (Control(last_layer=False), [5]),
        (Control(first_layer=False, last_layer=False, layers=Selection(exclude=("layers.4",))), [0, 2, 5]),
        (Control(layers=Selection(include=("layers.2", "layers.4"))), [0, 3, 4, 5]),
    ],
    ids=["first", "last", "both, and a pattern", "patterns"],
)
def test_what_is_left_out_keeps_the_base_rate_and_moves_no_other(control, kept, used):
    alphas = analyze(Tower()).alphas
    kept = [list(alphas)[index] for index in kept]
    callback = TempBalance(control=control, summary=False)
    rest = [name for name in alphas if name not in kept]
    mapped = tb_linear_map(torch.tensor([alphas[name] for name in rest], dtype=torch.float64)).tolist()
    expected = {**dict.fromkeys(kept, 1.0), **dict(zip(rest, mapped, strict=True))}
    assert weights(used(callback)[0]) == pytest.approx(expected, rel=1e-9)
    assert all(row.status == "ok" for row in callback.report)  # they are analysed all the same


def test_layers_of_few_eigenvalues_are_left_out_on_request(small_net, loader, make_trainer):
    balance = TempBalance(control=Control(layers=Selection(min_size=9)), summary=False)
    make_trainer([balance]).fit(small_net(), loader)  # conv is 3 by 8, head 24 by 12
    assert balance.multipliers["conv"] == 1.0
    assert sorted(m for name, m in balance.multipliers.items() if name != "conv") == [0.5, 1.5]


def test_a_pattern_of_the_control_that_fits_no_layer_is_refused(loader, make_trainer):
    callback = TempBalance(control=Control(layers=Selection(exclude=("layer.2",))))
    with pytest.raises(ValueError, match=r"'layer\.2' matches none\. The closest are layers\.2"):
        make_trainer([callback]).fit(Tower(), loader)


def test_moving_average_over_analyses(used):
    decay, record = 0.75, Alphas()
    model = Tower(lr=0.05)
    found = used(TempBalance(control=Control(ema_decay=decay), summary=False), model, max_epochs=4, extra=[record])
    average = None
    for epoch, alphas in enumerate(record.by_epoch):
        new = torch.tensor(list(alphas.values()), dtype=torch.float64)
        average = new if average is None else decay * average + (1 - decay) * new
        expected = dict(zip(alphas, tb_linear_map(average).tolist(), strict=True))
        for step in range(4 * epoch, 4 * epoch + 4):
            assert weights(found[step]) == pytest.approx(expected, rel=1e-9)
    assert not torch.allclose(average, new)


def test_ramp_goes_linearly_from_the_multipliers_in_force(used):
    record, callback = Alphas(), TempBalance(0.2, 1.8, control=Control(ramp_steps=6), summary=False)
    found = used(callback, Tower(lr=0.05), max_epochs=3, extra=[record])
    start = dict.fromkeys(record.by_epoch[0], 1.0)
    for epoch, alphas in enumerate(record.by_epoch):
        target = tb_linear_map(torch.tensor(list(alphas.values()), dtype=torch.float64), 0.2, 1.8)
        target = dict(zip(alphas, target.tolist(), strict=True))
        for i in range(1, 5):
            expected = {name: start[name] + (target[name] - start[name]) * i / 6 for name in alphas}
            assert weights(found[4 * epoch + i - 1]) == pytest.approx(expected, rel=1e-9), (epoch, i)
        start = expected


def test_a_ramp_ends_at_the_new_multipliers(used):
    callback = TempBalance(control=Control(ramp_steps=3), every_n_epochs=5, summary=False)
    found = [weights(step) for step in used(callback, max_epochs=2)]
    target = tb_linear_map(torch.tensor(list(analyze(Tower()).alphas.values()), dtype=torch.float64)).tolist()
    assert list(found[1].values()) != pytest.approx(target, rel=1e-3)
    for step in found[2:]:
        assert list(step.values()) == pytest.approx(target, rel=1e-9)


def test_clamp(used):
    alphas = torch.tensor(list(analyze(Tower()).alphas.values()), dtype=torch.float64)
    control = Control(min_multiplier=0.8, max_multiplier=1.1)
    found = list(weights(used(TempBalance(0.2, 1.8, control=control, summary=False))[0]).values())
    assert found == pytest.approx(tb_linear_map(alphas, 0.2, 1.8).clamp(0.8, 1.1).tolist(), rel=1e-9)
    assert {0.8, 1.1} < {round(m, 9) for m in found}


def test_clipping(used):
    alphas = torch.tensor(list(analyze(Tower()).alphas.values()), dtype=torch.float64)
    found = list(weights(used(TempBalance(control=Control(clip_quantile=0.2), summary=False))[0]).values())
    low, high = alphas.quantile(0.2), alphas.quantile(0.8)
    assert found == pytest.approx(tb_linear_map(alphas.clamp(low, high)).tolist(), rel=1e-9)
    assert found.count(pytest.approx(1.5)) == 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ema_decay": 1.0}, r"`ema_decay` to be in \[0, 1\), but got 1.0"),
        ({"clip_quantile": 0.5}, r"`clip_quantile` to be in \[0, 0.5\), but got 0.5"),
        ({"min_multiplier": 1.1}, r"`min_multiplier` to be in \[0, 1\], but got 1.1"),
        ({"max_multiplier": 0.9}, "`max_multiplier` to be at least 1, but got 0.9"),
        ({"max_multiplier": math.nan}, "`max_multiplier` to be at least 1, but got nan"),
        ({"ramp_steps": -1}, "`ramp_steps` to be 0 or more, but got -1"),
    ],
)
def test_wrong_values(options, match):
    with pytest.raises(ValueError, match=match):
        Control(**options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layers": ("conv",)}, r"`layers` to be Selection\(...\), but got \('conv',\)"),
        ({"ramp_steps": 2.5}, "`ramp_steps` to be an integer, but got 2.5"),
        ({"ramp_steps": None}, "`ramp_steps` to be an integer, but got None"),
        ({"ema_decay": "0.5"}, "`ema_decay` to be a number, but got '0.5'"),
        ({"norms": "no"}, "`norms` to be True or False, but got 'no'"),
    ],
)
def test_wrong_kinds(options, match):
    with pytest.raises(TypeError, match=match):
        Control(**options)
