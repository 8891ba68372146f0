"""The methods of a study: how the rates of the layers follow their spectra."""

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
_WINDOW = 2**31  # larger than any matrix: clamped to its smaller dimension


@dataclass(frozen=True)
class Deviations:
    """What the authors' programs do otherwise than this package does by default.

    Args:
        norms_follow: whether norms follow the layer they belong to; there they keep the base rate.
        least_eigenvalue: eigenvalues below it are dropped before the fit; 1e-5 there, 0 for none.
        compat: `official` for the windows and scales of their programs, which know Linear and Conv2d weights only.
    """

    norms_follow: bool = True
    least_eigenvalue: float = 0.0
    compat: Literal["official"] | None = None

    @property
    def text(self) -> str:
        """Those that are asked for, in words."""
        parts = [
            "" if self.norms_follow else "norms keep the base rate",
            f"eigenvalues from {self.least_eigenvalue:g}" if self.least_eigenvalue else "",
            f"compat {self.compat}" if self.compat else "",
        ]
        return "; ".join(part for part in parts if part)


AS_HERE = Deviations()


@dataclass(frozen=True)
class Reversed(AlphaMap):
    """The multipliers of another map at the alphas mirrored at their mean: what lies above it gets less.

    Args:
        of: the map.

    Example:
        >>> Reversed(SigmoidMap())(torch.tensor([2.0, 3.0, 4.0])).tolist() == [
        ...     *reversed(SigmoidMap()(torch.tensor([2.0, 3.0, 4.0])).tolist())
        ... ]
        True
    """

    of: AlphaMap

    def __call__(self, alphas: Tensor) -> Tensor:
        """The map of 2 mean(alpha) - alpha."""
        return self.of(2 * alphas.mean() - alphas)


def fit_above(method: SpectralMethod, eigenvalues: Tensor, least: float) -> PowerLawFit:
    """A method's fits of the eigenvalues that are not below `least`; NaN where fewer than two are left.

    Args:
        method: whose own fit it is.
        eigenvalues: (..., N).
        least: in units of the squared weight.

    Returns:
        Tensors of the leading shape.
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
    """How a method looks at the weights; `adam`, which only logs, as FARMS."""
    least, compat = deviations.least_eigenvalue, deviations.compat
    if method.startswith("whole"):
        return WholeAbove(compat=compat, least=least) if least else WholeMatrix(compat=compat)
    # floor(m / n) windows of the smaller dimension: two steps give as many for all of DPOT's shapes
    farms = FARMS() if compat is None else FARMS(window=_WINDOW, steps=2, compat=compat)
    return farms if not least else FARMSAbove(window=farms.window, steps=farms.steps, compat=compat, least=least)


def callbacks(method: str, deviations: Deviations = AS_HERE) -> list[LayerwiseLearningRate]:
    """What sets the learning rates of a method: Table 14's scaling (1, 1); nothing for one rate.

    Args:
        method: one of :data:`METHODS`; the paper's names of three are known, too: FT, TB_Sigmoid (with
            ModelBalancing's layer selection, as there) and FARMS.
        deviations: what is done otherwise.

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
