"""Output of a balancer to a writer such as TensorBoard's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_farms.analysis.report import SpectralReport
from lightning_farms.functional.vectors import vector


def finite_scalars(
    label: str, report: SpectralReport, means: Mapping[str, float], values: Mapping[str, float]
) -> dict[str, float]:
    """Collect all finite numbers under their log keys."""
    alphas = {f"{label}/alpha/{row.name}": row.alpha for row in report}
    moments = {f"{label}/alpha_mean": report.mean_alpha, f"{label}/alpha_std": report.std_alpha}
    named = {f"{label}/{name}": value for name, value in means.items()}
    return {k: v for k, v in {**alphas, **moments, **named, **values}.items() if math.isfinite(v)}


def write(
    writer: Any,  # noqa: ANN401 - a SummaryWriter, or an object with its methods
    label: str,
    scalars: Mapping[str, float],
    report: SpectralReport | None,
    fault: str | None,
    step: int,
) -> None:
    """Write scalars, a histogram of alpha, and the reason if values are not in force."""
    for key, value in scalars.items():
        writer.add_scalar(key, value, step)
    finite = vector(value for value in (report.alphas.values() if report else ()) if math.isfinite(value))
    if len(finite) and hasattr(writer, "add_histogram"):
        writer.add_histogram(f"{label}/alpha_histogram", finite, step)
    if fault is not None and hasattr(writer, "add_text"):
        writer.add_text(f"{label}/not_in_force", fault, step)
