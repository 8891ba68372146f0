"""Layer-wise learning rates from alphas, with any map."""

from __future__ import annotations

from lightning_farms.balancing.hyperparameter import LEARNING_RATE
from lightning_farms.callbacks._layerwise_balance import LayerwiseBalance


class LayerwiseLearningRate(LayerwiseBalance):
    r"""Gives every layer the learning rate :math:`\eta_l(t) = \eta(t) \, m(\alpha_l)`, for any map m.

    :class:`TempBalance` and :class:`TBSigmoid` are special cases with a linear and a sigmoid map. The multipliers are
    computed before the first step and after every ``every_n_epochs``-th epoch. For how they are applied see
    :class:`~lightning_farms.callbacks._layerwise_balance.LayerwiseBalance`. Besides the keys of
    :class:`SpectralMonitor`, these are logged:

    ================================  =================================================================================
    ``layer_lr/<Optimizer>/<layer>``  rate that the next update uses for the layer, after every epoch and analysis, to
                                      every logger (``layer_lr/<Optimizer>-1/...`` for a second optimizer of the class)
    ``farms/learning_rate_map``       heat map of these rates, layers by epochs; ``..._labelled`` as a figure
    ================================  =================================================================================

    If weight decay is decoupled (AdamW), a weight shrinks by rate times decay at each step, so that a layer's decay
    follows its rate, unless ``control.compensate_weight_decay`` is set (the compensated decay is not logged).

    Args:
        alpha_map: the map from alphas to multipliers: ``LinearMap(...)``, ``SigmoidMap(...)``, ``SqrtMap()``,
            ``Log2Map()``, ``StepMap(...)`` or your own.
        analysis: method of analysis: ``FARMS(...)`` or ``WholeMatrix(...)``.
        every_n_epochs: analyse after every n-th epoch (and before the first step).
        control: smoothing and bounds of the multipliers, and the choice of layers that have one.
        **options: options of :class:`SpectralMonitor`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.
        MisconfigurationException: the Trainer or the optimizer does not allow layer-wise rates.

    Example:
        >>> from lightning_farms.callbacks import Control, StepMap
        >>> callback = LayerwiseLearningRate(StepMap(0.5, 1.5), every_n_steps=100, control=Control(ramp_steps=50))

    Reference:
        Zhou et al., Temperature Balancing, NeurIPS 2023; He et al., One LR Doesn't Fit All (arXiv 2605.22297).
    """

    _adjusts = LEARNING_RATE
