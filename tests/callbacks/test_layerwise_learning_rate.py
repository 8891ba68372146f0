"""The rates that updates really use, read off the weights: with plain SGD, delta w = -rate * gradient."""

import signal
import warnings
from collections import defaultdict

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import lr_scheduler

from lightning_farms import SpectralMonitor, TBSigmoid, TempBalance, WholeMatrix
from lightning_farms.analysis import Selection, parameter_layers
from lightning_farms.functional import tb_linear_map


def cosine(optimizer):
    return lr_scheduler.CosineAnnealingLR(optimizer, 8, eta_min=0.01)


class MeasuredRates(pl.Callback):
    """Base rate at rest, and the rate that each step really used for each parameter, in float64."""

    def __init__(self):
        self.base = []
        self.used = defaultdict(list)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        trained = {name: p for name, p in pl_module.named_parameters() if p.grad is not None}
        self.before = {name: p.detach().clone() for name, p in trained.items()}
        self.gradients = {name: p.grad.clone() for name, p in trained.items()}
        self.base.append(float(optimizer.param_groups[0]["lr"]))

    def on_train_batch_end(self, trainer, pl_module, *args):
        for name in self.gradients:
            p = pl_module.get_parameter(name)
            state = trainer.optimizers[0].state[p]
            change, direction = self.before[name] - p.detach(), state.get("momentum_buffer", self.gradients[name])
            self.used[name].append(((change * direction).sum() / direction.square().sum()).item())


def test_logged_rates_are_those_of_the_next_update(small_net, loader, make_trainer, logged):
    balance, measured = TempBalance(summary=False), MeasuredRates()
    model = small_net(make_scheduler=cosine).double()
    trainer = make_trainer([balance, measured], max_epochs=2, precision="64-true")
    trainer.fit(model, loader)
    for layer in ("conv", "head"):
        before_first, before_fifth, _ = logged(trainer)[f"layer_lr/SGD/{layer}"]
        assert measured.used[f"{layer}.weight"][0] == pytest.approx(before_first, rel=1e-9)
        assert measured.used[f"{layer}.weight"][4] == pytest.approx(before_fifth, rel=1e-9)


def adamw(params):
    return torch.optim.AdamW(params, lr=1e-2)


@pytest.mark.parametrize("callback", [TBSigmoid, TempBalance])
@pytest.mark.parametrize("when", ["epoch end", "last step"])
def test_resume_equals_the_straight_run_bit_for_bit(callback, when, small_net, loader, make_trainer, tmp_path):
    def fit(max_epochs, ckpt_path=None, **every):
        model = small_net(make_optimizer=adamw, make_scheduler=cosine)
        callbacks = [callback(summary=False), SpectralMonitor(WholeMatrix(), summary=False)]
        if every:
            callbacks.append(ModelCheckpoint(tmp_path, filename="{epoch}-{step}", save_top_k=-1, **every))
        trainer = make_trainer(callbacks, max_epochs=max_epochs, enable_checkpointing=bool(every))
        trainer.fit(model, loader, ckpt_path=ckpt_path)
        optimizer = trainer.optimizers[0]
        return model, optimizer, callbacks

    every, file = {
        "epoch end": ({"every_n_epochs": 1}, "epoch=1-step=8.ckpt"),
        "last step": ({"every_n_train_steps": 8}, "epoch=1-step=8.ckpt"),
    }[when]
    straight, optimizer, callbacks = fit(4)
    fit(2, **every)
    resumed, resumed_optimizer, resumed_callbacks = fit(4, ckpt_path=tmp_path / file, **every)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    expected, found = optimizer.state_dict(), resumed_optimizer.state_dict()
    assert expected["param_groups"] == found["param_groups"]
    for index, state in expected["state"].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(found["state"][index][key])), key
    for ours, theirs in zip(callbacks, resumed_callbacks[:2], strict=True):
        assert ours.state_dict() == theirs.state_dict()


def test_checkpoint_holds_base_rates_and_plain_types(small_net, loader, make_trainer, tmp_path):
    make_trainer([TBSigmoid(summary=False), ModelCheckpoint(tmp_path, filename="last")], enable_checkpointing=True).fit(
        small_net(), loader
    )
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert group["lr"] == 0.1
    (state,) = [s for key, s in checkpoint["callbacks"].items() if key.startswith("TBSigmoid")]
    assert set(state["ramp"]["target"]) == {"conv", "hidden", "head"}


@pytest.mark.parametrize("with_callback_first", [True, False])
def test_resume_with_the_callback_removed_or_added(with_callback_first, small_net, loader, make_trainer, tmp_path):
    def fit(with_callback, max_epochs, ckpt_path=None):
        balance = TBSigmoid(summary=False)
        callbacks = [*([balance] if with_callback else []), ModelCheckpoint(tmp_path, filename="last")]
        trainer = make_trainer(callbacks, max_epochs=max_epochs, enable_checkpointing=True)
        trainer.fit(small_net(), loader, ckpt_path=ckpt_path)
        return balance, trainer

    fit(with_callback_first, 1)
    with warnings.catch_warnings():  # Lightning says so when a checkpoint's callback is missing
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")
        balance, trainer = fit(not with_callback_first, 2, tmp_path / "last.ckpt")
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1
    assert balance.history.epochs == ([] if with_callback_first else [1, 2])


def test_a_layer_that_is_skipped_keeps_the_base_rate_and_moves_no_other(small_net, loader, make_trainer):
    def multipliers(spoil):
        model = small_net()
        with torch.no_grad():
            if spoil:
                model.head.weight.zero_()
        balance = TempBalance(summary=False)
        seen = []

        class Look(pl.Callback):
            def on_train_start(self, trainer, pl_module):
                seen.append(dict(balance.multipliers))

        make_trainer([balance, Look()], max_epochs=1).fit(model, loader)
        return seen[0]

    whole, spoiled = multipliers(False), multipliers(True)
    assert spoiled["head"] == 1.0
    alphas = {k: v for k, v in whole.items() if k != "head"}
    assert sorted(spoiled[k] for k in alphas) == [0.5, 1.5]


def test_an_excluded_layer_keeps_the_base_rate_and_moves_no_other(small_net, loader, make_trainer, logged):
    balance, measured = TempBalance(selection=Selection(exclude=("head",)), summary=False), MeasuredRates()
    trainer = make_trainer([balance, measured], max_epochs=1, precision="64-true")
    trainer.fit(small_net().double(), loader)
    multipliers, used = balance.multipliers, measured.used
    logged_rates = {layer: logged(trainer)[f"layer_lr/SGD/{layer}"][-1] for layer in multipliers}
    assert multipliers["head"] == 1.0
    assert sorted((multipliers["conv"], multipliers["hidden"])) == [0.5, 1.5]
    assert logged_rates == pytest.approx({layer: 0.1 * m for layer, m in multipliers.items()})
    assert used["head.weight"] == pytest.approx([0.1] * 4, rel=1e-9)
    assert used["norm.weight"][0] == pytest.approx(used["conv.weight"][0], rel=1e-9)
    assert used["conv.weight"][0] in (pytest.approx(0.05), pytest.approx(0.15))


def test_a_low_rank_product_has_one_rate_for_both_factors(loader, make_trainer):
    class Adapted(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.adapter = nn.Module()
            self.adapter.weight = nn.Parameter(torch.randn(30, 20), requires_grad=False)
            self.adapter.lora_A = nn.Parameter(torch.randn(16, 20))
            self.adapter.lora_B = nn.Parameter(torch.randn(30, 16))
            self.head, self.body = nn.Linear(20, 20), nn.Linear(20, 12)

        def training_step(self, batch, batch_idx):
            return sum(p.sum() for p in self.parameters() if p.requires_grad)

        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    model = Adapted()
    balance, measured = TempBalance(summary=False), MeasuredRates()
    make_trainer([balance, measured], max_epochs=1).fit(model, loader)
    (product,) = [row.name for row in balance.report if row.kind == "low-rank product"]
    assert set(balance.multipliers) == {product, "head", "body"}
    rates = {name: rates[-1] for name, rates in measured.used.items()}
    assert rates["adapter.lora_A"] == pytest.approx(rates["adapter.lora_B"], rel=1e-4)
    for name in ("head", "body"):
        assert rates[f"{name}.weight"] == pytest.approx(rates[f"{name}.bias"], rel=1e-4)


def test_equal_alphas_give_equal_rates(loader, make_trainer):
    class Twins(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)
            self.b.load_state_dict(self.a.state_dict())

        def training_step(self, batch, batch_idx):
            return 0.0 * (self.a.weight.sum() + self.b.weight.sum())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    balance = TempBalance(summary=False)
    with pytest.warns(UserWarning, match="all layers have the same learning rate: their alphas lie between") as caught:
        make_trainer([balance], max_epochs=1).fit(Twins(), loader)
    assert len([w for w in caught if "TempBalance" in str(w.message)]) == 1
    assert balance.report["a"].alpha == balance.report["b"].alpha
    assert balance.multipliers == {"a": 1.0, "b": 1.0}


def test_frozen_layers_have_no_say(small_net, loader, make_trainer):
    model = small_net(make_optimizer=lambda params: torch.optim.SGD([p for p in params if p.requires_grad], lr=0.1))
    model.conv.requires_grad_(False)
    balance = TempBalance(summary=False)
    make_trainer([balance], max_epochs=1).fit(model, loader)
    assert sorted(balance.multipliers.values()) == [0.5, 1.5]
    assert set(balance.multipliers) == {"hidden", "head"}


def test_weights_in_one_parameter_have_one_rate_by_the_mean_of_their_alphas(
    loader, make_trainer, logged, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "120")

    class Attention(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 16)
            self.attention = nn.MultiheadAttention(16, 2)
            self.recurrent = nn.GRUCell(16, 16)

        def training_step(self, batch, batch_idx):
            return 0.0 * sum(p.sum() for p in self.parameters())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    model, balance = Attention(), TempBalance()
    trainer = make_trainer([balance], max_epochs=1)
    trainer.fit(model, loader)
    alphas = balance.report.alphas
    layers = {
        "attention.in_proj_weight": "qkv",
        "recurrent.weight_ih": "rzn",
        "recurrent.weight_hh": "rzn",
    }
    means = {layer: sum(alphas[f"{layer}.{part}"] for part in parts) / 3 for layer, parts in layers.items()}
    means["attention.out_proj"] = alphas["attention.out_proj"]
    multipliers = tb_linear_map(torch.tensor(list(means.values()), dtype=torch.float64), 0.5, 1.5)
    expected = dict(zip(means, multipliers.tolist(), strict=True))
    assert balance.multipliers == pytest.approx({"embedding": 1.0, **expected})
    assert parameter_layers(model)[model.attention.in_proj_bias] == "attention.in_proj_weight"
    for layer, multiplier in expected.items():
        assert logged(trainer)[f"layer_lr/SGD/{layer}"][-1] == pytest.approx(0.1 * multiplier)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    for part in "qkv":
        assert f"{expected['attention.in_proj_weight']:.3f}" in lines[f"attention.in_proj_weight.{part}"]


def test_lbfgs_is_refused_before_training(small_net, loader, make_trainer):
    model = small_net(make_optimizer=lambda params: torch.optim.LBFGS(params))
    with pytest.raises(MisconfigurationException, match="LBFGS"):
        make_trainer([TBSigmoid()]).fit(model, loader)


def test_two_callbacks_that_adjust_rates_are_refused(small_net, loader, make_trainer):
    with pytest.raises(
        MisconfigurationException,
        match=r"both adjust the learning rate, so that their "
        r"multipliers would compound\. Keep one",
    ):
        make_trainer([TBSigmoid(), TempBalance()]).fit(small_net(), loader)


@pytest.mark.parametrize(("error", "raised"), [(KeyboardInterrupt, SystemExit), (RuntimeError, RuntimeError)])
def test_an_interrupted_step_saves_base_rates_and_frees_the_optimizer(
    error, raised, small_net, loader, make_trainer, tmp_path
):
    class Interrupted(torch.optim.SGD):
        steps = 0

        def step(self, closure=None):
            self.steps += 1
            if self.steps == 6:
                assert len(self.param_groups) == 4  # three layers and the rest
                raise error("in the update")
            return super().step(closure)

    class Save(pl.Callback):  # before and after our own hook
        def on_exception(self, trainer, pl_module, exception):
            trainer.save_checkpoint(tmp_path / f"{trainer.callbacks.index(self)}.ckpt")

    model = small_net()
    optimizer = Interrupted(model.parameters(), lr=0.1)
    model.make_optimizer = lambda _: optimizer
    balance = TempBalance(summary=False)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(raised):
            make_trainer([Save(), balance, Save()]).fit(model, loader)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it from the first interrupt on
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 2
    for file in files:
        (group,) = torch.load(file, weights_only=True)["optimizer_states"][0]["param_groups"]
        assert group["lr"] == 0.1
        assert len(group["params"]) == len(list(model.parameters()))
    measured = MeasuredRates()
    make_trainer([measured], max_epochs=1).fit(model, loader)  # without us nothing of us is left
    assert all(rates == pytest.approx([0.1] * 4, rel=1e-3) for rates in measured.used.values())
    make_trainer([balance], max_epochs=1).fit(model, loader)
    assert balance.history.epochs == [0, 1]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TempBalance(0.0, 1.0), "0 < lr_min_ratio <= lr_max_ratio"),
        (lambda: TempBalance(1.5, 0.5), "0 < lr_min_ratio <= lr_max_ratio"),
        (lambda: TBSigmoid(tau=0), "`tau` to be finite and positive"),
        (lambda: TBSigmoid(s_low=-1), "`s_low` to be finite and not negative"),
    ],
)
def test_wrong_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()
