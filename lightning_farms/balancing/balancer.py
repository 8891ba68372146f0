"""Layer-wise hyperparameters from the weights' spectra, in any training loop."""

from __future__ import annotations

import math
from collections import ChainMap, Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_farms.analysis.diagnostics import Diagnostics
from lightning_farms.analysis.engine import WORKSPACE, analyze
from lightning_farms.analysis.history import LayerHistory
from lightning_farms.analysis.known_layers import KnownLayers
from lightning_farms.analysis.method import FARMS, SpectralMethod
from lightning_farms.analysis.ranks import FailedOnRankError, Ranks, together
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.analysis.selection import Selection
from lightning_farms.analysis.weights.fsdp_shards import whole_shapes_of_shards
from lightning_farms.balancing._course import Course
from lightning_farms.balancing._distributed import all_ranks
from lightning_farms.balancing._models import all_of, check_kinds, check_whole, held_by, original_module, shown_by
from lightning_farms.balancing._scaling_watch import ScalingWatch
from lightning_farms.balancing._trained import MeanMultiplier, mean_multiplier, signals_of, trained_sizes
from lightning_farms.balancing._writing import finite_scalars, write
from lightning_farms.balancing.alpha_map import AlphaMap
from lightning_farms.balancing.control import Control
from lightning_farms.balancing.hyperparameter import HYPERPARAMETERS, touched
from lightning_farms.balancing.structure import Structure, has_structure, structure
from lightning_farms.balancing.warnings import contained_fault, warnings_of_control, warnings_of_weights
from lightning_farms.common.warning import WarnOnce
from lightning_farms.functional.eigensolvers import Where, check_where
from lightning_farms.optim.scaling import LayerwiseScaling
from lightning_farms.optim.support import check_decoupled_weight_decay
from lightning_farms.optim.unwrap import updating_optimizer

_PRODUCT = "low-rank product"


class Balancer:
    r"""Gives every layer l of a model a hyperparameter :math:`h_l(t) = h(t) \, m(\alpha_l)`, in any training loop.

    :math:`h(t)` is the value in the optimizer's group, set by any scheduler; it stays there, and the multiplier is
    applied only while the optimizer steps (:class:`lightning_farms.optim.LayerwiseScaling`). Bias and norm parameters
    follow the layer to which they belong, unless ``control`` says otherwise. Multipliers are computed over the layers
    whose weight an optimizer trains; a layer that is unfrozen gets its multiplier from its last known alpha at once.
    Weights stored in one parameter share one multiplier, by the mean of their alphas. A layer whose alpha is not finite
    has the multiplier 1 and does not influence those of other layers.

    Wrapped models and optimizers (Fabric, Accelerate, DDP, ``torch.compile``; Lookahead and the like) are unwrapped.
    If several processes train, each has to make the same calls: :meth:`update` shares the work among them.
    The first updates are watched: if they do not use the values asked for, a warning is given once, ``fault`` says why,
    and the optimizer goes on with its base values. If an analysis fails, it is skipped, with one warning.

    Args:
        model: the model.
        optimizer: the optimizer that trains it, or several.
        alpha_map: map from alphas to multipliers: ``LinearMap(...)`` (TempBalance), ``SigmoidMap(...)`` (TB_Sigmoid),
            ``SqrtMap()``, ``Log2Map()``, ``StepMap(...)`` or your own.
        analysis: method of analysis: ``FARMS(...)`` or ``WholeMatrix(...)``.
        control: smoothing and bounds of the multipliers, and the choice of layers that have one.
        selection: the weights to analyse.
        diagnostics: error bars, goodness of fit and random baselines.
        key: the hyperparameter to adjust: ``"lr"`` or ``"weight_decay"``.
        workspace: bytes for the analysis, at least 1.
        where: where weights on a device are decomposed, as in :func:`lightning_farms.analyze`.
        warn: called with (kind of warning, message) instead of ``warnings.warn``, which is called once per kind.

    Attributes:
        multipliers: {layer: multiplier} that the next update uses; empty before the first analysis.
        report: the last :class:`~lightning_farms.analysis.SpectralReport`; None before the first.
        history: alphas and values at all analyses by :meth:`update`.

    Raises:
        TypeError: an argument is of the wrong kind; when hooked: an optimizer cannot take layer-wise values, or layers
            cannot be told apart in flat parameters (FSDP1 with ``use_orig_params=False``, DeepSpeed).
        ValueError: ``key``, ``workspace`` or ``where`` is out of range; when hooked: the groups lack the
            hyperparameter, or a pattern matches no layer.

    Example:
        >>> import torch
        >>> from lightning_farms import Balancer, LinearMap
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32))
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        >>> with Balancer(model, optimizer, LinearMap(0.5, 1.5)) as balancer:
        ...     for epoch in range(2):
        ...         report = balancer.update()
        ...         for _ in range(3):
        ...             optimizer.zero_grad()
        ...             model(torch.randn(8, 64)).square().mean().backward()
        ...             optimizer.step()
        >>> sorted(balancer.multipliers.values())
        [0.5, 1.5]

    Reference:
        Zhou et al., Temperature Balancing, NeurIPS 2023; Liu et al., Model Balancing, EMNLP Findings 2024; He et al.,
        AlphaDecay, NeurIPS 2025; Hu et al., ICML 2025.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        alpha_map: AlphaMap,
        *,
        analysis: SpectralMethod = FARMS(),
        control: Control = Control(),
        selection: Selection = Selection(),
        diagnostics: Diagnostics = Diagnostics(),
        key: str = "lr",
        workspace: int = WORKSPACE,
        where: Where = "auto",
        warn: Callable[[str, str], None] | None = None,
    ) -> None:
        check_kinds(
            alpha_map=(alpha_map, AlphaMap),
            analysis=(analysis, SpectralMethod),
            control=(control, Control),
            selection=(selection, Selection),
            diagnostics=(diagnostics, Diagnostics),
        )
        if key not in HYPERPARAMETERS:
            raise ValueError(f"Expected argument `key` to be one of {tuple(HYPERPARAMETERS)}, but got {key!r}.")
        check_where(where)
        if workspace < 1:
            raise ValueError(f"Expected argument `workspace` to be at least 1, but got {workspace}.")
        self.model, self._wrapped = original_module(model), model  # FSDP1 is found in the wrapped model
        self.optimizers = all_of(optimizer)
        self.alpha_map, self.analysis, self.control, self.selection = alpha_map, analysis, control, selection
        self.diagnostics = control.completed(diagnostics)
        self.adjusts = HYPERPARAMETERS[key]
        self.workspace, self.where = workspace, where
        self.multipliers: dict[str, float] = {}
        self.report: SpectralReport | None = None
        self.history = LayerHistory()
        self.scalings: list[LayerwiseScaling] = []
        self._warn = warn or WarnOnce()
        self._course = Course(alpha_map, control)
        self._structure = Structure({}, {}, set(), {})
        self._layers: dict[str, str] = {}  # layer to which each of the report's weights belongs
        self._hooked: list[tuple[int, bool]] = []  # the optimizers and parameters for which the hooks were made
        self._shown: list[tuple[str, int]] | None = None  # the model's parameters then; None if FSDP1 replaces them
        self._own_values: list[dict[str, Any]] = []  # states of scalings, until these exist
        self._watch = ScalingWatch(())
        self._steps_before = self._ahead = 0  # steps of earlier hooks; how far an adapter's count is ahead of `steps`
        self._known = KnownLayers()
        self._handles: list[RemovableHandle] = []  # handles of hooks that follow the steps of a plain loop

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_handles": bool(self._handles)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, _handles=[])
        if state["_handles"]:
            self.attach()  # this is a copy, and the copies of its optimizers have no hooks

    def __repr__(self) -> str:
        names = ", ".join(type(optimizer).__name__ for optimizer in self.optimizers)
        return f"Balancer({self.adjusts.name} of {names} by {self.alpha_map!r}, {len(self.multipliers)} layers)"

    # ---- in a plain loop ---------------------------------------------------------------------------------------------

    def update(self) -> SpectralReport | None:
        """Analyse the weights now and set the multipliers of the next updates; hooks the optimizers if necessary.

        Returns:
            The report; if the analysis fails, a warning is given, multipliers stay, and the last report is returned.

        Raises:
            TypeError: as in :meth:`attach`.
            ValueError: as in :meth:`attach`; or ``alpha_map`` fails at the first analysis.
        """
        try:
            ranks = all_ranks(self.model)
            together(self._make_ready, ranks)
            report = self._analysed(ranks)
            if report is None:
                return self.report
            with contained_fault(self._warn, "log", "whether weights are finite is not known"):  # else other ranks wait
                for what, message in warnings_of_weights(report).items():
                    self._warn(what, message)
            values = self.receive(report, self.steps)
            self.history.append(len(self.history.epochs), {"alpha": report.alphas, **values}, step=self.steps)
        except Exception as error:
            if self.report is None or isinstance(error, (TypeError, ValueError, Warning)):
                raise
            self._warn("step", f"an analysis could not be used. {type(error).__name__}: {error}")
        return self.report

    def _make_ready(self) -> None:
        if not self.scalings or not self.fits(self.optimizers):
            self.attach()
        self.prove(self.steps, moves=1)

    def _analysed(self, ranks: Ranks | None) -> SpectralReport | None:
        """The report, on all processes or on none."""
        said = contained_fault(self._warn, "analysis", "The analysis failed and was skipped")
        with said, suppress(FailedOnRankError):
            return together(partial(self._analyse, ranks), ranks)
        return None

    def _analyse(self, ranks: Ranks | None) -> SpectralReport:
        with whole_shapes_of_shards(self._wrapped):
            return analyze(
                self.model,
                self.analysis,
                selection=self.selection,
                diagnostics=self.diagnostics,
                workspace=self.workspace,
                where=self.where,
                known=self._known,
                ranks=ranks,
            )

    def attach(self) -> None:
        """Hook the optimizers; multipliers that were loaded or computed before take effect again.

        Raises:
            TypeError: an optimizer cannot take layer-wise values.
            ValueError: its groups lack the hyperparameter, it trains none of the model's parameters, or a pattern
                matches no layer.
            RuntimeError: another balancer adjusts the same hyperparameter of an optimizer.
        """
        check_whole(self.model, self.optimizers)
        with whole_shapes_of_shards(self._wrapped) as original, ExitStack() as undo:
            undo.callback(self.detach)
            self.hook(self.optimizers, original)
            self.apply(self.steps)
            self._handles = [scaling.optimizer.register_step_post_hook(self._after_step) for scaling in self._rates()]
            undo.pop_all()

    def detach(self) -> None:
        """Remove the hooks and leave the optimizers as they were; multipliers, report and history stay."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self.scalings:
            self._own_values = [scaling.state_dict() for scaling in self.scalings]
        self._steps_before = self.steps
        for scaling in reversed(self.scalings):
            scaling.detach()
        self.scalings = []

    def __enter__(self) -> Balancer:
        self.attach()
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    @property
    def steps(self) -> int:
        """Number of updates of all optimizers so far."""
        return self._steps_before + sum(scaling.steps for scaling in self._rates())

    def _after_step(self, *_: object) -> None:
        with contained_fault(self._warn, "step", "the multipliers stay as they were"):  # our errors end no user's step
            self.prove(self.steps)
            if self.on_its_way():
                self.apply(self.steps)

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, in plain types and tensors, which load with ``weights_only=True``."""
        own = [scaling.state_dict() for scaling in self.scalings] if self.scalings else self._own_values
        return {**self._course.state_dict(), "own": own, "steps": self.steps, "history": self.history.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state; it takes effect with the next :meth:`attach`, :meth:`update` or :meth:`apply`."""
        self._course.load_state_dict(state_dict)
        self._own_values = list(state_dict.get("own", []))
        self._load_own_values()
        self._steps_before = state_dict.get("steps", 0) - sum(scaling.steps for scaling in self._rates())
        self.history = LayerHistory.from_state_dict(state_dict.get("history", LayerHistory().state_dict()))
        self.multipliers = self._course.at(state_dict.get("steps", 0))
        if self._handles:
            self.apply(self.steps)

    def _load_own_values(self) -> None:
        if len(self._own_values) == len(self.scalings):
            for scaling, own in zip(self.scalings, self._own_values, strict=True):
                scaling.load_state_dict(own)

    # ---- hooks on the optimizers -------------------------------------------------------------------------------------

    def hook(self, optimizers: Sequence[Optimizer], original: Mapping[Tensor, Tensor] | None = None) -> None:
        """Hook optimizers, replacing those hooked before; for adapters, which call :meth:`apply` themselves.

        Args:
            optimizers: all optimizers.
            original: {tensor in the model: parameter that an optimizer holds}, if they differ (FSDP1).

        Raises:
            TypeError: an optimizer cannot take layer-wise values.
            ValueError: its groups lack the hyperparameter, or a pattern matches no layer.
        """
        found = structure(self.model, self.selection, self.control, original)
        former = {(scaling.optimizer, scaling.key): scaling for scaling in self.scalings}
        self.detach()
        self.optimizers = list(optimizers)
        self._structure, self._layers = found, found.layers
        self.scalings = [scaling for optimizer in optimizers for scaling in self._scalings_of(optimizer)]
        for scaling in self.scalings:
            scaling.attach()
            scaling.on_trained_change = self._join
            known = former.get((scaling.optimizer, scaling.key))
            if known is not None:
                scaling.remember(known)
        if not former:
            self._load_own_values()
        self._hooked, self._shown = held_by(optimizers), None if original else shown_by(self.model)
        self._watch = ScalingWatch(self.scalings, fingerprints=not original)

    def fits(self, optimizers: Sequence[Optimizer]) -> bool:
        """Whether the hooks were made for these optimizers, the parameters they hold now, and the model's layers."""
        same = self._hooked == held_by(optimizers)
        unmoved = same and self._shown in (None, shown_by(self.model))
        return unmoved or (same and not has_structure(self.model, self.selection, self.control))  # present hooks stay

    def _scalings_of(self, optimizer: Optimizer) -> list[LayerwiseScaling]:
        inner = updating_optimizer(optimizer)
        if self.control.compensate_weight_decay:
            check_decoupled_weight_decay(inner)
        others = touched(self.adjusts, compensated=self.control.compensate_weight_decay) - {self.adjusts}
        keys = [self.adjusts.key, *(other.key for other in others)]
        return [LayerwiseScaling(inner, self._structure.layer_of, key=key) for key in keys]

    def _rates(self) -> list[LayerwiseScaling]:
        """The scalings of the adjusted hyperparameter, one per optimizer, without those that compensate."""
        return [scaling for scaling in self.scalings if scaling.key == self.adjusts.key]

    # ---- proof -------------------------------------------------------------------------------------------------------

    @property
    def fault(self) -> str | None:
        """Why an optimizer's updates do not use the values asked for; None if no such fault was found."""
        faults = [f"{type(rate.optimizer).__name__}: {rate.fault}" for rate in self._rates() if rate.fault]
        return "; ".join(faults) or None

    def prove(self, step: int, *, moves: int | None = None) -> None:
        """Warn once of faults that the updates so far have revealed, and take them into account; nearly free of cost.

        Args:
            step: number of optimizer steps taken so far.
            moves: number of looks in which weights must have changed without a step having been seen to count as a
                fault, since the first change may be the user's doing; None: do not look.
        """
        if moves is not None:
            self._watch.look(moves=moves)
        news = self._watch.news()
        for scaling in news:
            name = type(scaling.optimizer).__name__
            self._warn(
                "force",
                f"the layer-wise {self.adjusts.name} is not in force: {name}: {scaling.fault}. "
                f"{name} goes on with its base values.",
            )
        if news and self._course.target:
            self._course.aim(self._sizes(), step)
            self.apply(step)

    # ---- from a report to multipliers --------------------------------------------------------------------------------

    def receive(self, report: SpectralReport, step: int) -> dict[str, dict[str, float]]:
        """Aim at the multipliers that a report asks for; if several processes train, all do so or none.

        Args:
            report: report on the model's weights.
            step: number of optimizer steps taken so far.

        Returns:
            {quantity: {layer: value that the next update uses}}, for a history.

        Raises:
            ValueError: the map fails, and there are no earlier multipliers.
        """
        self.report = report
        before = self._course.state_dict()
        try:
            together(partial(self._go, report, step, self._course.aim), all_ranks(self.model))
        except Exception as error:  # perhaps from a user's own map
            self._course.load_state_dict(before)
            if not self._course.target:
                self.apply(step)
                raise
            self._warn("map", f"the multipliers stay as they were. {error}")
            self._go(report, step, self._course.stay)
        if self.fault is None and self._has_begun(report, step):
            signals = {layer: self._course.current[layer] for layer in self._course.target}
            told = warnings_of_control(signals, self._course.target, self.adjusts.name, self.control.signal, report)
            for what, message in told.items():
                self._warn(what, message)
        return {self.adjusts.quantity: self.effective()}

    def _go(self, report: SpectralReport, step: int, way: Callable[[dict[str, int], int], None]) -> None:
        self._course.observe(signals_of(report, self._structure, self.control.signal))
        way(self._sizes(), step)
        self.apply(step)

    def apply(self, step: int) -> None:
        """Put the multipliers of the update that follows ``step`` others in force."""
        self.multipliers, self._ahead = self._course.at(step), step - self.steps
        for scaling in self.scalings:
            known, compensates = scaling.multipliers, scaling.key != self.adjusts.key
            scaling.multipliers = {k: 1 / m if compensates else m for k, m in self.multipliers.items() if k in known}

    def on_its_way(self) -> bool:
        """Whether the multipliers in force are not yet those of the last report."""
        return self.multipliers != self._course.target

    def _join(self) -> None:
        """Before a step, give newly trained layers the multiplier of their last known signal."""
        with contained_fault(self._warn, "map", "the multipliers stay as they were"):
            sizes = self._sizes()
            if self._course.target and not sizes.keys() <= self._course.target.keys():
                step = self.steps + self._ahead
                self._course.join(sizes, step)
                self.apply(step)

    def _sizes(self) -> dict[str, int]:
        """{layer: number of its trained parameters}, for layers with a known signal and layer-wise values in force."""
        in_force = [rate for rate in self._rates() if rate.fault is None]
        return trained_sizes(self._structure, in_force, self._course.current)

    def _has_begun(self, report: SpectralReport, step: int) -> bool:
        """Whether equal multipliers are worth a warning: at first LoRA's products are zero, and nothing has changed."""
        products = (row for row in report if row.name in self._layers and row.kind == _PRODUCT)
        at_start = any(row.spectral_norm == 0 for row in products) or self.control.signal == "change"
        return step > 0 or not at_start

    # ---- results to show ---------------------------------------------------------------------------------------------

    def values(self) -> dict[str, dict[str, float]]:
        """{"layer_lr/<Optimizer>": {layer: rate}} for layers with an analysed weight; ``-1`` at a second optimizer."""
        names: Counter[str] = Counter()
        values: dict[str, dict[str, float]] = {}
        for rate in self._rates():
            name = f"{self.adjusts.log_prefix}/{type(rate.optimizer).__name__}"
            names[name] += 1
            values[name if names[name] == 1 else f"{name}-{names[name] - 1}"] = rate.effective()
        return values

    def effective(self) -> dict[str, float]:
        """{layer: value that the next update uses}."""
        return dict(ChainMap(*reversed(self.values().values())))

    def factors(self) -> dict[str, float]:
        """{weight of the report: its layer's multiplier}; NaN if an optimizer does not use it."""
        if self.fault is None:
            return {name: self.multipliers[layer] for name, layer in self._layers.items() if layer in self.multipliers}
        return {name: self.multipliers.get(layer, math.nan) for name, layer in self._layers.items()}

    def balanced(self) -> set[str]:
        """Weights of the report whose layers' signals determine the multipliers."""
        current = self._course.current
        finite = {layer for layer in self._course.target if math.isfinite(current.get(layer, math.nan))}
        return {n for n, layer in self._layers.items() if layer in finite and n not in self._structure.unbalanced}

    def _mean(self) -> MeanMultiplier:
        balanced = {self._layers[name] for name in self.balanced()}
        return mean_multiplier(self._structure, self._rates(), self.multipliers, balanced)

    def means(self) -> dict[str, float]:
        """{"learning_rate_multiplier_mean": mean multiplier of the balanced layers, weighted by parameters}."""
        return {f"{self.adjusts.quantity}_multiplier_mean": self._mean().balanced} if self.multipliers else {}

    def remarks(self) -> list[str]:
        """Lines below a closing table: the mean multiplier, and any values that are not in force."""
        lines = [] if self.fault is None else [f"{self.adjusts.name}s not in force: {self.fault}"]
        if self.multipliers:
            lines.append(self._mean().remark(self.adjusts.factor))
        return lines

    def scalars(self) -> dict[str, float]:
        """All finite numbers that the callbacks log, under their keys, e.g. for ``fabric.log_dict``."""
        values = {f"{prefix}/{layer}": v for prefix, of in self.values().items() for layer, v in of.items()}
        return finite_scalars(self.analysis.label, self.report or SpectralReport([]), self.means(), values)

    def log(self, writer: Any, step: int) -> None:  # noqa: ANN401 - a SummaryWriter, or an object with its methods
        """Write :meth:`scalars`, a histogram of alpha, and any reason why values are not in force; failures only warn.

        Args:
            writer: a TensorBoard ``SummaryWriter``, or anything with ``add_scalar`` (``add_histogram``, ``add_text``).
            step: position on the time axis.
        """
        with contained_fault(self._warn, "log", "what was found could not be written"):
            write(writer, self.analysis.label, self.scalars(), self.report, self.fault, step)
