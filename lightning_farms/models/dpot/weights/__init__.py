"""Checkpoints of DPOT: finding, reading, adapting, loading and writing them."""
