"""AlphaDecay: weight decay linear in alpha."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from lightning_farms.analysis import FARMS, WORKSPACE, Diagnostics, Selection, SpectralMethod
from lightning_farms.balancing.alpha_map import AlphaMap, LinearMap
from lightning_farms.balancing.control import Control
from lightning_farms.balancing.hyperparameter import WEIGHT_DECAY
from lightning_farms.callbacks._layerwise_balance import LayerwiseBalance


class WeightDecayBalance(LayerwiseBalance):
    r"""Gives layers of larger alpha (less trained) a larger weight decay: AlphaDecay.

    .. math:: \lambda_l(t) = \lambda(t) \left[ \frac{\alpha_l - \min \alpha}{\max \alpha - \min \alpha} (s_2 - s_1) +
              s_1 \right]

    The multipliers are computed before the first step and after every ``every_n_epochs``-th epoch. For how they are
    applied see :class:`~lightning_farms.callbacks._layerwise_balance.LayerwiseBalance`: groups without weight decay
    stay without. It goes together with one callback that adjusts learning rates. Beside the keys of
    :class:`SpectralMonitor` there are:

    =============================  ====================================================================================
    ``wd-<Optimizer>/<layer>``     weight decay that the next update uses for the layer, after every epoch and
                                   analysis, to every logger
    ``farms/weight_decay_map``     heat map of these values, layers by epochs; ``..._labelled`` as a figure
    =============================  ====================================================================================

    Args:
        alpha_map: from alphas to multipliers; ``None`` for the published one, ``LinearMap(2 / 3, 3)``.
        analysis: how to analyse: ``FARMS(...)`` or ``WholeMatrix(...)`` (the original AlphaDecay).
        every_n_epochs: analyse after every n-th epoch (and before the first step).
        every_n_steps: analyse after every n-th optimizer step instead (and before the first; published: 500).
        start_epoch: number of epochs with the base weight decay before the first analysis.
        control: what steadies and bounds the multipliers, and which layers have one.
        selection: which weights to analyse; the others keep the base weight decay.
        diagnostics: error bars, goodness of fit and random baselines.
        workspace: bytes for the analysis, at least 1.
        overlap: analyse a copy of the weights in a thread of its own while the epoch's last validation runs; as in
            :class:`SpectralMonitor`.
        figures_every_n_epochs: write labelled figures every n epochs and at the end of training; 0: at the end only.
        esd_layers: number of layers, evenly spread over depth, whose ESD is drawn.
        summary: whether to print a table of all layers at the end of training.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.
        MisconfigurationException: the Trainer or the optimizer does not allow a weight decay by layer.

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
        *,
        every_n_steps: int | None = None,
        start_epoch: int = 0,
        control: Control = Control(),
        selection: Selection = Selection(),
        diagnostics: Diagnostics = Diagnostics(),
        workspace: int = WORKSPACE,
        overlap: bool = False,
        figures_every_n_epochs: int = 10,
        esd_layers: int = 4,
        summary: bool = True,
    ) -> None:
        if isinstance(control, Control) and control.compensate_weight_decay:
            raise ValueError(
                "Expected argument `control.compensate_weight_decay` to be False where the weight decay itself is "
                "balanced, but got True."
            )
        super().__init__(
            LinearMap(2 / 3, 3.0) if alpha_map is None else alpha_map,
            analysis,
            every_n_epochs,
            every_n_steps=every_n_steps,
            start_epoch=start_epoch,
            control=control,
            selection=selection,
            diagnostics=diagnostics,
            workspace=workspace,
            overlap=overlap,
            figures_every_n_epochs=figures_every_n_epochs,
            esd_layers=esd_layers,
            summary=summary,
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook the optimizers; warn where they have no weight decay to balance."""
        super().on_fit_start(trainer, pl_module)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if not any(float(group["weight_decay"]) for group in groups):
            self._warn_once(
                "zero",
                f"{type(self).__name__}: the weight decay of every parameter group is 0, and stays 0 however it is "
                "balanced. Give the optimizer a `weight_decay`, or use SpectralMonitor.",
            )
