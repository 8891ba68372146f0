"""What a callback asks of the weights, and the asking: in this process, on all ranks, or in the background."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_farms.analysis import (
    Diagnostics,
    Ranks,
    Selection,
    SpectralMethod,
    SpectralReport,
    analyze,
    layer_weights,
)
from lightning_farms.callbacks._spectral.background import BackgroundAnalysis
from lightning_farms.callbacks._spectral.strategies import whole_shapes


class Question(NamedTuple):
    """What an analysis is asked for; callbacks that ask the same share it.

    Attributes:
        analysis: how to analyse.
        selection: which weights.
        diagnostics: what else to find out.
    """

    analysis: SpectralMethod
    selection: Selection
    diagnostics: Diagnostics

    def columns(self) -> list[str]:
        """Columns of the report that are logged by the layer."""
        wanted = {
            "alpha": True,
            "relative_alpha": self.diagnostics.twin,
            "mp_spikes": self.diagnostics.marchenko_pastur,
            "p_value": self.diagnostics.p_value,
        }
        return [name for name, asked_for in wanted.items() if asked_for]

    def ask(self, trainer: Trainer, pl_module: LightningModule, workspace: int) -> SpectralReport | str:
        """The report, the same on every rank, or what went wrong; a collective."""
        with whole_shapes(trainer):
            outcome = attempt(
                lambda: analyze(
                    pl_module,
                    self.analysis,
                    selection=self.selection,
                    diagnostics=self.diagnostics,
                    workspace=workspace,
                    ranks=_ranks(trainer, pl_module),
                )
            )
        return _agreed(outcome, trainer, pl_module)

    def ask_for_spectra(
        self, trainer: Trainer, pl_module: LightningModule, workspace: int, names: Sequence[str]
    ) -> SpectralReport | str:
        """The report on the named layers, with their eigenvalues (on rank zero) and the random bulk; a collective."""
        with whole_shapes(trainer):
            return attempt(
                lambda: analyze(
                    pl_module,
                    self.analysis,
                    selection=replace(self.selection, include=tuple(names), exclude=()),
                    diagnostics=Diagnostics(marchenko_pastur=True),
                    keep_eigenvalues=True,
                    workspace=workspace,
                    ranks=_ranks(trainer, pl_module),
                )
            )

    def ask_in_background(self, pl_module: LightningModule, workspace: int) -> BackgroundAnalysis | None:
        """The analysis of a copy of the weights, under way; None where they cannot be copied."""
        try:
            copies = [w._replace(matrices=w.matrices.clone()) for w in layer_weights(pl_module, self.selection)]
        except Exception:
            return None
        return BackgroundAnalysis(copies, self.analysis, self.diagnostics, workspace)


def attempt(analysis: Callable[[], SpectralReport]) -> SpectralReport | str:
    """Analyse, and never raise.

    Args:
        analysis: returns the report.

    Returns:
        The report, or what went wrong.
    """
    try:
        return analysis()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _ranks(trainer: Trainer, pl_module: LightningModule) -> Ranks | None:
    """The Trainer's processes, None where there is one."""
    if trainer.world_size == 1:
        return None

    return Ranks(trainer.global_rank, trainer.world_size, partial(_total, trainer, pl_module))


def _total(trainer: Trainer, pl_module: LightningModule, table: Tensor) -> Tensor:
    """The sum over all ranks of a table on the CPU, there; a collective."""
    summed = trainer.strategy.reduce(table.to(pl_module.device), reduce_op="sum")
    assert isinstance(summed, Tensor)
    return summed.cpu()


def _agreed(outcome: SpectralReport | str, trainer: Trainer, pl_module: LightningModule) -> SpectralReport | str:
    """The outcome, or what went wrong on the first rank that has none; a collective.

    Ranks that go on differently wait for each other in vain. One alone has no report where it has to warn of a failed
    decomposition and warnings are errors.
    """
    if trainer.world_size == 1:
        return outcome
    failed = torch.zeros(trainer.world_size, dtype=torch.float64, device="cpu")
    failed[trainer.global_rank] = float(isinstance(outcome, str))
    ranks = _total(trainer, pl_module, failed).nonzero().flatten().tolist()
    if not ranks:
        return outcome
    reason = trainer.strategy.broadcast(outcome if isinstance(outcome, str) else "", src=ranks[0])
    return f"On rank {ranks[0]}: {reason}"
