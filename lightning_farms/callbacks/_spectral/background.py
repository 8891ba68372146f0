"""An analysis in a thread of its own, while the training goes on with something that does not change the weights."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from lightning_farms.analysis import Diagnostics, LayerWeight, SpectralMethod, SpectralReport, analyze_weights


class BackgroundAnalysis:
    """One analysis of weights that nobody else changes, on one core; the result is that of a synchronous one.

    The thread has PyTorch's number of intra-op threads as its creator has it, whatever another analysis has set it to
    meanwhile.

    Args:
        weights: the weights; copies, where the originals may change meanwhile.
        method: how to analyse.
        diagnostics: what to find out besides.
        workspace: bytes for the analysis.
    """

    def __init__(
        self, weights: list[LayerWeight], method: SpectralMethod, diagnostics: Diagnostics, workspace: int
    ) -> None:
        self._pool = ThreadPoolExecutor(1, "background-analysis", torch.set_num_threads, (torch.get_num_threads(),))
        self._future: Future[SpectralReport] = self._pool.submit(
            analyze_weights, weights, method, diagnostics=diagnostics, workspace=workspace, workers=1
        )

    def report(self) -> SpectralReport:
        """Wait for the analysis; raises what it raised.

        Returns:
            The report.
        """
        try:
            return self._future.result()
        finally:
            self.close()

    def close(self) -> None:
        """Wait until the thread has ended, whatever came of it."""
        self._pool.shutdown(wait=True)
