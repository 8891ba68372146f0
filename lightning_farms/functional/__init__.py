"""Tensors in, tensors or NamedTuples out: windows, spectra, power-law fits, layer-wise maps. Imports torch only."""

from lightning_farms.functional.layerwise import tb_linear_map, tb_log2, tb_sigmoid, tb_sqrt, tb_step
from lightning_farms.functional.power_law import PowerLawFit, fit_hill, fit_ks, fit_peak
from lightning_farms.functional.spectrum import esd, stable_rank
from lightning_farms.functional.submatrices import fixed_aspect_ratio_submatrices

__all__ = [
    "PowerLawFit",
    "esd",
    "fit_hill",
    "fit_ks",
    "fit_peak",
    "fixed_aspect_ratio_submatrices",
    "stable_rank",
    "tb_linear_map",
    "tb_log2",
    "tb_sigmoid",
    "tb_sqrt",
    "tb_step",
]
