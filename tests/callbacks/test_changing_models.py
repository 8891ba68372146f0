"""Models and optimizers that change during training, and layers that several weights make up."""

import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_farms import Control, LinearMap, SpectralMonitor, TempBalance, WeightDecayBalance
from lightning_farms import LayerwiseLearningRate as Rate
from lightning_farms.balancing.alpha_map import AlphaMap
from tests.callbacks.conftest import NotedFARMS


def measure(module, optimizer, step):
    """{parameter name: rate that one step of plain SGD used}."""
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    step()
    return {
        name: ((before[name] - p.detach()) * p.grad).sum().item() / p.grad.square().sum().item()
        for name, p in module.named_parameters()
        if p.grad is not None and p.grad.any() and name in before
    }


class Base(pl.LightningModule):
    """Linear layers under manual optimization, whose used rates are recorded at every step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.used = []

    def update(self, optimizer, loss):
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.used.append(measure(self, optimizer, optimizer.step))

    def loss(self, net):
        return net(torch.ones(4, 16, dtype=torch.float64)).square().mean()


class Game(Base):
    """The discriminator is frozen while the generator steps, which is last."""

    def __init__(self):
        super().__init__()
        self.d = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 12)).double()
        self.g = nn.Sequential(nn.Linear(16, 20), nn.Linear(20, 16)).double()

    def configure_optimizers(self):
        return [torch.optim.SGD(net.parameters(), lr=1e-3) for net in (self.d, self.g)]

    def training_step(self, batch, batch_idx):
        d, g = self.optimizers()
        self.d.requires_grad_(True)
        self.update(d, self.loss(self.d))
        self.d.requires_grad_(False)
        self.update(g, self.loss(self.g))


def test_a_player_that_is_frozen_between_its_steps_is_balanced(loader, make_trainer):
    model, balance = Game(), TempBalance(summary=False)
    make_trainer([balance], max_epochs=3).fit(model, loader)
    assert set(balance.multipliers) == {"d.0", "d.1", "g.0", "g.1"}
    assert sorted(balance.multipliers.values())[::3] == [0.5, 1.5]
    last_d, last_g = model.used[-2:]
    before = dict(zip(balance.history.layers("learning_rate"), balance.history.rows("learning_rate"), strict=True))
    for layer, used in (("d.0", last_d), ("d.1", last_d), ("g.0", last_g), ("g.1", last_g)):
        assert used[f"{layer}.weight"] == pytest.approx(before[layer][-2], rel=1e-9)


class Tower(Base):
    """Changes in the second epoch as `change` says."""

    def __init__(self, change):
        super().__init__()
        self.body, self.mid, self.head = nn.Linear(16, 24), nn.Linear(24, 20), nn.Linear(20, 12)
        self.double()
        self.change = change

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.change(self)

    def training_step(self, batch, batch_idx):
        layers = [layer for layer in self.children() if isinstance(layer, nn.Linear)]
        self.update(self.optimizers(), self.loss(nn.Sequential(*layers)))


def new_head(model):
    optimizer = model.optimizers().optimizer
    old = set(model.head.parameters())
    model.head = nn.Linear(20, 12).double()
    optimizer.param_groups[0]["params"] = [p for p in optimizer.param_groups[0]["params"] if p not in old]
    optimizer.add_param_group({"params": list(model.head.parameters())})


def more_layers(model):
    model.top = nn.Linear(12, 14).double()
    model.optimizers().optimizer.add_param_group({"params": list(model.top.parameters())})


def new_optimizer(model):
    model.trainer.optimizers = [torch.optim.SGD(model.parameters(), lr=2e-3)]


@pytest.mark.parametrize("change", [new_head, more_layers, new_optimizer], ids=lambda f: f.__name__)
def test_what_is_logged_is_what_is_used_after_a_change(change, loader, make_trainer):
    model, balance = Tower(change), TempBalance(summary=False)
    make_trainer([balance], max_epochs=4).fit(model, loader)
    layers = {name for name, module in model.named_children() if isinstance(module, nn.Linear)}
    assert set(balance.multipliers) == layers
    logged = dict(zip(balance.history.layers("learning_rate"), balance.history.rows("learning_rate"), strict=True))
    for layer in layers:
        assert model.used[-1][f"{layer}.weight"] == pytest.approx(logged[layer][-2], rel=1e-9), layer
    assert len({round(rate / 1e-3, 6) for rate in model.used[-1].values()}) > 2


def wrapped_body(model):
    model.body = nn.Sequential(model.body)
    model.training_step = lambda batch, batch_idx: model.update(
        model.optimizers(), model.loss(nn.Sequential(model.body, model.mid, model.head))
    )


def renamed_head(model):
    model.top = model.head
    del model.head


def head_without_an_optimizer(model):
    model.head = nn.Linear(20, 12).double()


def no_head(model):
    del model.head


@pytest.mark.parametrize(
    ("change", "balanced"),
    [
        (wrapped_body, {"body.0", "mid", "head"}),
        (renamed_head, {"body", "mid", "top"}),
        (head_without_an_optimizer, {"body", "mid"}),
        (no_head, {"body", "mid"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_layers_that_move_or_go_while_the_optimizer_stays_are_followed(change, balanced, loader, make_trainer):
    model, balance = Tower(change), TempBalance(summary=False)
    make_trainer([balance], max_epochs=4).fit(model, loader)
    assert set(balance.multipliers) == balanced
    logged = dict(zip(balance.history.layers("learning_rate"), balance.history.rows("learning_rate"), strict=True))
    for layer in balanced:
        assert model.used[-1][f"{layer}.weight"] == pytest.approx(logged[layer][-2], rel=1e-9), layer
    assert {min(balance.multipliers.values()), max(balance.multipliers.values())} == {0.5, 1.5}
    assert all(math.isnan(logged[layer][-1]) for layer in logged.keys() - balanced)


class Resets(Tower):
    """Makes an optimizer of twice the rate in the middle of the second epoch, after the fifth batch."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (1, 1):
            new_optimizer(self)


def test_another_optimizer_is_balanced_from_the_next_batch_on(loader, make_trainer):
    model, balance = Resets(lambda model: None), TempBalance(summary=False)
    make_trainer([balance], max_epochs=2).fit(model, loader)
    logged = dict(zip(balance.history.layers("learning_rate"), balance.history.rows("learning_rate"), strict=True))
    for layer, rates in logged.items():
        used = [rates_of_step[f"{layer}.weight"] for rates_of_step in model.used[4:]]
        assert used == pytest.approx([rates[1]] * 2 + [2 * rates[1]] * 2, rel=1e-9), layer


def test_lazy_layers_are_balanced_once_they_have_a_shape(loader, make_trainer):
    class Lazy(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.LazyLinear(24), nn.ReLU(), nn.LazyLinear(20), nn.ReLU(), nn.Linear(20, 12))

        def training_step(self, batch, batch_idx):
            return self.net(batch[0].flatten(1)).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    balance = TempBalance(summary=False)
    with pytest.warns(UserWarning, match="only one of them has an alpha"):
        make_trainer([balance], max_epochs=2, num_sanity_val_steps=0).fit(Lazy(), loader)
    assert set(balance.multipliers) == {"net.0", "net.2", "net.4"}
    assert {0.5, 1.5} < set(balance.multipliers.values())


def test_a_change_that_cannot_be_followed_is_warned_of_and_stops_nothing(loader, make_trainer):
    def to_lbfgs(model):
        model.trainer.optimizers = [torch.optim.LBFGS(model.parameters(), lr=1e-9)]
        model.update = lambda optimizer, loss: None

    balance = TempBalance(summary=False)
    with pytest.warns(UserWarning, match=r"LBFGS, .* All layers have the base learning rate from now on") as caught:
        make_trainer([balance], max_epochs=3).fit(Tower(to_lbfgs), loader)
    assert len([w for w in caught if "LBFGS" in str(w.message)]) == 1


def test_a_ramp_ends_however_many_steps_a_batch_has(loader, make_trainer):
    class Critic(Tower):
        def training_step(self, batch, batch_idx):
            for _ in range(3):
                super().training_step(batch, batch_idx)

    model = Critic(lambda model: None)
    balance = TempBalance(control=Control(ramp_steps=5), every_n_epochs=9, summary=False)
    make_trainer([balance], max_epochs=1).fit(model, loader)
    assert {0.5, 1.5} < set(balance.multipliers.values())
    assert {0.5, 1.5} < {round(rate / 1e-3, 9) for rate in model.used[-1].values()}


# ---- weights that are one layer --------------------------------------------------------------------------------------


class Composed(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.attention = nn.MultiheadAttention(16, 2)
        self.middle = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16))
        self.recurrent = nn.LSTM(16, 12)

    def training_step(self, batch, batch_idx):
        return 0.0 * sum(p.sum() for p in self.parameters())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1)


@pytest.mark.parametrize("kind", [TempBalance, WeightDecayBalance])
def test_first_and_last_layer_of_several_weights(kind, loader, make_trainer):
    callback = kind(control=Control(first_layer=False, last_layer=False), summary=False)
    make_trainer([callback], max_epochs=1).fit(Composed(), loader)
    ones = {layer for layer, multiplier in callback.multipliers.items() if multiplier == 1.0}
    assert ones == {"attention.in_proj_weight", "recurrent.weight_hh_l0"}


def test_a_first_layer_that_fails_passes_its_place_to_no_other(small_net, loader, make_trainer):
    model = small_net()
    with torch.no_grad():
        model.conv.weight.zero_()
    balance = TempBalance(control=Control(first_layer=False), summary=False)
    make_trainer([balance], max_epochs=1).fit(model, loader)
    assert balance.report["conv"].status == "skipped"
    assert sorted(balance.multipliers.values()) == [0.5, 1.0, 1.5]


# ---- maps of one's own -----------------------------------------------------------------------------------------------


class Proportional(AlphaMap):
    def __call__(self, alphas):
        return alphas / alphas.mean()


def test_a_map_of_ones_own_sees_finite_alphas_only(small_net, loader, make_trainer):
    balance = Rate(Proportional(), control=Control(last_layer=False), summary=False)
    make_trainer([balance], max_epochs=1).fit(small_net(), loader)
    alphas = [balance.report[layer].alpha for layer in ("conv", "hidden")]
    expected = [alpha / (sum(alphas) / 2) for alpha in alphas]
    assert balance.multipliers == pytest.approx({"conv": expected[0], "hidden": expected[1], "head": 1.0})


class Wrong(AlphaMap):
    """Gives something wrong from the n-th call on."""

    def __init__(self, result, calls=0):
        self.result, self.calls = result, calls

    def __repr__(self):
        return "Wrong()"

    def __call__(self, alphas):
        self.calls -= 1
        return LinearMap()(alphas) if self.calls >= 0 else self.result


@pytest.mark.parametrize("result", [torch.ones(1), torch.tensor([1.0, -1.0, 1.0]), torch.full((3,), torch.nan)])
def test_a_wrong_map_is_named_at_the_start(result, small_net, loader, make_trainer):
    with pytest.raises(ValueError, match=r"Expected Wrong\(\) to give one finite and positive multiplier for each"):
        make_trainer([Rate(Wrong(result), summary=False)]).fit(small_net(), loader)


def test_a_map_that_fails_in_mid_training_stops_nothing(small_net, loader, make_trainer):
    balance = Rate(Wrong(torch.full((3,), torch.inf), calls=2), summary=False)
    with pytest.warns(UserWarning, match="the multipliers stay as they were. Expected Wrong") as caught:
        make_trainer([balance], max_epochs=4).fit(small_net(), loader)
    assert len([w for w in caught if "stay as they were" in str(w.message)]) == 1
    assert {0.5, 1.5} < set(balance.multipliers.values())


# ---- several callbacks -----------------------------------------------------------------------------------------------


def test_the_share_of_the_epoch_is_there_after_every_epoch_and_counts_all(small_net, loader, make_trainer, logged):
    monitor, balance = SpectralMonitor(every_n_epochs=3, summary=False), TempBalance(every_n_epochs=2, summary=False)
    trainer = make_trainer([balance, monitor], max_epochs=5)
    trainer.fit(small_net(), loader)
    shares = logged(trainer)["farms/time/epoch_share"]
    assert len(shares) == 5
    with_analysis, without = [shares[i] for i in (1, 2, 3)], [shares[i] for i in (0, 4)]
    assert min(with_analysis) > max(without) >= 0


@pytest.mark.parametrize("order", [1, -1])
def test_overlap_of_any_callback_of_equal_analysis_counts(order, small_net, loader, make_trainer, noted):
    model = small_net()
    model.validation_step = lambda batch, batch_idx: None
    balance = TempBalance(analysis=NotedFARMS(), summary=False)
    callbacks = [balance, SpectralMonitor(NotedFARMS(), overlap=True, summary=False)][::order]
    make_trainer(callbacks, max_epochs=2).fit(model, loader, loader)
    assert len(noted.in_background) == 2


# ---- layers that are frozen and unfrozen -----------------------------------------------------------------------------


class Thaws(Tower):
    """The head's parameters are in the optimizer, and train from the second epoch on."""

    def __init__(self):
        super().__init__(None)
        self.head.requires_grad_(False)

    def on_train_epoch_start(self):
        self.head.requires_grad_(self.current_epoch >= 1)


def test_an_unfrozen_layer_is_balanced_at_the_next_analysis(loader, make_trainer):
    balance = TempBalance(every_n_epochs=2, summary=False)
    make_trainer([balance], max_epochs=2).fit(Thaws(), loader)
    assert set(balance.multipliers) == {"body", "mid", "head"}


def test_a_resumed_run_with_unfrozen_layers_equals_the_straight_one(loader, make_trainer, tmp_path):
    def fit(max_epochs, ckpt_path=None):
        save = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_epochs=1)
        callbacks = [TempBalance(every_n_epochs=2, summary=False), save]
        trainer = make_trainer(callbacks, max_epochs=max_epochs, enable_checkpointing=True)
        model = Thaws()
        trainer.fit(model, loader, ckpt_path=ckpt_path)
        return model.state_dict(), callbacks[0].multipliers

    weights, multipliers = fit(5)
    for step in (4, 12):
        fit(step // 4)
        resumed, found = fit(5, tmp_path / f"step={step}.ckpt")
        assert found == multipliers
        assert all(torch.equal(value, resumed[name]) for name, value in weights.items())


def test_a_player_that_grows_while_the_other_is_frozen_takes_it_along(loader, make_trainer):
    class Grows(Game):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                layer = nn.Linear(16, 16).double()
                self.g.append(layer)
                self.optimizers()[1].optimizer.add_param_group({"params": list(layer.parameters())})

    balance = TempBalance(summary=False)
    make_trainer([balance], max_epochs=2).fit(Grows(), loader)
    assert set(balance.multipliers) == {"d.0", "d.1", "g.0", "g.1", "g.2"}


def test_a_map_that_fails_when_a_layer_is_new_stops_nothing(loader, make_trainer):
    balance = Rate(Wrong(torch.ones(1), calls=2), summary=False)
    with pytest.warns(UserWarning, match="the multipliers stay as they were"):
        make_trainer([balance], max_epochs=4).fit(Tower(more_layers), loader)
    assert balance.multipliers["top"] == 1.0
