"""Masks: numpy's bits, zeros whatever an optimizer does, and the training that products with masks give."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_farms.analysis import Selection
from lightning_farms.analysis.weights.stored import stored_weights
from lightning_farms.pruning.mask_state import Masks

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "Nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def random_masks(model):
    generator = torch.Generator().manual_seed(2)
    shapes = {name: p.shape for name, p in model.named_parameters() if p.ndim == 2}
    return {name: torch.rand(shape, generator=generator) < 0.4 for name, shape in shapes.items()}


def batches(number):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(number, 5, 6, generator=generator).double()


class Ahead(torch.optim.Optimizer):
    """Hands the step on to another optimizer, as Lookahead is written: no Optimizer.__init__."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)


class TwoSteps(torch.optim.Optimizer):
    """Sharpness-aware: the training loop calls its halves, the second of which steps the inner optimizer."""

    def __init__(self, params):
        super().__init__(params, {})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.05, momentum=0.9, weight_decay=0.1)
        self.param_groups = self.base_optimizer.param_groups

    def second_step(self):
        self.base_optimizer.step()

    def step(self, closure=None):
        self.second_step()


@pytest.mark.parametrize("wrap", [lambda p: Ahead(torch.optim.SGD(p, 0.05, momentum=0.9)), TwoSteps])
def test_zeros_hold_where_an_inner_optimizer_steps(wrap):
    model = net()
    optimizer = wrap(list(model.parameters()))
    step = getattr(optimizer, "second_step", optimizer.step)
    model(batches(1)[0]).square().mean().backward()
    step()  # momentum of all weights
    masks = Masks(random_masks(model))
    masks.bind(dict(model.named_parameters()))
    masks.apply()
    masks.clear(optimizer)
    masks.hold([optimizer])
    for batch in batches(3):
        model.zero_grad()
        model(batch).square().mean().backward()
        step()
        assert masks.revived() == 0
    inner = getattr(optimizer, "optimizer", getattr(optimizer, "base_optimizer", None))
    masks.release()
    assert not inner._optimizer_step_post_hooks


# ---- at rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5), (2, 3, 4, 5), (0,), ()])
def test_bits_are_those_of_numpy(shape):
    mask = torch.rand(shape) < 0.5
    masks = Masks({"weight": mask})
    saved = masks.state_dict()["weight"]
    assert saved["bits"].tolist() == np.packbits(mask.numpy()).tolist()
    assert torch.equal(masks["weight"], mask)
    assert masks.zeros == {"weight": int((~mask).sum())}


def test_a_state_loads_as_weights_only_and_is_small(tmp_path):
    masks = Masks({"a.weight": torch.rand(40, 50) < 0.3, "b": torch.rand(3) < 0.5})
    torch.save(masks.state_dict(), tmp_path / "masks.pt")
    loaded = Masks({"old": torch.ones(2, dtype=torch.bool)})
    loaded.load_state_dict(torch.load(tmp_path / "masks.pt", weights_only=True))
    assert list(loaded) == ["a.weight", "b"]
    assert "old" not in loaded
    assert len(loaded) == 2
    assert all(torch.equal(loaded[name], masks[name]) for name in masks)
    assert masks.state_dict()["a.weight"]["bits"].numel() == 40 * 50 / 8


def test_what_does_not_fit_is_named():
    masks = Masks({"weight": torch.ones(2, 3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="it lacks 'weight'"):
        masks.bind({})
    with pytest.raises(ValueError, match=r"of its mask, \(2, 3\), but got \(3, 2\)\. .* make new ones"):
        masks.bind({"weight": torch.zeros(3, 2)})
    with pytest.raises(TypeError, match=r"`mask` to be of torch\.bool, but got torch\.float32 for 'weight'"):
        Masks({"weight": torch.ones(2)})


# ---- in force --------------------------------------------------------------------------------------------------------


def by_products(optimizer, masks, steps):
    """The same training by the book: the weights that act are products with the masks, which pass no gradient."""
    model = net()
    optimizer = optimizer(model.parameters())
    for batch in batches(steps):
        acting = {name: p * masks[name] if name in masks else p for name, p in model.named_parameters()}
        optimizer.zero_grad()
        torch.func.functional_call(model, acting, (batch,)).square().mean().backward()
        optimizer.step()
    return {name: p.detach() * masks[name] if name in masks else p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_is_that_of_products_with_masks(optimizer):
    model, masks = net(), random_masks(net())
    held, optimizing = Masks(masks), optimizer(model.parameters())
    held.bind(dict(model.named_parameters()))
    held.apply()
    held.hold([optimizing])
    for batch in batches(6):
        optimizing.zero_grad()
        model(batch).square().mean().backward()
        optimizing.step()
        for name, mask in masks.items():
            assert int((model.get_parameter(name) == 0).sum()) == int((~mask).sum())
    expected = by_products(optimizer, masks, 6)
    for name, parameter in model.named_parameters():
        assert_close(parameter.detach(), expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cleared", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_momentum_from_before_revives_nothing(optimizer, cleared):
    model = net()
    optimizing = optimizer(model.parameters())

    def train(number):
        for batch in batches(number):
            optimizing.zero_grad()
            model(batch).square().mean().backward()
            optimizing.step()

    train(3)
    masks = Masks(random_masks(model))
    masks.bind(dict(model.named_parameters()))
    masks.apply()
    train(1)
    assert masks.revived() > 0  # without a hold, these optimizers do revive weights
    masks.hold([optimizing])
    if cleared:
        masks.clear(optimizing)
        for name, mask in ((name, masks[name]) for name in masks):
            state = optimizing.state[model.get_parameter(name)]
            kept = [value for value in state.values() if torch.is_tensor(value) and value.shape == mask.shape]
            assert kept
            assert all(not value[~mask].any() and value[mask].any() for value in kept)
    train(3)
    assert masks.revived() == 0


def test_gradients_of_pruned_weights_count_in_no_norm():
    model = net()
    masks = Masks(random_masks(model))
    masks.bind(dict(model.named_parameters()))
    model(batches(1)[0]).square().mean().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    masks.mask_gradients()
    for name, parameter in model.named_parameters():
        expected = before[name] * masks[name] if name in masks else before[name]
        assert torch.equal(parameter.grad, expected)


def test_nan_is_pruned_too():
    model = nn.Linear(2, 1, bias=False)
    masks = Masks({"weight": torch.tensor([[False, True]])})
    masks.bind(dict(model.named_parameters()))
    with torch.no_grad():
        model.weight.fill_(torch.nan)
    masks.apply()
    assert model.weight[0, 0] == 0
    assert model.weight[0, 1].isnan()


def test_a_released_model_is_an_ordinary_pruned_one():
    model, fresh = net(), net()
    optimizing = OPTIMIZERS["AdamW"](model.parameters())
    masks = Masks(random_masks(model))
    masks.bind(dict(model.named_parameters()))
    masks.apply()
    masks.hold([optimizing])
    masks.release()
    assert model.state_dict().keys() == fresh.state_dict().keys()
    assert masks.zeros == {name: int((model.get_parameter(name) == 0).sum()) for name in masks}
    model(batches(1)[0]).square().mean().backward()
    optimizing.step()
    left = sum(int((model.get_parameter(name) == 0).sum()) for name in masks)
    assert left < sum(masks.zeros.values())  # nothing holds them any more


def test_a_mask_that_comes_later_is_in_force_too_and_others_of_the_names_can_be_masked():
    model = net()
    masks = Masks()
    masks.bind(dict(model.named_parameters()))
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks["2.weight"] = torch.arange(24).view(3, 8) % 2 == 0
    masks.apply()
    masks.apply_to(average)
    for values in (model[2].weight, average["2.weight"]):
        assert torch.equal(values == 0, ~masks["2.weight"])
    assert (average["0.weight"] != 0).all()
    masks.apply_to({})


# ---- zeros that are there --------------------------------------------------------------------------------------------


def test_zeros_of_a_model_are_its_masks():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3), nn.Embedding(4, 5), nn.Linear(3, 3))
    with torch.no_grad():
        model[0].weight[::2] = 0
        model[1].weight[0, 0] = -0.0  # zero too
        model[2].weight[0] = 0
        model[3].weight.zero_()  # initialised so: it has to learn
    masks = Masks.from_zeros(model)
    assert masks.zeros == {"0.weight": 24, "1.weight": 1}
    assert torch.equal(masks["0.weight"], model[0].weight != 0)
    assert Masks.from_zeros(model, Selection(exclude=("0",))).zeros == {"1.weight": 1}
    assert Masks.from_zeros(model, Selection(embeddings=True)).zeros["2.weight"] == 5


def test_a_number_of_two_parts_is_zero_where_both_are():
    model = nn.ParameterDict({"w": nn.Parameter(torch.randn(2, 3, 4))})
    model.spectral_weights = lambda: [("w", torch.complex(model.w[0].double(), model.w[1].double()), (model.w,))]
    with torch.no_grad():
        model.w[:, 0, 0] = 0
        model.w[0, 1, 1] = 0  # the imaginary part is not
    masks = Masks.from_zeros(model)
    expected = torch.ones(2, 3, 4, dtype=torch.bool)
    expected[:, 0, 0] = False
    assert torch.equal(masks["w"], expected)


def test_entries_are_taken_out_beside_those_that_are():
    model = nn.MultiheadAttention(4, 1, bias=False)
    queries, keys, values = (w for w in stored_weights(model) if w.key == "in_proj_weight")
    masks = Masks()
    assert not masks.pruned(keys).any()
    chosen = torch.zeros(16, dtype=torch.bool)
    chosen[[1, 5]] = True
    masks.take_out(keys, chosen)
    masks.take_out(values, chosen.roll(1))
    masks.take_out(values, chosen)
    assert not masks.pruned(queries).any()
    assert torch.equal(masks.pruned(keys), chosen)
    assert torch.equal(masks.pruned(values), chosen | chosen.roll(1))
    assert (~masks["in_proj_weight"]).nonzero().tolist() == [[4, 1], [5, 1], [8, 1], [8, 2], [9, 1], [9, 2]]
