"""Layer-wise hyperparameters in the Trainer of transformers."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any, cast

import torch

from lightning_farms.analysis.report import SpectralReport
from lightning_farms.balancing import AlphaMap, Balancer

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


class SpectralBalanceCallback(TrainerCallback, ExportableState):
    r"""Gives every layer l of a transformers Trainer's model a hyperparameter :math:`h_l(t) = h(t) \, m(\alpha_l)`.

    A :class:`~lightning_farms.Balancer` in ``Trainer(callbacks=[...])``: it analyses before the first step and after
    every n epochs or steps, also where Accelerate has wrapped model and optimizer. Its state lies in the checkpoints'
    ``trainer_state.json``, so that ``train(resume_from_checkpoint=...)`` goes on with it; the training argument
    ``restore_callback_states_from_checkpoint`` is not needed, and refused.

    Args:
        alpha_map: from alphas to multipliers, as in :class:`~lightning_farms.Balancer`.
        every_n_epochs: analyse after every n-th epoch.
        every_n_steps: analyse after every n-th optimizer step instead.
        writer: a TensorBoard ``SummaryWriter`` to which every analysis is logged.
        **options: those of :class:`~lightning_farms.Balancer`: ``analysis``, ``control``, ``selection``, ``key``, ...

    Attributes:
        balancer: the :class:`~lightning_farms.Balancer`; None before the first training.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an interval is below 1, or the callback is to be made from a checkpoint.

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

    @property
    def multipliers(self) -> dict[str, float]:
        """{layer: multiplier} that the next update uses; empty before the first analysis."""
        return {} if self.balancer is None else self.balancer.multipliers

    @property
    def report(self) -> SpectralReport | None:
        """The last report; None before the first analysis."""
        return None if self.balancer is None else self.balancer.report

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Hook the optimizer, take over the state of a checkpoint, and analyse unless that has one."""
        self.balancer = Balancer(kwargs["model"], kwargs["optimizer"], self.alpha_map, **self.options)
        saved = self._saved(state) if state.global_step else None
        if saved is not None:
            self.balancer.load_state_dict(saved)
        self.balancer.attach()
        if saved is None:
            self._update(state)
        # where the checkpoint knew nothing of this callback, the Trainer would miss its entry when it saves
        _entries(state).setdefault(type(self).__name__, self.state())

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Analyse after every n-th step, where that is asked for."""
        if self.every_n_steps is not None and state.global_step % self.every_n_steps == 0:
            self._update(state)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Analyse after every n-th epoch; the checkpoint of the epoch is written later."""
        if self.every_n_steps is None and round(state.epoch or 0) % self.every_n_epochs == 0:
            self._update(state)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Leave the optimizer as it was."""
        if self.balancer is not None:
            self.balancer.detach()

    def state(self) -> dict[str, Any]:
        """What goes into ``trainer_state.json``: everything in one string, exact to the bit."""
        buffer = io.BytesIO()
        torch.save({} if self.balancer is None else self.balancer.state_dict(), buffer)
        return {"args": {"remade": True}, "attributes": {"key": self._key, "saved": _text(buffer.getvalue())}}

    @property
    def _key(self) -> str:
        return str(self.options.get("key", "lr"))

    def _saved(self, state: TrainerState) -> dict[str, Any] | None:
        """The last state in the checkpoint of a callback that adjusts the same."""
        entries = _entries(state).get(type(self).__name__, [])
        for entry in reversed(entries if isinstance(entries, list) else [entries]):
            attributes = entry.get("attributes", {})
            if attributes.get("key") == self._key:
                loaded = torch.load(io.BytesIO(base64.b64decode(attributes["saved"])), weights_only=True)
                return loaded or None
        return None

    def _update(self, state: TrainerState) -> None:
        assert self.balancer is not None, "made when the training begins"
        self.balancer.update()
        if self.writer is not None and state.is_world_process_zero:
            self.balancer.log(self.writer, state.global_step)


def _entries(state: TrainerState) -> dict[str, Any]:
    """{class: its callbacks' states, a list where there are several}; the Trainer has made a dictionary of the list."""
    return cast("dict[str, Any]", state.stateful_callbacks)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
