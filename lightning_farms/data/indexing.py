"""Which trajectories and which frames: index arithmetic without data."""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch

SplitName = Literal["dpot", "pdebench"]

_LARGEST_DPOT_TEST = 200


class Split(NamedTuple):
    """Numbers of the trajectories used for each purpose.

    Args:
        train: for training.
        val: for validation.
        test: for testing.
    """

    train: range
    val: range
    test: range


class WindowKey(NamedTuple):
    """A training item: a trajectory's place in the training set and the first frame of its window.

    Args:
        item: place among the training items.
        start: first frame.
    """

    item: int
    start: int


def split_trajectories(
    count: int,
    *,
    split: SplitName = "dpot",
    test_fraction: float = 0.1,
    val_fraction: float = 0.0,
    train_fraction: float = 1.0,
) -> Split:
    """Split a file's trajectories into training, validation and test.

    "dpot" tests on the last tenth, on its first 200 trajectories, and trains on what precedes; "pdebench" tests on the
    first tenth and trains on the rest. Default "dpot": the four 128x128 sets of 2D CFD are in DPOT's pre-training
    data, whose training part is their first 90 percent, so a released DPOT model has seen what PDEBench's split would
    test it on. Use "pdebench" to compare with PDEBench's own baselines, for models trained from scratch.

    Args:
        count: number of trajectories in the file, at least 1.
        split: "dpot" or "pdebench".
        test_fraction: share of the test trajectories, in (0, 1).
        val_fraction: in [0, 1); 0: validate on the test trajectories, as DPOT does each epoch. Above 0: hold out that
            last share of the training trajectories for it.
        train_fraction: share of the (remaining) training trajectories to train on, the first ones, in (0, 1].

    Returns:
        Ranges of trajectory numbers; any of them can be empty when there are few trajectories.

    Raises:
        ValueError: for arguments out of range.

    Example:
        >>> split_trajectories(40)
        Split(train=range(0, 36), val=range(36, 40), test=range(36, 40))
        >>> split_trajectories(40, split="pdebench", val_fraction=0.25, train_fraction=0.5)
        Split(train=range(4, 17), val=range(31, 40), test=range(0, 4))

    Reference:
        Hao et al., DPOT (2024), arXiv 2403.03542; Takamoto et al., PDEBench (2022), arXiv 2210.07182.
    """
    _check_split(count, split, test_fraction, val_fraction, train_fraction)
    tests = _share(count, test_fraction)
    if split == "dpot":
        pool, test = range(count - tests), range(count - tests, count)[:_LARGEST_DPOT_TEST]
    else:
        pool, test = range(tests, count), range(tests)
    held_out = _share(len(pool), val_fraction)
    val = pool[len(pool) - held_out :] if val_fraction > 0 else test
    pool = pool[: len(pool) - held_out]
    return Split(pool[: _share(len(pool), train_fraction)], val, test)


def _share(count: int, fraction: float) -> int:
    """Round down, but not because of the last bit of a fraction such as 0.1."""
    return math.floor(count * fraction + 1e-9)


def _check_split(count: int, split: str, test_fraction: float, val_fraction: float, train_fraction: float) -> None:
    if count < 1:
        raise ValueError(f"Expected argument `count` to be at least 1, but got {count}.")
    if split not in ("dpot", "pdebench"):
        raise ValueError(f"Expected argument `split` to be 'dpot' or 'pdebench', but got {split!r}.")
    if not 0 < test_fraction < 1:
        raise ValueError(f"Expected argument `test_fraction` to be in (0, 1), but got {test_fraction}.")
    if not 0 <= val_fraction < 1:
        raise ValueError(f"Expected argument `val_fraction` to be in [0, 1), but got {val_fraction}.")
    if not 0 < train_fraction <= 1:
        raise ValueError(f"Expected argument `train_fraction` to be in (0, 1], but got {train_fraction}.")


def check_split(
    split: Split, *, count: int, purposes: tuple[str, ...], test_fraction: float = 0.1, val_fraction: float = 0.0
) -> None:
    """Refuse a split in which a part that is needed is empty.

    Args:
        split: the split.
        count: number of trajectories that were split.
        purposes: the needed parts, of "train", "val", "test".
        test_fraction: share of the test trajectories that was asked for, for the message.
        val_fraction: share of the validation trajectories that was asked for, for the message.

    Raises:
        ValueError: naming the empty part and the remedy.

    Example:
        >>> check_split(split_trajectories(40), count=40, purposes=("train", "val"))
    """
    shares = {"test": _too_small("test_fraction", test_fraction, count)}
    shares["val"] = shares["test"]
    if val_fraction > 0:
        shares["val"] = _too_small("val_fraction", val_fraction, count - _share(count, test_fraction))
    remedies = {
        "train": "raise `train_fraction` or lower `test_fraction` and `val_fraction`",
        "val": shares["val"] if val_fraction > 0 else f"the test trajectories validate, and {shares['test']}",
        "test": shares["test"],
    }
    for purpose in purposes:
        if len(getattr(split, purpose)) == 0:
            raise ValueError(
                f"Expected the {purpose} split to have at least one trajectory, but it gets none of the {count} in the "
                f"file: {remedies[purpose]}, or use a file with more trajectories."
            )


def _too_small(name: str, fraction: float, count: int) -> str:
    """Say why a share is empty and which one is not."""
    if count < 2:
        return f"`{name}` would leave nothing to train on"
    least = math.ceil(100 / count) / 100
    return f"`{name}` {fraction:g} of {count} is less than one trajectory. Raise `{name}` to at least {least:g}"


def epoch_windows(items: int, starts: int, *, seed: int, epoch: int, shuffle: bool = True) -> list[WindowKey]:
    """Draw the order of an epoch's training items and the first frame of each.

    The draw depends on the arguments alone: not on the number of workers or processes, nor on any global generator.
    An epoch after a resume is therefore the same as in a straight run.

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
    for name, value, least in (("items", items, 1), ("starts", starts, 1), ("seed", seed, 0), ("epoch", epoch, 0)):
        if value < least:
            raise ValueError(f"Expected argument `{name}` to be at least {least}, but got {value}.")
    entropy = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator().manual_seed(entropy)
    first = torch.randint(starts, (items,), generator=generator).tolist()
    order = torch.randperm(items, generator=generator).tolist() if shuffle else range(items)
    return [WindowKey(item, first[item]) for item in order]
