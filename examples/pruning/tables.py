"""Tables 1, 6, 8 and 9 of the paper: perplexity of pruned language models, by method, allocation and sparsity.

    python examples/pruning/texts.py texts  # two English texts, each in three parts
    python examples/pruning/tables.py --models FOLDER --texts texts/wikipedia texts/brown
    python examples/pruning/tables.py --models LLAMA-7B --texts C4 --windows 2000 --sequences 128 --length 2048

A text is a folder with calibration.txt, heldout.txt and test.txt; every run is calibrated on the first text and
evaluated on all. For each method, allocation and sparsity, the epsilon and window with the lowest perplexity on the
first text's held-out part are chosen with the first seed; the other seeds are run with these only. No test text decides
anything. Every finished run is one row of OUT/runs.csv; if the command is started again, finished runs are not
repeated. After all runs, OUT/table.md has means and standard deviations over seeds, and differences to the uniform
ratio and to a ramp over depth, seed by seed; OUT/table.png is a plot. With --table_only nothing is run. For the
zero-shot tasks of Table 2, run `lightning-farms evaluate` on the folders that `lightning-farms prune` writes.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveInt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the module that the runners share
from experiments import Help, RunTable, key_texts, markdown, run_all, save_figure, spread, write_text

from lightning_farms.analysis import FARMS
from lightning_farms.pruning import (
    Allocation,
    Calibration,
    DLPAllocation,
    FARMSAllocation,
    OWLAllocation,
    RampAllocation,
    UniformAllocation,
    WholeMatrixAllocation,
    allocate_from_alphas,
    input_mean_squares,
    load_causal_lm,
    perplexity,
    prunable_weights,
    prune,
)
from lightning_farms.pruning.allocation import WeightsSubject

Method = Literal["magnitude", "wanda", "sparsegpt"]
Name = Literal["uniform", "alphapruning", "farms-paper", "farms", "owl", "dlp", "ramp", "farms-reversed"]

TITLES = {
    "uniform": "uniform",
    "alphapruning": "AlphaPruning",
    "farms-paper": "FARMS, authors'",
    "farms": "FARMS, Hill",
    "owl": "OWL",
    "dlp": "DLP",
    "ramp": "ramp",
    "farms-reversed": "FARMS reversed",
}
COLOURS = ("tab:grey", "tab:orange", "tab:cyan", "tab:blue", "tab:green", "tab:olive", "tab:purple", "tab:red")
CONTROLS = ("uniform", "ramp")
KEY = ("model", "method", "allocation", "window", "sparsity", "epsilon", "seed", "sequences", "length")


class Run(NamedTuple):
    """One pruning and its evaluation; a window or an epsilon of 0 means that none is searched for the allocation."""

    model: str
    method: str
    allocation: str
    window: int
    sparsity: str
    epsilon: float
    seed: int
    sequences: int
    length: int

    @property
    def key(self) -> dict[str, str]:
        """Everything that tells this run from others, as text for the file of runs."""
        return key_texts(self._asdict())

    @property
    def label(self) -> str:
        """A short name to show."""
        window = f" {self.window}" if self.window else ""
        return f"{self.method} {self.sparsity} {self.allocation}{window}, epsilon {self.epsilon:g}, seed {self.seed}"

    @property
    def epochs(self) -> int:
        """A pruning counts as one epoch."""
        return 1


class Job(NamedTuple):
    """The settings from the command line that all runs share."""

    models: Mapping[str, Path]
    texts: tuple[Path, ...]
    evaluated: int  # windows of a text that are evaluated, at most
    authors_window: tuple[int, int]
    device: str


def allocation_of(run: Run, job: Job) -> Allocation:
    """Build the allocation of a run."""
    epsilon = {"epsilon": run.epsilon} if run.epsilon else {}
    if run.allocation == "uniform":
        return UniformAllocation()
    if run.allocation == "ramp":
        return RampAllocation(**epsilon)
    if run.allocation in ("owl", "dlp"):
        kind = OWLAllocation if run.allocation == "owl" else DLPAllocation
        return kind(spread=run.epsilon * sparsity_of(run.sparsity)[0]) if run.epsilon else kind()
    if run.allocation == "alphapruning":
        return WholeMatrixAllocation("peak", **epsilon)
    if run.allocation == "farms-paper":
        rows, steps = job.authors_window
        return FARMSAllocation(FARMS(1.0, rows, steps, fit="peak", compat="official"), **epsilon)
    return FARMSAllocation(FARMS(window=run.window), reverse=run.allocation == "farms-reversed", **epsilon)


@cache
def dense(folder: Path, device: str) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """Load a model, its tokenizer, and a copy of its weights."""
    model, tokenizer = load_causal_lm(folder, device=device)
    return model, tokenizer, {name: value.clone() for name, value in model.state_dict().items()}


@cache
def calibration_ids(folder: Path, device: str, text: Path, sequences: int, length: int, seed: int) -> torch.Tensor:
    """Return the token ids that a run is calibrated on."""
    tokenizer = dense(folder, device)[1]
    return Calibration(text / "calibration.txt", sequences=sequences, length=length, seed=seed).token_ids(tokenizer)


@cache
def windows_of(folder: Path, device: str, file: Path, length: int, most: int) -> torch.Tensor:
    """Return windows of a text, (N, T), evenly spread over it."""
    ids: list[int] = dense(folder, device)[1](file.read_text(encoding="utf-8"), verbose=False)["input_ids"]
    windows = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    number = min(most, len(windows))
    return windows[[place * len(windows) // number for place in range(number)]]


_figures: dict[tuple[object, ...], dict[str, float]] = {}


def figures_of(run: Run, job: Job) -> dict[str, float]:
    """Return the dense model's alphas or other sources of ratios, computed once for all methods and sparsities."""
    allocation = allocation_of(run._replace(epsilon=0.0), job)
    seed = run.seed if allocation.needs_calibration else None
    key = (run.model, allocation.label, run.window, run.allocation == "farms-paper", seed)
    if key not in _figures:
        folder = job.models[run.model]
        model, _, weights = dense(folder, job.device)
        model.load_state_dict(weights)
        ids = calibration_ids(folder, job.device, job.texts[0], run.sequences, run.length, run.seed)
        layers = prunable_weights(model)
        subject = WeightsSubject(layers, lambda: input_mean_squares(model, ids))
        found = allocation.sources(subject).values
        _figures[key] = {layer.name: figure for layer, figure in zip(layers, found, strict=True)}
    return _figures[key]


def train(run: Run, job: Job) -> dict[str, float]:
    """Prune once and evaluate on every text."""
    start = time.perf_counter()
    folder = job.models[run.model]
    figures = figures_of(run, job)
    model, _, weights = dense(folder, job.device)
    model.load_state_dict(weights)
    ids = calibration_ids(folder, job.device, job.texts[0], run.sequences, run.length, run.seed)
    sparsity, m = sparsity_of(run.sparsity)
    layers = prunable_weights(model)
    ratios = allocate_from_alphas(figures, layers, sparsity, allocation_of(run, job), pattern_m=m)
    report = prune(model, ratios, run.method, None if run.method == "magnitude" else ids)
    result = {"reached": report.reached}
    for text, part in parts_of(job.texts):
        tokens = windows_of(folder, job.device, text / f"{part}.txt", run.length, job.evaluated)
        found = perplexity(model, tokens)
        result[f"{text.name}_{part}"] = found.token
        result[f"{text.name}_{part}_error"] = found.standard_error
    return {**result, "seconds": time.perf_counter() - start}


def parts_of(texts: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return the parts to evaluate on: the first text's held-out part, and all test parts."""
    return [(texts[0], "heldout"), *((text, "test") for text in texts)]


def sparsity_of(text: str) -> tuple[float, int | None]:
    """Parse a sparsity or pattern: `0.6` gives (0.6, None), `2:4` gives (0.5, 4)."""
    zeros, colon, length = text.partition(":")
    return (int(zeros) / int(length), int(length)) if colon else (float(text), None)


def runs_of(
    models: Sequence[str],
    methods: Sequence[str],
    allocations: Sequence[str],
    windows: Sequence[int],
    sparsities: Sequence[str],
    epsilons: Sequence[float],
    seed: int,
    sequences: int,
    length: int,
) -> Iterator[Run]:
    """Yield all runs of one seed."""
    for model in models:
        for sparsity in sparsities:
            for allocation in allocations:
                for method in methods:
                    for window in windows if allocation.startswith("farms") and allocation != "farms-paper" else [0]:
                        for epsilon in [0.0] if allocation == "uniform" else epsilons:
                            yield Run(model, method, allocation, window, sparsity, epsilon, seed, sequences, length)


def chosen(runs: Sequence[Run], table: RunTable, text: str) -> list[Run]:
    """Return the run of lowest held-out perplexity in each group of runs that differ only in epsilon and window."""
    best: dict[Run, tuple[float, Run]] = {}
    for run in runs:
        row = table.finished(run)
        if row is not None:
            group, found = run._replace(window=0, epsilon=0.0), float(row[f"{text}_heldout"])
            if group not in best or found < best[group][0]:
                best[group] = (found, run)
    return [run for _, run in best.values()]


def table_of(best: Sequence[Run], seeds: Sequence[int], table: RunTable, text: str) -> str:
    """Format test perplexity (mean ± standard deviation over seeds) and differences of its logarithm to controls."""
    names = list(dict.fromkeys(run.allocation for run in best))
    lines = []
    for method, sparsity in dict.fromkeys((run.method, run.sparsity) for run in best):
        logs = {
            run.allocation: _logs(run, [seeds[0]] if method == "magnitude" else seeds, table, text)
            for run in best
            if (run.method, run.sparsity) == (method, sparsity)
        }
        cells = [spread([math.exp(value) for value in logs.get(name, {}).values()], len(seeds), 1) for name in names]
        differences = [_difference(logs, "farms", control) for control in CONTROLS]
        lines.append([method, sparsity, *cells, *differences])
    header = ["method", "sparsity", *(TITLES[name] for name in names), *(f"log FARMS / {name}" for name in CONTROLS)]
    return markdown(header, lines)


def _logs(run: Run, seeds: Sequence[int], table: RunTable, text: str) -> dict[int, float]:
    rows = {seed: table.finished(run._replace(seed=seed)) for seed in seeds}
    return {seed: math.log(float(row[f"{text}_test"])) for seed, row in rows.items() if row is not None}


def _difference(logs: Mapping[str, Mapping[int, float]], name: str, control: str) -> str:
    one, other = logs.get(name, {}), logs.get(control, {})
    values = [one[seed] - other[seed] for seed in one if seed in other]
    if not values:
        return "-"
    return f"{statistics.mean(values):+.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def choices_of(best: Sequence[Run]) -> str:
    """Format the epsilons and windows that held-out text chose."""
    lines = [
        [run.method, run.sparsity, TITLES[run.allocation], f"{run.epsilon:g}", str(run.window or "")]
        for run in best
        if run.epsilon
    ]
    return markdown(["method", "sparsity", "allocation", "epsilon", "window"], lines)


def plot(best: Sequence[Run], table: RunTable, text: str, path: Path) -> None:
    """Plot test perplexity over sparsity, with a panel for each method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(run.method for run in best))
    figure = Figure(figsize=(1 + 4 * len(methods), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, method in zip(figure.subplots(1, len(methods), squeeze=False)[0], methods, strict=True):
        for colour, name in zip(COLOURS, TITLES, strict=True):
            rows = [
                (sparsity_of(run.sparsity)[0], float(row[f"{text}_test"]))
                for run in best
                if (run.method, run.allocation) == (method, name) and ":" not in run.sparsity
                if (row := table.finished(run)) is not None
            ]
            if rows:
                axes.plot(*zip(*sorted(rows), strict=True), ".-", color=colour, label=TITLES[name])
        axes.set(yscale="log", xlabel="sparsity", ylabel=f"perplexity, {text}", title=method)
        axes.legend(fontsize="small")
    save_figure(figure, path, dpi=110)


def main(
    models: Sequence[Path],
    texts: Sequence[Path],
    methods: Sequence[Method] = get_args(Method),
    allocations: Sequence[Name] = ("uniform", "alphapruning", "farms-paper", "farms", "owl", "ramp", "farms-reversed"),
    sparsities: Sequence[str] = ("0.5", "0.6", "0.7", "2:4"),
    epsilons: Sequence[float] = (0.1, 0.2, 0.3),
    windows: Sequence[PositiveInt] = (96,),
    seeds: Sequence[NonNegativeInt] = (0, 1, 2),
    out: Path = Path("pruning_tables"),
    authors_window: PositiveInt = 192,
    authors_steps: PositiveInt = 10,
    sequences: PositiveInt = 8,
    length: PositiveInt = 512,
    evaluated: PositiveInt = 8,
    device: str = "cpu",
    choose: bool = True,
    table_only: bool = False,
) -> int:
    """Run the prunings and write the table.

    Args:
        models: folders of models, or .gguf files.
        texts: folders of calibration.txt, heldout.txt and test.txt; the first one is used for calibration.
        methods: how weights are chosen.
        allocations: how much each layer loses.
        sparsities: shares of the blocks' weights, or patterns such as 2:4.
        epsilons: ranges of the scores to choose from; OWL's and DLP's lambda is this times the sparsity, as wide.
        windows: rows of FARMS's windows to choose from.
        seeds: seeds of the calibration sequences.
        out: folder of runs.csv, table.md and table.png.
        authors_window: rows of a window in the authors' setting.
        authors_steps: windows per dimension in that setting.
        sequences: number of calibration sequences.
        length: length of a sequence in tokens, for calibration and evaluation.
        evaluated: windows of a text that are evaluated, at most.
        device: where to compute.
        choose: whether the other seeds run only with the chosen epsilon and window.
        table_only: whether to only make the table of the runs that exist.

    Returns:
        The number of runs that failed.
    """
    job = Job({path.stem: path for path in models}, tuple(texts), evaluated, (authors_window, authors_steps), device)
    measured = [f"{text.name}_{part}{end}" for text, part in parts_of(texts) for end in ("", "_error")]
    table = RunTable(out / "runs.csv", KEY, ("reached", *measured, "seconds"))
    names = list(job.models)
    first = list(runs_of(names, methods, allocations, windows, sparsities, epsilons, seeds[0], sequences, length))

    def do(runs: Sequence[Run]) -> int:
        return (
            0
            if table_only
            else run_all(runs, table, lambda run, folder, on_epoch: train(run, job), _summary(texts[0].name))
        )

    failed = do(first)
    best = chosen(first, table, texts[0].name)
    again = [run for run in (best if choose else first) if run.method != "magnitude"]
    failed += do([run._replace(seed=seed) for seed in seeds[1:] for run in again])
    parts = [f"Test perplexity on {t.name}\n\n{table_of(best, seeds, table, t.name)}" for t in texts]
    text = "\n".join([*parts, f"Chosen on held-out text of {texts[0].name}\n\n{choices_of(best)}"])
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "table.md", text)
    plot(best, table, texts[0].name, out / "table.png")
    print(text)
    if failed:
        print(f"{failed} runs failed; see {table.path}. The same command tries them again.")
    return failed


def _summary(text: str) -> Any:  # noqa: ANN401 (a function for run_all)
    return lambda result: (
        f"{result[f'{text}_test']:.2f} (held out {result[f'{text}_heldout']:.2f}) at {result['reached']:.4f}, "
        f"{result['seconds']:.0f} s"
    )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=Help)
    lists = {
        "models": (Path, None, "folders of models, or .gguf files"),
        "texts": (Path, None, "folders of calibration.txt, heldout.txt and test.txt; the first is calibrated on"),
        "methods": (str, get_args(Method), "how weights are chosen"),
        "allocations": (
            str,
            ("uniform", "alphapruning", "farms-paper", "farms", "owl", "ramp", "farms-reversed"),
            f"how much each layer loses: {', '.join(TITLES)}",
        ),
        "sparsities": (str, ("0.5", "0.6", "0.7", "2:4"), "shares of the blocks' weights, or patterns"),
        "epsilons": (
            float,
            (0.1, 0.2, 0.3),
            "ranges of the scores to choose from (of OWL, DLP: lambda by the sparsity)",
        ),
        "windows": (PositiveInt, (96,), "rows of FARMS's windows to choose from"),
        "seeds": (NonNegativeInt, (0, 1, 2), "of the calibration sequences"),
    }
    for name, (kind, default, text) in lists.items():
        parser.add_argument(
            f"--{name}", type=kind, nargs="+", default=default and list(default), required=default is None, help=text
        )
    parser.add_function_arguments(main, skip=set(lists))
    return parser


if __name__ == "__main__":
    sys.exit(1 if main(**_parser().parse_args().as_dict()) else 0)
