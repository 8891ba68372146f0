"""Downloads of large files that go on where they were interrupted."""

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
from lightning_farms.data.download._checksum import md5_of

if TYPE_CHECKING:
    from requests import Response

_CHUNK = 1 << 17
_TIMEOUT = (30, 60)  # seconds to connect, and between two pieces
_WAITS = (1, 4, 15, 30)  # seconds before each new attempt, as long as nothing more has come
_WORTH_ANOTHER_ATTEMPT = (408, 425, 429, 500, 502, 503, 504)
_NOT_SATISFIABLE = 416


def fetch_file(
    url: str, target: Path, *, md5: str, least: int = 0, extra: str = "download", progress: bool = True
) -> Path:
    """Download a file; it appears under its name complete and checked, or not at all.

    What has come so far is kept beside it (NAME.part, and in NAME.part.json what the server said about it) and
    continued, at once after a dropped connection, at the next call after anything else; the server is asked for the
    rest on the condition that its file is still the same, and a server that cannot do that starts anew. An existing
    file is checked and left alone. A server's file of fewer than `least` bytes is refused before it comes. If another
    process is at the same file, wait for it.
    """
    with progress_bars(unit="bytes", show=progress and progress_is_shown()) as start_bar:
        if target.exists():
            _check_existing(target, md5, start_bar)
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(target, start_bar) as part:
            part.least = least
            if not target.exists():  # nor did the process that was waited for complete it
                part.fetch(url, extra, start_bar)
                _check_complete(part, url, md5, start_bar)
                os.replace(part.path, target)
    return target


class _Remote(NamedTuple):
    """What a server says about its file: what tells it from later versions, if anything does, and its bytes."""

    validator: str | None = None
    size: int | None = None


class _Changed(Exception):
    """What has come so far is of no use: the server has another file now."""


class _Part:
    """What has come of a file so far."""

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
        """What the server said when the first byte came."""
        self._note.seek(0)
        try:
            return _Remote(**json.loads(self._note.read()))
        except (ValueError, TypeError):  # nothing yet, or interrupted while it was written
            return _Remote()

    def begin(self, remote: _Remote) -> None:
        """Drop what there is; from now on, bytes belong to this file."""
        os.truncate(self.path, 0)
        self._note.seek(0)
        self._note.truncate()
        self._note.write(json.dumps(remote._asdict()))
        self._note.flush()

    def fetch(self, url: str, extra: str, start_bar: StartBar) -> None:
        """Ask for what is missing, again and again as long as that helps."""
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
        """Ask for what is missing, once."""
        with self.path.open("ab") as file:
            receiver = _Receiver(self, file, start_bar)
            settings = {"headers": receiver.headers(), "hooks": {"response": receiver.accept}}
            with closing(receiver):
                downloader(chunk_size=_CHUNK, timeout=_TIMEOUT, **settings)(url, receiver, None)
            os.fsync(file.fileno())
        if self.remote.size not in (None, self.size):
            from requests import ConnectionError as ConnectionLost

            raise ConnectionLost(f"the connection ended after {self.size} of {self.remote.size} bytes")

    def _failed(self, url: str, error: Exception) -> str:
        kept = f" {self.size} bytes are kept in {self.path}: run it again to continue." if self.size else ""
        return f"Expected to download {url}, but it failed: {error}.{kept} Or fetch the file by other means."


class _Receiver:
    """Takes a server's answer: what pooch writes to."""

    def __init__(self, part: _Part, file: IO[bytes], start_bar: StartBar) -> None:
        self._part = part
        self._file = file
        self._start_bar = start_bar
        self._offset = part.size
        self._advance: Advance = lambda count: None
        self._response: Response | None = None

    def headers(self) -> dict[str, str]:
        """What to ask for: the bytes as they are, from the first that is missing, if it is still the same file."""
        headers = {"Accept-Encoding": "identity"}
        if self._offset:
            headers["Range"] = f"bytes={self._offset}-"
            if self._part.remote.validator is not None:
                headers["If-Range"] = self._part.remote.validator
        return headers

    def accept(self, response: Response, *_: object, **__: object) -> None:
        """Look at an answer before its content comes, and make ready for it."""
        self._response = response
        if response.status_code == _NOT_SATISFIABLE and self._offset:
            raise _Changed
        if response.is_redirect or not response.ok:
            return  # pooch goes after the one and raises the other
        if response.status_code == 206 and self._offset:
            self._check_continuation(response)
        else:
            self._offset = 0
            self._part.begin(_Remote(_validator(response), _number(response.headers.get("Content-Length"))))
        size = self._part.remote.size
        if size is not None and size < self._part.least:
            raise ValueError(
                f"Expected {response.url} to be a file of at least {self._part.least} bytes, but it has {size}: it is "
                "another one. Nothing was downloaded."
            )
        self._check_space(size)
        self._advance = self._start_bar(f"Downloading {self._part.name}", size, self._offset)

    def write(self, content: bytes) -> None:
        """Add what came."""
        self._file.write(content)
        self._advance(len(content))

    def flush(self) -> None:
        """Hand it to the operating system, where it outlives this process."""
        self._file.flush()

    def close(self) -> None:
        """Let go of the connection, which pooch leaves open when an answer cannot be used or breaks off."""
        if self._response is not None:
            self._response.close()

    def _check_continuation(self, response: Response) -> None:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        remote = self._part.remote
        if found is None or int(found[1]) != self._offset or _number(found[2]) not in (None, remote.size):
            raise _Changed
        if _validator(response) not in (None, remote.validator):  # it may leave out what it was asked with
            raise _Changed

    def _check_space(self, size: int | None) -> None:
        free = shutil.disk_usage(self._part.path.parent).free
        missing = (size or 0) - self._offset
        if free < missing:
            raise OSError(
                f"Expected {missing / 1e9:.1f} GB of free space in {self._part.path.parent} for the rest of "
                f"{self._part.name}, but there are {free / 1e9:.1f} GB. Make room, or choose another folder."
            )


def _http_downloader(extra: str) -> Any:  # noqa: ANN401
    try:
        from pooch import HTTPDownloader
    except ImportError as error:
        raise ImportError(f'Downloading needs pooch: pip install "lightning-farms[{extra}]"') from error
    return HTTPDownloader


def _validator(response: Response) -> str | None:
    """What tells the server's file from its later versions."""
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
    """The part of a file, for this process alone; the note about it, which bears the lock, stays as long as it does."""
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
    """A file open and locked: again if another process removed it while it was waited for."""
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
            f"Expected {target} to be the file with MD5 {md5} or not to be there, but it has {found} "
            f"({target.stat().st_size} bytes). Move it away, or choose another folder."
        )


def _check_complete(part: _Part, url: str, md5: str, start_bar: StartBar) -> None:
    """Refuse another checksum; what is complete by the server's word is kept, under another name."""
    found = _md5_with_bar(part.path, start_bar)
    if found == md5:
        return
    size, fate = part.size, "and was removed"
    if part.remote.size == size:
        kept = part.path.with_name(f"{part.name}.md5-{found[:8]}")
        os.replace(part.path, kept)
        fate = f"and is kept as {kept}: remove it when it is of no use"
    else:
        part.path.unlink()
    raise ConnectionError(
        f"Expected {url} to be the file with MD5 {md5}, but what came has {found} ({size} bytes): it is damaged or "
        f"another file, {fate}. Try again, or fetch the file by other means."
    )


def _md5_with_bar(path: Path, start_bar: StartBar) -> str:
    return md5_of(path, start_bar(f"Checking {path.name}", path.stat().st_size, 0))
