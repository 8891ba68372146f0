import torch
from torch import nn

from lightning_farms.common.parameters import identities


def test_parameters_that_are_replaced_or_initialised_are_others():
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    lazy = identities(model.parameters())
    assert lazy == identities(model.parameters())
    model(torch.zeros(1, 4))
    initialised = identities(model.parameters())
    assert [number for number, _ in initialised] == [number for number, _ in lazy]
    assert [waits for _, waits in lazy] == [True, True, False, False]
    assert not any(waits for _, waits in initialised)
    old, model[1].bias = model[1].bias, nn.Parameter(torch.zeros(2))
    assert identities(model.parameters())[:-1] == initialised[:-1]
    assert identities(model.parameters())[-1] != initialised[-1] == (id(old), False)
