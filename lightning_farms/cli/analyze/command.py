"""`lightning-farms analyze FILE`: analyse the spectra of a checkpoint's weights."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path

from rich.console import Console
from torch import Tensor, device

from lightning_farms.analysis.apart import weights_apart
from lightning_farms.analysis.checkpoint.state_dict import checkpoint_changes, checkpoint_weights
from lightning_farms.analysis.comparison import Comparison, compare
from lightning_farms.analysis.diagnostics import Diagnostics
from lightning_farms.analysis.engine import analyze_weights
from lightning_farms.analysis.layer_spectrum import Status
from lightning_farms.analysis.method import FARMS
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.analysis.selection import PatternError, Selection
from lightning_farms.analysis.table import closing_lines
from lightning_farms.analysis.weights.layer_weight import LayerWeight
from lightning_farms.cli._console import plain_console
from lightning_farms.cli._shell import LINES, failing_on, say
from lightning_farms.cli._target import check_file, check_folder
from lightning_farms.cli.analyze._apart import say_not_apart
from lightning_farms.cli.analyze._config import model_config_beside
from lightning_farms.cli.analyze._figures import comparison_pictures, draw, report_pictures
from lightning_farms.cli.analyze._opening import open_aloud, say_unreadable
from lightning_farms.cli.analyze._options import AnalyzeOptions, parse_options
from lightning_farms.cli.analyze._progress import analysis_bar
from lightning_farms.cli.analyze._tables import print_comparison, print_report
from lightning_farms.common.atomic import write_text
from lightning_farms.common.progress import progress_bar
from lightning_farms.common.quantities import counted
from lightning_farms.common.texts import printable

_USER_MISTAKES = (ValueError, OSError, ImportError)
_WIDE = 1000  # columns of a table that is not printed on a terminal, more than it needs


def run(args: list[str]) -> None:
    """Run `lightning-farms analyze`.

    Args:
        args: the arguments that follow `analyze` on the command line.

    Raises:
        SystemExit: with status 1 if the file, or every layer in it, cannot be analysed, 2 for wrong arguments, 141 if
            the reader of stdout is gone.
    """
    options = parse_options(args)
    with failing_on(*_USER_MISTAKES):
        _analyze(options)


def _analyze(options: AnalyzeOptions) -> None:
    """Run an analysis, opening files and looking at folders first so that faults show before the long work."""
    opened = partial(open_aloud, check=options.check, dequantize=options.dequantize)
    tensors = opened(options.file, options.key)
    other = None if options.compare is None else opened(options.compare, None)
    base = None if options.base is None else opened(options.base, None)
    if other is not None and options.compare is not None:
        for content, name in zip((tensors, other), _names(options.file, options.compare), strict=True):
            _check_patterns(content, options.selection, name)
    _check_places(options)
    unreadable: list[LayerWeight] = []
    report = _report(tensors, base, options, options.file, unreadable)
    comparison = None
    if other is not None and options.compare is not None:
        alphas_only = replace(options, diagnostics=Diagnostics(), plots=None)
        comparison = compare(report, _report(other, None, alphas_only, options.compare, unreadable))
    _write(report, comparison, options)
    if options.plots is not None:
        _draw(report, comparison, options, options.plots)
    say_unreadable(unreadable)
    _check_any_analysed(report, comparison)


def _check_patterns(tensors: Mapping[str, Tensor], selection: Selection, name: str) -> None:
    """Raise an error that names the file if a pattern matches no layer in it."""
    try:
        checkpoint_weights(tensors, selection, values=False)
    except PatternError as error:
        raise ValueError(f"In {name}: {error}") from error


def _check_places(options: AnalyzeOptions) -> None:
    if options.out is not None:
        read = (options.file, options.base, options.compare)
        check_file(options.out, "--out", [path for path in read if path is not None])
    if options.plots is not None:
        check_folder(options.plots, "--plots")


def _report(
    tensors: Mapping[str, Tensor],
    base: Mapping[str, Tensor] | None,
    options: AnalyzeOptions,
    path: Path,
    unreadable: list[LayerWeight],
) -> SpectralReport:
    config = model_config_beside(path, tensors) if options.apart else {}

    def weights() -> Iterator[LayerWeight]:
        if base is None:
            found = checkpoint_weights(tensors, options.selection)
        else:
            found = checkpoint_changes(tensors, base, options.selection)
        for weight in weights_apart(found, options.apart, config):
            if weight.unreadable:
                unreadable.append(weight)
            yield weight

    def outlines() -> Iterator[LayerWeight]:
        return weights_apart(checkpoint_weights(tensors, options.selection, values=False), options.apart, config)

    if options.apart:
        say_not_apart(checkpoint_weights(tensors, options.selection, values=False), options.apart, config, _name(path))
    with analysis_bar(f"Analysing {_name(path)}", outlines, options.method) as progress:
        return analyze_weights(
            _on_device(weights(), options.device),
            options.method,
            diagnostics=options.diagnostics,
            keep_eigenvalues=options.plots is not None,
            workspace=options.workspace,
            workers=options.workers,
            where=options.where,
            progress=progress,
        )


def _on_device(weights: Iterator[LayerWeight], place: device) -> Iterator[LayerWeight]:
    return (weight._replace(matrices=weight.matrices.to(place)) for weight in weights)


def _write(report: SpectralReport, comparison: Comparison | None, options: AnalyzeOptions) -> None:
    if options.format == "table" and options.out is None:
        _print(plain_console(width=None if sys.stdout.isatty() else _WIDE), report, comparison, options)
        return
    if options.format == "table":
        stream = StringIO()
        _print(plain_console(file=stream, width=_WIDE), report, comparison, options)
        text = stream.getvalue()
    else:
        result = report if comparison is None else comparison
        text = result.to_csv() if options.format == "csv" else result.to_json()
    if options.out is None:
        sys.stdout.write(printable(text, but=LINES) if sys.stdout.isatty() else text)
    else:
        write_text(options.out, text)
        say(f"Written to {options.out}")
    lines = [] if options.format == "table" else closing_lines(list(report), of_change=options.base is not None)
    for line in (f"alpha of {_analysed(options)}: {report.summary}", *lines):
        say(line)


def _print(console: Console, report: SpectralReport, comparison: Comparison | None, options: AnalyzeOptions) -> None:
    if comparison is not None and options.compare is not None:
        print_comparison(console, comparison, names=_names(options.file, options.compare))
        return
    given = ", ".join(f"{name}={value!r}" for name, value in vars(options.method).items() if value is not None)
    title = f"{_analysed(options)}, {type(options.method).__name__}({given})"
    method, of_change = options.method, options.base is not None
    print_report(console, report, title=title, fit=method.fit, reading=_reading(report, options), of_change=of_change)


def _reading(report: SpectralReport, options: AnalyzeOptions) -> str:
    """Return a sentence on how to read alpha, for FARMS with default settings; else nothing."""
    if options.base is not None or options.method != FARMS():
        return ""
    are_products = {row.kind == "low-rank product" for row in report if row.status == Status.OK}
    if are_products == {True}:
        return "alpha: the lower, the heavier the tail; of random products it depends on the rank. Compare equal ranks."
    apart = ", low-rank products apart" if True in are_products else ""
    return (
        f"alpha: about 2.1 for random (untrained) weights of any shape{apart}; the lower, the heavier the tail. "
        "Compare the layers of one network with each other."
    )


def _analysed(options: AnalyzeOptions) -> str:
    name = _name(options.file)
    return name if options.base is None else f"{name} minus {_name(options.base)}"


def _draw(report: SpectralReport, comparison: Comparison | None, options: AnalyzeOptions, folder: Path) -> None:
    pictures = report_pictures(report, name=_analysed(options), fit=options.method.fit)
    if comparison is not None and options.compare is not None:
        pictures += comparison_pictures(comparison, names=_names(options.file, options.compare))
    with progress_bar("Drawing", len(pictures)) as progress:
        for _ in draw(pictures, folder):
            progress(1)
    say(f"Written to {folder}: {counted(len(pictures), 'figure')}")


def _names(file: Path, other: Path) -> tuple[str, str]:
    """Return distinct names for two files: their paths if the names alone are equal."""
    names = _name(file), _name(other)
    return names if names[0] != names[1] else (str(file), str(other))


def _name(path: Path) -> str:
    """Return the last part of a path, even for ``.``."""
    return Path(os.path.abspath(path)).name  # not resolve(), as links may lead to files that are named by their hashes


def _check_any_analysed(report: SpectralReport, comparison: Comparison | None) -> None:
    if comparison is not None and not comparison.layers:
        raise ValueError("Expected two checkpoints with layers in common that have an alpha in both, but got none.")
    if any(row.status is Status.OK for row in report):
        return
    if not len(report):
        raise ValueError("Expected a checkpoint with weight matrices, but got vectors, integers and buffers only.")
    reasons = Counter(row.reason for row in report).most_common(3)
    listed = "; ".join(f"{reason} ({count})" for reason, count in reasons)
    raise ValueError(f"Expected a layer that can be analysed, but of {len(report)} none can: {listed}.")
