"""Exact augmentation of flows: shifts on a periodic domain, and the eight symmetries of the square."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_farms.common.seeding import seeded_generator

Augment = Literal["shifts", "symmetries", "all"]

_AUGMENTATION = 0x7475726E  # keeps its draws apart from those of the same seed for other purposes


class Symmetry(NamedTuple):
    """A motion of the plane that maps a grid to itself; its parts are applied in the order of the arguments.

    The three flags together give the eight symmetries of the square: a quarter turn is a transposition and one
    reflection, a half turn is both reflections.

    Args:
        transpose: exchange x and y.
        flip_x: reflect x, the first cell becoming the last.
        flip_y: reflect y.
        shift_x: number of cells to move along x; what leaves at the end comes in at the beginning.
        shift_y: the same along y.
    """

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False
    shift_x: int = 0
    shift_y: int = 0


def moved(fields: Tensor, symmetry: Symmetry, vectors: Sequence[tuple[int, int]] = ()) -> Tensor:
    r"""Move fields by a symmetry, and turn the components of vectors with them.

    With g the motion and R its linear part, a scalar s and a vector v become

    $$s'(g x) = s(x), \quad v'(g x) = R v(x)$$

    so that a transposition exchanges a vector's components and a reflection of x changes the sign of its x-component.
    The equations of a flow commute with the motion if it maps the domain and its boundaries to themselves; shifts need
    a periodic domain.

    Args:
        fields: (X, Y, ..., C), in physical units; X must equal Y if the symmetry transposes.
        symmetry: the motion.
        vectors: channels of the x- and y-component of each vector; all other channels are scalars.

    Returns:
        The moved fields, of the same shape: a new tensor, in which every value is a given one or its negative.

    Raises:
        ValueError: if a grid that is not square is to be transposed.

    Example:
        >>> fields = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[..., None] * torch.tensor([1.0, 10.0, 100.0])
        >>> turned = moved(fields, Symmetry(transpose=True, flip_x=True), vectors=[(0, 1)])
        >>> turned[..., 0].tolist(), turned[..., 2].tolist()
        ([[-20.0, -40.0], [-10.0, -30.0]], [[200.0, 400.0], [100.0, 300.0]])
        >>> moved(fields, Symmetry(shift_x=1))[..., 0].tolist()
        [[3.0, 4.0], [1.0, 2.0]]
    """
    if symmetry.transpose and fields.shape[0] != fields.shape[1]:
        raise ValueError(
            f"Expected argument `fields` to have as many cells along x as along y to be transposed, but got "
            f"{tuple(fields.shape[:2])}."
        )
    result = fields.transpose(0, 1) if symmetry.transpose else fields
    flipped = [axis for axis, is_flipped in enumerate((symmetry.flip_x, symmetry.flip_y)) if is_flipped]
    result = torch.roll(torch.flip(result, flipped), (symmetry.shift_x, symmetry.shift_y), (0, 1))
    order, signs = list(range(fields.shape[-1])), torch.ones(fields.shape[-1], dtype=fields.dtype, device=fields.device)
    for x, y in vectors:
        if symmetry.transpose:
            order[x], order[y] = y, x
        signs[x] = -1 if symmetry.flip_x else 1
        signs[y] = -1 if symmetry.flip_y else 1
    return result[..., order] * signs


@dataclass(frozen=True)
class Augmentation:
    """Random symmetries of training items: which kinds are drawn, and which channels are vectors.

    Every draw depends on (seed, epoch, item) alone: not on the order of the items, the number of workers or processes,
    nor on where a training was resumed.

    Args:
        shift_x: whether to shift along x, by any number of cells.
        shift_y: whether to shift along y.
        flips: whether to reflect x and y.
        turns: whether to exchange x and y as well, which together with the reflections gives the quarter turns; for
            square grids only.
        vectors: channels of the x- and y-component of each vector.
        seed: at least 0.

    Example:
        >>> augmentation = Augmentation(shift_x=True, shift_y=True, flips=True, turns=True, vectors=((0, 1),))
        >>> augmentation.drawn((8, 8), epoch=0, item=3) == augmentation.drawn((8, 8), epoch=0, item=3)
        True
        >>> augmentation(torch.ones(8, 8, 2, 4), epoch=0, item=3).shape
        torch.Size([8, 8, 2, 4])
    """

    shift_x: bool = False
    shift_y: bool = False
    flips: bool = False
    turns: bool = False
    vectors: tuple[tuple[int, int], ...] = ()
    seed: int = 0

    def drawn(self, size: tuple[int, int], *, epoch: int, item: int) -> Symmetry:
        """Draw the symmetry of an item; all that are allowed are equally likely.

        Args:
            size: cells along x and y.
            epoch: at least 0.
            item: number of the training item, at least 0.

        Returns:
            The symmetry.
        """
        generator = seeded_generator((_AUGMENTATION, self.seed, epoch, item))
        shift_x, shift_y = (int(torch.randint(cells, (), generator=generator)) for cells in size)
        transpose, flip_x, flip_y = torch.randint(2, (3,), generator=generator).bool().tolist()
        return Symmetry(
            transpose=transpose and self.turns,
            flip_x=flip_x and self.flips,
            flip_y=flip_y and self.flips,
            shift_x=shift_x if self.shift_x else 0,
            shift_y=shift_y if self.shift_y else 0,
        )

    def __call__(self, fields: Tensor, *, epoch: int, item: int) -> Tensor:
        """Move an item's fields by the symmetry that is drawn for it.

        Args:
            fields: (X, Y, ..., C), in physical units.
            epoch: at least 0.
            item: number of the training item, at least 0.

        Returns:
            The moved fields.
        """
        size = (fields.shape[0], fields.shape[1])
        return moved(fields, self.drawn(size, epoch=epoch, item=item), self.vectors)
