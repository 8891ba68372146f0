"""Downloading PDEBench's official files."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_farms.data.download.catalogue import official_file
from lightning_farms.data.download.resumable import fetch_file


def download_pdebench(
    name: str, folder: str | os.PathLike[str], *, url: str | None = None, progress: bool = True
) -> Path:
    """Download an official PDEBench file of 2D compressible flow, 55 or 88 GB, unless the folder has it already.

    The file appears under its own name complete and checked (MD5), or not at all. An interrupted download continues
    at the next call: what has arrived is kept beside it, as NAME.part. A file that is already there is read through
    once, to check it.

    Args:
        name: Short name, such as 2d_cfd_M0.1_eta0.01, or the file's own name; `OFFICIAL_FILES` has them all.
        folder: Folder to download to; created if need be.
        url: Address of the file at a mirror; the official address when left out.
        progress: Whether to show a progress bar, on a terminal.

    Returns:
        The file.

    Raises:
        ValueError: There is no official file of that name, or the server's file is too small to be it.
        ImportError: pooch is not installed.
        FileExistsError: There is another file of that name already.
        ConnectionError: The file cannot be downloaded, or what arrived has another checksum.
        OSError: There is not enough space.
    """
    found = official_file(name)
    address = found.url if url is None else url
    return fetch_file(address, Path(folder) / found.file, md5=found.md5, least=found.size, progress=progress)
