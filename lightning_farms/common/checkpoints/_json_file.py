"""JSON that belongs to tensors: the index of shards, a configuration, the header of a safetensors file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

MOST_JSON = 2**25
"""Longest text that is read, in bytes; each byte becomes up to 20 in memory."""


class JSONError(ValueError):
    """Raised for a text that is not JSON, is too long, or has a key twice."""


def read_json_file(path: Path) -> object:
    """Read a JSON file.

    Raises:
        JSONError: the file is not JSON, or has a key twice, in which case readers differ in which one they take.
    """
    if path.stat().st_size > MOST_JSON:
        raise JSONError(f"it is longer than {MOST_JSON} bytes")
    return parse_json(path.read_bytes())


def parse_json(text: bytes) -> object:
    """Like :func:`read_json_file`, for content that has already been read."""
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except JSONError:
        raise
    except (ValueError, RecursionError) as error:  # also for invalid characters, and integers of thousands of digits
        raise JSONError(f"it is not JSON ({type(error).__name__})") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise JSONError(f"it names {twice[:80]!r} twice")
    return found
