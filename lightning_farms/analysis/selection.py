"""Selection of the weights of a model that are analysed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase

from lightning_farms.analysis._layout_text import RULE, is_layout
from lightning_farms.common.texts import listed

KINDS = (
    "linear",
    "convolution",
    "transposed convolution",
    "embedding",
    "attention",
    "recurrent",
    "low-rank product",
    "parameter",
)
"""The kinds of weights."""

_LATER = ("classes", "min_eigenvalues", "layout")  # options that version 0.1 did not have


class PatternError(ValueError):
    """A pattern of a selection matches no layer.

    Args:
        argument: ``"include"``, ``"exclude"`` or ``"layout"``.
        pattern: the pattern.
        names: names of all layers; the message lists those that are close to the pattern.
    """

    def __init__(self, argument: str, pattern: str, names: Sequence[str]) -> None:
        self.argument, self.pattern, self.names = argument, pattern, tuple(names)
        super().__init__(argument, pattern, self.names)

    def __str__(self) -> str:
        return (
            f"Expected argument `{self.argument}` to match layers, but {self.pattern!r} matches none. "
            f"{_nearby(self.pattern, self.names)}."
        )


@dataclass(frozen=True, repr=False)
class Selection:
    """Choice of weights by name, kind and size; weights that are left out stay in the report, with the reason.

    A pattern is matched against the layer's whole name as in a shell (``*`` also matches dots), and a plain prefix
    stands for all layers below it: ``"blocks.0"`` matches ``blocks.0`` and ``blocks.0.attn.q``, not ``blocks.01``.
    The size of a weight is the smaller dimension of its matrices: the number of eigenvalues of each.

    Args:
        include: patterns, at least one of which a layer's name must match; empty for all layers.
        exclude: patterns that a layer's name must not match; they win over ``include``.
        kinds: the kinds that are analysed, out of :data:`KINDS`; empty for all. ``"embedding"`` and
            ``"low-rank product"`` also switch on ``embeddings`` and ``low_rank_products``.
        min_size: smallest size that is analysed.
        max_size: largest size that is analysed; ``None`` for no limit.
        embeddings: whether tables of embeddings are analysed.
        low_rank_products: whether the product of a LoRA-style pair, which is the matrix that acts, is analysed in place
            of its two factors; a factor without its partner is then left out. ``False`` to analyse each factor as a
            matrix of its own, as in version 0.1.
        classes: names of classes of ``torch.nn``; a weight's module must be an instance of one of them (or of a
            subclass). Empty for all. A checkpoint does not tell classes, so with this none of its weights is selected.
        min_eigenvalues: fewest eigenvalues that a weight must have: the smaller dimension of its matrices times their
            number; for a convolution, the smaller of the stored weight's first two dimensions times the kernel
            positions (its groups are not told apart).
        layout: what the stored dimensions of weights mean if their class or name does not tell, or tells wrongly:
            ``("experts.*=batch", "conv.*=oikk")``, or the same as a dictionary. The first pattern that matches a
            layer's name counts. A layout is ``"batch"`` (matrices of the last two dimensions), ``"embedding"``, or a
            letter for each dimension: o (outputs), i (inputs), k (kernel positions), b (batch), c (real and imaginary
            part), and ``/GROUPS`` of a convolution, as in ``"oikk/8"``.

    Raises:
        TypeError: patterns or kinds are not a sequence of strings, a size is not an integer, or an option not a bool.
        ValueError: a kind is unknown, a pattern is empty, a layout is invalid, or a size is out of range.

    Example:
        >>> selection = Selection(include=("blocks.*",), exclude=("blocks.0",), min_size=16)
        >>> selection.refusal("blocks.1.mlp", "linear", (1, 64, 256)) is None
        True
        >>> selection.refusal("blocks.0.mlp", "linear", (1, 64, 256))
        "excluded by the pattern 'blocks.0'"
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    min_size: int = 1
    max_size: int | None = None
    embeddings: bool = False
    low_rank_products: bool = True
    classes: tuple[str, ...] = ()
    min_eigenvalues: int = 1
    layout: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Leave out later options that are off, as callbacks find their state in a checkpoint by this text."""
        shown = [f for f in fields(self) if f.name not in _LATER or getattr(self, f.name) != f.default]
        return f"Selection({', '.join(f'{field.name}={getattr(self, field.name)!r}' for field in shown)})"

    def __post_init__(self) -> None:
        if isinstance(self.layout, Mapping):
            object.__setattr__(self, "layout", tuple(f"{pattern}={text}" for pattern, text in self.layout.items()))
        for name in ("include", "exclude", "kinds", "classes", "layout"):
            object.__setattr__(self, name, _strings(name, getattr(self, name)))
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"Expected argument `kinds` to be one of {', '.join(KINDS)}, but got {kind!r}.")
        for text in self.layout:
            if not _pattern(text) or not is_layout(_layout(text)):
                raise ValueError(f"Expected argument `layout` to be PATTERN=LAYOUT, with {RULE}, but got {text!r}.")
        _check_sizes(self.min_size, self.max_size)
        _check_sizes(self.min_eigenvalues, None, least="min_eigenvalues")
        for name, kind in (("embeddings", "embedding"), ("low_rank_products", "low-rank product")):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"Expected argument `{name}` to be True or False, but got {getattr(self, name)!r}.")
            object.__setattr__(self, name, getattr(self, name) or kind in self.kinds)

    def refusal(
        self,
        name: str,
        kind: str,
        matrices_shape: Sequence[int],
        *,
        shape: Sequence[int] = (),
        classes: Sequence[str] = (),
    ) -> str | None:
        """Return why a weight is not analysed, or None if it is selected.

        Args:
            name: name of the layer.
            kind: kind of the weight, one of :data:`KINDS`.
            matrices_shape: shape of the matrices, (..., m, n).
            shape: shape of the weight as stored; empty if unknown.
            classes: names of the classes of ``torch.nn`` that its module is an instance of.

        Returns:
            The reason, None if the weight is selected.
        """
        excluding = next((pattern for pattern in self.exclude if _matches(pattern, name)), None)
        if excluding is not None:
            return f"excluded by the pattern {excluding!r}"
        if self.include and not any(_matches(pattern, name) for pattern in self.include):
            return f"matches no pattern of `include`, {', '.join(map(repr, self.include))}"
        if self.kinds and kind not in self.kinds:
            return f"its kind, {kind!r}, is not among those to analyse"
        if self.classes and not set(self.classes).intersection(classes):
            return f"its module is not of class {' or '.join(self.classes)}"
        if kind == "embedding" and not self.embeddings:
            return "embeddings are analysed on request only: Selection(embeddings=True), or --embeddings"
        return self._size_refusal(min(matrices_shape[-2:])) or self._count_refusal(_count(kind, matrices_shape, shape))

    def layout_of(self, name: str) -> str:
        """Return the layout that the option ``layout`` gives for a layer; empty if it gives none.

        Example:
            >>> Selection(layout=("experts.*=batch",)).layout_of("experts.up")
            'batch'
        """
        return next((_layout(text) for text in self.layout if _matches(_pattern(text), name)), "")

    def _size_refusal(self, size: int) -> str | None:
        if 0 < size < self.min_size:
            return f"the smaller dimension, {size}, is below min_size {self.min_size}"
        if self.max_size is not None and size > self.max_size:
            return f"the smaller dimension, {size}, is above max_size {self.max_size}"
        return None

    def _count_refusal(self, count: int) -> str | None:
        few = 0 < count < self.min_eigenvalues
        return f"it has {count} eigenvalues, fewer than min_eigenvalues {self.min_eigenvalues}" if few else None

    def check_patterns(self, names: Iterable[str]) -> None:
        """Make sure that every pattern matches a layer.

        Args:
            names: names of all layers.

        Raises:
            PatternError: a pattern matches no layer; the message lists layers that are close to it.

        Example:
            >>> try:
            ...     Selection(exclude=("haed",)).check_patterns(["body.0", "head"])
            ... except PatternError as error:
            ...     print(error)
            Expected argument `exclude` to match layers, but 'haed' matches none. The closest are head.
        """
        known = list(names)
        for argument in ("include", "exclude", "layout"):
            texts = getattr(self, argument)
            for pattern in map(_pattern, texts) if argument == "layout" else texts:
                if not any(_matches(pattern, name) for name in known):
                    raise PatternError(argument, pattern, known)


def _pattern(text: str) -> str:
    return text.rpartition("=")[0]


def _layout(text: str) -> str:
    return text.rpartition("=")[2]


def _count(kind: str, matrices_shape: Sequence[int], shape: Sequence[int]) -> int:
    """Number of eigenvalues of a weight; a convolution whose shape is known counts as if it had one group."""
    if kind == "convolution" and len(shape) > 2:
        return min(shape[:2]) * math.prod(shape[2:])
    return math.prod(matrices_shape[:-2]) * min(matrices_shape[-2:])


def _matches(pattern: str, name: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def _nearby(pattern: str, names: Sequence[str]) -> str:
    """Return a text with names, or prefixes of names, that look like a pattern, or else with the first names."""
    parts = [name.split(".") for name in names]
    prefixes = dict.fromkeys(".".join(split[:length]) for split in parts for length in range(1, len(split) + 1))
    close = get_close_matches(pattern.strip("*."), prefixes, n=3, cutoff=0.5)
    if close:
        return f"The closest are {', '.join(close)}"
    return f"The layers are {listed(names, 5)}" if names else "There are no layers"


def _strings(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
        raise TypeError(f"Expected argument `{name}` to be a tuple of strings, as in ('head',), but got {value!r}.")
    if "" in value:
        raise ValueError(f"Expected argument `{name}` to hold no empty string, but got {tuple(value)!r}.")
    return tuple(value)


def _check_sizes(min_size: object, max_size: object, least: str = "min_size") -> None:
    for name, value in ((least, min_size), ("max_size", max_size)):
        if value is None and name == "max_size":
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"Expected argument `{name}` to be an integer, but got {value!r}.")
        if value < 1:
            raise ValueError(f"Expected argument `{name}` to be at least 1, but got {value}.")
    if isinstance(min_size, int) and isinstance(max_size, int) and max_size < min_size:
        raise ValueError(
            f"Expected argument `max_size` to be at least {least}, which is {min_size}, but got {max_size}."
        )


MODEL_BALANCING = Selection(kinds=("linear", "convolution"), classes=("Linear", "Conv1d", "Conv2d"), min_eigenvalues=13)
"""The weights that ModelBalancing's program for neural operators balances: those of ``Linear``, ``Conv1d`` and
``Conv2d`` that have more than 12 eigenvalues. (Depthwise convolutions among them are vectors, not analysed here.)

Reference:
    Liu et al., Model Balancing Helps Low-data Training and Fine-tuning, EMNLP Findings 2024.
"""
