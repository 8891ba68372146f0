"""By how much weights really shrink, with rates and decays by layer."""

import lightning.pytorch as pl
import pytest
import torch

from lightning_farms import Control, TempBalance, WeightDecayBalance, analyze
from lightning_farms.functional import tb_linear_map
from tests.callbacks.conftest import Tower


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
    assert {layer: logged(trainer)[f"layer_wd/AdamW/{layer}"][-1] for layer in final} == pytest.approx(final)
    assert callback.history.layers("weight_decay") == list(final)


def test_no_weight_decay_at_all_is_warned_of(loader, make_trainer):
    with pytest.warns(UserWarning, match="weight decay of every parameter group is 0, and stays 0"):
        make_trainer([WeightDecayBalance(summary=False)], max_epochs=1).fit(Tower(), loader)


def test_the_compensation_of_what_is_balanced_is_refused():
    with pytest.raises(ValueError, match="to be False where the weight"):
        WeightDecayBalance(control=Control(compensate_weight_decay=True))
