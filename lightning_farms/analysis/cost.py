"""What the analysis of a weight will cost, estimated from its shape alone."""

from __future__ import annotations

from lightning_farms.analysis._engine.plan import Plan, plan_layer
from lightning_farms.analysis.method import SpectralMethod
from lightning_farms.analysis.weights.layer_weight import LayerWeight


def analysis_cost(weight: LayerWeight, method: SpectralMethod) -> int:
    r"""Estimate the multiplications that the spectra of a weight's windows take, for a progress bar.

    The Gram matrix of a window of m' rows and n' columns and its eigenvalues take :math:`k^2 (l + 4 k)`, where k is the
    smaller and l the larger of m' and n', and four times as many if the window is complex.

    Args:
        weight: the weight, which may be without values.
        method: the method it will be analysed by.

    Returns:
        The number of multiplications, 0 for a weight that will be skipped.

    Example:
        >>> import torch
        >>> from lightning_farms.analysis import FARMS, checkpoint_weights
        >>> [weight] = checkpoint_weights({"fc.weight": torch.empty(4096, 1024, device="meta")}, values=False)
        >>> f"{analysis_cost(weight, FARMS()):.1e}"
        '2.1e+10'
    """
    try:
        plan = plan_layer(weight, method)
    except Exception:  # whatever it is, the analysis will report it
        return 0
    return round(plan.cost) if isinstance(plan, Plan) else 0
