"""Table 4 of the paper as a study: fine-tuning DPOT with one rate, TB_Sigmoid, TB_Sigmoid + FARMS, and controls.

    python examples/table_4.py                                          # reduced, about an hour of CPU time
    python examples/table_4.py --config examples/table_4/full.yaml --slice_minutes 9   # DPOT-Tiny, needs a GPU

Each method has its own rate, the one with the lowest validation error at a seed used for nothing else; test errors come
from other seeds, with paired differences to Adam at its best rate. Every finished run is one row of OUT/runs.csv; rates
are chosen, and OUT/table.md and OUT/table.png made, from these rows only. If the command is started again, finished
runs are not repeated, and an interrupted one continues from its checkpoint. With --slice_minutes the call ends by then
with status 75 if there is more to do, or 1 if runs failed; this does it all:

    while python examples/table_4.py ...; test $? = 75; do :; done

Several calls can share one OUT, since runs are told apart by their settings, but not at the same time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from experiments import Clock, Help, OnEpoch, OutOfTimeError, RunTable, quiet, run_all, write_text
from fine_tuning.choice import rates_to_try
from fine_tuning.methods import callbacks
from fine_tuning.report import Cell, Rows, plot, tables
from fine_tuning.study import BASELINE, CHOICE_SEED, TRIVIAL, Result, Run, Study, setting_of
from fine_tuning.training import Laboratory
from jsonargparse import ActionConfigFile, ArgumentParser
from jsonargparse.typing import PositiveFloat

__all__ = ["callbacks", "go_on", "main", "stages"]

MORE_TO_DO = 75  # EX_TEMPFAIL of sysexits.h: try again later


def cells_of(study: Study, names: Mapping[str, object]) -> list[Cell]:
    """Return the comparisons of a study: every regime, given by name, with every share of the flows."""
    return [Cell(name, fraction) for name in names for fraction in study.fractions]


def stages(study: Study, cells: list[Cell], rows: Callable[[], Rows]) -> Iterator[list[Run]]:
    """Yield the runs stage by stage, so that results stay balanced at any time: rates first, then seed after seed.

    Args:
        study: the settings.
        cells: the comparisons.
        rows: returns the finished runs; called anew at each stage.

    Yields:
        The runs of a stage; the next stage depends on their results.
    """
    setting = setting_of(study)

    def run(cell: Cell, method: str, rate: float, seed: int) -> Run:
        return Run(setting, cell.data, cell.fraction, method, rate, seed, study.epochs)

    names = dict.fromkeys(cell.data for cell in cells)
    yield [Run(setting, name, 1.0, method, 0.0, 0, 0) for name in names for method in TRIVIAL]
    before: list[Run] = []
    while missing := [  # the grids, then rates beyond their ends
        run(cell, method, rate, CHOICE_SEED)
        for cell in cells
        for method in study.methods
        for rate in rates_to_try(rows().errors(cell, method, CHOICE_SEED), study.rates, study.extensions)
    ]:
        if missing == before:
            return  # they failed, but not by divergence, so no rate can be chosen
        yield missing
        before = missing
    found = rows()
    for shared in (False, True):
        for seed in study.seeds:
            yield [
                run(cell, method, found.chosen(cell, BASELINE if shared else method), seed)
                for cell in cells
                for method in study.methods
            ]
    found = rows()
    for seed in study.seeds:
        rates = [(cell, found.matched_rate(cell, method)) for cell in cells for method in study.matched]
        yield [run(cell, BASELINE, rate, seed) for cell, rate in rates if rate is not None]


def main(
    study: Study,
    out: Path = Path("table_4"),
    slice_minutes: PositiveFloat | None = None,
    device: str = "auto",
    workers: int = 0,
) -> int:
    """Run a study, or continue it, and write its tables.

    Args:
        study: the settings.
        out: folder of runs.csv, table.md, table.png, the flows and checkpoints.
        slice_minutes: minutes after which this call stops; the next one continues bit for bit.
        device: where flows are simulated; the Trainer uses an accelerator if there is one.
        workers: number of processes that read data.

    Returns:
        0 if all is done, 1 if runs failed, 75 if there is more to do.
    """
    return go_on(Laboratory(study, out, Clock(slice_minutes), device, workers))


def go_on(laboratory: Laboratory) -> int:
    """Do the rest of a laboratory's study until its clock says that the time is over; returns as `main` does."""
    study, out = laboratory.study, laboratory.folder
    cells = cells_of(study, laboratory.regimes)
    table = RunTable(out / "runs.csv", Run._fields, Result._fields)

    def rows() -> Rows:
        return Rows(table, setting_of(study), study.epochs)

    def train(run: Run, folder: Path, on_epoch: OnEpoch) -> Mapping[str, Any]:
        return laboratory.train(run, folder, on_epoch)._asdict()

    failed = 0
    try:
        laboratory.prepare()
        for stage in stages(study, cells, rows):
            failed += run_all(stage, table, train, _summary, laboratory.clock)
            _write(rows(), cells, study, out)
    except OutOfTimeError:
        if table.path.exists():
            _write(rows(), cells, study, out)
        print("The time is over and there is more to do: the same command goes on.")
        return MORE_TO_DO
    if failed:
        print(f"{failed} runs failed; see {table.path}. The same command tries them again.")
    return int(failed > 0)


def _write(rows: Rows, cells: list[Cell], study: Study, out: Path) -> None:
    write_text(out / "table.md", tables(rows, cells, study))
    plot(rows, cells, study.methods, out / "table.png")


def _summary(result: Mapping[str, Any]) -> str:
    validation, test = 100 * result["val_l2re"], 100 * result["test_l2re"]
    return f"validation {validation:.3f} %, test {test:.3f} %, {result['seconds']:.0f} s"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--config", action=ActionConfigFile, help="file of settings, such as table_4/full.yaml")
    parser.add_class_arguments(Study)
    parser.add_function_arguments(main, skip={"study"})
    return parser


def _from_command_line(arguments: list[str] | None = None) -> int:
    parser = _parser()
    given = parser.instantiate(parser.parse_args(arguments)).as_dict()
    names = {field.name for field in fields(Study)}
    study = Study(**{name: value for name, value in given.items() if name in names})
    return main(study, **{name: value for name, value in given.items() if name not in names | {"config"}})


if __name__ == "__main__":
    quiet()
    sys.exit(_from_command_line())
