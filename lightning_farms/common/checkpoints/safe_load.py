"""Reading torch.save files without running any code that they ask for."""

from __future__ import annotations

import os
import warnings
import zipfile
from pathlib import Path

import torch

from lightning_farms.common.checkpoints._inert_pickle import PickleError
from lightning_farms.common.checkpoints._json_file import JSONError
from lightning_farms.common.checkpoints._zip_archive import record_names

_PICKLE = b"\x80"  # the first byte since protocol 2


def load_safely(path: Path) -> object:
    """Read a ``torch.save`` file into memory-mapped tensors without running anything in it.

    Args:
        path: the file.

    Returns:
        The content of the file.

    Raises:
        ValueError: it is damaged, or holds objects other than tensors and plain values; the cause is torch's error.
        PermissionError: there is no permission to read it.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # a damaged file can fail in any way inside the reader
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> ValueError:
    text = str(error)
    if is_torchscript(path):
        return no_torchscript(path)
    if "global" in text.lower() or ("Unsupported operand" in text and _is_pickle(path)):
        return ValueError(
            f"Expected argument `path` to be a checkpoint of tensors and plain values, but {str(path)!r} holds "
            f"pickled objects that are not read, as that could run code: {_first_reason(text)}. If you trust its "
            "source, load it yourself with weights_only=False and save the state dict alone with torch.save."
        )
    return damaged(path, error)


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive with the constants of a TorchScript program, which is torch's criterion too."""
    return any(name.endswith("/constants.pkl") for name in record_names(path))


def no_torchscript(path: Path) -> ValueError:
    """Return the error for a TorchScript program."""
    return ValueError(
        f"Expected argument `path` to be a checkpoint, but {str(path)!r} is a TorchScript program. Save its weights: "
        f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pt')."
    )


def _is_pickle(path: Path) -> bool:
    """Whether a file is a pickle or an archive with one, so that unknown operands come from a newer protocol."""
    with path.open("rb") as file:
        return file.read(1) == _PICKLE or zipfile.is_zipfile(path)


def _first_reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()]
    reasons = [line for line in lines if "global" in line.lower() or "Unsupported operand" in line]
    named = [line.partition("WeightsUnpickler error: ")[2] or line for line in reasons]
    return named[0].split(". ")[0].removesuffix(".")


def damaged(path: str | os.PathLike[str], error: Exception | str) -> ValueError:
    """Make the error for a file that is not a readable checkpoint, from its reader's error or a reason."""
    reason = str(error) if isinstance(error, (PickleError, JSONError, str)) else type(error).__name__
    return ValueError(
        f"Expected argument `path` to be a checkpoint (torch.save, safetensors, or the index of a sharded one), but "
        f"{os.fspath(path)!r} is damaged, cut short or of another format ({reason}). "
        "If it should be one, copy or download it again."
    )
