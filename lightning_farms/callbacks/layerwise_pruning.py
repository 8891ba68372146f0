"""Magnitude pruning during training, with a ratio for each layer from its alpha."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_farms.analysis.method import FARMS
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.analysis.selection import Selection
from lightning_farms.analysis.weights.model import layer_weights
from lightning_farms.callbacks._averages import averages
from lightning_farms.callbacks._spectral.schedule import Moment
from lightning_farms.callbacks.spectral_monitor import SpectralMonitor
from lightning_farms.common.arguments import check_share
from lightning_farms.common.lightning_packages import kinds, misconfiguration
from lightning_farms.loggers.pictures import hand_out, ratio_picture
from lightning_farms.loggers.scalars import log_scalars
from lightning_farms.loggers.sinks import sinks
from lightning_farms.pruning.allocation.base import Allocation
from lightning_farms.pruning.allocation.spectral import FARMSAllocation, SpectralAllocation
from lightning_farms.pruning.mask_state import Masks
from lightning_farms.pruning.pruner import Pruner
from lightning_farms.pruning.ratios import LayerRatios
from lightning_farms.pruning.schedule import OneShot, PruningSchedule

_AT_ONCE = OneShot()
_SPARSITY = "pruning/sparsity"
_UNLOGGED = "a step of pruning could not be logged or drawn; training goes on"


class LayerwisePruning(SpectralMonitor):
    r"""Prunes weights by magnitude during training; layers with a larger alpha (less trained) lose more.

    At each step of the schedule, the allocation turns the layers' current alphas into a ratio for each layer, such that
    exactly :math:`\lfloor S \sum p + 1/2 \rfloor` weights of all layers together are pruned. Within a layer, the
    weights of least magnitude are pruned (a complex weight counts once). Pruned weights stay pruned: if a later step
    asks for less of a layer than is pruned already, the layer stays as it is, and the others share the rest in
    proportion to their scores. A step is taken before the first batch of an epoch, so that the checkpoints and metrics
    of the previous epoch belong to the weights that it had.

    Pruned weights are plain zeros in plain parameters, whose names do not change. This makes pruning permanent, and a
    checkpoint is that of an ordinary model. After every step of any optimizer the weights are set back to zero,
    whatever momentum and weight decay did; the optimizers' state for them is cleared, and their gradients are left out
    of gradient clipping. The averages that callbacks keep (``EMAWeightAveraging`` and the like) are zero where the
    weights are. The callback's state holds the masks as bits, and a run resumes bit for bit. Under DDP, FSDP2 and
    tensor parallelism all processes have the same masks, the state is that of one process, and each process holds its
    own part of a parameter.

    Callbacks that ask for the same analysis share it: ``TBSigmoid(analysis=FARMS())`` and this one with its defaults
    make one analysis. Once there are masks, all of them see masked weights, and the closing table says so. If the
    analysis fails, all layers lose the same share at that step, with a warning; a layer without an alpha has the score
    1. As with every callback here, faults of this package in analysing, logging and drawing are reported and stop
    nothing. A fault in masking does stop the training, as the weights would not be those asked for.

    Besides the keys of :class:`SpectralMonitor`, these are logged:

    ===========================  ======================================================================================
    ``pruning/sparsity``         fraction of all layers' weights that is pruned, which other callbacks can monitor
    ``sparsity/<layer>``         that of a layer, at each step and after every epoch and analysis, to every logger
    ``pruning/ratios``           figure of the layers' (blocks') ratios, at each step
    ``farms/sparsity_map``       heat map, layers by epochs, of what was pruned when the alphas beside it were measured;
                                 ``..._labelled`` as a figure
    ===========================  ======================================================================================

    Args:
        sparsity: S, the fraction of all layers' weights that is pruned at the end of the schedule, in [0, 1). None, for
            a model that was pruned before: weights that are exactly 0 when training starts are kept at 0, and no others
            are pruned. (A layer that is all zeros is trained, as it could never learn otherwise.)
        allocation: how alphas become ratios: ``FARMSAllocation(...)`` or ``WholeMatrixAllocation(...)``, whose method
            is then that of the analysis, or an allocation that looks at no inputs (uniform, ramp, file). Blocks are
            those of a ``ModuleList`` (a transformer's) if the model has one; each layer outside it is a block of its
            own. None: ``FARMSAllocation(FARMS(), cap=(1 + sparsity) / 2)``, which leaves every layer some weights, as
            small layers of large alpha could lose all of them otherwise.
        schedule: when to prune, and how far: ``OneShot(at_epoch)`` or ``Cubic(start_epoch, end_epoch)``.
        layers: which weights are pruned; the others stay dense, and do not count. Weights that are computed from
            parameters (weight norm), and heads that are tied to embeddings, stay dense in any case. Routers of experts,
            the state matrices of state-space models and matrices that a module holds itself (a transformer's
            ``pos_embed``) count as layers here: to keep them dense, exclude them, e.g. by
            ``Selection(exclude=["*.A_log"])``. Layers that no optimizer trains (frozen ones, a teacher) are pruned
            too, with a warning unless they are chosen by ``include``.
        every_n_epochs: analyse (and log) after every n-th epoch, and at the steps of the schedule.
        **options: options of :class:`SpectralMonitor`.

    Attributes:
        ratios: ratios that the last step asked for, a :class:`~lightning_farms.pruning.LayerRatios`; None before it.
        masks: masks of the pruned weights, :class:`~lightning_farms.pruning.Masks`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range; the allocation needs the model's inputs; when the fit starts: a pattern
            of ``layers`` matches no layer, or a file of ratios does not fit the layers.
        MisconfigurationException: another callback prunes too, or the strategy is FSDP1 or DeepSpeed's (at setup).

    Example:
        >>> from lightning_farms.pruning import Cubic
        >>> callback = LayerwisePruning(0.8, schedule=Cubic(start_epoch=2, end_epoch=20))

    Reference:
        Zhu and Gupta, 2017 (arXiv 1710.01878); Lu et al., AlphaPruning, NeurIPS 2024; Hu et al., ICML 2025, Section
        4.2.
    """

    def __init__(
        self,
        sparsity: float | None = 0.7,
        allocation: Allocation | None = None,
        schedule: PruningSchedule = _AT_ONCE,
        every_n_epochs: int = 1,
        *,
        layers: Selection = Selection(),
        **options: Any,  # noqa: ANN401
    ) -> None:
        _check_sparsity(sparsity)
        if allocation is None:
            allocation = FARMSAllocation(FARMS(), cap=1.0 if sparsity is None else (1 + sparsity) / 2)
        for name, option, kind in (
            ("allocation", allocation, Allocation),
            ("schedule", schedule, PruningSchedule),
            ("layers", layers, Selection),
        ):
            if not isinstance(option, kind):
                raise TypeError(f"Expected argument `{name}` to be a {kind.__name__}, but got {option!r}.")
        _check_allocation(allocation, sparsity)
        self.sparsity = sparsity
        self.allocation = allocation
        self.schedule = schedule
        self.layers = layers
        analysis = allocation.spectral_method if isinstance(allocation, SpectralAllocation) else FARMS()
        super().__init__(analysis, every_n_epochs, **options)

    def _reset(self) -> None:
        super()._reset()
        self._ratios: LayerRatios | None = None
        self._pruner = Pruner(self.allocation, self._warn)
        self._plan: LayerRatios | None = None  # the plan of the next step
        self._planned: int | None = None  # the step that is planned
        self._pruned: int | None = None  # the last step that was taken
        self._seen = 0.0  # sparsity of the weights that were analysed last

    @property
    def ratios(self) -> LayerRatios | None:
        """The ratios that the last step asked for; None before it."""
        self._take_over()
        return self._ratios

    @property
    def masks(self) -> Masks:
        """The masks of the pruned weights."""
        self._take_over()
        return self._pruner.masks

    # ---- state -------------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the values, which take effect when the training starts; a fault stops it, as the masks are needed."""
        if state_dict:
            self._restore(state_dict)

    def _saved(self) -> dict[str, Any]:
        """The monitor's state, the masks, the last step with its ratios, and the plan of the next step if any."""
        plans = {name: None if plan is None else plan.to_json() for name, plan in self._plans().items()}
        steps = {"pruned": self._pruned, "planned": self._planned}
        return {**super()._saved(), **plans, **steps, "masks": self._pruner.masks.state_dict()}

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self._pruned, self._planned = state["pruned"], state["planned"]
        saved = {name: state[name] for name in self._plans()}
        plans = {name: None if text is None else LayerRatios.from_json(text) for name, text in saved.items()}
        self._ratios, self._plan = plans["ratios"], plans["plan"]
        self._pruner.masks.load_state_dict(state["masks"])

    def _plans(self) -> dict[str, LayerRatios | None]:
        return {"ratios": self._ratios, "plan": self._plan}

    # ---- hooks -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a strategy that flattens parameters, and a second callback that prunes."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if isinstance(trainer.strategy, kinds("strategies.FSDPStrategy")):
            raise misconfiguration(
                f"{type(self).__name__} cannot prune parameters that FSDP1 flattens. Use ModelParallelStrategy (FSDP2)."
            )
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(other, (LayerwisePruning, *kinds("callbacks.ModelPruning"))) and other is not self:
                raise misconfiguration(f"{type(self).__name__} and {type(other).__name__} would both prune. Keep one.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a pattern of ``layers`` that matches no layer."""
        super().on_fit_start(trainer, pl_module)
        next(layer_weights(pl_module, self.layers, values=False), None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply restored masks, or masks of the zeros that are there already; then analyse if that is due."""
        self._pruner.find(pl_module, self.layers)
        if not self._pruner.layers:
            lazy = any(is_lazy(parameter) for parameter in pl_module.parameters())
            remedy = " Its layers are not initialised yet: run a batch through it before the fit." if lazy else ""
            raise misconfiguration(f"{type(self).__name__} finds no weight in the model that it could prune.{remedy}")
        if self.sparsity is not None:
            self._pruner.check(self.sparsity)
        elif self._pruned is None:
            self._keep_zeros()
        if self._plan is not None and not self._is_of_these_layers(self._plan):
            self._plan = self._planned = None  # it is for other layers, as options have changed
        self._hold(trainer, pl_module)
        self._warn_of_steps_that_come_too_late(trainer, trainer.max_epochs)
        super().on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find new optimizers and parameters, and make up for a skipped analysis."""
        self._take_notice(trainer, pl_module)
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Prune if a step is due; by now, all callbacks have made their analyses."""
        if batch_idx == 0:  # the module's own hooks come after those of callbacks
            self._take_notice(trainer, pl_module)
        step = self._due_step(trainer.current_epoch)
        if step is not None:
            self._prune(trainer, pl_module, step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Set the gradients of pruned weights to zero, so that clipping, which follows, leaves them out."""
        self._pruner.masks.mask_gradients()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Analyse and log, and make sure that pruned weights are zero before a checkpoint is written."""
        self._find_again(pl_module)
        if self._pruner.masks.revived():
            self._apply(trainer, pl_module)
            self._warn(
                "revived",
                "pruned weights were not zero at the end of the epoch, and have been set to zero again: something "
                "other than an optimizer's step changes them.",
            )
        super().on_train_epoch_end(trainer, pl_module)
        pl_module.log(_SPARSITY, self._pruner.sparsity, batch_size=1, sync_dist=trainer.world_size > 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if the training ended before the schedule did, then draw the labelled figures of the whole run."""
        self._warn_of_steps_that_come_too_late(trainer, trainer.current_epoch)
        super().on_train_end(trainer, pl_module)

    # ---- for the shared analysis -------------------------------------------------------------------------------------

    def adjusted_values(self) -> dict[str, dict[str, float]]:
        """{"sparsity": {layer: fraction of its weights that is pruned}}."""
        return {"sparsity": self._pruner.by_layer()}

    def factors(self) -> dict[str, dict[str, float]]:
        """The fraction that is pruned of each of the report's weights."""
        pruned = self._pruner.by_layer()
        return {"pruned": {row.name: pruned.get(row.name, 0.0) for row in self._report or ()}}

    def remarks(self) -> list[str]:
        """Sparsity reached and asked for, sparsity when alphas were measured, and selected layers that stay dense."""
        size = sum(layer.size for layer in self._pruner.layers)
        asked = "" if self._ratios is None else f", {self._ratios.sparsity:.2%} asked for at the last step"
        lines = [
            f"pruned: {sum(self._pruner.zeros.values()):,} of {size:,} weights ({self._pruner.sparsity:.2%}{asked})",
            f"when the last alphas were measured, {self._seen:.2%} of the weights were pruned",
        ]
        return lines + [f"{name} stays dense: {reason}" for name, reason in self._pruner.dense.items()]

    # ---- stages ------------------------------------------------------------------------------------------------------

    def _due_step(self, epochs: int) -> int | None:
        """The last step that is due after so many complete epochs; None if it has been taken or there is none."""
        step = None if self.sparsity is None else self.schedule.last_step(epochs)
        return step if step is not None and (self._pruned is None or self._pruned < step) else None

    def is_due(self, now: Moment) -> bool:
        """Whether an analysis has become due, or a pruning step that needs one."""
        step = self._due_step(now.epochs)
        return super().is_due(now) or (step is not None and self._planned != step)

    def _on_report(self, trainer: Trainer, report: SpectralReport) -> dict[str, dict[str, float]]:
        """Plan the step that is due after the analysis; the history keeps the sparsities during the analysis."""
        assert self._analysed is not None
        self._seen = self._pruner.sparsity
        step = self._due_step(self._analysed.epochs)
        if step is not None and self.sparsity is not None:
            asked = self.schedule.sparsity_at(step, self.sparsity)
            self._plan, self._planned = self._pruner.plan(report.alphas, asked), step
        return {"sparsity": self._pruner.by_layer()}

    def _release(self) -> None:
        self._pruner.release()

    def _prune(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        assert self.sparsity is not None
        plan = self._plan if self._planned == step else None
        if plan is None or not self._is_of_these_layers(plan):
            alphas = None if plan is None or self._report is None else self._report.alphas
            plan = self._pruner.plan(alphas, self.schedule.sparsity_at(step, self.sparsity))
        self._pruner.fits(pl_module)  # this also reshards what FSDP2 has gathered
        self._pruner.prune(plan)
        self._apply(trainer, pl_module)
        self._ratios, self._pruned, self._plan, self._planned = plan, step, None, None
        trainer.callback_metrics[_SPARSITY] = torch.tensor(self._pruner.sparsity, device="cpu")
        with self._faults.contained(_UNLOGGED):
            self._log_step(trainer, plan)

    def _is_of_these_layers(self, plan: LayerRatios) -> bool:
        return {row.name for row in plan} == set(self._pruner.zeros)

    def _apply(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set pruned weights to zero, also in the averages that other callbacks keep."""
        self._pruner.masks.apply()
        for average in averages(trainer, pl_module, self._pruner.keys()):
            self._pruner.masks.apply_to(average)

    def _take_notice(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._find_again(pl_module)
        self._hold(trainer, pl_module)

    def _find_again(self, pl_module: LightningModule) -> None:
        if not self._pruner.fits(pl_module):
            self._pruner.find(pl_module, self.layers)

    def _hold(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pruner.hold(trainer.optimizers)
        self._apply(trainer, pl_module)

    def _keep_zeros(self) -> None:
        self._pruner.keep_zeros()
        self._pruned = 0
        if not len(self._pruner.masks):
            self._warn("none", "no weight is zero, so that none is held at zero. Load the pruned model before the fit.")

    def _log_step(self, trainer: Trainer, plan: LayerRatios) -> None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # step of the first batch with these masks
        by_layer = {f"sparsity/{layer}": value for layer, value in self._pruner.by_layer().items()}
        self._faults.say(_UNLOGGED, *log_scalars(trainer, {_SPARSITY: self._pruner.sparsity, **by_layer}, step))
        blocks = self.allocation.granularity == "block"
        shown = plan.by_block() if blocks else {row.name: row.reached for row in plan}
        title = f"Sparsity by {'block' if blocks else 'layer'}, epoch {trainer.current_epoch}"
        picture = ratio_picture("pruning/ratios", plan.allocation, shown, plan.sparsity, title)
        self._faults.say(_UNLOGGED, *hand_out([picture], sinks(trainer), step))

    def _warn_of_steps_that_come_too_late(self, trainer: Trainer, epochs: int | None) -> None:
        last = self.schedule.steps[-1]
        if self.sparsity is None or trainer.fast_dev_run or epochs is None or not -1 < epochs <= last:  # type: ignore[attr-defined]
            return
        reached = self.schedule.sparsity_at(epochs - 1, self.sparsity)
        self._warn(
            "late",
            f"the last step of the schedule is due before epoch {last}, but only {epochs} epochs are trained, so that "
            f"{reached:.2%} of the weights are pruned at the end, not {self.sparsity:.2%}. Train longer, or end the "
            "schedule earlier.",
        )

    def _warn(self, what: str, message: str) -> None:
        self._warn_once(what, f"{type(self).__name__}: {message}")


def _check_sparsity(sparsity: float | None) -> None:
    if sparsity is None:
        return
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)):
        raise TypeError(f"Expected argument `sparsity` to be a number or None, but got {sparsity!r}.")
    check_share(sparsity=sparsity)


def _check_allocation(allocation: Allocation, sparsity: float | None) -> None:
    if allocation.needs_calibration:
        raise ValueError(
            f"Expected argument `allocation` to need no calibration text, but got {type(allocation).__name__}, which "
            "looks at the inputs of layers."
        )
    if sparsity is not None and not allocation.floor <= sparsity <= allocation.cap:
        raise ValueError(
            f"Expected argument `sparsity` to be in [floor, cap] of `allocation`, [{allocation.floor}, "
            f"{allocation.cap}], but got {sparsity}."
        )
