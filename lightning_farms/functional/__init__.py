"""Functions from tensors to tensors or NamedTuples: windows, spectra, fits, random matrices, maps. Torch only."""

from lightning_farms.functional.distributions import DistributionComparison, LikelihoodRatio, compare_distributions
from lightning_farms.functional.layerwise import (
    normalize_multipliers,
    tb_linear_map,
    tb_log2,
    tb_sigmoid,
    tb_sqrt,
    tb_step,
)
from lightning_farms.functional.outlier_eigenvalues import separated_eigenvalues
from lightning_farms.functional.power_law import KSScan, PowerLawFit, fit_hill, fit_ks, fit_peak, scan_ks
from lightning_farms.functional.pruning_masks import NofM, magnitude_mask, wanda_mask
from lightning_farms.functional.random_matrix import (
    MarchenkoPasturEdges,
    MarchenkoPasturFit,
    fit_marchenko_pastur,
    marchenko_pastur_cdf,
    marchenko_pastur_density,
    marchenko_pastur_edges,
    shuffle_entries,
    spike_threshold,
)
from lightning_farms.functional.smoothing import clip_to_quantiles, moving_average, ramp, squeezing_outlier
from lightning_farms.functional.sparsegpt import Reconstruction, sparsegpt
from lightning_farms.functional.sparsity import (
    LayerSparsity,
    allocate_n_of_m,
    allocate_sparsity,
    linear_scores,
    official_sparsity,
)
from lightning_farms.functional.spectral_metrics import (
    SpectralDensity,
    effective_rank,
    log_norm,
    spectral_density,
    stable_rank,
)
from lightning_farms.functional.spectrum import CheckedSpectrum, checked_esd, esd, esd_by_singular_values
from lightning_farms.functional.submatrices import fixed_aspect_ratio_submatrices
from lightning_farms.functional.uncertainty import Interval, bootstrap_interval, goodness_of_fit

__all__ = [
    "CheckedSpectrum",
    "DistributionComparison",
    "Interval",
    "KSScan",
    "LayerSparsity",
    "LikelihoodRatio",
    "MarchenkoPasturEdges",
    "MarchenkoPasturFit",
    "NofM",
    "PowerLawFit",
    "Reconstruction",
    "SpectralDensity",
    "allocate_n_of_m",
    "allocate_sparsity",
    "bootstrap_interval",
    "checked_esd",
    "clip_to_quantiles",
    "compare_distributions",
    "effective_rank",
    "esd",
    "esd_by_singular_values",
    "fit_hill",
    "fit_ks",
    "fit_marchenko_pastur",
    "fit_peak",
    "fixed_aspect_ratio_submatrices",
    "goodness_of_fit",
    "linear_scores",
    "log_norm",
    "magnitude_mask",
    "marchenko_pastur_cdf",
    "marchenko_pastur_density",
    "marchenko_pastur_edges",
    "moving_average",
    "normalize_multipliers",
    "official_sparsity",
    "ramp",
    "scan_ks",
    "separated_eigenvalues",
    "shuffle_entries",
    "sparsegpt",
    "spectral_density",
    "spike_threshold",
    "squeezing_outlier",
    "stable_rank",
    "tb_linear_map",
    "tb_log2",
    "tb_sigmoid",
    "tb_sqrt",
    "tb_step",
    "wanda_mask",
]
