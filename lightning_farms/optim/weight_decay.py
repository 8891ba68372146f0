"""Whether an optimizer's weight decay shrinks a weight by rate times decay."""

from __future__ import annotations

from torch import optim
from torch.optim import Optimizer

_NORMALISED = (
    optim.Adadelta,
    optim.Adagrad,
    optim.Adam,
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
    optim.RMSprop,
)


def check_decoupled_weight_decay(optimizer: Optimizer) -> None:
    """Refuse an optimizer that adds its weight decay to a gradient which it then normalises.

    Of AdamW and other optimizers with decoupled decay, and of SGD, a step shrinks a weight by the rate times the decay
    (under momentum: in the long run), so that dividing the decay by what multiplies the rate keeps the shrinking. Of
    Adam and its kin without ``decoupled_weight_decay`` it does not. Optimizers that are not PyTorch's own are taken for
    decoupled ones.

    Args:
        optimizer: a torch optimizer.

    Raises:
        TypeError: one of PyTorch's own whose decay is part of the normalised gradient.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> check_decoupled_weight_decay(torch.optim.AdamW([weight]))
        >>> check_decoupled_weight_decay(torch.optim.Adam([weight], weight_decay=0.1))
        Traceback (most recent call last):
        TypeError: Expected an optimizer whose weight decay is decoupled from the gradient, but got Adam, ...

    Reference:
        Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019.
    """
    if not isinstance(optimizer, _NORMALISED):
        return
    if any(group["weight_decay"] and not group.get("decoupled_weight_decay") for group in optimizer.param_groups):
        raise TypeError(
            f"Expected an optimizer whose weight decay is decoupled from the gradient, but got"
            f" {type(optimizer).__name__}, which normalises the decay along with the gradient, so that there is nothing"
            " to compensate for. Use AdamW (or `decoupled_weight_decay=True`), or do without the compensation."
        )
