"""The runner of the pruning tables, on a tiny model: what it runs, what it chooses by, resuming, its table."""

import csv
import math
import statistics

import pytest
from pruning import tables

from tests.pruning.tiny_text import save_tiny, tiny_text

SMALL = {"sequences": 2, "length": 16, "evaluated": 3, "authors_window": 8, "authors_steps": 2, "windows": (4, 8)}
ASKED = {"sparsities": ("0.5", "2:4"), "epsilons": (0.1, 0.3), "seeds": (0, 1)}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    save_tiny(folder / "model", num_hidden_layers=3, hidden_size=32, intermediate_size=48)
    for number, text in enumerate(("one", "other")):
        (folder / text).mkdir()
        for seed, part in enumerate(("calibration", "heldout", "test")):
            (folder / text / f"{part}.txt").write_text(tiny_text(200, seed=10 * number + seed), encoding="utf-8")
    return {"models": (folder / "model",), "texts": (folder / "one", folder / "other")}


@pytest.fixture(scope="module")
def done(given, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    failed = tables.main(
        **given,
        **SMALL,
        **ASKED,
        out=out,
        methods=("wanda", "magnitude"),
        allocations=("uniform", "farms", "owl", "ramp"),
    )
    assert failed == 0
    return out


def rows(out):
    with (out / "runs.csv").open() as file:
        return list(csv.DictReader(file))


def test_what_is_run(done):
    found = rows(done)
    first = [row for row in found if row["seed"] == "0"]
    assert len(first) == 2 * 2 * (1 + 2 * 2 + 2 + 2)  # methods, sparsities; uniform, farms (windows), owl, ramp
    again = [row for row in found if row["seed"] == "1"]
    assert {row["method"] for row in again} == {"wanda"}  # magnitudes hang on no text
    assert len(again) == 2 * 4
    assert all(float(row["reached"]) <= 0.5 for row in found)
    assert all(abs(float(row["reached"]) - 0.5) < 1e-4 for row in found if row["sparsity"] == "0.5")


def test_held_out_text_alone_chooses(done):
    found = rows(done)
    for again in (row for row in found if row["seed"] == "1"):
        rivals = [
            row
            for row in found
            if row["seed"] == "0" and all(row[key] == again[key] for key in ("method", "sparsity", "allocation"))
        ]
        best = min(rivals, key=lambda row: float(row["one_heldout"]))
        assert (again["epsilon"], again["window"]) == (best["epsilon"], best["window"])


def test_finished_runs_are_not_repeated(done, given):
    before = (done / "runs.csv").read_bytes()
    tables.main(
        **given,
        **SMALL,
        **ASKED,
        out=done,
        methods=("wanda", "magnitude"),
        allocations=("uniform", "farms", "owl", "ramp"),
    )
    assert (done / "runs.csv").read_bytes() == before


def test_the_table_is_of_the_chosen_runs(done):
    found = [row for row in rows(done) if row["method"] == "wanda" and row["sparsity"] == "0.5"]
    chosen = {row["allocation"]: row for row in found if row["seed"] == "1"}

    def tested(allocation, text):
        same = [
            row
            for row in found
            if all(row[key] == chosen[allocation][key] for key in ("allocation", "epsilon", "window"))
        ]
        return [float(row[f"{text}_test"]) for row in same]

    for text in ("one", "other"):
        section = (done / "table.md").read_text().split(f"Test perplexity on {text}\n")[1]
        line = next(line for line in section.splitlines() if line.startswith("| wanda | 0.5 |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for place, allocation in enumerate(("uniform", "farms", "owl", "ramp")):
            mean, deviation = map(float, cells[2 + place].split(" ± "))
            assert mean == pytest.approx(statistics.mean(tested(allocation, text)), abs=0.06)
            assert deviation == pytest.approx(statistics.stdev(tested(allocation, text)), abs=0.06)
        pairs = zip(tested("farms", text), tested("ramp", text), strict=True)
        difference = float(cells[-1].split(" ± ")[0])
        assert difference == pytest.approx(statistics.mean(math.log(a / b) for a, b in pairs), abs=6e-4)
    assert (done / "table.png").stat().st_size > 1000


def test_a_run_that_fails_is_noted_and_the_others_go_on(given, tmp_path, capsys):
    failed = tables.main(
        **given,
        **SMALL,
        out=tmp_path,
        methods=("magnitude",),
        allocations=("uniform",),
        sparsities=("3:7", "0.5"),  # 7 divides no layer's inputs
        epsilons=(0.1,),
        seeds=(0,),
    )
    assert failed == 1
    assert [row["status"] for row in rows(tmp_path)] == ["failed", "finished"]
    assert "The same command tries them again" in capsys.readouterr().out
