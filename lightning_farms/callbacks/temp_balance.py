"""TempBalance: learning rates linear in alpha."""

from __future__ import annotations

from lightning_farms.analysis import FARMS, WORKSPACE, Diagnostics, Selection, SpectralMethod
from lightning_farms.balancing.alpha_map import LinearMap
from lightning_farms.balancing.control import Control
from lightning_farms.callbacks.layerwise_learning_rate import LayerwiseLearningRate
from lightning_farms.functional.layerwise import check_ratios


class TempBalance(LayerwiseLearningRate):
    r"""Gives layers of larger alpha (less trained) a larger learning rate, linearly between two ratios.

    .. math:: \eta_l(t) = \eta(t) \left[ \frac{\alpha_l - \min \alpha}{\max \alpha - \min \alpha} (s_2 - s_1) + s_1
              \right]

    The multipliers are computed before the first step and after every ``every_n_epochs``-th epoch. Everything that
    :class:`LayerwiseLearningRate` and :class:`SpectralMonitor` log is logged (see there for the keys).

    Args:
        lr_min_ratio: s1, the multiplier of the smallest alpha, positive.
        lr_max_ratio: s2, the multiplier of the largest alpha, at least s1.
        analysis: how to analyse: ``FARMS(...)`` or ``WholeMatrix(...)`` (the original TempBalance).
        every_n_epochs: analyse after every n-th epoch (and before the first step).
        every_n_steps: analyse after every n-th optimizer step instead (and before the first).
        start_epoch: number of epochs with the base rates before the first analysis.
        control: what steadies and bounds the multipliers, and which layers have one.
        selection: which weights to analyse; the others keep the base rate.
        diagnostics: error bars, goodness of fit and random baselines.
        workspace: bytes for the analysis, at least 1.
        overlap: analyse a copy of the weights in a thread of its own while the epoch's last validation runs; as in
            :class:`SpectralMonitor`.
        figures_every_n_epochs: write labelled figures every n epochs and at the end of training; 0: at the end only.
        esd_layers: number of layers, evenly spread over depth, whose ESD is drawn.
        summary: whether to print a table of all layers at the end of training.

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
        check_ratios(lr_min_ratio, lr_max_ratio)
        super().__init__(
            LinearMap(lr_min_ratio, lr_max_ratio),
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

    @property
    def lr_min_ratio(self) -> float:
        """Multiplier of the smallest alpha."""
        return self.alpha_map.min_ratio

    @property
    def lr_max_ratio(self) -> float:
        """Multiplier of the largest alpha."""
        return self.alpha_map.max_ratio
