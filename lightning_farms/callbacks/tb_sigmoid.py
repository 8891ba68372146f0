"""TB_Sigmoid: learning rates that saturate away from the mean alpha."""

from __future__ import annotations

from lightning_farms.analysis import FARMS, WORKSPACE, Diagnostics, Selection, SpectralMethod
from lightning_farms.balancing.alpha_map import SigmoidMap
from lightning_farms.balancing.control import Control
from lightning_farms.callbacks.layerwise_learning_rate import LayerwiseLearningRate


class TBSigmoid(LayerwiseLearningRate):
    r"""Gives layers of larger alpha (less trained) a larger learning rate, at most a fixed power of ten away.

    .. math:: \eta_l(t) = \eta(t) \, 10^{\varphi_l}, \quad \varphi_l = s \left( \frac{1}{1 + e^{-\tau (\alpha_l -
              \bar\alpha)}} - \frac12 \right), \quad s = s_{high} \text{ where } \alpha_l > \bar\alpha
              \text{ else } s_{low}

    The multipliers are computed before the first step and after every ``every_n_epochs``-th epoch. Everything that
    :class:`LayerwiseLearningRate` and :class:`SpectralMonitor` log is logged (see there for the keys).

    Args:
        s_low: strength below the mean, not negative: multipliers stay above 10^(-s_low / 2).
        s_high: strength above the mean, not negative: multipliers stay below 10^(s_high / 2).
        tau: steepness per unit of alpha, positive.
        analysis: how to analyse: ``FARMS(...)`` or ``WholeMatrix(...)`` (the original TB_Sigmoid).
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
        super().__init__(
            SigmoidMap(s_low, s_high, tau),
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
