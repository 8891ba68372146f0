"""The methods of a study, that is, how layers' learning rates follow from their spectra."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_farms import FARMS, TBSigmoid, WholeMatrix
from lightning_farms.analysis.method import SpectralMethod
from lightning_farms.analysis.selection import MODEL_BALANCING
from lightning_farms.balancing.alpha_map import AlphaMap, SigmoidMap
from lightning_farms.callbacks import Control, LayerwiseLearningRate
from lightning_farms.functional.power_law import PowerLawFit

Method = Literal[
    "adam", "whole_ls", "whole", "farms", "farms_ls", "whole_mean", "farms_mean", "farms_relative", "farms_reversed"
]
METHODS: tuple[Method, ...] = get_args(Method)
TITLES: dict[str, str] = {
    "adam": "Adam, one rate",
    "whole_ls": "TB_Sigmoid, layer selection",
    "whole": "TB_Sigmoid, all layers",
    "farms": "TB_Sigmoid + FARMS",
    "farms_ls": "FARMS, layer selection",
    "whole_mean": "TB_Sigmoid, mean rate 1",
    "farms_mean": "FARMS, mean rate 1",
    "farms_relative": "FARMS, relative alpha",
    "farms_reversed": "FARMS, reversed",
    "persistence": "persistence",
    "drift_free": "drift-free",
}
_WINDOW = 2**31  # larger than any matrix, so that it is clamped to the smaller dimension


@dataclass(frozen=True)
class Deviations:
    """Options for details in which the authors' programs differ from this package's defaults.

    Args:
        norms_follow: whether norms follow the layer they belong to; in the authors' programs they keep the base rate.
        least_eigenvalue: eigenvalues below it are dropped before the fit; 1e-5 in their programs, 0 for none.
        compat: `official` for the windows and scales of their programs, which only know Linear and Conv2d weights.
    """

    norms_follow: bool = True
    least_eigenvalue: float = 0.0
    compat: Literal["official"] | None = None

    @property
    def text(self) -> str:
        """A description of the deviations that are asked for."""
        parts = [
            "" if self.norms_follow else "norms keep the base rate",
            f"eigenvalues from {self.least_eigenvalue:g}" if self.least_eigenvalue else "",
            f"compat {self.compat}" if self.compat else "",
        ]
        return "; ".join(part for part in parts if part)


AS_HERE = Deviations()


@dataclass(frozen=True)
class Reversed(AlphaMap):
    """Another map's multipliers at the alphas mirrored at their mean, so that larger alphas get smaller ones.

    Args:
        of: the other map.

    Example:
        >>> Reversed(SigmoidMap())(torch.tensor([2.0, 3.0, 4.0])).tolist() == [
        ...     *reversed(SigmoidMap()(torch.tensor([2.0, 3.0, 4.0])).tolist())
        ... ]
        True
    """

    of: AlphaMap

    def __call__(self, alphas: Tensor) -> Tensor:
        """Return the other map's multipliers at 2 mean(alpha) - alpha."""
        return self.of(2 * alphas.mean() - alphas)


def fit_above(method: SpectralMethod, eigenvalues: Tensor, least: float) -> PowerLawFit:
    """Fit the eigenvalues that are not below `least`; the result is NaN if fewer than two are left.

    Args:
        method: the method whose fit is used.
        eigenvalues: eigenvalues, (..., N).
        least: smallest eigenvalue to keep, in units of the squared weight.

    Returns:
        The fits, as tensors of the leading shape.
    """
    spectra = eigenvalues.reshape(-1, eigenvalues.shape[-1])
    fits = []
    for spectrum in spectra:
        kept = spectrum[spectrum >= least]
        if len(kept) > 1:
            fits.append(method.fit_tail(kept))
        else:
            none = spectrum.new_full((), torch.nan)
            fits.append(PowerLawFit(none, none, none, torch.zeros_like(none, dtype=torch.int64)))
    return PowerLawFit(*(torch.stack(column).reshape(eigenvalues.shape[:-1]) for column in zip(*fits, strict=True)))


@dataclass(frozen=True)
class WholeAbove(WholeMatrix):
    """WholeMatrix without the eigenvalues below `least`."""

    _: KW_ONLY
    least: float = 0.0

    def fit_tail(self, eigenvalues: Tensor) -> PowerLawFit:
        """See the base class."""
        return fit_above(WholeMatrix(fit=self.fit, compat=self.compat), eigenvalues, self.least)


@dataclass(frozen=True)
class FARMSAbove(FARMS):
    """FARMS without the eigenvalues below `least`."""

    _: KW_ONLY
    least: float = 0.0

    def fit_tail(self, eigenvalues: Tensor) -> PowerLawFit:
        """See the base class."""
        return fit_above(FARMS(fit=self.fit), eigenvalues, self.least)


def analysis(method: str, deviations: Deviations = AS_HERE) -> SpectralMethod:
    """Return the analysis that a method uses; for `adam`, which only logs, it is FARMS."""
    least, compat = deviations.least_eigenvalue, deviations.compat
    if method.startswith("whole"):
        return WholeAbove(compat=compat, least=least) if least else WholeMatrix(compat=compat)
    # floor(m / n) windows of the smaller dimension: two steps give as many for all of DPOT's shapes
    farms = FARMS() if compat is None else FARMS(window=_WINDOW, steps=2, compat=compat)
    return farms if not least else FARMSAbove(window=farms.window, steps=farms.steps, compat=compat, least=least)


def callbacks(method: str, deviations: Deviations = AS_HERE) -> list[LayerwiseLearningRate]:
    """Build the callback that sets a method's learning rates, with Table 14's scaling (1, 1); none for one rate.

    Args:
        method: one of :data:`METHODS`, or one of the paper's names FT, TB_Sigmoid (with ModelBalancing's layer
            selection, as there) and FARMS.
        deviations: details in which to follow the authors' programs.

    Returns:
        At most one callback.

    Raises:
        ValueError: there is no such method.
    """
    method = {"FT": "adam", "TB_Sigmoid": "whole_ls", "FARMS": "farms"}.get(method, method)
    if method not in METHODS:
        raise ValueError(f"Expected argument `method` to be one of {', '.join(METHODS)}, but got {method!r}.")
    if method == "adam":
        return []
    control = Control(norms=deviations.norms_follow)
    if method.endswith("_ls"):
        control = replace(control, layers=MODEL_BALANCING)
    if method.endswith("_mean"):
        control = replace(control, normalize="mean")
    if method.endswith("_relative"):
        control = replace(control, signal="relative_alpha")
    options = {"analysis": analysis(method, deviations), "control": control, "summary": False}
    if method.endswith("_reversed"):
        return [LayerwiseLearningRate(Reversed(SigmoidMap()), **options)]
    return [TBSigmoid(1.0, 1.0, **options)]
