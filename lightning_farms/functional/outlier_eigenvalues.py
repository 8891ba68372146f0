r"""Eigenvalues at the top of a spectrum that are set apart from its power-law tail."""

from __future__ import annotations

import torch
from torch import Tensor

_FEWEST = 5  # least number of eigenvalues left in the tail for comparison


def separated_eigenvalues(
    eigenvalues: Tensor, xmin: Tensor, *, threshold: Tensor | float = 0.0, probability: float = 0.01
) -> Tensor:
    r"""Count the largest eigenvalues that are separated by a gap too wide for a power-law tail.

    With the n eigenvalues above :math:`x_{min}` in descending order and :math:`y_i = \ln \lambda_i`, the scaled
    spacings :math:`z_i = i \, (y_i - y_{i+1})` (:math:`y_{n+1} = \ln x_{min}`) of a power law are independent and of
    one exponential law. The r largest are set apart if

    .. math:: r (r + 1) \left(1 + \frac{z_r}{\sum_{j=r+1}^{n} z_j}\right)^{-(n - r)} < p,

    where the power is the probability of so large a spacing, measured by those below it. The factor r (r + 1), whose
    inverses add up to 1, accounts for the number of r that are tried: those up to n / 2 whose eigenvalues lie above
    ``threshold``. The largest such r is returned.

    Args:
        eigenvalues: (..., N), any order, not negative, in units of the squared weight.
        xmin: (...), where the tail starts, in the same units.
        threshold: (...) or a number, which separated eigenvalues exceed, such as the largest that noise alone would
            make (:func:`spike_threshold`).
        probability: p, the largest probability with which a power law has such a gap anywhere; between 0 and 1.

    Returns:
        (...), int64; 0 where fewer than five eigenvalues would be left in the tail, or xmin is not positive.

    Raises:
        ValueError: ``probability`` out of range.

    Example:
        >>> tail = torch.linspace(1, 0.02, 50) ** -0.6
        >>> separated_eigenvalues(tail, torch.tensor(1.0)).item()
        0
        >>> separated_eigenvalues(torch.cat([tail, torch.tensor([1e4])]), torch.tensor(1.0)).item()
        1

    Reference:
        Renyi, Acta Mathematica Hungarica 4 (1953) (the spacings); Pisarenko and Sornette, European Physical Journal
        Special Topics 205 (2012) (such a test for "dragon kings").
    """
    if not 0 < probability < 1:
        raise ValueError(f"Expected argument `probability` to be between 0 and 1, but got {probability}.")
    ordered = eigenvalues.to(torch.float64).sort(dim=-1, descending=True).values
    start = xmin.to(ordered).unsqueeze(-1)
    inside = (ordered > start) & (start > 0)
    logs = (ordered / start).log().masked_fill(~inside, 0.0)
    rank = torch.arange(1, ordered.shape[-1] + 1, device=ordered.device)
    spacings = rank * (logs - torch.nn.functional.pad(logs[..., 1:], (0, 1)))
    below = spacings.flip(-1).cumsum(-1).flip(-1) - spacings
    left = inside.sum(-1, keepdim=True) - rank
    above = ordered > torch.as_tensor(threshold, dtype=ordered.dtype, device=ordered.device).unsqueeze(-1)
    tried = inside & above & (left >= _FEWEST) & (rank <= left)
    log_chance = -left * (spacings / below).log1p() + (rank * (rank + 1)).log()
    apart = tried & (log_chance < torch.as_tensor(probability, dtype=ordered.dtype, device=ordered.device).log())
    return (apart * rank).amax(-1)
