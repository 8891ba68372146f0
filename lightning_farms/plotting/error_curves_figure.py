"""The error of a prediction as it grows over the frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_farms.plotting._arrays import Values, as_array
from lightning_farms.plotting._labels import label_within_a_decade, literal, shortened
from lightning_farms.plotting._margins import Margins, add_axes, name_axes, widest
from lightning_farms.plotting._style import in_plain_style, plain_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (7.6, 4.6)  # inches
_LEGEND = 0.3  # inches per row
_LEGEND_COLUMNS = (6, 4)  # numbers of columns: if all texts are short, and otherwise
_LEGEND_FONT = 9
_HANDLE = 0.45  # inches, width of a line in the legend
_MARKS = "osD^vPX<>*"  # as some see red and green alike
_REFERENCES = ("--", "-.")  # line styles of the references
_COLOURS = 10  # colours of the cycle, after which dashes tell channels apart


@in_plain_style
def error_curves_figure(
    errors: Values,
    *,
    channels: Sequence[str],
    positions: Sequence[float],
    unit: str = "frame",
    before: Values | None = None,
    before_label: str = "before",
    references: Mapping[str, Sequence[float]] | None = None,
    title: str = "Relative L2 error over the rollout",
) -> Figure:
    """Draw the errors over the frames, one line per channel and their mean, on a logarithmic axis.

    Errors that are not finite or not positive leave gaps.

    Args:
        errors: (frames, channels), at least 0.
        channels: Name of each channel.
        positions: Number or time of each frame.
        unit: Unit of the positions.
        before: Earlier errors of the same shape, drawn dotted.
        before_label: Label of the earlier errors.
        references: {name: mean errors by frame} of other predictions for comparison, drawn in grey.
        title: Title of the figure.

    Returns:
        The figure; pyplot does not know it, so it need not be closed.

    Raises:
        ValueError: If there is no error, or names, positions, earlier errors or references do not fit the errors.

    Example:
        >>> figure = error_curves_figure([[0.01, 0.02], [0.03, 0.04]], channels=["Vx", "Vy"], positions=[10, 11])
        >>> [text.get_text() for text in figure.legends[0].get_texts()], figure.axes[0].get_yscale()
        (['Vx', 'Vy', 'mean'], 'log')
    """
    now = as_array(errors, "errors", 2)
    earlier = None if before is None else as_array(before, "before", 2)
    _check(now, earlier, channels, positions, references or {})
    figure = plain_figure(*_SIZE)
    names, before_label = [_legend_name(name, 15) for name in channels], _legend_name(before_label)
    others = {_legend_name(name): np.asarray(values, dtype=np.float64) for name, values in (references or {}).items()}
    texts = [*names, "mean", *([] if earlier is None else [before_label]), *others]
    columns = _LEGEND_COLUMNS[widest(texts, _LEGEND_FONT) + _HANDLE > _SIZE[0] / _LEGEND_COLUMNS[0]]
    rows = -(-len(texts) // columns)
    margins = Margins(left=0.85, right=0.15, bottom=0.52 + _LEGEND * rows, top=0.4)
    axes = add_axes(figure, margins)
    _draw(axes, now, names, positions)
    if earlier is not None:
        _draw_earlier(axes, earlier, positions, before_label)
    for style, (name, values) in zip(cycle(_REFERENCES), others.items(), strict=False):
        axes.plot(positions, values, style, lw=1.6, color="grey", label=name)
    shown = [now, *others.values()] if earlier is None else [now, earlier, *others.values()]
    if any((np.isfinite(values) & (values > 0)).any() for values in shown):
        _make_logarithmic(axes)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.locator_params("x", integer=all(float(position).is_integer() for position in positions))
    name_axes(
        axes, margins, title=shortened(title, 76), horizontal=unit, vertical="relative L2 error", legend=_LEGEND * rows
    )
    figure.legend(
        *axes.get_legend_handles_labels(), loc="lower center", ncols=columns, fontsize=_LEGEND_FONT, frameon=False
    )
    return figure


def _check(
    errors: NDArray[np.float64],
    before: NDArray[np.float64] | None,
    channels: Sequence[str],
    positions: Sequence[float],
    references: Mapping[str, Sequence[float]],
) -> None:
    if not errors.size:
        raise ValueError(f"Expected argument `errors` to have frames and channels, but got shape {errors.shape}.")
    if errors.shape != (len(positions), len(channels)):
        raise ValueError(
            "Expected argument `errors` to have one row a position and one column a channel, "
            f"({len(positions)}, {len(channels)}), but got shape {errors.shape}."
        )
    for name, values in references.items():
        if len(values) != len(positions):
            raise ValueError(
                f"Expected argument `references` to have an error for each of {len(positions)} positions, but got "
                f"{len(values)} of {name!r}."
            )
    if before is not None and before.shape != errors.shape:
        raise ValueError(
            f"Expected argument `before` to have the shape of `errors`, {errors.shape}, but got {before.shape}."
        )


def _legend_name(name: str, width: int = 30) -> str:
    return literal(shortened(name, width))


def _colour(channel: int) -> str:
    return f"C{channel % _COLOURS}"


def _draw(axes: Axes, errors: NDArray[np.float64], channels: Sequence[str], positions: Sequence[float]) -> None:
    for channel, name in enumerate(channels):
        style = _MARKS[channel % len(_MARKS)] + ("-" if channel < _COLOURS else "--")
        axes.plot(positions, errors[:, channel], style, ms=3.5, lw=1.4, color=_colour(channel), label=name)
    axes.plot(positions, errors.mean(axis=1), "o-", ms=4, lw=2.2, color="black", label="mean")


def _make_logarithmic(axes: Axes) -> None:
    """Make the axis logarithmic with plain numbers, which fit beside its name."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    label_within_a_decade(axes.yaxis)


def _draw_earlier(axes: Axes, errors: NDArray[np.float64], positions: Sequence[float], label: str) -> None:
    for channel in range(errors.shape[1]):
        axes.plot(positions, errors[:, channel], ":", lw=1.1, color=_colour(channel), alpha=0.7)
    axes.plot(positions, errors.mean(axis=1), ":", lw=1.8, color="black", alpha=0.8, label=label)
