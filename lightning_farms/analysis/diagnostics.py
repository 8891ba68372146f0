"""What an analysis computes on request, besides the fit and the norms."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields

_LATER = ("outliers", "distributions")  # options that version 0.1 did not have


@dataclass(frozen=True, repr=False)
class Diagnostics:
    """Error bars, goodness of fit and random baselines; all are off by default, and seeded.

    The standard error of alpha is always in the report; it costs nothing.

    Args:
        bootstrap: number of bootstrap draws for the interval of alpha (``alpha_low``, ``alpha_high``); 0: none.
        p_value: number of synthetic spectra for the goodness of fit (``p_value``); 0: none.
        marchenko_pastur: whether to fit the Marchenko-Pastur law to the bulk (``mp_...``).
        twin: whether to analyse each weight with its entries shuffled, too (``row.twin``,
            ``relative_alpha``). It takes as long again as the analysis itself.
        outliers: whether to fit each spectrum also without its outlier eigenvalues (``outlier_eigenvalues``,
            ``alpha_without_outliers``, and ``mp_...``): those above the Tracy-Widom threshold of the Marchenko-Pastur
            law, if that law describes the bulk and they are at most five, or 5 %, of a matrix. Otherwise only those of
            them count that a gap separates from the tail, such as a power law has once in 100 times.
        distributions: whether to compare the power law with a lognormal, an exponential and a truncated power law
            (``lognormal_ratio``, ``lognormal_p``, ...; see
            :func:`lightning_farms.functional.compare_distributions`).
        level: probability that the bootstrap interval is to cover, between 0 and 1.
        seed: seed of every draw; a layer's draws depend on its name and the seed only.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> Diagnostics(bootstrap=200, twin=True).level
        0.95
    """

    bootstrap: int = 0
    p_value: int = 0
    _: KW_ONLY
    marchenko_pastur: bool = False
    twin: bool = False
    outliers: bool = False
    distributions: bool = False
    level: float = 0.95
    seed: int = 0

    def __repr__(self) -> str:
        """Leave out later options that are off, as callbacks find their state in a checkpoint by this text."""
        shown = [f for f in fields(self) if f.name not in _LATER or getattr(self, f.name) != f.default]
        return f"Diagnostics({', '.join(f'{field.name}={getattr(self, field.name)!r}' for field in shown)})"

    @property
    def of_own_spectrum(self) -> bool:
        """Whether any diagnostic of a layer's own spectrum is asked for: any but the twin."""
        return bool(self.bootstrap or self.p_value or self.marchenko_pastur or self.outliers or self.distributions)

    def __post_init__(self) -> None:
        for name in ("bootstrap", "p_value", "seed"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"Expected argument `{name}` to be 0 or more, but got {value}.")
        if not 0 < self.level < 1:
            raise ValueError(f"Expected argument `level` to be between 0 and 1, but got {self.level}.")
