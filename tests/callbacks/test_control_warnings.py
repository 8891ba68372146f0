"""What a run with a control that can do little is warned of: once, with a remedy that works."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_farms import Control, TempBalance
from lightning_farms.analysis import Selection
from tests.callbacks.conftest import Tower

SQUEEZED = (2.5, 2.52, 2.55, 2.5, 2.56, 0.5)


def test_an_outlier_that_squeezes_the_others_is_named_once_with_the_remedy(loader, make_trainer):
    model = Tower(tails=SQUEEZED)
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


@pytest.mark.parametrize("control", [Control(clip_quantile=0.2), Control(layers=Selection(exclude=("layers.10",)))])
def test_each_remedy_silences_the_warning(control, loader, make_trainer):
    callback = TempBalance(control=control, summary=False)
    make_trainer([callback], max_epochs=3).fit(Tower(tails=SQUEEZED), loader)  # a warning would be an error
    assert {0.5, 1.5} <= set(callback.multipliers.values())


@pytest.mark.parametrize(
    ("callback", "match"),
    [
        (TempBalance(1.0, 1.0, summary=False), "alphas lie between .* and the map gives them one multiplier"),
        (
            TempBalance(control=Control(layers=Selection(include=("layers.2",))), summary=False),
            "only one of them has an alpha",
        ),
        (TempBalance(selection=Selection(min_size=25), summary=False), "none of the layers .* has an alpha"),
    ],
)
def test_a_map_that_does_nothing_is_warned_of_once(callback, match, loader, make_trainer):
    with pytest.warns(UserWarning, match=match) as caught:
        make_trainer([callback], max_epochs=2).fit(Tower(), loader)
    assert len([w for w in caught if "TempBalance" in str(w.message)]) == 1
    assert set(callback.multipliers.values()) <= {1.0}


class LoRA(nn.Module):
    """x A^T B^T beside a frozen weight; B starts at zero, as is usual."""

    def __init__(self, width, rank=12):
        super().__init__()
        self.base = nn.Linear(width, width)
        self.lora_A, self.lora_B = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        self.base.requires_grad_(False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return self.base(x) + self.lora_B(self.lora_A(x))


class AdaLoRA(nn.Module):
    """x A^T diag(e) B^T beside a frozen weight; the diagonal e starts at zero, as in peft."""

    def __init__(self, width, rank=12):
        super().__init__()
        self.base = nn.Linear(width, width)
        self.base.requires_grad_(False)
        shapes = {"lora_A": (rank, width), "lora_E": (rank, 1), "lora_B": (width, rank)}
        for name, shape in shapes.items():
            start = torch.zeros(shape) if name == "lora_E" else 0.1 * torch.randn(shape)
            setattr(self, name, nn.ParameterDict({"default": nn.Parameter(start)}))

    def forward(self, x):
        down, diagonal, up = self.lora_A["default"], self.lora_E["default"], self.lora_B["default"]
        return self.base(x) + x @ (down * diagonal).T @ up.T


class Adapted(LightningModule):
    def __init__(self, adapter=LoRA):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(adapter(24), nn.Tanh(), adapter(24))

    def training_step(self, batch, _):
        return self.net(batch[0].flatten(1)[:, :24]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


@pytest.mark.parametrize("adapter", [LoRA, AdaLoRA])
def test_products_that_start_at_zero_raise_no_alarm(adapter, loader, make_trainer):
    callback = TempBalance(summary=False)
    make_trainer([callback], max_epochs=2).fit(Adapted(adapter), loader)  # a warning would be an error here
    assert len(set(callback.multipliers.values())) == 2


def test_products_that_stay_at_zero_are_warned_of_after_the_first_epoch(loader, make_trainer):
    class Frozen(Adapted):
        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.0)

    callback = TempBalance(summary=False)
    with pytest.warns(UserWarning, match="none of the layers that are trained and selected has an alpha"):
        make_trainer([callback], max_epochs=1).fit(Frozen(), loader)


def test_a_training_that_diverged_is_told_to_have(loader, make_trainer, small_net):
    model, callback = small_net(make_optimizer=lambda p: torch.optim.SGD(p, lr=1e30)), TempBalance(summary=False)
    with pytest.warns(UserWarning, match=r"'conv', 'hidden', 'head' are not all finite, .* has diverged") as caught:
        make_trainer([callback], max_epochs=3).fit(model, loader)
    assert sum("has diverged" in str(warning.message) for warning in caught) == 1
    assert not any("same learning rate" in str(warning.message) for warning in caught)
