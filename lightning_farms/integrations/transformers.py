"""A callback for layer-wise hyperparameters in the Trainer of transformers."""

from __future__ import annotations

import base64
import io
import math
from typing import TYPE_CHECKING, Any, cast

import torch

from lightning_farms.analysis.report import SpectralReport
from lightning_farms.balancing import AlphaMap, Balancer
from lightning_farms.common.faults import Faults, guarding

try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'lightning_farms.integrations.transformers needs transformers: pip install "lightning-farms[llm]".'
    ) from error

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from transformers import TrainerControl, TrainerState, TrainingArguments

_TINY = 1e-6  # a fraction of an epoch


class SpectralBalanceCallback(TrainerCallback, ExportableState):
    r"""Gives every layer l of a transformers Trainer's model a hyperparameter :math:`h_l(t) = h(t) \, m(\alpha_l)`.

    It runs a :class:`~lightning_farms.Balancer` in ``Trainer(callbacks=[...])``, which analyses before the first step
    and after every n epochs or steps, even if Accelerate has wrapped model and optimizer. Its state is saved in the
    checkpoints' ``trainer_state.json``, so that ``train(resume_from_checkpoint=...)`` continues with it; the training
    argument ``restore_callback_states_from_checkpoint`` is not needed, and refused. After a fault of this package, the
    training goes on, with the multipliers in force or with base values; each fault is reported once.

    Args:
        alpha_map: the map from alphas to multipliers, as in :class:`~lightning_farms.Balancer`.
        every_n_epochs: analyse after every n-th epoch.
        every_n_steps: analyse after every n-th optimizer step instead.
        writer: a TensorBoard ``SummaryWriter`` to which every analysis is logged.
        **options: options of :class:`~lightning_farms.Balancer`: ``analysis``, ``control``, ``selection``, ``key``, ...

    Attributes:
        balancer: the :class:`~lightning_farms.Balancer`; None before the first training.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an interval is below 1, or the Trainer tries to build the callback from a checkpoint.

    Example:
        >>> from lightning_farms import SigmoidMap
        >>> callback = SpectralBalanceCallback(SigmoidMap())
        >>> callback.multipliers  # before training
        {}
    """

    def __init__(
        self,
        alpha_map: AlphaMap | None = None,
        every_n_epochs: int = 1,
        *,
        every_n_steps: int | None = None,
        writer: SummaryWriter | None = None,
        remade: bool = False,
        **options: Any,  # noqa: ANN401
    ) -> None:
        if remade:
            raise ValueError(
                "Expected the training argument `restore_callback_states_from_checkpoint` to be False: "
                f"{type(self).__name__} keeps its own options, and its state is restored without that."
            )
        if not isinstance(alpha_map, AlphaMap):
            raise TypeError(f"Expected argument `alpha_map` to be LinearMap(...) or the like, but got {alpha_map!r}.")
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and value < 1:
                raise ValueError(f"Expected argument `{name}` to be at least 1, but got {value}.")
        self.alpha_map, self.options = alpha_map, options
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.writer = writer
        self.balancer: Balancer | None = None
        self._faults = Faults(type(self).__name__)

    @property
    def multipliers(self) -> dict[str, float]:
        """The multiplier of each layer that the next update uses; empty before the first analysis."""
        return {} if self.balancer is None else self.balancer.multipliers

    @property
    def report(self) -> SpectralReport | None:
        """The report of the last analysis; None before the first."""
        return None if self.balancer is None else self.balancer.report

    @guarding(TypeError, ValueError)
    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Hook the optimizer, load a checkpoint's state, and analyse unless that state has an up-to-date analysis."""
        if self.balancer is not None:
            self.balancer.detach()  # left from an interrupted training, for example one restarted with a smaller batch
            self.balancer = None
        try:
            self._begin(state, kwargs)
        finally:
            # if the checkpoint was written without this callback, the Trainer would miss its entry when saving
            _entries(state).setdefault(type(self).__name__, self.state())

    @guarding()
    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Analyse after every n-th step, if asked for."""
        if self.every_n_steps is not None and state.global_step % self.every_n_steps == 0:
            self._update(state, kwargs)

    @guarding()
    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Analyse after every n-th epoch, before the epoch's checkpoint is written."""
        if self._is_due(state):
            self._update(state, kwargs)

    @guarding()
    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Keep only the last state of each callback: with several, the Trainer appends states to all earlier ones."""
        entries = _entries(state)
        saved = entries.get(type(self).__name__)
        if isinstance(saved, list):
            entries[type(self).__name__] = list({entry["attributes"]["key"]: entry for entry in saved}.values())

    @guarding()
    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Remove the hooks from the optimizer."""
        for _ in range(2):
            with self._faults.contained("its hooks could be removed from the optimizer only at a second attempt"):
                if self.balancer is not None:
                    self.balancer.detach()
                break

    def state(self) -> dict[str, Any]:
        """Return the entry for ``trainer_state.json``: the whole state in one string, exact to the bit."""
        saved = ""
        with self._faults.contained("its state is left out of the checkpoint; training goes on"):
            saved = "" if self.balancer is None else _text(self.balancer.state_dict())
        return {"args": {"remade": True}, "attributes": {"key": self._key, "saved": saved}}

    @property
    def _key(self) -> str:
        return str(self.options.get("key", "lr"))

    def _saved(self, state: TrainerState) -> dict[str, Any] | None:
        """Return the checkpoint's last state of a callback that adjusts the same hyperparameter."""
        entries = _entries(state).get(type(self).__name__, [])
        for entry in reversed(entries if isinstance(entries, list) else [entries]):
            attributes = entry.get("attributes", {})
            if attributes.get("key") == self._key and attributes["saved"]:
                loaded = torch.load(io.BytesIO(base64.b64decode(attributes["saved"])), weights_only=True)
                return loaded or None  # earlier versions saved an empty one if they had none
        return None

    def _begin(self, state: TrainerState, given: dict[str, Any]) -> None:
        balancer = Balancer(given["model"], given["optimizer"], self.alpha_map, **self.options)
        saved = self._saved(state) if state.global_step else None
        if saved is not None:
            balancer.load_state_dict(saved)
        balancer.attach()
        self.balancer = balancer
        # a checkpoint written at an epoch's last step is older than the analysis at the epoch's end
        at_end = abs((state.epoch or 0.0) - round(state.epoch or 0.0)) < _TINY and self._is_due(state)
        if saved is None or (at_end and balancer.history.steps[-1:] != [balancer.steps]):
            self._analyse(state)

    def _is_due(self, state: TrainerState) -> bool:
        """Whether an analysis is due if an epoch ends now; one of unknown length may end at a fraction."""
        return self.every_n_steps is None and math.ceil((state.epoch or 0.0) - _TINY) % self.every_n_epochs == 0

    def _update(self, state: TrainerState, given: dict[str, Any]) -> None:
        if self.balancer is None or given["optimizer"] not in self.balancer.optimizers:
            self._begin(state, given)  # a fault kept it from this training, or another training has used it since
        else:
            self._analyse(state)

    def _analyse(self, state: TrainerState) -> None:
        assert self.balancer is not None, "made when the training begins"
        self.balancer.update()
        if self.writer is not None and state.is_world_process_zero:
            self.balancer.log(self.writer, state.global_step)


def _entries(state: TrainerState) -> dict[str, Any]:
    """The states of callbacks by class, in a list if a class has several; the Trainer has turned its list into this."""
    return cast("dict[str, Any]", state.stateful_callbacks)


def _text(state: dict[str, Any]) -> str:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
