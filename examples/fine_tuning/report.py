"""Tables and a plot of a study, made only from the rows of its file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments import RunTable, markdown, save_figure, spread
from fine_tuning.choice import chosen_rate, interval, paired
from fine_tuning.methods import TITLES
from fine_tuning.study import BASELINE, CHOICE_SEED, TRIVIAL, Run, Study

DIVERGED = FloatingPointError.__name__  # the error that a training ends with if its loss is not finite


class Cell(NamedTuple):
    """The regime, and the share of its flows, in which a table compares methods."""

    data: str
    fraction: float


class Rows:
    """The last row of each run of one setting and length.

    Args:
        table: the file of runs.
        setting: the setting, as in the rows.
        epochs: number of epochs, as in the rows.
    """

    def __init__(self, table: RunTable, setting: str, epochs: int) -> None:
        self.setting, self.epochs = setting, epochs
        latest = {tuple(row[name] for name in Run._fields): row for row in table.rows()}
        self._rows = [row for row in latest.values() if row["setting"] == setting]

    def errors(self, cell: Cell, method: str, seed: int) -> dict[float, float]:
        """Return {rate: validation error} of a seed: infinite if training diverged, absent if it failed otherwise."""
        return {
            float(row["lr"]): float(row["val_l2re"]) if row["status"] == "finished" else math.inf
            for row in self._of(cell, method)
            if int(row["seed"]) == seed and (row["status"] == "finished" or row["error"].startswith(DIVERGED))
        }

    def chosen(self, cell: Cell, method: str) -> float | None:
        """Return the rate with the lowest validation error at the seed of the choice; None if there is none yet."""
        errors = self.errors(cell, method, CHOICE_SEED)
        return chosen_rate(errors) if errors else None

    def matched_rate(self, cell: Cell, method: str) -> float | None:
        """Return the chosen rate times the reported seeds' mean multiplier, to two digits; None if not there yet."""
        rate = self.chosen(cell, method)
        multipliers = {} if rate is None else self.values(cell, method, rate, "mean_multiplier")
        return None if rate is None or not multipliers else float(f"{rate * statistics.mean(multipliers.values()):.2g}")

    def values(self, cell: Cell, method: str, rate: float, column: str) -> dict[int, float]:
        """Return {seed: value of a column} for the seeds that are reported."""
        return {
            int(row["seed"]): float(row[column])
            for row in self._of(cell, method)
            if float(row["lr"]) == rate and int(row["seed"]) != CHOICE_SEED and row["status"] == "finished"
        }

    def trivial(self, cell: Cell, method: str) -> dict[str, str] | None:
        """Return the row of a trivial predictor, or None."""
        return next((row for row in self._of(Cell(cell.data, 1.0), method, 0)), None)

    def layers(self, cell: Cell, method: str, rate: float) -> dict[str, list[tuple[float, ...]]]:
        """Return {layer: (mean multiplier, alpha at the start, at the end, relative change) of each reported seed}."""
        found: dict[str, list[tuple[float, ...]]] = {}
        for row in self._of(cell, method):
            if float(row["lr"]) == rate and int(row["seed"]) != CHOICE_SEED and row["layers"]:
                for entry in row["layers"].split(";"):
                    name, *values = entry.split(":")
                    found.setdefault(name, []).append(tuple(map(float, values)))
        return found

    def _of(self, cell: Cell, method: str, epochs: int | None = None) -> Iterable[dict[str, str]]:
        length = self.epochs if epochs is None else epochs
        wanted = {"data": cell.data, "fraction": f"{cell.fraction:g}", "method": method, "epochs": str(length)}
        return (row for row in self._rows if all(row[name] == value for name, value in wanted.items()))


def tables(rows: Rows, cells: Sequence[Cell], study: Study) -> str:
    """Format all tables of a study as Markdown."""
    methods, seeds = study.methods, len(study.seeds)
    texts = [f"Setting: {rows.setting}; {rows.epochs} epochs.\n"]
    for cell in cells:
        texts.append(f"## {cell.data}, {100 * cell.fraction:g} % of the training flows\n")
        texts.append("Each method at its own rate, chosen on the validation flows:\n")
        texts.append(_comparison(rows, cell, {method: rows.chosen(cell, method) for method in methods}, seeds))
        shared = rows.chosen(cell, BASELINE)
        texts.append("All at the rate that was chosen for Adam:\n")
        texts.append(_comparison(rows, cell, dict.fromkeys(methods, shared), seeds))
        if study.matched:
            texts.append("Adam at the mean rate of another method (its rate times its mean multiplier), and that:\n")
            texts.append(_matched(rows, cell, study.matched, seeds))
        texts.append(f"Validation L2RE (%) by rate, seed {CHOICE_SEED}; the lowest was chosen:\n")
        texts.append(_by_rate(rows, cell, methods))
        texts.append("By layer: mean multiplier, alpha by the method's own analysis (start, end), relative change:\n")
        texts.append(_by_layer(rows, cell, methods))
    return "\n".join(texts)


def _comparison(rows: Rows, cell: Cell, rates: Mapping[str, float | None], seeds: int) -> str:
    """Format errors over seeds and paired differences to Adam, at given rates."""
    base_rate = rates[BASELINE]
    lines = []
    for method, rate in rates.items():
        if rate is None:
            continue
        errors = rows.values(cell, method, rate, "test_l2re")
        vrmse = list(rows.values(cell, method, rate, "test_vrmse").values())
        multiplier = list(rows.values(cell, method, rate, "mean_multiplier").values())
        line = [
            TITLES[method], f"{rate:g}", f"{statistics.mean(multiplier):.2f}" if multiplier else "-",
            spread([100 * error for error in errors.values()], seeds, 3), spread(vrmse, seeds, 3),
        ]  # fmt: skip
        for column in ("test_l2re", "val_l2re"):
            baseline = {} if base_rate is None else rows.values(cell, BASELINE, base_rate, column)
            differences = paired(rows.values(cell, method, rate, column), baseline) if method != BASELINE else []
            line.append(_interval_text([100 * difference for difference in differences], seeds))
        lines.append(line)
    for method in TRIVIAL:
        row = rows.trivial(cell, method)
        if row is not None:
            errors_text = f"{100 * float(row['test_l2re']):.3f}"
            lines.append([TITLES[method], "", "", errors_text, f"{float(row['test_vrmse']):.3f}", "", ""])
    differences_to_adam = ["test L2RE less Adam's, 95 %", "on the validation flows"]
    header = ["method", "rate", "mean multiplier", "test L2RE (%)", "test VRMSE", *differences_to_adam]
    return markdown(header, lines)


def _matched(rows: Rows, cell: Cell, methods: Sequence[str], seeds: int) -> str:
    """Format the differences of methods to Adam at the methods' mean rates."""
    lines = []
    for method in methods:
        rate, matched = rows.chosen(cell, method), rows.matched_rate(cell, method)
        if rate is None or matched is None:
            continue
        own = rows.values(cell, method, rate, "test_l2re")
        adam = rows.values(cell, BASELINE, matched, "test_l2re")
        percent = ([100 * error for error in errors.values()] for errors in (own, adam))
        differences = [100 * difference for difference in paired(own, adam)]
        line = [TITLES[method], f"{rate:g}", f"{matched:g}", *(spread(errors, seeds, 3) for errors in percent)]
        lines.append([*line, _interval_text(differences, seeds)])
    header = ["method", "rate", "Adam's rate", "test L2RE (%)", "Adam's", "difference, 95 % interval"]
    return markdown(header, lines)


def _interval_text(differences: Sequence[float], seeds: int) -> str:
    if not differences:
        return ""
    mean, half, count = interval(differences)
    text = f"{mean:+.3f} ± {half:.3f}" if count > 1 else f"{mean:+.3f}"
    return text if count == seeds else f"{text} ({count})"


def _by_rate(rows: Rows, cell: Cell, methods: Sequence[str]) -> str:
    errors = {method: rows.errors(cell, method, CHOICE_SEED) for method in methods}
    rates = sorted({rate for of_method in errors.values() for rate in of_method})
    lines = [
        [TITLES[method], *(f"{100 * found[rate]:.3f}" if rate in found else "" for rate in rates)]
        for method, found in errors.items()
    ]
    return markdown(["method", *(f"{rate:g}" for rate in rates)], lines)


def _by_layer(rows: Rows, cell: Cell, methods: Sequence[str]) -> str:
    """Format means over seeds for every layer, at each method's own rate."""
    found: dict[str, dict[str, str]] = {}
    shown = []
    for method in methods:
        rate = rows.chosen(cell, method)
        layers = {} if rate is None else rows.layers(cell, method, rate)
        if layers:
            shown.append(method)
        for name, runs in layers.items():
            multiplier, start, end, moved = (statistics.mean(values) for values in zip(*runs, strict=True))
            alphas = "-" if math.isnan(start) else f"{start:.2f}, {end:.2f}"
            text = f"{multiplier:.2f}; {alphas}; {moved:.2f}"
            found.setdefault(name, {})[method] = text
    lines = [[f"`{name}`", *(texts.get(method, "") for method in shown)] for name, texts in found.items()]
    return markdown(["layer", *(TITLES[method] for method in shown)], lines)


def plot(rows: Rows, cells: Sequence[Cell], methods: Sequence[str], path: Path) -> None:
    """Plot paired differences to Adam, each at its own rate: seeds, mean and interval, with a panel for each cell."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    others = [method for method in methods if method != BASELINE]
    figure = Figure(figsize=(3 + 4 * len(cells), 1.2 + 0.4 * len(others)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, cell in zip(figure.subplots(1, len(cells), squeeze=False, sharey=True)[0], cells, strict=True):
        base_rate = rows.chosen(cell, BASELINE)
        baseline = {} if base_rate is None else rows.values(cell, BASELINE, base_rate, "test_l2re")
        for place, method in enumerate(others):
            rate = rows.chosen(cell, method)
            values = {} if rate is None else rows.values(cell, method, rate, "test_l2re")
            differences = [100 * difference for difference in paired(values, baseline)]
            if differences:
                mean, half, _ = interval(differences)
                axes.errorbar(
                    mean, place, xerr=None if math.isnan(half) else half, fmt="s", color="tab:blue", capsize=3
                )
                axes.plot(differences, [place + 0.2] * len(differences), ".", color="tab:grey")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(title=f"{cell.data}, {100 * cell.fraction:g} %", xlabel="test L2RE less Adam's (points)")
        axes.set_yticks(range(len(others)), [TITLES[method] for method in others])
        axes.set_ylim(len(others) - 0.5, -0.5)
    save_figure(figure, path, dpi=110)
