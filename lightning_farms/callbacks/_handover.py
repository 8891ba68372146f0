"""Transfer of a callback's results from a child process that trained (spawned, notebook strategies) to its parent."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import uuid
import weakref
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from lightning_farms.analysis.layer_spectrum import LayerSpectrum
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.common.torch_writing import save_to


class Handover:
    """One file by which a child process that trains a copy of a callback gives results to the process that made it."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._name = f"lightning_farms-{uuid.uuid4().hex}.pt"
        weakref.finalize(self, _remove, self._process, self._name)  # also at the interpreter's exit

    def __deepcopy__(self, memo: object) -> Handover:
        return Handover()  # a copy of a callback has a file of its own

    def give(self, results: dict[str, Any]) -> None:
        """Write results, in plain types and tensors, for the process that made the callback, if this is its child."""
        parent = multiprocessing.parent_process()
        if parent is None or parent.pid != self._process:
            return
        target = _path(self._name)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.stem}", dir=target.parent)  # readable by its owner only
        os.close(descriptor)
        draft = Path(name)
        try:
            save_to(results, draft)
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)

    def take(self) -> dict[str, Any] | None:
        """Return what a child has written since the last call; None if it has written nothing."""
        if os.getpid() != self._process or not _path(self._name).exists():
            return None
        try:
            results: dict[str, Any] = torch.load(_path(self._name), map_location="cpu", weights_only=True)
        finally:
            _remove(self._process, self._name)
        return results


def _path(name: str) -> Path:
    return Path(tempfile.gettempdir()) / name


def _remove(process: int, name: str) -> None:
    if os.getpid() == process:  # a forked child has the finalizer too
        _path(name).unlink(missing_ok=True)


def rows_of(report: SpectralReport | None) -> list[dict[str, Any]] | None:
    """Return a report as plain types and tensors."""
    return None if report is None else [_row(row) for row in report]


def report_of(rows: list[dict[str, Any]] | None) -> SpectralReport | None:
    """Rebuild the report that :func:`rows_of` described."""
    return None if rows is None else SpectralReport([_spectrum(row) for row in rows])


def _row(row: LayerSpectrum) -> dict[str, Any]:
    values = {entry.name: getattr(row, entry.name) for entry in fields(row)}
    return {**values, "status": row.status.value, "twin": None if row.twin is None else _row(row.twin)}


def _spectrum(values: dict[str, Any]) -> LayerSpectrum:
    twin = values["twin"]
    return LayerSpectrum(**{**values, "twin": None if twin is None else _spectrum(twin)})
