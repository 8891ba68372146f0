"""Which names mean the same: with and without wrappers, and in two checkpoints."""

from __future__ import annotations

from collections.abc import Collection

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What ``torch.compile``, FSDP and activation checkpointing put into the names of what they wrap."""


def match_names(names: Collection[str], others: Collection[str]) -> dict[str, str]:
    """Pair names; where the two have none in common, what all names of either begin with is left out first."""
    known = set(others)
    if not known.isdisjoint(names):
        return {name: name for name in names if name in known}
    start, other_start = _start(names), _start(others)
    partners = {other.removeprefix(other_start): other for other in others}
    plain = {name: name.removeprefix(start) for name in names}
    return {name: partners[plain[name]] for name in names if plain[name] in partners}


def _start(names: Collection[str]) -> str:
    """What all names begin with, up to a dot; of each name something is left."""
    parts = [name.split(".")[:-1] for name in names]
    shared = next((i for i, level in enumerate(zip(*parts, strict=False)) if len(set(level)) > 1), None)
    length = min(map(len, parts), default=0) if shared is None else shared
    return "".join(f"{part}." for part in parts[0][:length]) if parts else ""
