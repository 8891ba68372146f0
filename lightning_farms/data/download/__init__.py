"""Downloading the official PDEBench files, resumably."""

from lightning_farms.data.download.catalogue import OFFICIAL_FILES, OfficialFile, official_file
from lightning_farms.data.download.pdebench import download_pdebench

__all__ = ["OFFICIAL_FILES", "OfficialFile", "download_pdebench", "official_file"]
