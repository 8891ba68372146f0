"""A fault of ours on one rank leaves no other waiting, and both with equal multipliers and weights."""

import pytest
import torch

from tests.callbacks.two_processes_launch import launch

UNCOVERED = {  # those that themselves make the agreement, or lead to it and back
    "balancing.balancer.Balancer.update",
    "balancing.balancer.Balancer._analysed",
    "balancing.balancer.Balancer.receive",
    "balancing._course.Course.state_dict",
    "balancing._distributed.all_ranks",
    "balancing.warnings.contained_fault",
    "analysis.ranks.together",
    "analysis.ranks._exchange",
}


@pytest.mark.slow
def test_a_fault_in_any_function_on_one_rank_is_met_by_the_others(tmp_path):
    launch("tests.balancing.faulty_rank", tmp_path, timeout=400)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(first) > 250
    wrong = {}  # the one of which history keeps an analysis less is not
    for name, healthy in first.items():
        faulty = second[name]
        both = isinstance(healthy, tuple) and isinstance(faulty, tuple)
        if not (both and healthy[1] == faulty[1] and torch.equal(healthy[2], faulty[2])):
            wrong[name.removeprefix("lightning_farms.")] = healthy, faulty
    assert {name: both for name, both in wrong.items() if name not in UNCOVERED} == {}
    assert max(healthy[0] for healthy in first.values() if isinstance(healthy, tuple)) == 3
