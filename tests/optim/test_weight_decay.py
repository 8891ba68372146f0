"""Which of PyTorch's optimizers shrink a weight by rate times decay, as steps of each without a gradient tell."""

import inspect

import pytest
import torch
from torch import optim

from lightning_farms.optim import check_decoupled_weight_decay

RATE, DECAY = 1e-2, 0.1
WITH_DECAY = [
    kind
    for kind in vars(optim).values()
    if inspect.isclass(kind)
    and issubclass(kind, optim.Optimizer)
    and "weight_decay" in inspect.signature(kind).parameters
]
CASES = [
    (kind, options)
    for kind in WITH_DECAY
    for options in (
        [{"decoupled_weight_decay": False}, {"decoupled_weight_decay": True}]
        if "decoupled_weight_decay" in inspect.signature(kind).parameters
        else [{}]
    )
]


def shares(kind, options):
    """By which shares a step without a gradient shrinks the entries of a weight, over rate times decay."""
    weight = torch.nn.Parameter(torch.tensor([[0.5, 1.0], [2.0, 4.0]], dtype=torch.float64))
    own = {"lambd": 0.0} if kind is optim.ASGD else {}  # a decay beside the decay
    optimizer = kind([weight], lr=RATE, weight_decay=DECAY, **options, **own)
    for _ in range(8):  # RAdam normalises from the sixth step on
        before = weight.detach().clone()
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    return (1 - weight.detach() / before).flatten() / (RATE * DECAY)


def make(kind, **options):
    return kind([torch.nn.Parameter(torch.ones(2, 2))], **options)


def name(value):
    return value.__name__ if inspect.isclass(value) else "-".join(f"{k}={v}" for k, v in value.items())


def test_there_are_optimizers_of_both_kinds():
    assert {optim.SGD, optim.AdamW, optim.Adam, optim.NAdam, optim.RMSprop} <= set(WITH_DECAY)


@pytest.mark.parametrize(("kind", "options"), CASES, ids=name)
def test_refused_are_those_that_shrink_otherwise(kind, options):
    shrunk = shares(kind, options)
    if torch.allclose(shrunk, torch.ones_like(shrunk), rtol=1e-4):
        check_decoupled_weight_decay(make(kind, weight_decay=DECAY, **options))
    else:
        with pytest.raises(TypeError, match=f"decoupled from the gradient, but got {kind.__name__}, which normalises"):
            check_decoupled_weight_decay(make(kind, weight_decay=DECAY, **options))


@pytest.mark.parametrize(("kind", "options"), CASES, ids=name)
def test_without_decay_there_is_nothing_to_refuse(kind, options):
    check_decoupled_weight_decay(make(kind, weight_decay=0.0, **options))


def test_one_group_with_decay_is_enough():
    with_decay = {"params": [torch.nn.Parameter(torch.ones(1))], "weight_decay": DECAY}
    optimizer = optim.Adam([{"params": [torch.nn.Parameter(torch.ones(1))]}, with_decay])
    with pytest.raises(TypeError, match="but got Adam, "):
        check_decoupled_weight_decay(optimizer)
