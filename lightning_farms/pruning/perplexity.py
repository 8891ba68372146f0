"""Perplexity of language models on texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_farms.common.arguments import check_integers
from lightning_farms.pruning._documents import Files, joined_text
from lightning_farms.pruning._losses import next_token_losses
from lightning_farms.pruning.text import Tokenizer, check_vocabulary, tokenise, vocabulary_size

Setting: TypeAlias = Literal["paper"]

_PAPERS_WINDOW = 2048
_Model: TypeAlias = Any  # transformers.PreTrainedModel


class Perplexity(NamedTuple):
    """How well a language model predicts a text; smaller is better, 1 is best."""

    token: float
    """exp(mean loss): the number of tokens, as it were, among which the model hesitates at each position."""
    word: float
    """Perplexity per word between spaces, comparable across tokenizers; NaN if only ids were given."""
    mean_loss: float
    """Mean next-token loss in nats."""
    standard_error: float
    """Standard error of the mean loss, over windows; NaN for one window. For the perplexity multiply it by `token`."""
    tokens: int
    """Number of tokens that were scored."""
    words: int
    """Number of words in the text; 0 if only ids were given."""
    windows: int
    """Number of windows that were scored."""
    window_losses: Tensor
    """(windows,), float64: the mean loss of each window, for paired comparisons of models on one text."""


class _Span(NamedTuple):
    """A window on the tokens: its begin and end, and the first token in it that is scored."""

    begin: int
    end: int
    first: int


def perplexity(
    model: _Model,
    text: Files | Tensor,
    tokenizer: Tokenizer | None = None,
    *,
    setting: Setting | None = None,
    window: int | None = None,
    stride: int | None = None,
    max_windows: int | None = None,
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    r"""Perplexity of a language model on a text: :math:`\exp(-\frac{1}{n} \sum_i \log p(t_i \mid t_{<i}))`.

    The model sees one window at a time. Disjoint windows (`stride` left out) give the first tokens of each window
    little context, and never score the very first. With a stride below the window length, windows overlap, only the
    tokens that are new in a window are scored, and each has at least `window - stride` tokens before it: this is
    slower, and the perplexity is lower and closer to what the model can do. Every token but the first is then scored
    once. The last window may be shorter.

    `setting="paper"` is that of the published tables: disjoint windows of 2048 tokens (or fewer, if the model has fewer
    positions), without the remainder that fills no window, and :math:`\exp` of the mean over windows of their mean
    loss.

    Texts are joined by two newlines, and the tokenizer's special tokens are put around the joined text. Losses are
    computed in float32 and summed in float64. At most 33 million logits are in memory at once (2^25), however large
    vocabulary and window are. The model is not moved, and is set to evaluation mode during the call.

    Args:
        model: a causal language model of transformers, on any device, possibly with blocks left on disk.
        text: UTF-8 text files, .jsonl files with a field `text`, or token ids: (tokens,), or N windows (N, T).
        tokenizer: the model's tokenizer; not needed for token ids.
        setting: `"paper"` for the paper's setting, or None.
        window: number of tokens in a window; None: 2048, or the number of the model's positions if smaller.
        stride: number of tokens from one window's start to the next; None: `window`.
        max_windows: score only this many first windows; None: all.
        batch_size: number of windows at a time.
        progress: called after each batch with the number of windows done and the number of all windows.

    Returns:
        The perplexity, and the amount of text it was measured on.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if the text is shorter than one window, the window longer than the model's positions, the stride
            longer than the window, or the tokenizer is missing or does not fit.

    Example:
        >>> model, tokenizer = load_causal_lm("SmolLM2-135M")  # doctest: +SKIP
        >>> perplexity(model, "test.txt", tokenizer, setting="paper").token  # doctest: +SKIP

    Reference:
        Hu et al., Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias (2025), Section 4.2.
    """
    ids, tokens, words = _ids_of(model, text, tokenizer)
    window, stride = _checked_window(model, setting, window, stride, rows=ids.shape[1] if ids.ndim == 2 else None)
    spans = _spans(ids.numel(), window, stride, drop_rest=setting == "paper")
    check_integers(1, batch_size=batch_size, max_windows=1 if max_windows is None else max_windows)
    losses = list(_losses(model, ids.flatten(), spans[:max_windows], batch_size, progress))
    return _summary(losses, tokens_a_word=tokens / words if words else math.nan, words=words)


def positions_of(model: _Model) -> int | None:
    """Number of tokens that a model can see at once; None if it has no bound (ALiBi, state spaces).

    Args:
        model: a causal language model of transformers.

    Returns:
        The number of its positions.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def default_window(model: _Model) -> int:
    """Default window length: the paper's 2048 tokens, or the model's positions if these are fewer.

    Args:
        model: a causal language model of transformers.

    Returns:
        A number of tokens.
    """
    positions = positions_of(model)
    return _PAPERS_WINDOW if positions is None else min(_PAPERS_WINDOW, positions)


def _ids_of(model: _Model, text: Files | Tensor, tokenizer: Tokenizer | None) -> tuple[Tensor, int, int]:
    """The ids, the number of tokens without special tokens around the text, and the number of words."""
    if isinstance(text, Tensor):
        if text.is_floating_point() or text.dtype == torch.bool or text.ndim not in (1, 2):
            raise ValueError(
                "Expected argument `text` to be files, or a tensor of token ids of shape (tokens,) or (N, T), but got "
                f"{tuple(text.shape)} of {text.dtype}."
            )
        ids, tokens, words = text.detach().to("cpu", torch.int64), text.numel(), 0
    elif tokenizer is None:
        raise ValueError("Expected argument `tokenizer` to be the model's, as `text` names files, but got None.")
    else:
        whole = joined_text(text)
        ids = torch.tensor(tokenise(whole, tokenizer, special=True), dtype=torch.int64)
        around = len(tokenise("", tokenizer, special=True))
        tokens, words = len(ids) - around, len(whole.split())
    check_vocabulary(ids, vocabulary_size(model))
    return ids, tokens, words


def _checked_window(
    model: _Model, setting: Setting | None, window: int | None, stride: int | None, rows: int | None
) -> tuple[int, int]:
    """Check window and stride, and fill in their defaults; `rows` is the length if the text is given as windows."""
    positions = positions_of(model)
    if setting not in (None, "paper"):
        raise ValueError(f"Expected argument `setting` to be 'paper' or None, but got {setting!r}.")
    if rows is not None and (window not in (None, rows) or stride not in (None, rows)):
        raise ValueError(
            f"Expected arguments `window` and `stride` to be left out, as `text` is windows of {rows} tokens, but got "
            f"{window} and {stride}."
        )
    window = rows if window is None else window
    if window is None:
        window = default_window(model)
    stride = window if stride is None else stride
    check_integers(2, window=window)
    check_integers(1, stride=stride)
    if positions is not None and window > positions:
        raise ValueError(
            f"Expected argument `window` to be at most the model's {positions} positions, but got {window}."
        )
    if stride > window:
        raise ValueError(f"Expected argument `stride` to be at most the window of {window} tokens, but got {stride}.")
    if setting == "paper" and stride != window:
        raise ValueError(
            f"Expected argument `stride` to be left out, as windows are disjoint in the paper's setting, but got "
            f"{stride}."
        )
    return window, stride


def _spans(tokens: int, window: int, stride: int, *, drop_rest: bool) -> list[_Span]:
    """Windows at a distance of one stride, up to the first that reaches the end."""
    if tokens < window:
        raise ValueError(
            f"Expected argument `text` to hold at least one window of {window} tokens, but it has {tokens}. Give more "
            f"text, or lower argument `window`."
        )
    spans, scored = [], 1  # the very first token has nothing before it
    for begin in range(0, tokens, stride):
        end = min(begin + window, tokens)
        first = max(scored, begin + 1)
        if first < end and (end - begin == window or not drop_rest):
            spans.append(_Span(begin, end, first - begin))
        scored = end
        if end == tokens:
            break
    return spans


def _losses(
    model: _Model, ids: Tensor, spans: list[_Span], batch_size: int, progress: Callable[[int, int], None] | None
) -> Iterator[Tensor]:
    """Compute the losses of each window's scored tokens."""
    device = _device_of(model)
    training, done = model.training, 0
    model.eval()
    try:
        for batch in _batches(spans, batch_size):
            windows = torch.stack([ids[span.begin : span.end] for span in batch]).to(device)
            with torch.no_grad():
                losses = next_token_losses(model, windows, batch[0].first)
            yield from losses.double().cpu()
            done += len(batch)
            if progress is not None:
                progress(done, len(spans))
    finally:
        model.train(training)


def _batches(spans: list[_Span], batch_size: int) -> Iterator[list[_Span]]:
    """Batches of consecutive windows of the same shape."""
    for _, alike in groupby(spans, key=lambda span: (span.end - span.begin, span.first)):
        group = list(alike)
        yield from (group[begin : begin + batch_size] for begin in range(0, len(group), batch_size))


def _device_of(model: _Model) -> torch.device:
    """The device for ids, which is that of the embedding; accelerate brings there what is left on disk."""
    device: torch.device = model.get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device


def _summary(losses: list[Tensor], *, tokens_a_word: float, words: int) -> Perplexity:
    counts = torch.tensor([len(loss) for loss in losses], dtype=torch.float64)
    sums = torch.stack([loss.sum() for loss in losses])
    mean = (sums.sum() / counts.sum()).item()
    deviations = sums - mean * counts  # for a ratio of sums; with equal windows this gives the usual standard error
    windows = len(losses)
    variance = deviations.square().sum() * windows / (windows - 1) if windows > 1 else torch.tensor(math.nan)
    return Perplexity(
        token=_exp(mean),
        word=_exp(mean * tokens_a_word),
        mean_loss=mean,
        standard_error=(variance.sqrt() / counts.sum()).item(),
        tokens=int(counts.sum()),
        words=words,
        windows=windows,
        window_losses=sums / counts,
    )


def _exp(number: float) -> float:
    return torch.tensor(number, dtype=torch.float64).exp().item()  # inf beyond 709
