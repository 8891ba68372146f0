import torch

from lightning_farms.common.seeding import seeded_generator


def drawn(*place):
    torch.rand(1)  # what others draw makes no difference
    return tuple(torch.randn(3, generator=seeded_generator(place)).tolist())


def test_depends_on_the_place_alone():
    assert drawn(0, 0, 0, 1) == drawn(0, 0, 0, 1)
    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 1, 1, 0), (0, 0, 0, 0, 1)]
    assert len({drawn(*place) for place in places}) == len(places)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    torch.rand(2, generator=seeded_generator((7,)))
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_are_those_of_earlier_versions():
    """Simulated sets and the order of epochs follow from them."""
    generator = seeded_generator((3, 5))
    assert generator.initial_seed() == 4895867234429419378
