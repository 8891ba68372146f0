"""What callbacks that adjust a hyperparameter refuse."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_farms import (
    Control,
    LayerwiseLearningRate,
    SqrtMap,
    TBSigmoid,
    TempBalance,
    WeightDecayBalance,
    WholeMatrix,
)
from tests.callbacks.conftest import Tower

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
        ([WeightDecayBalance()], torch.optim.Rprop, "Rprop, whose group 0 has none"),
    ],
)
def test_what_cannot_be_is_refused_before_training(callbacks, optimizer, match, loader, make_trainer):
    options = {} if optimizer is torch.optim.Rprop else {"weight_decay": 0.1}
    with pytest.raises(MisconfigurationException, match=match):
        make_trainer(callbacks).fit(Tower(optimizer=optimizer, **options), loader)


class Idle(Tower):
    """Trains nothing, or by other means than Lightning's."""

    def __init__(self, optimizers):
        super().__init__()
        self.optimizers_of_the_user = optimizers
        self.automatic_optimization = optimizers is None

    def configure_optimizers(self):
        return self.optimizers_of_the_user


@pytest.mark.parametrize(("callback", "what"), [(WeightDecayBalance, "weight decay"), (TBSigmoid, "learning rate")])
@pytest.mark.parametrize("optimizers", [None, []])
@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
def test_a_training_without_an_optimizer_is_refused_in_these_words(callback, what, optimizers, loader, make_trainer):
    match = f"{callback.__name__} has no optimizer whose {what} it could adjust: `configure_optimizers` returns none"
    with pytest.raises(MisconfigurationException, match=match):
        make_trainer([callback()]).fit(Idle(optimizers), loader)


@pytest.mark.parametrize(
    ("make", "match"),
    [
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
