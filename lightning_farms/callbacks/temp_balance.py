"""TempBalance: learning rates linear in alpha."""

from __future__ import annotations

from typing import Any

from lightning_farms.analysis.method import FARMS, SpectralMethod
from lightning_farms.balancing.alpha_map import LinearMap
from lightning_farms.callbacks.layerwise_learning_rate import LayerwiseLearningRate
from lightning_farms.functional.layerwise import check_ratios


class TempBalance(LayerwiseLearningRate):
    r"""Gives layers with a larger alpha (less trained) a larger learning rate, linearly between two ratios.

    .. math:: \eta_l(t) = \eta(t) \left[ \frac{\alpha_l - \min \alpha}{\max \alpha - \min \alpha} (s_2 - s_1) + s_1
              \right]

    The multipliers are computed before the first step and after every ``every_n_epochs``-th epoch. Everything that
    :class:`LayerwiseLearningRate` and :class:`SpectralMonitor` log is logged (see there for the keys).

    Args:
        lr_min_ratio: s1, the multiplier at the smallest alpha, positive.
        lr_max_ratio: s2, the multiplier at the largest alpha, at least s1.
        analysis: method of analysis: ``FARMS(...)`` or ``WholeMatrix(...)`` (the original TempBalance).
        every_n_epochs: analyse after every n-th epoch (and before the first step).
        **options: ``control`` and the options of :class:`SpectralMonitor`.

    Raises:
        ValueError: an argument is out of range.
        MisconfigurationException: the Trainer or the optimizer does not allow layer-wise rates.

    Example:
        >>> callback = TempBalance(lr_min_ratio=0.5, lr_max_ratio=1.5, analysis=FARMS())

    Reference:
        Zhou et al., Temperature Balancing, NeurIPS 2023, Equation 2; Hu et al., ICML 2025, Section 4.3.
    """

    alpha_map: LinearMap

    def __init__(
        self,
        lr_min_ratio: float = 0.5,
        lr_max_ratio: float = 1.5,
        analysis: SpectralMethod = FARMS(),
        every_n_epochs: int = 1,
        **options: Any,  # noqa: ANN401
    ) -> None:
        check_ratios(lr_min_ratio, lr_max_ratio)
        super().__init__(LinearMap(lr_min_ratio, lr_max_ratio), analysis, every_n_epochs, **options)

    @property
    def lr_min_ratio(self) -> float:
        """Multiplier at the smallest alpha."""
        return self.alpha_map.min_ratio

    @property
    def lr_max_ratio(self) -> float:
        """Multiplier at the largest alpha."""
        return self.alpha_map.max_ratio
