import pytest
import torch
from torch import nn

from lightning_farms.optim import check_supported


@pytest.fixture
def weights():
    return [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adafactor])
def test_first_order_optimizers_pass(weights, kind):
    check_supported(kind(weights, lr=0.1))


def test_lbfgs(weights):
    with pytest.raises(TypeError, match=r"LBFGS, which keeps one group .* Use SGD"):
        check_supported(torch.optim.LBFGS(weights))


def test_wrapper_without_step_hooks(weights):
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer
            self.param_groups = optimizer.param_groups

    with pytest.raises(
        TypeError, match=r"torch.optim.Optimizer with step hooks, but got Wrapper. .* `updating_optimizer` returns"
    ):
        check_supported(Wrapper(torch.optim.SGD(weights, lr=0.1)))


def test_optimizer_that_never_called_its_parents_init(weights):
    class Bare(torch.optim.SGD):
        def __init__(self, optimizer):
            self.optim = optimizer
            self.param_groups = optimizer.param_groups

    with pytest.raises(TypeError, match="with step hooks, but got Bare"):
        check_supported(Bare(torch.optim.SGD(weights, lr=0.1)))


@pytest.mark.parametrize("bases", [(object,), (torch.optim.SGD,)])
def test_deepspeed(weights, bases):
    kind = type("DeepSpeedZeroOptimizer", bases, {"__module__": "deepspeed.runtime.zero.stage_1_and_2"})
    with pytest.raises(TypeError, match="DeepSpeed's DeepSpeedZeroOptimizer, which updates flattened copies"):
        check_supported(kind(weights, lr=0.1) if bases != (object,) else kind())


@pytest.mark.filterwarnings(r"ignore:`torch.jit.\w+` is deprecated:DeprecationWarning")
def test_zero_redundancy_needs_one_layer_per_group(weights, tmp_path):
    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        layer_of = {weights[0]: "a"}
        mixed = ZeroRedundancyOptimizer(weights, torch.optim.SGD, lr=0.1)
        with pytest.raises(TypeError, match=r"2 layers in group 0. Build its groups with `layerwise_param_groups`"):
            check_supported(mixed, layer_of)
        split = ZeroRedundancyOptimizer([{"params": [w]} for w in weights], torch.optim.SGD, lr=0.25)
        check_supported(split, layer_of)
        _scaled_update_reaches_the_inner_optimizer(split, weights, layer_of)
        split._overlap_with_ddp = True
        with pytest.raises(TypeError, match="overlap_with_ddp=True, which updates within the backward pass"):
            check_supported(split, layer_of)
    finally:
        dist.destroy_process_group()


def _scaled_update_reaches_the_inner_optimizer(optimizer, weights, layer_of):
    from lightning_farms.optim import LayerwiseScaling

    with LayerwiseScaling(optimizer, layer_of) as scaling:
        scaling.multipliers = {"a": 2.0}
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert [-w[0].item() for w in weights] == [0.5, 0.25]
    assert [g["lr"] for g in optimizer.param_groups] == [0.25, 0.25]
