"""Documents in text files: a plain text file is one document, a .jsonl file has one in each line."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

Files: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_JSON_LINES = (".jsonl", ".json")


class Document(NamedTuple):
    """A part of a file: its bytes from `begin` to `end`; for JSON, the field `text` of the object in these bytes."""

    file: Path
    begin: int
    end: int
    is_json: bool

    @property
    def size(self) -> int:
        """Size in bytes; a text has at most as many tokens."""
        return self.end - self.begin

    def text(self) -> str:
        """The whole text."""
        raw = _read(self.file, self.begin, self.end)
        return _text_of_line(raw, self.file) if self.is_json else _decoded(raw, self.file, self.begin)

    def text_after(self, place: int, most: int) -> str:
        """Read at most `most` bytes of a plain text, from the first word after a place on, in whole characters only."""
        begin = self.begin + place
        raw = _read(self.file, begin, min(begin + most, self.end))
        cut = next((i for i, byte in enumerate(raw[:4]) if byte & 0xC0 != 0x80), 0)
        text = _decoded(raw[cut:], self.file, begin + cut, whole=False)
        if place == 0:
            return text
        word = next((i for i, character in enumerate(text[:200]) if character.isspace()), -1)
        return text[word + 1 :]


def documents(files: Files, *, argument: str = "text") -> list[Document]:
    """List the documents in text files and .jsonl files, in their order."""
    paths = [Path(files)] if isinstance(files, str | os.PathLike) else [Path(file) for file in files]
    if not paths:
        raise ValueError(f"Expected argument `{argument}` to name at least one file, but got none.")
    return [document for path in paths for document in _documents_in(path, argument)]


def joined_text(files: Files, *, argument: str = "text") -> str:
    """Join all documents into one text with two newlines between them, as the paper does for WikiText-2."""
    return "\n\n".join(document.text() for document in documents(files, argument=argument))


def _documents_in(path: Path, argument: str) -> list[Document]:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe: write it to a file" if path.exists() else "not there"
        raise FileNotFoundError(f"Expected argument `{argument}` to be an existing file, but {str(path)!r} is {what}.")
    if path.suffix == ".gz":
        raise ValueError(
            f"Expected argument `{argument}` to be a file that is not packed, but got {str(path)!r}. Unpack it "
            "(gzip -d)."
        )
    if path.suffix not in _JSON_LINES:
        return [Document(path, 0, path.stat().st_size, is_json=False)]
    found, begin = [], 0
    with path.open("rb") as lines:
        for line in lines:
            if line.strip():
                found.append(Document(path, begin, begin + len(line), is_json=True))
            begin += len(line)
    return found


def _read(file: Path, begin: int, end: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(begin)
        return opened.read(end - begin)


def _decoded(raw: bytes, file: Path, begin: int, *, whole: bool = True) -> str:
    """Decode bytes, dropping a byte order mark and turning CRLF into newlines."""
    decoder = codecs.getincrementaldecoder("utf-8" if begin else "utf-8-sig")()
    try:
        text = decoder.decode(raw, final=whole)
        if (zero := raw.find(0)) >= 0:  # valid, but a sign of UTF-16 or of a file that is not text
            raise UnicodeDecodeError("utf-8", raw, zero, zero + 1, "a zero byte")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Expected argument `text` to be UTF-8, but {str(file)!r} is not, at byte {begin + error.start} "
            f"({error.reason}). Convert text of another encoding, such as by `iconv -t UTF-8`; unpack a packed file; "
            "write the texts of a table (.parquet) to a .jsonl file."
        ) from error
    return text.replace("\r\n", "\n")


def _text_of_line(raw: bytes, file: Path) -> str:
    try:
        text = json.loads(raw)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected argument `text` to have a JSON object with a field `text` in each line, but {str(file)!r} has "
            f"{raw[:60]!r}."
        ) from error
    if not isinstance(text, str):
        raise ValueError(f"Expected the field `text` in {str(file)!r} to be a string, but got {type(text).__name__}.")
    return text
