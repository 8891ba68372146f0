"""Description of a run: its options as a text, and the arrangement of its scalars in charts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

import torch
from lightning.pytorch import Callback

from lightning_farms.common import lightning_packages
from lightning_farms.loggers.sinks import Sink


class Logged(NamedTuple):
    """The callbacks that log under one label, and the keys that they log."""

    callbacks: Sequence[Callback]
    by_layer: Sequence[str]  # first parts of the keys that are logged per layer: ``farms/alpha``, ``layer_lr/SGD``
    others: Sequence[str] = ()  # last parts of other keys under the label: ``learning_rate_multiplier_mean``


def options(callback: Callback) -> dict[str, object]:
    """The arguments of a callback's constructor, with the present values of its attributes of the same names.

    Example:
        >>> from lightning.pytorch.callbacks import EarlyStopping
        >>> options(EarlyStopping("loss", patience=5))["patience"]
        5
    """
    return {name: getattr(callback, name) for name in _arguments(type(callback)) if hasattr(callback, name)}


def options_text(callbacks: Iterable[Callback]) -> str:
    """Format the options of callbacks and the versions of the packages that they run on as Markdown tables."""
    tables = [_table(type(callback).__name__, options(callback)) for callback in callbacks]
    versions = {
        "lightning_farms": version("lightning-farms"),
        **lightning_packages.versions(),
        "torch": torch.__version__,
    }
    return "\n".join([*tables, _table("Versions", versions)])


def chart_layout(analyses: Mapping[str, Logged]) -> dict[str, dict[str, list[str]]]:
    r"""Arrange the scalars of all analyses of a run in charts, one for each quantity with all layers.

    Example:
        >>> layout = chart_layout({"farms": Logged([], ["farms/alpha", "layer_lr/SGD"], ["multiplier_mean"])})
        >>> layout["farms"]["alpha of every layer"], layout["farms"]["layer_lr/SGD of every layer"]
        (['farms/alpha/'], ['layer_lr/SGD/'])
        >>> layout["farms"]["multiplier mean"]
        ['farms/multiplier_mean$']
    """
    layout: dict[str, dict[str, list[str]]] = {}
    for label, logged in analyses.items():
        own = f"{label}/"
        charts = {f"{prefix.removeprefix(own)} of every layer": [re.escape(f"{prefix}/")] for prefix in logged.by_layer}
        charts |= {name.replace("_", " "): [re.escape(f"{own}{name}") + "$"] for name in logged.others}
        charts["mean of alpha over layers"] = [re.escape(f"{own}alpha_mean") + "$"]
        charts["standard deviation of alpha over layers"] = [re.escape(f"{own}alpha_std") + "$"]
        charts["seconds of analysis and of logging"] = [re.escape(f"{own}time/") + ".*_seconds$"]
        charts["share of the epoch"] = [re.escape(f"{own}time/epoch_share") + "$"]
        layout[label] = charts
    return layout


def describe(sinks: Iterable[Sink], analyses: Mapping[str, Logged], step: int) -> list[Exception]:
    """Write every analysis's options as a text, and one layout of charts for all (a second one would replace it).

    If one part fails, the others are still written.
    """
    errors: list[Exception] = []
    for sink in sinks:
        parts = [partial(_write_layout, sink, analyses)]
        parts += [partial(_write_options, sink, label, logged, step) for label, logged in analyses.items()]
        for part in parts:
            try:
                part()
            except Exception as error:
                errors.append(error)
    return errors


def _write_options(sink: Sink, label: str, logged: Logged, step: int) -> None:
    sink.text(f"{label}/options", options_text(logged.callbacks), step)


def _write_layout(sink: Sink, analyses: Mapping[str, Logged]) -> None:
    sink.layout(chart_layout(analyses))


def _arguments(kind: type) -> list[str]:
    """Names of a class's arguments, including those that it passes on to its bases as ``**options``."""
    names: list[str] = []
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
            names += [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            if not any(p.kind == p.VAR_KEYWORD for p in parameters):
                break
    return list(dict.fromkeys(names))


def _table(title: str, entries: Mapping[str, object]) -> str:
    lines = [f"| {name} | {_cell(value)} |" for name, value in entries.items()]
    return "\n".join([f"### {title}", "", "| option | value |", "| --- | --- |", *lines, ""])


def _cell(value: object) -> str:
    return "`" + " ".join(repr(value).replace("|", r"\|").replace("`", "'").split()) + "`"
