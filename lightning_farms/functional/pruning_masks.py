"""Pruning masks by magnitude and by Wanda, with exact numbers of zeros; of equal scores the earlier weight is pruned.

A mask is True where the weight stays, as in torch.nn.utils.prune. SparseGPT, which also changes the remaining weights,
is in :mod:`lightning_farms.functional.sparsegpt`.
"""

from __future__ import annotations

import operator
from fractions import Fraction
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_farms.functional._smallest_entries import smallest_entries, smallest_in_rows, smallest_of_every


class NofM(NamedTuple):
    """A pattern: n zeros among every m consecutive inputs of each output.

    Args:
        n: Number of zeros, in [0, m].
        m: Length of the pattern; it has to divide the number of inputs.
    """

    n: int
    m: int


Amount: TypeAlias = int | float | NofM
Counts: TypeAlias = Literal["exact", "official"]


def magnitude_mask(weight: Tensor, amount: Amount, *, counts: Counts = "exact") -> Tensor:
    r"""Prune the weights of least magnitude :math:`|W_{ij}|`, compared over the whole matrix.

    Args:
        weight: (R, C), outputs by inputs, of any floating type.
        amount: An integer: the number of zeros. A float: the fraction r of zeros, :math:`\lfloor r R C + 1/2 \rfloor`
            of them. A pattern: n of every m consecutive inputs.
        counts: "exact", or "official" for as many zeros as in the authors' program: all weights up to the one at
            position int(r R C) from the least, this one and equal ones included.

    Returns:
        (R, C), bool, True where the weight stays.

    Raises:
        ValueError: Weights that are not a matrix or not finite, or an amount out of range.

    Example:
        >>> magnitude_mask(torch.tensor([[1.0, -2.0, 3.0], [2.0, -0.5, 1.0]]), 3)
        tensor([[False,  True,  True],
                [ True, False, False]])
        >>> magnitude_mask(torch.tensor([[1.0, -2.0, 2.0, 0.5]]), NofM(2, 4))
        tensor([[False,  True,  True, False]])

    Reference:
        Han et al., Learning both Weights and Connections, NeurIPS 2015.
    """
    check_weight(weight)
    amount = checked_amount(amount, weight, counts)
    scores = weight.detach().abs()
    if isinstance(amount, NofM):
        return ~smallest_of_every(scores, *amount)
    if counts == "official":
        position = min(int(weight.numel() * amount), weight.numel() - 1)
        return scores > scores.flatten().kthvalue(position + 1).values
    return ~smallest_entries(scores, number_of_zeros(amount, weight.numel()))


def wanda_mask(weight: Tensor, mean_square: Tensor, amount: Amount, *, counts: Counts = "exact") -> Tensor:
    r"""Prune the weights of least score :math:`|W_{ij}| \sqrt{\overline{x_j^2}}`, compared within each output.

    Args:
        weight: (R, C), outputs by inputs, of any floating type.
        mean_square: (C,), mean square of each input over the calibration tokens, in squared units of the input.
        amount: An integer: the number of zeros. A float: the fraction r of zeros, :math:`\lfloor r R C + 1/2 \rfloor`
            of them. All rows have equally many zeros; if the number is not divisible by R, the rows whose next weight
            scores least have one more. A pattern: n of every m consecutive inputs.
        counts: "exact", or "official" for as many zeros as in the authors' program: int(r C) in each row.

    Returns:
        (R, C), bool, True where the weight stays.

    Raises:
        ValueError: Weights that are not a matrix, mean squares of another length, values that are not finite, mean
            squares below 0, or an amount out of range.

    Example:
        >>> wanda_mask(torch.tensor([[1.0, -2.0, 3.0], [2.0, -0.5, 1.0]]), torch.tensor([9.0, 1.0, 0.0]), 3)
        tensor([[ True,  True, False],
                [ True, False, False]])

    Reference:
        Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024, Equation 1.
    """
    check_weight(weight)
    amount = checked_amount(amount, weight, counts)
    rows, columns = weight.shape
    if mean_square.shape != (columns,):
        raise ValueError(
            f"Expected argument `mean_square` to have shape ({columns},), but got {tuple(mean_square.shape)}."
        )
    if not bool((mean_square.isfinite() & (mean_square >= 0)).all()):
        raise ValueError("Expected argument `mean_square` to be finite and not negative, but got other values.")
    dtype = torch.promote_types(weight.dtype, torch.float32)
    scores = weight.detach().abs() * mean_square.sqrt().to(dtype)
    if isinstance(amount, NofM):
        return ~smallest_of_every(scores, *amount)
    if counts == "official":
        return ~smallest_in_rows(scores, rows * min(int(columns * amount), columns))
    return ~smallest_in_rows(scores, number_of_zeros(amount, weight.numel()))


def number_of_zeros(amount: float, size: int) -> int:
    """Number of zeros among `size` weights: an integer as it is; a fraction as printed, times size, with halves up."""
    return amount if isinstance(amount, int) else int(Fraction(str(float(amount))) * size + Fraction(1, 2))


def check_weight(weight: Tensor) -> None:
    """Raise a ValueError unless the weight is a floating-point matrix with entries, all of them finite."""
    if weight.ndim != 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise ValueError(
            f"Expected argument `weight` to be a floating-point matrix with entries, but got shape "
            f"{tuple(weight.shape)} of {weight.dtype}."
        )
    if not bool(weight.isfinite().all()):
        raise ValueError("Expected argument `weight` to be finite, but got NaN or infinite values.")


def checked_amount(amount: Amount, weight: Tensor, counts: Counts) -> Amount:
    """Check that the amount is valid for the weight and `counts`, and turn integers of NumPy or torch into Python's."""
    if counts not in ("exact", "official"):
        raise ValueError(f'Expected argument `counts` to be "exact" or "official", but got {counts!r}.')
    if isinstance(amount, NofM):
        n, m = amount = NofM(_whole(amount.n), _whole(amount.m))
        if not (isinstance(n, int) and isinstance(m, int) and 0 <= n <= m and m >= 1) or weight.shape[1] % m:
            raise ValueError(
                f"Expected argument `amount` to be n of m with 0 <= n <= m and m a divisor of {weight.shape[1]} "
                f"inputs, but got {n} of {m}."
            )
        return amount
    number: float = _whole(amount)
    if isinstance(number, int) and not isinstance(number, bool):
        if counts == "official":
            raise ValueError(f'Expected argument `amount` to be a fraction for counts="official", but got {number}.')
        if not 0 <= number <= weight.numel():
            raise ValueError(f"Expected argument `amount` to be in [0, {weight.numel()}], but got {number}.")
    elif isinstance(number, bool) or not 0 <= number <= 1:
        raise ValueError(f"Expected argument `amount` to be a fraction in [0, 1], but got {number}.")
    return number


def _whole(number: Any) -> Any:  # noqa: ANN401
    """Turn an integer of any kind into one of Python; leave anything else as it is."""
    try:
        return number if isinstance(number, bool) else operator.index(number)
    except TypeError:
        return number
