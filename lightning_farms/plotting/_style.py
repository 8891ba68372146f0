"""Figures that look the same under any style sheet or matplotlibrc, as their margins and colours rely on it."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure

_P = ParamSpec("_P")
_GROUPS = "axes figure grid hatch image legend lines markers mathtext patch path scatter text xaxis xtick yaxis ytick"
_FONT = ("font.size", "font.style", "font.weight")
_KEPT = ("axes.unicode_minus",)  # goes with the font's family, which is kept: it may have the letters of layers' names


def in_plain_style(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Decorate a function that draws a figure."""

    @functools.wraps(draw)
    def styled(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with _plain_style():
            return draw(*args, **kwargs)

    return styled


def plain_figure(width: float = 6.4, height: float = 4.8) -> Figure:
    """An empty figure, sizes in inches, that keeps the style while it is drawn: ticks are made only then.

    Letters that the font lacks are boxes, without a warning. A notebook shows it even if pyplot was never imported.
    """
    return _kind()(figsize=(width, height), dpi=110)


def _plain_style() -> AbstractContextManager[None]:
    """Matplotlib's default style, but for the font's family."""
    import matplotlib

    return matplotlib.rc_context(_defaults())


@functools.cache
def _defaults() -> dict[Any, Any]:
    from matplotlib import rcParamsDefault

    groups = tuple(f"{group}." for group in _GROUPS.split())
    return {k: v for k, v in rcParamsDefault.items() if k in _FONT or (k.startswith(groups) and k not in _KEPT)}


@functools.cache
def _kind() -> type[Figure]:
    from matplotlib.figure import Figure

    class PlainFigure(Figure):
        def draw(self, renderer: RendererBase) -> None:
            with _plain_style(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph", UserWarning)
                super().draw(renderer)

        def _repr_png_(self) -> bytes:
            stream = io.BytesIO()
            self.savefig(stream, format="png")
            return stream.getvalue()

        def __reduce__(self) -> tuple[Any, ...]:
            return plain_figure, (), self.__getstate__()

    return PlainFigure
