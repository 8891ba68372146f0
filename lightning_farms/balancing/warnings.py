"""Warnings of weights that are not finite, of alphas with which a layer-wise control can do little, and of errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from lightning_farms.analysis.report import SpectralReport
from lightning_farms.common.contained import contained
from lightning_farms.common.texts import listed
from lightning_farms.functional.smoothing import squeezing_outlier
from lightning_farms.functional.vectors import vector


def warnings_of_control(
    alphas: Mapping[str, float],
    multipliers: Mapping[str, float],
    hyperparameter: str,
    signal: str = "alpha",
    report: SpectralReport | None = None,
) -> dict[str, str]:
    """Warnings {kind: message} if all layers have the same multiplier, or an outlier makes all others nearly equal.

    ``report``: where the alphas are from. If there are none since the weights are not finite, nothing more is said.

    Example:
        >>> alphas = {"a": 2.0, "b": 2.1, "c": 2.2, "d": 2.1, "e": 2.2, "f": 9.0}
        >>> multipliers = {"a": 0.5, "b": 0.51, "c": 0.53, "d": 0.51, "e": 0.53, "f": 1.5}
        >>> warnings_of_control(alphas, multipliers, "learning rate")["outlier"][:53]
        "layer 'f' has alpha 9.00, the others 2.00 to 2.20, so"
    """
    signal = signal.replace("_", " ")
    finite = {layer: alpha for layer, alpha in alphas.items() if math.isfinite(alpha)}
    if not finite and report is not None and report.not_finite:
        return {}
    balanced = vector(multipliers[layer] for layer in finite)
    if len(finite) < 2 or not bool((balanced != balanced[0]).any()):
        return {
            "use": f"all layers have the same {hyperparameter}: {_why_equal(list(finite.values()), signal, report)}"
        }
    index = squeezing_outlier(balanced)
    return {} if index is None else {"outlier": _of_outlier(finite, list(finite)[index], hyperparameter, signal)}


def warnings_of_weights(report: SpectralReport) -> dict[str, str]:
    """Return a warning {kind: message} if weights hold NaN or infinity.

    Example:
        >>> from lightning_farms.analysis import LayerSpectrum
        >>> warnings_of_weights(SpectralReport([LayerSpectrum("fc", "linear", (8, 4), alpha=2.5)]))
        {}
    """
    names = report.not_finite
    if not names:
        return {}
    return {
        "weights": f"the weights of {listed(map(repr, names))} are not all finite, and are left out of the analysis. "
        "If they were finite before, the training has diverged: go back to an earlier checkpoint."
    }


def _why_equal(alphas: list[float], signal: str, report: SpectralReport | None) -> str:
    if not alphas:
        found = next((f", such as {row.name}: {row.reason}" for row in report or () if row.reason), "")
        return (
            "none of the layers that are trained and selected has an alpha (`report` gives the reason of each"
            f"{found}). Select other layers, or use SpectralMonitor."
        )
    if len(alphas) == 1:
        return "only one of them has an alpha. Select more layers, or use SpectralMonitor."
    return (
        f"their {signal}s lie between {min(alphas):.4f} and {max(alphas):.4f}, and the map gives them one multiplier. "
        "Look for weights that are copies of each other, or for ratios, strengths or clipping that leave no range."
    )


def _of_outlier(alphas: Mapping[str, float], layer: str, hyperparameter: str, signal: str) -> str:
    others = [alpha for name, alpha in alphas.items() if name != layer]
    quantile = math.ceil(100 / (len(alphas) - 1)) / 100
    return (
        f"layer {layer!r} has {signal} {alphas[layer]:.2f}, the others {min(others):.2f} to {max(others):.2f}, so that "
        f"these have nearly one {hyperparameter}. If that is not meant, clip it with "
        f"control=Control(clip_quantile={quantile}), or leave the layer out with "
        f'control=Control(layers=Selection(exclude=("{layer}",))).'
    )


def contained_fault(
    warn: Callable[[str, str], None], kind: str, what: str, passing: tuple[type[Exception], ...] = ()
) -> AbstractContextManager[None]:
    """Context that turns errors into a warning and goes on; warnings raised as errors, and ``passing``, pass through.

    Example:
        >>> with contained_fault(lambda kind, message: print(message), "log", "it was not written"):
        ...     {}["a"]
        it was not written. KeyError: 'a'
    """
    return contained(lambda error: warn(kind, f"{what}. {type(error).__name__}: {error}"), passing)
