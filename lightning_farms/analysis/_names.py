"""Names that mean the same: with and without wrappers, and in two checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts that ``torch.compile``, FSDP and activation checkpointing add to the names of what they wrap."""


_FLAT = re.compile(
    r"(?P<module>.+?)_?(?P<leaf>in_proj_(weight|bias)|[qkv]_proj_(weight|bias)|(weight|bias)_(ih|hh|hr)_l\d+(_reverse)?"
    r"|running_(mean|var)|num_batches_tracked|weight|bias)"
)
_FEWEST_FLAT = 3
_DEEPEST_START = 4  # a copy of a part of a model lacks fewer than so many first parts of the names


def module_and_leaf(names: Sequence[str]) -> Callable[[str], tuple[str, str]]:
    """Return a function that cuts a name into that of a module and that of its tensor.

    The names of copies (EMA) may have no dots: ``conv1_weight``.

    Example:
        >>> module_and_leaf(["conv1_weight", "conv1_bias", "fc_weight"])("conv1_weight")
        ('conv1', 'weight')
    """
    starts: dict[str, list[str]] = {}
    for name in names:
        start, _, leaf = name.rpartition(".")
        starts.setdefault(start, []).append(leaf)
    flat = {start for start, leaves in starts.items() if _are_flat(leaves)}
    if len(starts) > 1:  # beside others, most names of a copy are also there with their dots
        known = _without_dots([name for name in names if name.rpartition(".")[0] not in flat]) if flat else set()
        flat = {start for start in flat if 2 * sum(leaf in known for leaf in starts[start]) > len(starts[start])}

    def split(name: str) -> tuple[str, str]:
        start, _, leaf = name.rpartition(".")
        match = _FLAT.fullmatch(leaf) if start in flat else None
        if match is None:
            return start, leaf
        return ".".join(part for part in (start, match["module"]) if part), match["leaf"]

    return split


def _are_flat(leaves: Sequence[str]) -> bool:
    """Whether a module's tensors may be those of many modules: most have names of other modules' weights or biases."""
    matching = sum(_FLAT.fullmatch(leaf) is not None for leaf in leaves)
    usual = any(leaf in ("weight", "bias") for leaf in leaves)
    return not usual and matching >= _FEWEST_FLAT and matching > len(leaves) // 2


def _without_dots(names: Sequence[str]) -> set[str]:
    """Return names, and ends of names, with their dots left out or replaced by underscores."""
    parts = [name.split(".") for name in names]
    ends = (split[depth:] for split in parts for depth in range(min(len(split), _DEEPEST_START)))
    return {joined.join(end) for end in ends for joined in ("", "_")}


def match_names(names: Collection[str], others: Collection[str]) -> dict[str, str]:
    """Pair equal names; if there are none, the prefix that all names of either side share is left out first."""
    known = set(others)
    if not known.isdisjoint(names):
        return {name: name for name in names if name in known}
    start, other_start = _start(names), _start(others)
    partners = {other.removeprefix(other_start): other for other in others}
    plain = {name: name.removeprefix(start) for name in names}
    return {name: partners[plain[name]] for name in names if plain[name] in partners}


def _start(names: Collection[str]) -> str:
    """Return the prefix, up to a dot, that all names share; it leaves a part of each name."""
    parts = [name.split(".")[:-1] for name in names if name]  # SWA keeps its count at the top, in module ""
    shared = next((i for i, level in enumerate(zip(*parts, strict=False)) if len(set(level)) > 1), None)
    length = min(map(len, parts), default=0) if shared is None else shared
    return "".join(f"{part}." for part in parts[0][:length]) if parts else ""
