"""Calibration text of pruning methods: windows of token ids, drawn at random places."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_farms.common.arguments import check_integers
from lightning_farms.pruning._documents import Document, Files, documents

_READ_WHOLE = 1 << 22
"""Texts of at most this many bytes are tokenised as a whole; of larger texts only the parts that are drawn."""
_BYTES_A_TOKEN = 8
_KEPT = 64
"""Number of documents whose tokens are kept for further windows."""
_PLACES = 100
"""Number of places that are tried in a large text if places are too near its end."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> Mapping[str, list[int]]:
        """Tokenise a text; the ids are under `input_ids`."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration data: windows of given number and length at random places of texts, reproducible by a seed.

    A window is drawn as in the published program for C4: a document at random, another one if it is shorter than a
    window, then a random place in it. Of a large text only the parts that are drawn are read and tokenised.

    Attributes:
        text: a text file (UTF-8; CRLF is read as one newline), or a .jsonl file, in which every line is a document (an
            object with a field `text`, as in C4), or several files; or token ids: (tokens,), from which windows are
            drawn, or (N, T), the windows themselves, in which case `sequences` and `length` have no effect.
        sequences: number of windows to draw.
        length: number of tokens in a window.
        seed: seed of the draw.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if a number is too small, or the tensor does not hold token ids.

    Example:
        >>> Calibration(torch.arange(100), sequences=2, length=4).token_ids()
        tensor([[49, 50, 51, 52],
                [53, 54, 55, 56]])
    """

    text: Files | Tensor
    sequences: int = 128
    length: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        check_integers(1, sequences=self.sequences)
        check_integers(2, length=self.length)
        check_integers(0, seed=self.seed)
        if isinstance(self.text, Tensor):
            _check_ids(self.text)

    def token_ids(self, tokenizer: Tokenizer | None = None, vocabulary: int | None = None) -> Tensor:
        """Draw the windows.

        Args:
            tokenizer: the model's tokenizer; not needed for token ids.
            vocabulary: number of rows of the model's embedding; ids beyond it are refused.

        Returns:
            (N, T), int64, on the CPU.

        Raises:
            FileNotFoundError: if a file does not exist.
            ValueError: if there is no text as long as a window, a file is not UTF-8, the tokenizer is missing, or ids
                are not below `vocabulary`.
        """
        if isinstance(self.text, Tensor):
            windows = self._from_ids(self.text.detach().to("cpu", torch.int64))
        elif tokenizer is None:
            raise ValueError("Expected argument `tokenizer` to be the model's, as `text` names files, but got None.")
        else:
            windows = torch.tensor(self._from_files(self.text, tokenizer))
        check_vocabulary(windows, vocabulary)
        return windows

    def _from_ids(self, ids: Tensor) -> Tensor:
        if ids.ndim == 2:
            return ids
        if len(ids) < self.length:
            raise _too_short(len(ids), self.length)
        draw = random.Random(self.seed)
        starts = [draw.randint(0, len(ids) - self.length) for _ in range(self.sequences)]
        return torch.stack([ids[start : start + self.length] for start in starts])

    def _from_files(self, files: Files, tokenizer: Tokenizer) -> list[list[int]]:
        source = _Source(documents(files), tokenizer, self.length)
        draw = random.Random(self.seed)
        return [source.window(draw) for _ in range(self.sequences)]


class _Source:
    """Documents to draw windows from."""

    def __init__(self, found: list[Document], tokenizer: Tokenizer, length: int) -> None:
        self.documents = found  # documents that turn out to be too short are removed
        self.tokenizer, self.length = tokenizer, length
        self.longest = 0
        self.tokenised: dict[Document, list[int]] = {}

    def window(self, draw: random.Random) -> list[int]:
        while self.documents:
            number = draw.randrange(len(self.documents))
            document = self.documents[number]
            if self._is_large(document) and (found := self._in_large(document, draw)):
                return found
            if document.size >= self.length or document.size > self.longest:  # a token has at least one byte
                tokens = self._tokens(document)
                if len(tokens) >= self.length:
                    start = draw.randint(0, len(tokens) - self.length)
                    return tokens[start : start + self.length]
                self.longest = max(self.longest, len(tokens))
            self.documents[number] = self.documents[-1]
            self.documents.pop()
        raise _too_short(self.longest, self.length)

    def _is_large(self, document: Document) -> bool:
        return not document.is_json and document.size > max(_READ_WHOLE, 2 * _BYTES_A_TOKEN * self.length)

    def _in_large(self, document: Document, draw: random.Random) -> list[int]:
        """Tokens from a random word on; none if too few tokens follow every word that was tried."""
        for _ in range(_PLACES):
            place, most = draw.randrange(document.size), _BYTES_A_TOKEN * self.length
            while True:
                tokens = tokenise(document.text_after(place, most), self.tokenizer)
                if len(tokens) > self.length:  # the last token may be part of a word
                    return tokens[: self.length]
                if place + most >= document.size:
                    break
                most *= 2
        return []

    def _tokens(self, document: Document) -> list[int]:
        if document not in self.tokenised:
            if len(self.tokenised) == _KEPT:
                self.tokenised.clear()
            self.tokenised[document] = tokenise(document.text(), self.tokenizer)
        return self.tokenised[document]


def tokenise(text: str, tokenizer: Tokenizer, *, special: bool = False) -> list[int]:
    """Token ids of a text, with the tokenizer's special tokens around it if `special`."""
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def vocabulary_size(model: Any) -> int:  # noqa: ANN401 - transformers.PreTrainedModel
    """Number of token ids that a model knows."""
    return int(model.get_input_embeddings().weight.shape[0])


def check_vocabulary(ids: Tensor, vocabulary: int | None) -> None:
    """Raise a ValueError for token ids that a model does not have."""
    if ids.numel() and (ids.min() < 0 or (vocabulary is not None and ids.max() >= vocabulary)):
        raise ValueError(
            f"Expected the token ids to be in [0, {'...' if vocabulary is None else vocabulary}), as the model has "
            f"them, but they are in [{ids.min()}, {ids.max()}]. The tokenizer does not fit the model."
        )


def _check_ids(ids: Tensor) -> None:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or ids.ndim not in (1, 2):
        raise ValueError(
            "Expected argument `text` to be files, or a tensor of token ids of shape (tokens,) or (N, T), but got "
            f"{tuple(ids.shape)} of {ids.dtype}."
        )
    if ids.ndim == 2 and (len(ids) == 0 or ids.shape[1] < 2):
        raise ValueError(
            f"Expected argument `text` to hold windows of at least 2 token ids, but its shape is {tuple(ids.shape)}."
        )


def _too_short(tokens: int, length: int) -> ValueError:
    return ValueError(
        f"Expected argument `text` to hold a text of at least one window of {length} tokens, but the longest has "
        f"{tokens}. Give more text in one file"
        + (f", or lower argument `length` to at most {tokens}." if tokens > 1 else ".")
    )
