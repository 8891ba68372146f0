"""DPOT: a Fourier-attention neural operator, and its checkpoints."""

from lightning_farms.models.dpot.config import DPOTConfig
from lightning_farms.models.dpot.network import DPOT, DPOTOutput

__all__ = ["DPOT", "DPOTConfig", "DPOTOutput"]
