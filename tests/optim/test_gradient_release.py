"""Optimizers whose closure updates, in the backward pass, and leaves nothing for the step to do."""

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_farms.optim import LayerwiseScaling


class ByHand(Optimizer):
    """SGD that calls its closure first."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self, closure):
        closure()
        with torch.no_grad():
            for group in self.param_groups:
                rate = group["lr"]
                for p in (p for p in group["params"] if p.grad is not None):
                    p.sub_(p.grad, alpha=rate)


class Released(ByHand):
    """Has a group's rate used when a gradient is there, and lets go of it."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        for p in self.param_groups[0]["params"]:
            p.register_post_accumulate_grad_hook(self.release)

    @torch.no_grad()
    def release(self, p):
        p.sub_(p.grad, alpha=0.1)
        p.grad = None


def steps(kind, number, before=lambda p: None):
    """What is told after each of so many steps, and whether it was proved that rates are used."""
    params = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    optimizer = kind(params, 0.1)

    def closure():
        optimizer.zero_grad()
        for p in params:
            before(p)
        sum(p.sum() for p in params).backward()

    with LayerwiseScaling(optimizer, dict(zip(params, "abc", strict=True))) as scaling:
        scaling.multipliers = {"a": 2.0, "b": 0.5}
        told = []
        for _ in range(number):
            optimizer.step(closure)
            told.append(scaling.fault)
        return told, scaling.proved


def test_it_is_found_out_at_the_third_step():
    (*before, told), proved = steps(Released, 3)
    assert before == [None, None]
    assert told.startswith("the weights change outside of `step`")
    assert not proved


def test_weights_that_the_users_closure_moves_condemn_no_optimizer():
    told, proved = steps(ByHand, 9, before=lambda p: p.data.clamp_(-0.9, 0.9))
    assert told == [None] * 9
    assert proved
