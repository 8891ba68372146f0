from unittest import mock

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn

from lightning_farms.analysis import Selection, layer_weights, parameter_layers
from lightning_farms.balancing import Control
from lightning_farms.balancing.structure import structure
from lightning_farms.callbacks import SpectralMonitor, TBSigmoid
from lightning_farms.callbacks._spectral.strategies import check_strategy, whole_shapes


class DeepSpeedOfTheUser(DeepSpeedStrategy):
    """Cannot be made in the ordinary way without the package."""

    def __init__(self):
        pass


@pytest.mark.parametrize("callback", [SpectralMonitor, TBSigmoid])
@pytest.mark.parametrize(
    ("strategy", "match"),
    [
        (DeepSpeedOfTheUser(), r'cannot use weights that DeepSpeedOfTheUser partitions .* Use "ddp", "fsdp" or Model'),
        (FSDPStrategy(use_orig_params=False), "Leave out `use_orig_params=False`"),
    ],
)
def test_strategies_without_the_models_own_parameters_are_refused_at_setup(callback, strategy, match):
    trainer = mock.Mock(strategy=strategy, callbacks=[])
    with pytest.raises(MisconfigurationException, match=match):
        callback().setup(trainer, mock.Mock(), "fit")


@pytest.mark.parametrize("strategy", [DDPStrategy(), FSDPStrategy(), ModelParallelStrategy()])
def test_other_strategies_are_not(strategy):
    check_strategy(strategy, "TBSigmoid")


def test_without_fsdp_the_structure_is_that_of_the_model():
    net = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.MultiheadAttention(6, 2))
    trainer = mock.Mock(strategy=mock.Mock(spec=DDPStrategy))
    with whole_shapes(trainer) as stand_ins:
        assert stand_ins == {}
        found = structure(net, Selection(), Control(biases=False), stand_ins)
    assert found.layer_of == parameter_layers(net, biases=False)
    assert found.holders == {weight.name: weight.holders for weight in layer_weights(net)}
