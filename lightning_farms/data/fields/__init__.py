"""Trajectories of fields in HDF5 files: reading, windows of frames, writing."""
