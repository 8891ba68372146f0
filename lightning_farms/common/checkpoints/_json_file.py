"""JSON beside tensors: the index of shards, a configuration, the header of a safetensors file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

MOST_JSON = 2**25
"""Longest text that is read, in bytes; one of them becomes up to 20 in memory."""


class JSONError(ValueError):
    """A text that is no JSON, too long, or names a key twice."""


def read_json_file(path: Path) -> object:
    """What a file holds.

    Raises:
        JSONError: it holds no JSON, or names a key twice: readers differ in which of the two they take.
    """
    if path.stat().st_size > MOST_JSON:
        raise JSONError(f"it is longer than {MOST_JSON} bytes")
    return parse_json(path.read_bytes())


def parse_json(text: bytes) -> object:
    """As :func:`read_json_file`, of what is read already."""
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except JSONError:
        raise
    except (ValueError, RecursionError) as error:  # also of its characters, and of integers of thousands of digits
        raise JSONError(f"it is no JSON ({type(error).__name__})") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise JSONError(f"it names {twice[:80]!r} twice")
    return found
