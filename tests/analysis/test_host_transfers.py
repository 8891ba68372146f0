"""On an accelerator the host must not wait for every layer: whatever asks for values is counted."""

from collections import Counter

import pytest
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_farms.analysis import FARMS, Diagnostics, WholeMatrix, analyze

ASKING_CALLS = {"tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"}
ASKING_OPERATORS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal"}


class Calls(TorchFunctionMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        self.found.update({name} & ASKING_CALLS)
        return function(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found.update({function.name().partition(".")[0]} & ASKING_OPERATORS)
        return function(*args, **(kwargs or {}))


def transfers(layers, method, diagnostics):
    model = nn.Sequential(*[nn.Conv2d(20, 40, 3) if i % 2 else nn.Linear(40, 30) for i in range(layers)])
    analyze(model, method, diagnostics=diagnostics, workers=1)  # the law's median is found once for each shape
    found = Counter()
    with Calls(found), Operators(found):
        report = analyze(model, method, diagnostics=diagnostics, workers=1)
    assert {row.status for row in report} == {"ok"}
    return found


@pytest.mark.parametrize("diagnostics", [Diagnostics(), Diagnostics(marchenko_pastur=True, twin=True)])
@pytest.mark.parametrize("method", [FARMS(), FARMS(blocks="pooled"), WholeMatrix(fit="hill_paper")])
def test_host_transfers_do_not_grow_with_the_layers(method, diagnostics):
    few, many = (transfers(layers, method, diagnostics) for layers in (2, 12))
    assert few["tolist"] > 0
    assert few == many
