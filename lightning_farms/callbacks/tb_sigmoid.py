"""TB_Sigmoid: learning rates that saturate away from the mean alpha."""

from __future__ import annotations

from typing import Any

from lightning_farms.analysis.method import FARMS, SpectralMethod
from lightning_farms.balancing.alpha_map import SigmoidMap
from lightning_farms.callbacks.layerwise_learning_rate import LayerwiseLearningRate


class TBSigmoid(LayerwiseLearningRate):
    r"""Gives layers with a larger alpha (less trained) a larger learning rate, at most a fixed power of ten away.

    .. math:: \eta_l(t) = \eta(t) \, 10^{\varphi_l}, \quad \varphi_l = s \left( \frac{1}{1 + e^{-\tau (\alpha_l -
              \bar\alpha)}} - \frac12 \right), \quad s = s_{high} \text{ where } \alpha_l > \bar\alpha
              \text{ else } s_{low}

    The multipliers are computed before the first step and after every ``every_n_epochs``-th epoch. Everything that
    :class:`LayerwiseLearningRate` and :class:`SpectralMonitor` log is logged (see there for the keys).

    Args:
        s_low: strength below the mean, not negative: multipliers stay above 10^(-s_low / 2).
        s_high: strength above the mean, not negative: multipliers stay below 10^(s_high / 2).
        tau: steepness per unit of alpha, positive.
        analysis: method of analysis: ``FARMS(...)`` or ``WholeMatrix(...)`` (the original TB_Sigmoid).
        every_n_epochs: analyse after every n-th epoch (and before the first step).
        **options: ``control`` and the options of :class:`SpectralMonitor`.

    Raises:
        ValueError: an argument is out of range.
        MisconfigurationException: the Trainer or the optimizer does not allow layer-wise rates.

    Example:
        >>> callback = TBSigmoid(analysis=FARMS())

    Reference:
        Liu et al., Model Balancing, EMNLP Findings 2024; Hu et al., ICML 2025, Section 4.4.
    """

    alpha_map: SigmoidMap

    def __init__(
        self,
        s_low: float = 1.0,
        s_high: float = 1.0,
        tau: float = 10.0,
        analysis: SpectralMethod = FARMS(),
        every_n_epochs: int = 1,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(SigmoidMap(s_low, s_high, tau), analysis, every_n_epochs, **options)

    @property
    def s_low(self) -> float:
        """Strength below the mean."""
        return self.alpha_map.s_low

    @property
    def s_high(self) -> float:
        """Strength above the mean."""
        return self.alpha_map.s_high

    @property
    def tau(self) -> float:
        """Steepness per unit of alpha."""
        return self.alpha_map.tau
