"""Released DPOT checkpoints from the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_farms.models.dpot.weights.released import RELEASED_NAMES, REPOSITORY, find_released, released_size


def find_checkpoint(
    path: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Find a checkpoint file by its path, or a released size by its name (write ./tiny for a file called tiny)."""
    size = find_released(path)
    if size is not None:
        return download_released(size.name, cache_dir=cache_dir, revision=revision, local_files_only=local_files_only)
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"Expected argument `path` to be an existing checkpoint file or a released size ({RELEASED_NAMES}), but "
            f"got {os.fspath(path)!r}."
        )
    return Path(path)


def download_released(
    name: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Download a released DPOT checkpoint from the Hugging Face Hub unless it is already in the cache.

    The files hold the optimizer's state too: 0.09 GB (tiny), 0.37, 1.5, 6.1 and 12.4 GB (huge).

    Args:
        name: the size's name, as in :func:`lightning_farms.models.released_size`.
        cache_dir: folder of the cache; huggingface_hub's own (environment variable HF_HOME) by default.
        revision: branch, tag or commit of the repository; its newest state by default.
        local_files_only: look only in the cache.

    Returns:
        The path of the file in the cache, which must not be changed.

    Raises:
        ValueError: if there is no released size of that name.
        ImportError: if the package huggingface_hub is not installed.
        FileNotFoundError: if the repository (with `local_files_only`, the cache) has no such file or revision.
        PermissionError: if the Hub refuses access.
        ConnectionError: if the Hub cannot be reached, or the transfer breaks off.
    """
    size = released_size(name)
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError(
            f'{size.name!r} is downloaded with the package huggingface_hub: pip install "lightning-farms[hub]". Or '
            f"{_elsewhere(size.file)}"
        ) from error
    with _explained(size.file, revision=revision, local_files_only=local_files_only):
        file = hf_hub_download(
            REPOSITORY,
            size.file,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            revision=revision,
            local_files_only=local_files_only,
        )
    return Path(file)


@contextmanager
def _explained(file: str, *, revision: str | None, local_files_only: bool) -> Iterator[None]:
    """Turn errors of the Hub into ones whose messages say what can be done."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = f"{file} of {REPOSITORY}" + ("" if revision is None else f" at revision {revision!r}")
    remedy = f"Or {_elsewhere(file)}"
    try:
        yield
    except LocalEntryNotFoundError as error:
        if local_files_only:
            raise FileNotFoundError(
                f"Expected {wanted} to be in the cache, as argument `local_files_only` is set, but it is not. "
                f"Leave it out to download the file. {remedy}"
            ) from error
        raise ConnectionError(
            f"Expected the Hugging Face Hub to answer, as {wanted} is not in the cache, but it does not "
            f"({_cause(error)}). Check the connection, the proxy and HF_HUB_OFFLINE. {remedy}"
        ) from error
    except (RevisionNotFoundError, EntryNotFoundError) as error:
        raise FileNotFoundError(
            f"Expected {wanted} to be on the Hugging Face Hub, but there is no such file or revision. Check argument "
            f"`revision`. {remedy}"
        ) from error
    except RepositoryNotFoundError as error:  # raised for gated repositories too
        raise PermissionError(
            f"Expected access to {wanted}, but the Hugging Face Hub refuses it ({_cause(error)}): the repository does "
            "not exist, or is not open to everyone. Accept its terms on its page and log in with `hf auth "
            f"login`. {remedy}"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, HfHubHTTPError):
            raise  # an error of the file system, whose message is clear
        raise ConnectionError(
            f"Expected the download of {wanted} to succeed, but it failed ({_cause(error)}). Try again later. {remedy}"
        ) from error


def _elsewhere(file: str) -> str:
    return f"download {file} of {REPOSITORY} from the Hugging Face Hub on another machine, and give its path."


def _cause(error: BaseException) -> str:
    """The type and the first message line of the error that caused it all."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
