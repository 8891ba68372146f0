"""What the samplers of all data modules have in common, and the loader that goes with them."""

import pytest
import torch

from lightning_farms.data.epochs import EpochLoader, EpochSampler, own_generator


class Numbers(EpochSampler):
    """Gives an item's number in an order of the epoch's own."""

    drawn = 0

    def keys(self, items):
        self.drawn += 1
        order = torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(self.epoch)).tolist()
        return iter([order[item] for item in items])


@pytest.fixture
def sampler():
    return Numbers(range(7), num_replicas=2, rank=1)


def whole(epoch):
    found = Numbers(range(7), num_replicas=2, rank=1)
    found.set_epoch(epoch)
    return list(found)


def test_nothing_is_drawn_before_the_first_key_is_asked_for(sampler):
    loader = EpochLoader(range(7), batch_size=2, sampler=sampler)
    keys, batches = iter(sampler), iter(loader)
    assert sampler.drawn == 0
    sampler.set_epoch(3)
    sampler.resume(3, 1)
    assert list(keys) == whole(3)[1:]
    assert torch.cat(list(batches)).tolist() == whole(3)[1:]


def test_only_the_resumed_epoch_is_cut(sampler):
    sampler.resume(1, 3)
    found = {}
    for epoch in range(3):
        sampler.set_epoch(epoch)
        found[epoch] = list(sampler)
    assert found == {0: whole(0), 1: whole(1)[3:], 2: whole(2)}
    sampler.set_epoch(1)
    assert list(sampler) == whole(1)[3:], "as often as it is gone through"


def test_the_first_epoch_asks_how_much_of_it_was_seen(sampler):
    asked = []
    sampler.resume_first(lambda: asked.append(sampler.epoch) or 2)
    sampler.set_epoch(5)
    left = iter(sampler)
    assert asked == []
    assert [list(left), list(sampler)] == [whole(5)[2:], whole(5)]
    assert asked == [5]


def test_a_loader_with_a_generator_of_its_own_leaves_the_global_one_alone(sampler):
    state = torch.get_rng_state()
    list(EpochLoader(range(7), sampler=sampler, generator=own_generator(0)))
    assert torch.equal(torch.get_rng_state(), state)
