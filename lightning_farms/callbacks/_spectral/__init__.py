"""Helpers of the callbacks that analyse: the analysis that they share in a Trainer, and its schedule."""
