"""Alphas of a network's layers -> sparse networks: how much each layer loses, and which of its weights."""
