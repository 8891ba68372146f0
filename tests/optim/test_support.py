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


class ByPosition(torch.optim.SGD):
    """As AdaBound: a list of rates, made at construction, that its update pairs with the groups."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.base_lrs = [group["lr"] for group in self.param_groups]

    def step(self, closure=None):
        for group, _ in zip(self.param_groups, self.base_lrs, strict=True):
            assert group["params"]


class ByIndex(ByPosition):
    """As pytorch_optimizer's: by index, also where the entries look like nothing in the group."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.base_lrs = {index: object() for index, _ in enumerate(self.param_groups)}

    def step(self, closure=None):
        for index, group in enumerate(self.param_groups):
            assert self.base_lrs[index] is not group


class KeptOnly(torch.optim.SGD):
    """As pytorch_optimizer's schedule-free ones: the list is made, and never used."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.base_lrs = [group["lr"] for group in self.param_groups]


class ByIdentity(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.known = {id(group): 0 for group in self.param_groups}


@pytest.mark.parametrize("kind", [ByPosition, ByIndex])
def test_groups_known_by_position_need_one_layer_each(weights, kind):
    layer_of = {weights[0]: "a", weights[1]: "b"}
    with pytest.raises(
        TypeError,
        match=rf"{kind.__name__} with groups that mix layers, and it pairs its groups with its "
        rf"`base_lrs` by position.*layerwise",
    ):
        check_supported(kind(weights, lr=0.1), layer_of)
    check_supported(kind([{"params": [weight]} for weight in weights], lr=0.1), layer_of)


def test_a_list_that_the_update_does_not_use_is_no_reason(weights):
    check_supported(KeptOnly(weights, lr=0.1), {weights[0]: "a", weights[1]: "b"})


class ByOrder(torch.optim.SGD):
    """A buffer for each parameter, in a list that the update goes through alongside the groups."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.buffers = [torch.zeros_like(p) for group in self.param_groups for p in group["params"]]

    def step(self, closure=None):
        buffers = iter(self.buffers)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data += next(buffers)


def test_parameters_known_by_their_order_must_keep_it():
    a, b, c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    layer_of = {a: "one", b: "two", c: "one"}
    check_supported(ByOrder([a, c, b], lr=0.1), layer_of)
    with pytest.raises(
        TypeError,
        match=r"ByOrder with groups that mix layers, and it pairs its parameters with "
        r"its `buffers` by their order.*layerwise",
    ):
        check_supported(ByOrder([a, b, c], lr=0.1), layer_of)
    with pytest.raises(TypeError, match="by their order"):  # parameters without a layer come last
        check_supported(ByOrder([a, b, c], lr=0.1), {b: "two", c: "three"})


def test_groups_known_by_identity_are_never_ours(weights):
    with pytest.raises(TypeError, match="ByIdentity, which recognises its groups by identity, in its `known`"):
        check_supported(ByIdentity([{"params": [weight]} for weight in weights], lr=0.1))


class Learning(torch.optim.SGD):
    """As Prodigy: a step size of its own, kept in the groups."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group.update(d=1e-6, d0=1e-6)


class OfTheFirst(torch.optim.SGD):
    def step(self, closure=None):
        group = self.param_groups[0]
        group["seen"] = True
        rate = group["lr"]
        for group in self.param_groups:
            assert rate >= group["weight_decay"]


class OfTheFirstAtOnce(torch.optim.SGD):
    def _update(self):
        return self.param_groups[0]["lr"]


class MostlyOfEach(torch.optim.SGD):
    """Reads another value of the first group, and a rate of each, by the same variable."""

    def step(self, closure=None):
        group = self.param_groups[0]
        assert group["momentum"] == 0
        assert self.param_groups[0]["dampening"] == 0
        return max(group["lr"] for group in self.param_groups)


@pytest.mark.parametrize("kind", [Learning, OfTheFirst, OfTheFirstAtOnce])
@pytest.mark.parametrize("grouped", [False, True])
def test_one_step_size_for_all_groups_is_refused_in_any_grouping(weights, kind, grouped):
    optimizer = kind([{"params": [weight]} for weight in weights] if grouped else weights, lr=0.1)
    with pytest.raises(
        TypeError, match=rf"uses each group's 'lr', but got {kind.__name__}, which takes one"
    ) as refusal:
        check_supported(optimizer, {weights[0]: "a", weights[1]: "b"})
    assert "layerwise_param_groups" not in str(refusal.value)


def test_another_value_of_the_first_group_is_no_reason(weights):
    check_supported(MostlyOfEach(weights, lr=0.1))
    check_supported(OfTheFirst(weights, lr=0.1), key="weight_decay")


def test_an_update_over_a_group_needs_one_layer_each(weights):
    kind = type("AvaGrad", (torch.optim.SGD,), {})
    layer_of = {weights[0]: "a", weights[1]: "b"}
    with pytest.raises(
        TypeError, match="AvaGrad with groups that mix layers, and it takes the scale of its step over a group"
    ):
        check_supported(kind(weights, lr=0.1), layer_of)
    check_supported(kind([{"params": [weight]} for weight in weights], lr=0.1), layer_of)
