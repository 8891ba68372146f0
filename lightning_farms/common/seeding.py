"""Random draws that depend only on their seeds: generators for every place in a run, and shuffled orders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def seeded_generator(place: Sequence[int], device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator for a place such as (seed, epoch), so that a resumed run draws like an uninterrupted one.

    Args:
        place: numbers of at least 0, hashed together; zeros at the end make no difference.
        device: device of the draws; devices of different kinds draw different numbers.

    Returns:
        The generator.

    Example:
        >>> torch.equal(*(torch.randn(2, generator=seeded_generator((0, 3))) for _ in range(2)))
        True
    """
    entropy = int(np.random.SeedSequence(tuple(place)).generate_state(1, np.uint64)[0]) >> 1
    return torch.Generator(device).manual_seed(entropy)


def shuffled(count: int, seed: int) -> list[int]:
    """Shuffle the numbers from 0 to count - 1 in an order that depends only on ``count`` and ``seed``.

    Args:
        count: how many numbers.
        seed: seed of the order, in [0, 2^32).

    Returns:
        The order, the same with every version of numpy, which promises this for RandomState, not for newer generators.

    Example:
        >>> shuffled(5, seed=0)
        [2, 0, 1, 3, 4]
    """
    order: list[int] = np.random.RandomState(seed).permutation(count).tolist()
    return order
