"""Downloads of large files that continue where they were interrupted."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from lightning_farms.common.locks import is_at, lock
from lightning_farms.common.progress import Advance, StartBar, progress_bars, progress_is_shown
from lightning_farms.common.quantities import size_text
from lightning_farms.data.download._checksum import md5_of

if TYPE_CHECKING:
    from requests import Response

_CHUNK = 1 << 17
_TIMEOUT = (30, 60)  # seconds to connect, and between two pieces
_WAITS = (1, 4, 15, 30)  # seconds before each new attempt, as long as nothing more has arrived
_WORTH_ANOTHER_ATTEMPT = (408, 425, 429, 500, 502, 503, 504)
_NOT_SATISFIABLE = 416


def fetch_file(
    url: str, target: Path, *, md5: str, least: int = 0, extra: str = "download", progress: bool = True
) -> Path:
    """Download a file; it appears under its name complete and checked, or not at all.

    What has arrived so far is kept beside it (in NAME.part, and what the server said about it in NAME.part.json) and
    continued: at once after a dropped connection, at the next call after any other failure. The server is asked for the
    rest on the condition that its file is still the same; a server that cannot do that starts anew. An existing file is
    checked and left alone. If the server's file has fewer than `least` bytes, it is refused before it arrives. If
    another process is downloading the same file, this one waits for it.
    """
    with progress_bars(unit="bytes", show=progress and progress_is_shown()) as start_bar:
        if target.exists():
            _check_existing(target, md5, start_bar)
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(target, start_bar) as part:
            part.least = least
            if not target.exists():  # the process that was waited for has not completed it either
                part.fetch(url, extra, start_bar)
                _check_complete(part, url, md5, start_bar)
                os.replace(part.path, target)
    return target


class _Remote(NamedTuple):
    """What a server says about its file: what distinguishes it from later versions, if anything, and its size."""

    validator: str | None = None
    size: int | None = None


class _Changed(Exception):
    """The server has another file now, so what has arrived so far is of no use."""


class _Part:
    """The part of a file that has arrived so far."""

    def __init__(self, target: Path, note: IO[str]) -> None:
        self.name = target.name
        self.path = target.with_name(f"{target.name}.part")
        self._note = note
        self.least = 0

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def remote(self) -> _Remote:
        """What the server said when the first byte arrived."""
        self._note.seek(0)
        try:
            return _Remote(**json.loads(self._note.read()))
        except (ValueError, TypeError):  # nothing yet, or interrupted while it was written
            return _Remote()

    def begin(self, remote: _Remote) -> None:
        """Drop what has arrived; from now on, bytes belong to this file of the server."""
        os.truncate(self.path, 0)
        self._note.seek(0)
        self._note.truncate()
        self._note.write(json.dumps(remote._asdict()))
        self._note.flush()

    def fetch(self, url: str, extra: str, start_bar: StartBar) -> None:
        """Request what is missing, again and again as long as that helps."""
        downloader = _http_downloader(extra)
        from requests import RequestException

        failures = 0
        while self.size == 0 or self.size != self.remote.size:
            before = self.size
            try:
                self._request(url, downloader, start_bar)
                return
            except _Changed:
                self.begin(_Remote())
            except RequestException as error:
                failures = 0 if self.size > before else failures + 1
                if failures == len(_WAITS) or not _is_worth_another_attempt(error):
                    raise ConnectionError(self._failed(url, error)) from error
                start_bar(f"{self.name}: connection lost, trying again", None, self.size)
                time.sleep(_WAITS[failures])

    def _request(self, url: str, downloader: Any, start_bar: StartBar) -> None:  # noqa: ANN401
        """Request what is missing, once."""
        with self.path.open("ab") as file:
            receiver = _Receiver(self, file, start_bar)
            settings = {"headers": receiver.headers(), "hooks": {"response": receiver.accept}}
            with closing(receiver):
                downloader(chunk_size=_CHUNK, timeout=_TIMEOUT, **settings)(url, receiver, None)
            os.fsync(file.fileno())
        if self.remote.size not in (None, self.size):
            from requests import ConnectionError as ConnectionLost

            raise ConnectionLost(
                f"the connection ended after {size_text(self.size)} of {size_text(self.remote.size or 0)}"
            )

    def _failed(self, url: str, error: Exception) -> str:
        kept = (
            f" {size_text(self.size)} are kept in {self.path}: run it again to continue."
            if self.size
            else " Try again."
        )
        return f"Expected to download {url}, but it failed: {error}.{kept} Or fetch the file by other means."


class _Receiver:
    """The file-like object that pooch writes a server's response to."""

    def __init__(self, part: _Part, file: IO[bytes], start_bar: StartBar) -> None:
        self._part = part
        self._file = file
        self._start_bar = start_bar
        self._offset = part.size
        self._advance: Advance = lambda count: None
        self._response: Response | None = None

    def headers(self) -> dict[str, str]:
        """Return what to request: the bytes as they are, from the first missing one, if it is still the same file."""
        headers = {"Accept-Encoding": "identity"}
        if self._offset:
            headers["Range"] = f"bytes={self._offset}-"
            if self._part.remote.validator is not None:
                headers["If-Range"] = self._part.remote.validator
        return headers

    def accept(self, response: Response, *_: object, **__: object) -> None:
        """Check a response before its content arrives, and prepare for it."""
        self._response = response
        if response.status_code == _NOT_SATISFIABLE and self._offset:
            raise _Changed
        if response.is_redirect or not response.ok:
            return  # pooch follows redirects and raises errors
        if response.status_code == 206 and self._offset:
            self._check_continuation(response)
        else:
            self._offset = 0
            self._part.begin(_Remote(_validator(response), _number(response.headers.get("Content-Length"))))
        size = self._part.remote.size
        if size is not None and size < self._part.least:
            raise ValueError(
                f"Expected {response.url} to be a file of at least {size_text(self._part.least)}, but it has "
                f"{size_text(size)}, so that it is another one. Nothing was downloaded."
            )
        self._check_space(size)
        self._advance = self._start_bar(f"Downloading {self._part.name}", size, self._offset)

    def write(self, content: bytes) -> None:
        """Append what arrived."""
        self._file.write(content)
        self._advance(len(content))

    def flush(self) -> None:
        """Pass what was written to the operating system, where it outlives this process."""
        self._file.flush()

    def close(self) -> None:
        """Close the connection, which pooch leaves open when a response cannot be used or breaks off."""
        if self._response is not None:
            self._response.close()

    def _check_continuation(self, response: Response) -> None:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        remote = self._part.remote
        if found is None or int(found[1]) != self._offset or _number(found[2]) not in (None, remote.size):
            raise _Changed
        if _validator(response) not in (None, remote.validator):  # the server may leave the validator out
            raise _Changed

    def _check_space(self, size: int | None) -> None:
        free = shutil.disk_usage(self._part.path.parent).free
        missing = (size or 0) - self._offset
        if free < missing:
            raise OSError(
                f"Expected {size_text(missing)} of free space in {self._part.path.parent} for the rest of "
                f"{self._part.name}, but {size_text(free)} are free. Make room, or choose another folder."
            )


def _http_downloader(extra: str) -> Any:  # noqa: ANN401
    try:
        from pooch import HTTPDownloader
    except ImportError as error:
        raise ImportError(f'Downloading needs pooch: pip install "lightning-farms[{extra}]"') from error
    return HTTPDownloader


def _validator(response: Response) -> str | None:
    """Return what distinguishes the server's file from its later versions, None if nothing does."""
    tag: str | None = response.headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        return tag
    date: str | None = response.headers.get("Last-Modified")
    return date


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _is_worth_another_attempt(error: Exception) -> bool:
    from requests import ConnectionError as ConnectionLost
    from requests import HTTPError, Timeout
    from requests.exceptions import ChunkedEncodingError

    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code in _WORTH_ANOTHER_ATTEMPT
    return isinstance(error, (ConnectionLost, Timeout, ChunkedEncodingError))


@contextmanager
def _claimed(target: Path, start_bar: StartBar) -> Iterator[_Part]:
    """Claim the part of a file for this process alone; the note about it, which is locked, stays as long as it does."""
    path = target.with_name(f"{target.name}.part.json")
    with _locked(path, f"Waiting for another download of {target.name}", start_bar) as note:
        part = _Part(target, note)
        try:
            yield part
        finally:
            if part.size == 0:
                part.path.unlink(missing_ok=True)
                if sys.platform == "win32":
                    note.close()  # open files cannot be removed there
                path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, waiting: str, start_bar: StartBar) -> Iterator[IO[str]]:
    """Open and lock a file; repeat this if another process removed it in the meantime."""
    while True:
        with path.open("a+", encoding="utf-8") as file:
            if not lock(file):
                start_bar(waiting, None, 0)
                lock(file, wait=True)
            if is_at(path, file):
                yield file
                return


def _check_existing(target: Path, md5: str, start_bar: StartBar) -> None:
    found = _md5_with_bar(target, start_bar)
    if found != md5:
        raise FileExistsError(
            f"Expected {target} to be the file with MD5 {md5}, or not to exist, but it has MD5 {found} "
            f"({target.stat().st_size} bytes). Move it away, or choose another folder."
        )


def _check_complete(part: _Part, url: str, md5: str, start_bar: StartBar) -> None:
    """Refuse another checksum; a file that is complete according to the server is kept under another name."""
    found = _md5_with_bar(part.path, start_bar)
    if found == md5:
        return
    size, fate = part.size, "removed"
    if part.remote.size == size:
        kept = part.path.with_name(f"{part.name}.md5-{found[:8]}")
        os.replace(part.path, kept)
        fate = f"kept as {kept} (remove it if it is of no use)"
    else:
        part.path.unlink()
    raise ConnectionError(
        f"Expected {url} to be the file with MD5 {md5}, but what was downloaded has MD5 {found} ({size} bytes). It is "
        f"damaged, or another file, and was {fate}. Try again, or fetch the file by other means."
    )


def _md5_with_bar(path: Path, start_bar: StartBar) -> str:
    return md5_of(path, start_bar(f"Checking {path.name}", path.stat().st_size, 0))
