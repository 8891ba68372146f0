"""Which trajectories and which frames: index arithmetic without data."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from lightning_farms.common.arguments import check_at_least, check_share
from lightning_farms.common.seeding import seeded_generator, shuffled

SplitName = Literal["dpot", "pdebench"]

_LARGEST_DPOT_TEST = 200


class Split(NamedTuple):
    """Numbers of the trajectories used for each purpose.

    Args:
        train: for training, ascending.
        val: for validation.
        test: for testing.
    """

    train: Sequence[int]
    val: range
    test: range


class WindowKey(NamedTuple):
    """A training item: a trajectory's place in the training set, the first frame of its window, and when it is shown.

    Args:
        item: place among the training items.
        start: first frame.
        epoch: the epoch, on which the item's noise depends.
    """

    item: int
    start: int
    epoch: int = 0


def split_trajectories(
    count: int,
    *,
    split: SplitName = "dpot",
    test_fraction: float = 0.1,
    val_fraction: float = 0.0,
    train_fraction: float = 1.0,
    subset_seed: int = 0,
    separate_test: bool = False,
) -> Split:
    """Split a file's trajectories into training, validation and test.

    "dpot" trains on the first nine tenths and tests on the last tenth, on at most 200 trajectories; "pdebench" tests
    on the first tenth and trains on the rest. The difference matters for the released DPOT models: they were
    pre-trained on the first nine tenths of each of the four 128x128 sets of 2D CFD. These contain PDEBench's test
    tenth, so with its split, such a model is tested on flows that it was trained on, and its error comes out too low;
    it has never seen the last tenth. Hence the default "dpot". Use "pdebench" for models trained from scratch, to
    compare with PDEBench's own baselines.

    A fraction of the training trajectories is drawn without regard to their order in the file: they are shuffled by
    `subset_seed`, and the first share is taken. For one seed, a smaller fraction is therefore a subset of a larger one.
    Validation and test stay the same for every fraction.

    Args:
        count: number of trajectories in the file, at least 1.
        split: "dpot" or "pdebench".
        test_fraction: share of the test trajectories, in (0, 1]; with 1, none are left for training.
        val_fraction: in [0, 1). 0: validate on the test trajectories, as DPOT does each epoch. Above 0: hold out this
            share of the training trajectories instead, the last ones.
        train_fraction: share of the (remaining) training trajectories to train on, in (0, 1].
        subset_seed: seed of the draw of that share, in [0, 2^32).
        separate_test: whether the test flows are in other files, so that all of these are for training.

    Returns:
        Trajectory numbers, ascending; any part can be empty when there are few trajectories.

    Raises:
        ValueError: for arguments out of range.

    Example:
        >>> split_trajectories(40)
        Split(train=range(0, 36), val=range(36, 40), test=range(36, 40))
        >>> split_trajectories(40, split="pdebench", val_fraction=0.25, train_fraction=0.25)
        Split(train=(6, 9, 15, 18, 21, 28), val=range(31, 40), test=range(0, 4))

    Reference:
        Hao et al., DPOT (2024), arXiv 2403.03542; Takamoto et al., PDEBench (2022), arXiv 2210.07182.
    """
    _check_split(count, split, test_fraction, val_fraction, train_fraction)
    if not 0 <= subset_seed < 2**32:
        raise ValueError(f"Expected argument `subset_seed` to be in [0, 2^32), but got {subset_seed}.")
    tests = 0 if separate_test else _share(count, test_fraction)
    if split == "dpot":
        pool, test = range(count - tests), range(count - tests, count)[:_LARGEST_DPOT_TEST]
    else:
        pool, test = range(tests, count), range(tests)
    held_out = _share(len(pool), val_fraction)
    val = pool[len(pool) - held_out :] if val_fraction > 0 else test
    pool = pool[: len(pool) - held_out]
    return Split(_subset(pool, train_fraction, subset_seed), val, test)


def _subset(pool: range, fraction: float, seed: int) -> Sequence[int]:
    if fraction == 1:
        return pool
    return tuple(sorted(pool[place] for place in shuffled(len(pool), seed)[: _share(len(pool), fraction)]))


def _share(count: int, fraction: float) -> int:
    """Return a share of a count, rounded down, but not because of the last bit of a fraction such as 0.1."""
    return math.floor(count * fraction + 1e-9)


def _check_split(count: int, split: str, test_fraction: float, val_fraction: float, train_fraction: float) -> None:
    check_at_least(1, count=count)
    if split not in ("dpot", "pdebench"):
        raise ValueError(f"Expected argument `split` to be 'dpot' or 'pdebench', but got {split!r}.")
    if not 0 < test_fraction <= 1:
        raise ValueError(f"Expected argument `test_fraction` to be in (0, 1], but got {test_fraction}.")
    check_share(val_fraction=val_fraction)
    if not 0 < train_fraction <= 1:
        raise ValueError(f"Expected argument `train_fraction` to be in (0, 1], but got {train_fraction}.")


def check_split(
    split: Split,
    *,
    count: int,
    purposes: Sequence[str],
    test_fraction: float = 0.1,
    val_fraction: float = 0.0,
    train_fraction: float = 1.0,
    source: str = "the file",
) -> None:
    """Refuse a split in which a part that is needed is empty.

    Example:
        >>> check_split(split_trajectories(40), count=40, purposes=("train", "val"))
    """
    rest = count - _share(count, test_fraction)
    pool = rest - _share(rest, val_fraction)
    test = _too_small("test_fraction", test_fraction, count)
    remedies = {
        "train": _too_small("train_fraction", train_fraction, pool, least=1),
        "val": _too_small("val_fraction", val_fraction, rest)
        if val_fraction > 0
        else f"it takes the test flows, and {test}",
        "test": test,
    }
    for purpose in purposes:
        if len(getattr(split, purpose)) == 0:
            raise ValueError(
                f"Expected the {purpose} split to have at least one trajectory, but it gets none of the {count} in "
                f"{source}: {remedies[purpose]}."
            )


def _too_small(name: str, fraction: float, count: int, least: int = 2) -> str:
    """Say why a share is empty and which one is not."""
    if count < least:
        return f"these are too few for all parts, whatever `{name}` is. Use files with more trajectories"
    enough = math.ceil(100 / count) / 100
    return (
        f"`{name}` {fraction:g} of {count} is less than one trajectory. Raise `{name}` to at least {enough:g}, or use "
        "files with more trajectories"
    )


def epoch_windows(items: int, starts: int, *, seed: int, epoch: int, shuffle: bool = True) -> list[WindowKey]:
    """Draw the order of an epoch's training items and the first frame of each.

    The draw depends on the arguments alone: not on the number of workers or processes, nor on any global generator.
    An epoch after a resume is therefore the same as in an uninterrupted run.

    Args:
        items: number of items, at least 1.
        starts: number of possible first frames, at least 1.
        seed: at least 0.
        epoch: at least 0.
        shuffle: whether to draw the order too.

    Returns:
        One key for each item.

    Raises:
        ValueError: for arguments out of range.

    Example:
        >>> epoch_windows(3, 11, seed=0, epoch=0) == epoch_windows(3, 11, seed=0, epoch=0)
        True
        >>> sorted(key.item for key in epoch_windows(3, 11, seed=0, epoch=1))
        [0, 1, 2]
    """
    check_at_least(1, items=items, starts=starts)
    check_at_least(0, seed=seed, epoch=epoch)
    generator = seeded_generator((seed, epoch))
    first = torch.randint(starts, (items,), generator=generator).tolist()
    order = torch.randperm(items, generator=generator).tolist() if shuffle else range(items)
    return [WindowKey(item, first[item], epoch) for item in order]
