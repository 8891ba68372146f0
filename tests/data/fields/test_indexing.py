from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_farms.data import Split, epoch_windows, split_trajectories
from lightning_farms.data.fields.indexing import check_split


@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [
        (10_000, {}, (range(9000), range(9000, 9200), range(9000, 9200))),
        (10_000, {"split": "pdebench"}, (range(1000, 10_000), range(1000), range(1000))),
        (10, {}, (range(9), range(9, 10), range(9, 10))),
        (15, {}, (range(14), range(14, 15), range(14, 15))),
        (30, {"test_fraction": 0.3}, (range(21), range(21, 30), range(21, 30))),
        (100, {"val_fraction": 0.1}, (range(81), range(81, 90), range(90, 100))),
        (4, {}, (range(4), range(0), range(0))),
        (4, {"test_fraction": 0.25}, (range(3), range(3, 4), range(3, 4))),
    ],
)
def test_splits(count, options, expected):
    assert [list(part) for part in split_trajectories(count, **options)] == [list(part) for part in expected]


@pytest.mark.parametrize("split", ["dpot", "pdebench"])
@pytest.mark.parametrize("val_fraction", [0.0, 0.2])
@pytest.mark.parametrize("count", [10, 37, 250])
def test_no_trajectory_is_both_trained_and_tested_on(split, val_fraction, count):
    parts = split_trajectories(count, split=split, val_fraction=val_fraction)
    assert not set(parts.train) & (set(parts.val) | set(parts.test))
    assert (set(parts.val) == set(parts.test)) == (val_fraction == 0)
    assert set(parts.train) | set(parts.val) | set(parts.test) == set(range(count))


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 400),
    split=st.sampled_from(["dpot", "pdebench"]),
    test_fraction=st.floats(0.01, 0.9),
    val_fraction=st.one_of(st.just(0.0), st.floats(0.01, 0.9)),
    fractions=st.lists(st.floats(0.001, 1.0), min_size=2, max_size=4),
    subset_seed=st.integers(0, 2**32 - 1),
)
def test_fractions_are_nested_and_disjoint_from_the_other_parts(
    count, split, test_fraction, val_fraction, fractions, subset_seed
):
    options = {"split": split, "test_fraction": test_fraction, "val_fraction": val_fraction, "subset_seed": subset_seed}
    whole = split_trajectories(count, **options)
    larger = set(whole.train)
    for fraction in sorted(fractions, reverse=True):
        part = split_trajectories(count, **options, train_fraction=fraction)
        assert (part.val, part.test) == (whole.val, whole.test)
        assert set(part.train) <= larger
        assert list(part.train) == sorted(set(part.train))
        assert len(part.train) == int(len(whole.train) * fraction + 1e-9)
        assert not set(part.train) & (set(part.val) | set(part.test))
        larger = set(part.train)


def test_a_fraction_is_drawn_from_the_whole_training_part():
    parts = [split_trajectories(10_000, train_fraction=0.05, subset_seed=seed).train for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]
    assert len(parts[0]) == 450
    counts = Counter(number // 1000 for number in parts[0])
    assert sorted(counts) == list(range(9))
    assert max(counts.values()) < 75


def test_the_draw_stays_the_same_in_later_versions():
    """Of numpy.random.RandomState(0).permutation(9), the first three."""
    assert split_trajectories(10, train_fraction=0.34).train == (1, 2, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset_seed": -1}, r"`subset_seed` to be in \[0, 2\^32\), but got -1"),
        ({"count": 0}, "`count` to be at least 1"),
        ({"split": "random"}, "`split` to be 'dpot' or 'pdebench', but got 'random'"),
        ({"test_fraction": 0.0}, r"`test_fraction` to be in \(0, 1\]"),
        ({"val_fraction": 1.0}, r"`val_fraction` to be in \[0, 1\)"),
        ({"train_fraction": 0.0}, r"`train_fraction` to be in \(0, 1\]"),
        ({"train_fraction": 1.1}, r"`train_fraction` to be in \(0, 1\]"),
    ],
)
def test_wrong_split_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        split_trajectories(**({"count": 20} | options))


@pytest.mark.parametrize(
    ("split", "purpose", "remedy"),
    [
        (
            split_trajectories(4),
            "test",
            "`test_fraction` 0.1 of 4 is less than one trajectory. Raise `test_fraction` to at least 0.25",
        ),
        (split_trajectories(4), "val", "it takes the test flows, and `test_fraction` 0.1 of 4 is"),
        (
            Split((), range(1), range(1)),
            "train",
            "`train_fraction` 0.05 of 4 is .* Raise `train_fraction` to at least 0.25",
        ),
    ],
)
def test_empty_part_is_named_with_a_remedy(split, purpose, remedy):
    with pytest.raises(
        ValueError, match=f"the {purpose} split to have .* gets none of the 4 in the file: {remedy}.* more"
    ):
        check_split(split, count=4, purposes=(purpose,), train_fraction=0.05)


def test_parts_that_are_not_needed_may_be_empty():
    check_split(Split(range(3), range(0), range(0)), count=3, purposes=("train",))


def test_each_item_once_with_starts_in_range_and_all_used():
    keys = epoch_windows(2000, 11, seed=0, epoch=3)
    assert sorted(key.item for key in keys) == list(range(2000))
    counts = Counter(key.start for key in keys)
    assert sorted(counts) == list(range(11))
    assert max(counts.values()) < 2 * min(counts.values())


def test_draw_depends_on_seed_and_epoch_alone():
    expected = epoch_windows(50, 11, seed=1, epoch=2)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert epoch_windows(50, 11, seed=1, epoch=2) == expected
    assert torch.equal(before, torch.get_rng_state())
    others = [epoch_windows(50, 11, seed=s, epoch=e) for s, e in ((1, 3), (2, 2), (2, 1))]
    assert all(sorted(other) != sorted(expected) for other in others)


def test_unshuffled_has_the_same_windows_in_order():
    shuffled = epoch_windows(50, 11, seed=1, epoch=2)
    assert epoch_windows(50, 11, seed=1, epoch=2, shuffle=False) == sorted(shuffled)
    assert {key.epoch for key in shuffled} == {2}
    assert shuffled != sorted(shuffled)


@pytest.mark.parametrize("name", ["items", "starts", "seed", "epoch"])
def test_wrong_window_arguments(name):
    with pytest.raises(ValueError, match=f"`{name}` to be at least"):
        epoch_windows(**({"items": 3, "starts": 2, "seed": 0, "epoch": 0} | {name: -1}))
