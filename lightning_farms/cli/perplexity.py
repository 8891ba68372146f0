"""`lightning-farms perplexity DIR --text FILE`: measure how well a language model predicts a text."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Literal

from lightning_farms.cli._language_model import USER_MISTAKES, ModelOptions, add_model_options, write_json
from lightning_farms.cli._parser import OptionParser
from lightning_farms.cli._shell import failing_on
from lightning_farms.common.progress import progress_bars, progress_is_shown
from lightning_farms.pruning import Perplexity, perplexity

_DESCRIPTION = """Measure the perplexity of a language model on a text: exp of the mean loss of the next token;
smaller is better. The text is cut into windows of 2048 tokens (or of as many as the model can see), and all tokens
but the first of each are scored. With --stride below --window, windows overlap, and each token that is scored has at
least as many tokens before it as the overlap. --setting paper computes it as for the published tables. Nothing is
downloaded, and no code in DIR is run. The result goes to stdout, everything else to stderr. Exit status: 0 done; 1 it
cannot be computed; 2 wrong arguments; 130 interrupted."""
_BROKEN = """Note: the losses of {} of {} windows are not finite: weights are not (lightning-farms analyze DIR), or the
model overflows on this text (in half precision, give --dtype float32).
"""


@dataclass(frozen=True)
class PerplexityOptions(ModelOptions):
    """The options of `lightning-farms perplexity`."""

    text: list[str]
    setting: Literal["paper"] | None
    window: int | None
    stride: int | None
    max_windows: int | None


def run(args: list[str]) -> None:
    """Run `lightning-farms perplexity`."""
    options = _parse(args)
    with failing_on(*USER_MISTAKES, folder="DIR"):
        found = _measure(options)
        sys.stdout.write(_lines(found))
        if broken := int(found.window_losses.isnan().sum()):
            sys.stderr.write(_BROKEN.format(broken, found.windows))
        if options.json is not None:
            write_json({**found._asdict(), "window_losses": found.window_losses.tolist()}, options.json)


def _parse(args: list[str]) -> PerplexityOptions:
    parser = OptionParser(
        prog="lightning-farms perplexity",
        description=_DESCRIPTION,
        usage="%(prog)s DIR --text FILE [FILE ...] [options]",
    )
    add_model_options(parser)
    parser.add_argument(
        "--text",
        type=str,
        nargs="+",
        required=True,
        metavar="FILE",
        help="text in UTF-8, or .jsonl with a field `text` in each line; several files are joined by empty lines",
    )
    parser.add_argument(
        "--setting",
        type=Literal["paper"],
        default=None,
        help="paper: disjoint windows of 2048 tokens, without the rest of the text that fills no window",
    )
    parser.add_argument(
        "--window",
        type=int,
        default=None,
        metavar="N",
        help="tokens that the model sees at once; by default 2048, or as many as it can see",
    )
    parser.add_argument(
        "--stride",
        type=int,
        default=None,
        metavar="N",
        help="tokens from the start of a window to that of the next; by default as --window",
    )
    parser.add_argument("--max_windows", type=int, default=None, metavar="N", help="score only the first N windows")
    return PerplexityOptions(**parser.parse_args(args).as_dict())


def _measure(options: PerplexityOptions) -> Perplexity:
    model, tokenizer = options.load(options.text)
    with progress_bars(show=progress_is_shown()) as start:
        advance, before = None, 0

        def progress(done: int, total: int) -> None:
            nonlocal advance, before
            advance = start("windows", total, 0) if advance is None else advance
            advance(done - before)
            before = done

        return perplexity(
            model,
            options.text,
            tokenizer,
            setting=options.setting,
            window=options.window,
            stride=options.stride,
            max_windows=options.max_windows,
            batch_size=options.batch_size,
            progress=progress,
        )


def _lines(found: Perplexity) -> str:
    spread = "" if math.isnan(found.standard_error) else f" ± {found.token * found.standard_error:.2g}"
    return (
        f"perplexity      {found.token:.6g}{spread}  ({found.tokens:,} tokens in {found.windows:,} windows)\n"
        f"word perplexity {found.word:.6g}  ({found.words:,} words in the text)\n"
    )
