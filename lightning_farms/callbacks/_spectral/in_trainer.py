"""Analyses of a Trainer's weights: divided among its processes, or of a copy in the background."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_farms.analysis.diagnostics import Diagnostics
from lightning_farms.analysis.engine import analyze, analyze_weights
from lightning_farms.analysis.known_layers import KnownLayers
from lightning_farms.analysis.ranks import FailedOnRankError, Ranks, together
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.analysis.weights.layer_weight import LayerWeight
from lightning_farms.analysis.weights.model import layer_weights
from lightning_farms.callbacks._spectral.options import AnalysisOptions
from lightning_farms.callbacks._spectral.strategies import whole_shapes
from lightning_farms.functional.eigensolvers import Where


def analyze_in_trainer(
    options: AnalysisOptions,
    trainer: Trainer,
    pl_module: LightningModule,
    workspace: int,
    where: Where,
    known: KnownLayers,
) -> SpectralReport | str:
    """Return the report, the same on every rank, or else the reason of the failure; a collective."""
    outcome = _on_all_ranks(options, trainer, pl_module, workspace=workspace, where=where, known=known)
    return outcome if isinstance(outcome, SpectralReport) else _reason(outcome, trainer, pl_module)


def spectra_in_trainer(
    options: AnalysisOptions,
    trainer: Trainer,
    pl_module: LightningModule,
    workspace: int,
    where: Where,
    names: Sequence[str],
) -> SpectralReport | str:
    """Return the report on the named layers, with eigenvalues (on rank zero) and the random bulk; a collective."""
    selection = replace(options.selection, include=tuple(names), exclude=())
    options = options._replace(selection=selection, diagnostics=Diagnostics(marchenko_pastur=True))
    outcome = _on_all_ranks(options, trainer, pl_module, workspace=workspace, where=where, keep_eigenvalues=True)
    return "It failed on another rank." if outcome is None else outcome


class BackgroundAnalysis:
    """An analysis in a thread, on one core, of weights that nothing else changes; the result is the synchronous one's.

    The thread has its creator's number of PyTorch intra-op threads, whatever another analysis sets it to meanwhile. It
    works on the CUDA streams that are current when it is created, after the work that is queued there.
    """

    def __init__(
        self,
        weights: list[LayerWeight],
        options: AnalysisOptions,
        workspace: int,
        where: Where,
        known: KnownLayers | None = None,
    ) -> None:
        devices = {weight.matrices.device for weight in weights if weight.matrices.device.type == "cuda"}
        streams = [torch.cuda.current_stream(device) for device in devices]
        self._pool = ThreadPoolExecutor(1, "background-analysis", _settle, (torch.get_num_threads(), streams))
        self._future: Future[SpectralReport] = self._pool.submit(
            analyze_weights,
            weights,
            options.analysis,
            diagnostics=options.diagnostics,
            workspace=workspace,
            workers=1,
            where=where,
            known=known,
        )

    def report(self) -> SpectralReport:
        """Wait for the analysis and return its report, or raise its error."""
        try:
            return self._future.result()
        finally:
            self.close()

    def close(self) -> None:
        """Wait until the thread has ended, whatever its outcome."""
        self._pool.shutdown(wait=True)


def _settle(threads: int, streams: Sequence[torch.cuda.Stream]) -> None:
    torch.set_num_threads(threads)
    for stream in streams:
        torch.cuda.set_stream(stream)


def analyze_in_background(
    options: AnalysisOptions, pl_module: LightningModule, workspace: int, where: Where, known: KnownLayers
) -> BackgroundAnalysis | None:
    """Start an analysis of a copy of the weights; None if they cannot be copied."""
    try:
        copies = [w._replace(matrices=w.matrices.clone()) for w in layer_weights(pl_module, options.selection)]
    except Exception:
        return None
    return BackgroundAnalysis(copies, options, workspace, where, known)


def attempt(analysis: Callable[[], SpectralReport]) -> SpectralReport | str:
    """Return the report, or the error in words; never raises."""
    try:
        return analysis()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _ranks(trainer: Trainer, pl_module: LightningModule) -> Ranks | None:
    """The Trainer's processes; None if there is only one."""
    if trainer.world_size == 1:
        return None
    return Ranks(trainer.global_rank, trainer.world_size, partial(_total, trainer, pl_module))


def _total(trainer: Trainer, pl_module: LightningModule, table: Tensor) -> Tensor:
    """Sum a table on the CPU over all ranks, and return it on the CPU; a collective."""
    summed = trainer.strategy.reduce(table.to(pl_module.device), reduce_op="sum")
    assert isinstance(summed, Tensor)
    return summed.cpu()


def _on_all_ranks(
    options: AnalysisOptions,
    trainer: Trainer,
    pl_module: LightningModule,
    **how: Any,  # noqa: ANN401
) -> SpectralReport | str | None:
    """Return the report on all ranks, or else this rank's error in words, None if another failed; a collective."""
    ranks = _ranks(trainer, pl_module)

    def analysed() -> SpectralReport:
        with whole_shapes(trainer):
            return analyze(
                pl_module,
                options.analysis,
                selection=options.selection,
                diagnostics=options.diagnostics,
                ranks=ranks,
                **how,
            )

    try:
        return together(analysed, ranks)
    except FailedOnRankError:
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _reason(error: str | None, trainer: Trainer, pl_module: LightningModule) -> str:
    """Return the error of the first rank that failed, in words; a collective.

    One rank alone can fail, e.g. if it has to warn of a failed decomposition and warnings are turned into errors.
    """
    if trainer.world_size == 1:
        return str(error)
    failed = torch.zeros(trainer.world_size, dtype=torch.float64, device="cpu")
    failed[trainer.global_rank] = float(error is not None)
    first = int(_total(trainer, pl_module, failed).nonzero()[0])
    reason = trainer.strategy.broadcast(error or "", src=first)
    return f"On rank {first}: {reason}"
