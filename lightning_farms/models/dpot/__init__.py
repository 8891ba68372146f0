"""DPOT: a Fourier-attention neural operator, and its checkpoints."""

from lightning_farms.models.dpot.network import DPOT, DPOTConfig, DPOTOutput

__all__ = ["DPOT", "DPOTConfig", "DPOTOutput"]
