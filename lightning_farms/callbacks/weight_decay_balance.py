"""AlphaDecay: weight decay linear in alpha."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_farms.analysis.method import FARMS, SpectralMethod
from lightning_farms.balancing.alpha_map import AlphaMap, LinearMap
from lightning_farms.balancing.hyperparameter import WEIGHT_DECAY
from lightning_farms.callbacks._guard import guarded_at_start
from lightning_farms.callbacks._layerwise_balance import LayerwiseBalance


class WeightDecayBalance(LayerwiseBalance):
    r"""Gives layers with a larger alpha (less trained) a larger weight decay: AlphaDecay.

    .. math:: \lambda_l(t) = \lambda(t) \left[ \frac{\alpha_l - \min \alpha}{\max \alpha - \min \alpha} (s_2 - s_1) +
              s_1 \right]

    The multipliers are computed before the first step and after every ``every_n_epochs``-th epoch. For how they are
    applied see :class:`~lightning_farms.callbacks._layerwise_balance.LayerwiseBalance`. Groups without weight decay
    stay without it. One callback that adjusts learning rates may be used beside this one. Besides the keys of
    :class:`SpectralMonitor`, these are logged:

    ================================  =================================================================================
    ``layer_wd/<Optimizer>/<layer>``  weight decay that the next update uses for the layer, after every epoch and
                                      analysis, to every logger
    ``farms/weight_decay_map``        heat map of these values, layers by epochs; ``..._labelled`` as a figure
    ================================  =================================================================================

    Args:
        alpha_map: the map from alphas to multipliers; ``None`` for the published one, ``LinearMap(2 / 3, 3)``.
        analysis: method of analysis: ``FARMS(...)`` or ``WholeMatrix(...)`` (the original AlphaDecay).
        every_n_epochs: analyse after every n-th epoch (and before the first step).
        **options: ``control`` and the options of :class:`SpectralMonitor` (published: ``every_n_steps=500``).

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.
        MisconfigurationException: the Trainer or the optimizer does not allow a weight decay by layer, or there is no
            optimizer.

    Example:
        >>> from lightning_farms.callbacks import LinearMap
        >>> callback = WeightDecayBalance(LinearMap(0.5, 1.5), every_n_steps=500)

    Reference:
        He et al., AlphaDecay, NeurIPS 2025 (arXiv 2506.14562).
    """

    _adjusts = WEIGHT_DECAY

    def __init__(
        self,
        alpha_map: AlphaMap | None = None,
        analysis: SpectralMethod = FARMS(),
        every_n_epochs: int = 1,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(LinearMap(2 / 3, 3.0) if alpha_map is None else alpha_map, analysis, every_n_epochs, **options)
        if self.control.compensate_weight_decay:
            raise ValueError(
                "Expected argument `control.compensate_weight_decay` to be False where the weight decay itself is "
                "balanced, but got True."
            )

    @guarded_at_start
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook the optimizers; warn if they have no weight decay to balance."""
        super().on_fit_start(trainer, pl_module)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if not any(float(group["weight_decay"]) for group in groups):
            self._warn_once(
                "zero",
                f"{type(self).__name__}: the weight decay of every parameter group is 0, and stays 0 however it is "
                "balanced. Give the optimizer a `weight_decay`, or use SpectralMonitor.",
            )
