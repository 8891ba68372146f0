"""What `Control` does to the rates that updates really use, step by step."""

import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_farms import (
    Control,
    LayerwiseLearningRate,
    LinearMap,
    Log2Map,
    SigmoidMap,
    SqrtMap,
    StepMap,
    TBSigmoid,
    TempBalance,
    WeightDecayBalance,
    WholeMatrix,
    analyze,
)
from lightning_farms.analysis import Selection
from lightning_farms.functional import tb_linear_map, tb_log2, tb_sigmoid, tb_sqrt, tb_step

MAPS = [
    (LinearMap(0.4, 1.6), lambda a: tb_linear_map(a, 0.4, 1.6)),
    (SigmoidMap(0.5, 0.8, 3.0), lambda a: tb_sigmoid(a, 0.5, 0.8, 3.0)),
    (SqrtMap(), tb_sqrt),
    (Log2Map(), tb_log2),
    (StepMap(0.4, 1.6), lambda a: tb_step(a, 0.4, 1.6)),
]


class Used(pl.Callback):
    """What each step of plain SGD multiplied the base rate by, for each parameter, in float64."""

    def __init__(self):
        self.multipliers = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer, pl_module, *args):
        base = trainer.optimizers[0].param_groups[0]["lr"]
        rates = {}
        for name, p in pl_module.named_parameters():
            rates[name] = (((self.before[name] - p) * p.grad).sum() / p.grad.square().sum() / base).item()
        self.multipliers.append(rates)


class Alphas(pl.Callback):
    """Alphas of the weights before each epoch."""

    def __init__(self):
        self.by_epoch = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.by_epoch.append(analyze(pl_module).alphas)


class Tower(pl.LightningModule):
    """Linear layers of different spectra, with biases, and a norm after each."""

    def __init__(self, tails=(1.0, 1.3, 1.6, 2.0, 2.5, 3.0), optimizer=torch.optim.SGD, **options):
        super().__init__()
        torch.manual_seed(3)
        self.options = {"lr": 1e-3, **options}
        self.optimizer_class = optimizer
        self.layers = nn.Sequential()
        for tail in tails:
            linear = nn.Linear(24, 24)
            with torch.no_grad():  # a power law of its own for each
                u, _, v = torch.linalg.svd(linear.weight)
                linear.weight.copy_(u @ torch.diag(torch.arange(1, 25) ** (-0.4 * tail)) @ v)
            self.layers.extend([linear, nn.LayerNorm(24)])
        self.double()

    def training_step(self, batch, batch_idx):
        x = batch[0].flatten(1)[:, :24].double()
        return self.layers(x).square().mean()

    def configure_optimizers(self):
        return self.optimizer_class(self.parameters(), **self.options)


@pytest.fixture
def used(loader, make_trainer):
    def run(callback, model=None, max_epochs=1, extra=()):
        record = Used()
        trainer = make_trainer([callback, record, *extra], max_epochs=max_epochs, precision="64-true")
        trainer.fit(model or Tower(), loader)
        return record.multipliers

    return run


def weights(multipliers):
    """{layer: multiplier} of the weights."""
    return {
        name[: -len(".weight")]: m for name, m in multipliers.items() if is_linear(name) and name.endswith("weight")
    }


def is_linear(name):
    return int(name.split(".")[1]) % 2 == 0


@pytest.mark.parametrize(("alpha_map", "reference"), MAPS, ids=lambda v: type(v).__name__)
def test_every_map(alpha_map, reference, used):
    alphas = analyze(Tower()).alphas
    expected = reference(torch.tensor(list(alphas.values()), dtype=torch.float64)).tolist()
    first = weights(used(LayerwiseLearningRate(alpha_map, summary=False))[0])
    assert first == pytest.approx(dict(zip(alphas, expected, strict=True)), rel=1e-9)
    assert max(expected) > 1.05 * min(expected)


def test_norms_and_biases_follow_or_not(used):
    follow = used(TempBalance(summary=False))[0]
    for index in (0, 4):
        parts = [follow[f"layers.{index + i}.{part}"] for i in (0, 1) for part in ("weight", "bias")]
        assert parts == pytest.approx([follow[f"layers.{index}.weight"]] * 4, rel=1e-6)
    for control, at_base in (
        (Control(norms=False), lambda name: not is_linear(name)),
        (Control(biases=False), lambda name: is_linear(name) and name.endswith("bias")),
        (Control(norms=False, biases=False), lambda name: not (is_linear(name) and name.endswith("weight"))),
    ):
        partly = used(TempBalance(control=control, summary=False))[0]
        expected = {name: 1.0 if at_base(name) else m for name, m in follow.items()}
        assert partly == pytest.approx(expected, rel=1e-6)


def test_first_and_last_layer_and_patterns_keep_the_base_rate_and_move_no_other(used):
    alphas = analyze(Tower()).alphas
    names = list(alphas)
    for control, kept in (
        (Control(first_layer=False), names[:1]),
        (Control(last_layer=False), names[-1:]),
        (Control(first_layer=False, last_layer=False, layers=Selection(exclude=(names[2],))), [*names[::5], names[2]]),
        (Control(layers=Selection(include=("layers.2", "layers.4"))), [*names[:1], *names[3:]]),
    ):
        callback = TempBalance(control=control, summary=False)
        rest = [name for name in names if name not in kept]
        mapped = tb_linear_map(torch.tensor([alphas[name] for name in rest], dtype=torch.float64)).tolist()
        expected = {**dict.fromkeys(kept, 1.0), **dict(zip(rest, mapped, strict=True))}
        assert weights(used(callback)[0]) == pytest.approx(expected, rel=1e-9)
        assert all(row.status == "ok" for row in callback.report)  # they are analysed all the same


def test_layers_of_few_eigenvalues_are_left_out_on_request(small_net, loader, make_trainer):
    balance = TempBalance(control=Control(layers=Selection(min_size=9)), summary=False)
    make_trainer([balance]).fit(small_net(), loader)  # conv is 3 by 8, head 24 by 12
    assert balance.multipliers["conv"] == 1.0
    assert sorted(m for name, m in balance.multipliers.items() if name != "conv") == [0.5, 1.5]


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


def test_clamp_and_clipping(used):
    alphas = torch.tensor(list(analyze(Tower()).alphas.values()), dtype=torch.float64)
    control = Control(min_multiplier=0.8, max_multiplier=1.1)
    found = list(weights(used(TempBalance(0.2, 1.8, control=control, summary=False))[0]).values())
    assert found == pytest.approx(tb_linear_map(alphas, 0.2, 1.8).clamp(0.8, 1.1).tolist(), rel=1e-9)
    assert {0.8, 1.1} < {round(m, 9) for m in found}
    found = list(weights(used(TempBalance(control=Control(clip_quantile=0.2), summary=False))[0]).values())
    low, high = alphas.quantile(0.2), alphas.quantile(0.8)
    assert found == pytest.approx(tb_linear_map(alphas.clamp(low, high)).tolist(), rel=1e-9)
    assert found.count(pytest.approx(1.5)) == 2


# ---- weight decay ----------------------------------------------------------------------------------------------------


class Shrinking(pl.Callback):
    """By which share a step shrank each parameter, where there is no gradient."""

    def __init__(self):
        self.share = {}

    def on_train_batch_start(self, trainer, pl_module, *args):
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer, pl_module, *args):
        for name, p in pl_module.named_parameters():
            norm = self.before[name].norm()  # 0 for the biases of norms
            self.share[name] = (1 - p.detach().norm() / norm).item() if norm else 0.0


class Idle(Tower):
    """Its gradients are zero: decoupled weight decay is all that happens."""

    def training_step(self, batch, batch_idx):
        return 0.0 * super().training_step(batch, batch_idx)


DECOUPLED = [
    (torch.optim.AdamW, {}),
    (torch.optim.AdamW, {"foreach": True}),
    (torch.optim.AdamW, {"fused": True}),
    (torch.optim.NAdam, {"decoupled_weight_decay": True}),
    (torch.optim.SGD, {}),
]


@pytest.mark.parametrize(("optimizer", "options"), DECOUPLED)
@pytest.mark.parametrize(
    "which", ["weight decay", "rate", "rate, compensated", "rate and weight decay"], ids=lambda v: v.replace(" ", "_")
)
def test_shrinking_by_rate_times_decay(which, optimizer, options, loader, make_trainer):
    base = 1e-3 * 0.1
    model, record = Idle(optimizer=optimizer, weight_decay=0.1, **options), Shrinking()
    alphas = analyze(model).alphas
    values = torch.tensor(list(alphas.values()), dtype=torch.float64)
    rate, decay = tb_linear_map(values), tb_linear_map(values, 2 / 3, 3.0)
    callbacks, expected = {
        "weight decay": ([WeightDecayBalance(summary=False)], decay),
        "rate": ([TempBalance(summary=False)], rate),
        "rate, compensated": (
            [TempBalance(control=Control(compensate_weight_decay=True), summary=False)],
            torch.ones_like(rate),
        ),
        "rate and weight decay": (
            [WeightDecayBalance(summary=False), TempBalance(summary=False)],
            rate * decay,
        ),
    }[which]
    make_trainer([*callbacks, record], max_steps=1, max_epochs=None, precision="64-true").fit(model, loader)
    for name, multiplier in zip(alphas, expected.tolist(), strict=True):
        assert record.share[f"{name}.weight"] == pytest.approx(base * multiplier, rel=1e-6)
    (group,) = model.optimizers().optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0.1)


def test_groups_without_weight_decay_stay_without(loader, make_trainer, logged):
    class Split(Idle):
        def configure_optimizers(self):
            decayed = [p for p in self.parameters() if p.ndim == 2]
            others = [p for p in self.parameters() if p.ndim < 2]
            return torch.optim.AdamW(
                [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
            )

    record, callback = Shrinking(), WeightDecayBalance(summary=False)
    trainer = make_trainer([callback, record], max_epochs=1, precision="64-true")
    trainer.fit(Split(), loader)
    assert {share for name, share in record.share.items() if name.endswith("bias")} == {0.0}
    final = {layer: 0.1 * m for layer, m in callback.multipliers.items()}
    assert {layer: logged(trainer)[f"wd-AdamW/{layer}"][-1] for layer in final} == pytest.approx(final)
    assert callback.history.layers("weight_decay") == list(final)


def test_no_weight_decay_at_all_is_warned_of(loader, make_trainer):
    with pytest.warns(UserWarning, match="weight decay of every parameter group is 0, and stays 0"):
        make_trainer([WeightDecayBalance(summary=False)], max_epochs=1).fit(Tower(), loader)


COMPENSATED = Control(compensate_weight_decay=True)


@pytest.mark.parametrize(
    ("callbacks", "optimizer", "match"),
    [
        ([TBSigmoid(control=COMPENSATED)], torch.optim.Adam, "decay is decoupled from the gradient, but got Adam"),
        ([TBSigmoid(control=COMPENSATED), WeightDecayBalance()], torch.optim.SGD, "both adjust the weight decay"),
        (
            [WeightDecayBalance(), WeightDecayBalance(analysis=WholeMatrix())],
            torch.optim.SGD,
            "both adjust the weight decay",
        ),
        ([TBSigmoid(), LayerwiseLearningRate(SqrtMap())], torch.optim.SGD, "both adjust the learning rate"),
        ([WeightDecayBalance()], torch.optim.Rprop, "'weight_decay', where group 0 has None"),
    ],
)
def test_what_cannot_be_is_refused_before_training(callbacks, optimizer, match, loader, make_trainer):
    options = {} if optimizer is torch.optim.Rprop else {"weight_decay": 0.1}
    with pytest.raises(MisconfigurationException, match=match):
        make_trainer(callbacks).fit(Tower(optimizer=optimizer, **options), loader)


# ---- warnings --------------------------------------------------------------------------------------------------------


def test_an_outlier_that_squeezes_the_others_is_named_once_with_the_remedy(loader, make_trainer):
    model = Tower(tails=(2.5, 2.52, 2.55, 2.5, 2.56, 0.5))
    callback = TempBalance(summary=False)
    with pytest.warns(UserWarning, match="layers.10") as caught:
        make_trainer([callback], max_epochs=3).fit(model, loader)
    messages = [str(w.message) for w in caught if "TempBalance" in str(w.message)]
    assert len(messages) == 1
    (message,) = messages
    alphas = callback.history.rows("alpha")
    assert f"layer 'layers.10' has alpha {alphas[-1][0]:.2f}" in message
    assert "control=Control(clip_quantile=0.2)" in message
    assert 'control=Control(layers=Selection(exclude=("layers.10",)))' in message
    for control in (Control(clip_quantile=0.2), Control(layers=Selection(exclude=("layers.10",)))):
        make_trainer([TempBalance(control=control, summary=False)], max_epochs=1).fit(model, loader)  # no warning


@pytest.mark.parametrize(
    ("callback", "match"),
    [
        (TempBalance(1.0, 1.0, summary=False), "alphas lie between .* and the map makes no difference of that"),
        (TempBalance(control=Control(layers=Selection(include=("layers.2",))), summary=False), "only one is balanced"),
        (TempBalance(selection=Selection(min_size=25), summary=False), "none of the layers .* has an alpha"),
    ],
)
def test_a_map_that_does_nothing_is_warned_of_once(callback, match, loader, make_trainer):
    with pytest.warns(UserWarning, match=match) as caught:
        make_trainer([callback], max_epochs=2).fit(Tower(), loader)
    assert len([w for w in caught if "TempBalance" in str(w.message)]) == 1
    assert set(callback.multipliers.values()) <= {1.0}


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Control(ema_decay=1.0), r"`ema_decay` to be in \[0, 1\), but got 1.0"),
        (lambda: Control(clip_quantile=0.5), r"`clip_quantile` to be in \[0, 0.5\), but got 0.5"),
        (lambda: Control(min_multiplier=1.1), r"`min_multiplier` to be in \[0, 1\], but got 1.1"),
        (lambda: Control(max_multiplier=0.9), "`max_multiplier` to be at least 1, but got 0.9"),
        (lambda: Control(max_multiplier=math.nan), "`max_multiplier` to be at least 1, but got nan"),
        (lambda: Control(ramp_steps=-1), "`ramp_steps` to be 0 or more, but got -1"),
        (lambda: LinearMap(0.0, 1.0), "0 < min_ratio <= max_ratio"),
        (lambda: StepMap(2.0, 1.0), "0 < min_ratio <= max_ratio"),
        (lambda: SigmoidMap(tau=0.0), "`tau` to be finite and positive"),
        (lambda: WeightDecayBalance(control=Control(compensate_weight_decay=True)), "to be False where the weight"),
    ],
)
def test_wrong_values(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Control(layers=("conv",)), r"`layers` to be Selection\(...\), but got \('conv',\)"),
        (
            lambda: TempBalance(control={"norms": 0}),
            r"`control` to be Control\(...\), but got \{'norms': 0\}",
        ),
        (lambda: LayerwiseLearningRate("linear"), r"`alpha_map` to be LinearMap\(...\) or the like, but got 'linear'"),
    ],
)
def test_wrong_kinds(make, match):
    with pytest.raises(TypeError, match=match):
        make()


def test_a_pattern_of_the_control_that_fits_no_layer_is_refused(loader, make_trainer):
    callback = TempBalance(control=Control(layers=Selection(exclude=("layer.2",))))
    with pytest.raises(ValueError, match=r"'layer\.2' matches none\. Close to it: layers\.2"):
        make_trainer([callback]).fit(Tower(), loader)
