"""The study of the paper's Table 4: its methods, the choice of rates, its intervals, its file, slices and tables."""

import csv
import errno
import math
import os
from importlib import import_module
from typing import NamedTuple

import numpy as np
import pytest
import torch
from experiments import Clock, OutOfTimeError, RunTable
from fine_tuning.choice import chosen_rate, interval, paired, rates_to_try, t_quantile
from fine_tuning.flows import all_but_every_kth, data_module, simulated
from fine_tuning.methods import METHODS, TITLES, Deviations, Reversed, analysis, callbacks, fit_above
from fine_tuning.report import Cell, Rows, tables
from fine_tuning.study import Regime, Result, Run, Study, setting_of
from fine_tuning.training import Laboratory, layer_text, weighted_mean
from scipy import stats

from lightning_farms import FARMS, SigmoidMap, WholeMatrix, analyze
from lightning_farms.analysis.selection import MODEL_BALANCING
from lightning_farms.data import PDEBenchFile, SimulationConfig, simulate_to_file
from lightning_farms.functional import fit_hill
from lightning_farms.models import DPOT

pytestmark = pytest.mark.filterwarnings("ignore:.*has no logger")

TINY = {
    "regimes": (Regime(0.1, 0.1),), "network": {"patch_size": 4, "embed_dim": 16, "depth": 1, "n_blocks": 2},
    "resolution": 16, "flows": (4, 2, 3), "epochs": 2, "rates": (1e-3, 4e-3), "extensions": 0, "seeds": (1, 2),
    "methods": ("adam", "farms"), "pretrain_flows": 2, "pretrain_epochs": 2, "pretrain_regimes": (Regime(1.0, 0.1),),
}  # fmt: skip
CELL = Cell("M0.1 eta0.1", 1.0)


@pytest.fixture(scope="module")
def table_4():
    return import_module("table_4")


@pytest.fixture
def table(tmp_path):
    return RunTable(tmp_path / "runs.csv", Run._fields, Result._fields)


def finished(table, study, method, rate, seed, val, test, layers=""):
    """Write the row of a run."""
    run = Run(setting_of(study), CELL.data, 1.0, method, rate, seed, study.epochs)
    table.append(run, Result(val, val, test, 10 * test, 1.5, 1.0, layers)._asdict())


# ---- figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [1, 2, 4, 9, 30])
@pytest.mark.parametrize("probability", [0.6, 0.95, 0.975, 0.995])
def test_quantiles_of_students_t(probability, degrees):
    assert t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-6)


def test_the_interval_of_paired_differences_is_that_of_scipy():
    first, second = {1: 0.31, 2: 0.35, 3: 0.30, 4: 0.37, 9: 5.0}, {4: 0.33, 1: 0.30, 3: 0.31, 2: 0.31, 7: 9.0}
    found = interval(paired(first, second))
    seeds = [1, 2, 3, 4]
    theirs = stats.ttest_rel([first[seed] for seed in seeds], [second[seed] for seed in seeds]).confidence_interval()
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx(tuple(theirs), rel=1e-6)
    assert found.count == 4
    assert math.isnan(interval([1.0]).half)


def test_the_lowest_validation_error_chooses_and_a_rate_that_failed_is_never_taken():
    assert chosen_rate({4.0: 0.1, 1.0: 0.3, 2.0: 0.05}) == 2.0
    assert chosen_rate({1.0: math.nan, 2.0: math.inf, 4.0: 7.0}) == 4.0


@pytest.mark.parametrize(
    ("errors", "missing"),
    [
        ({}, [1.0, 2.0, 4.0]),
        ({1.0: 3.0, 2.0: 2.0, 4.0: 3.0}, []),
        ({1.0: 3.0, 2.0: 2.0, 4.0: 1.0}, [8.0]),
        ({1.0: 3.0, 2.0: 2.0, 4.0: 1.0, 8.0: 0.5}, [16.0]),
        ({1.0: 3.0, 2.0: 2.0, 4.0: 1.0, 8.0: 0.5, 16.0: 0.1}, []),
        ({1.0: 3.0, 2.0: 2.0, 4.0: 1.0, 8.0: 1.5}, []),
        ({1.0: 0.1, 2.0: 2.0, 4.0: math.inf}, [0.5]),
        ({1.0: 0.1, 2.0: 2.0, 4.0: math.nan, 0.5: 0.05}, [0.25]),
    ],
)
def test_a_grid_goes_on_where_the_best_rate_is_at_its_end(errors, missing):
    assert rates_to_try(errors, [1.0, 2.0, 4.0], extensions=2) == missing


# ---- methods ---------------------------------------------------------------------------------------------------------


def test_methods_differ_in_what_their_names_say():
    assert callbacks("adam") == callbacks("FT") == []
    (whole,), (selected,), (farms,) = callbacks("whole"), callbacks("TB_Sigmoid"), callbacks("FARMS")
    assert (whole.analysis, selected.analysis, farms.analysis) == (WholeMatrix(), WholeMatrix(), FARMS())
    assert selected.control.layers == callbacks("farms_ls")[0].control.layers == MODEL_BALANCING
    assert {whole.control.layers, farms.control.layers}.isdisjoint({MODEL_BALANCING})
    assert callbacks("farms_mean")[0].control.normalize == callbacks("whole_mean")[0].control.normalize == "mean"
    assert callbacks("farms_relative")[0].control.signal == "relative_alpha"
    assert {(one.s_low, one.s_high, one.tau) for one in (whole, selected, farms)} == {(1.0, 1.0, 10.0)}
    assert set(METHODS) < set(TITLES)
    with pytest.raises(ValueError, match="to be one of adam, "):
        callbacks("FARM")


def test_reversed_multipliers_belong_to_the_alphas_mirrored_at_their_mean():
    alphas = torch.tensor([1.3, 2.0, 2.1, 2.2], dtype=torch.float64)
    multipliers = Reversed(SigmoidMap())(alphas)
    assert multipliers.argsort().tolist() == alphas.argsort(descending=True).tolist()
    assert multipliers.tolist() == pytest.approx((1 / SigmoidMap()(alphas)).tolist())  # s_low and s_high are equal


def test_norms_may_keep_the_base_rate():
    assert callbacks("farms")[0].control.norms
    assert not callbacks("farms", Deviations(norms_follow=False))[0].control.norms


@pytest.mark.parametrize("kind", ["whole", "farms"])
def test_small_eigenvalues_are_dropped_before_the_fit(kind):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q for _ in range(2))
    model = torch.nn.Sequential(torch.nn.Linear(16, 16))
    eigenvalues = torch.logspace(-8, 1, 16, dtype=torch.float64)
    model[0].weight.data = (left * eigenvalues.sqrt().float()) @ right
    expected = fit_hill(eigenvalues[eigenvalues >= 1e-5]).alpha.item()
    method = analysis(kind, Deviations(least_eigenvalue=1e-5))
    assert analyze(model, method).alphas["0"] == pytest.approx(expected, rel=1e-3)
    assert analyze(model, analysis(kind)).alphas["0"] != pytest.approx(expected, rel=0.05)
    assert fit_above(method, torch.tensor([[1e-9, 1.0]]), 1e-5).alpha.isnan().all()


def test_official_windows_are_those_of_the_smaller_dimension():
    network = DPOT(img_size=16, **TINY["network"])
    alphas = analyze(network, analysis("farms", Deviations(compat="official"))).alphas
    plain = analyze(network, FARMS()).alphas
    assert alphas["blocks.0.mlp.0"] == pytest.approx(plain["blocks.0.mlp.0"], rel=1e-4)
    assert math.isnan(alphas.get("blocks.0.filter.w1", math.nan))


# ---- flows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fraction", "kept"), [(1.0, [0, 1, 2, 3, 4, 5, 6, 7]), (0.5, [0, 2, 4, 6]), (0.3, [0, 3, 6])])
def test_every_kth(fraction, kept):
    assert [place for place in range(8) if place not in all_but_every_kth(8, fraction)] == kept


@pytest.mark.parametrize("own", [True, False])
def test_every_kth_flow_of_each_file_is_trained_on(tmp_path, own):
    path, other = tmp_path / "flow.hdf5", tmp_path / "other.hdf5"
    simulate_to_file(path, SimulationConfig(trajectories=25, resolution=8, frames=11), progress=False)
    simulate_to_file(other, SimulationConfig(trajectories=25, resolution=8, frames=11, seed=1), progress=False)
    given = {"path": path, "val_fraction": 0.1} if own else {"path": [path], "test_path": [other]}
    pool = 21 if own else 25  # of 25 flows two are for testing, and of the other 23 two for validation
    data = data_module(Study(**TINY | {"subset": "every", "windows": 1}), given, fraction=0.25)
    data.setup("fit")
    windows = torch.cat([x for x, _ in data.train_dataloader()])  # of eleven frames: each begins with its flow's first
    flows = [PDEBenchFile(path).read(number, 0, 1)[:, :, 0] for number in range(25)]
    trained = [number for number, flow in enumerate(flows) if any(bool((flow == w[:, :, 0]).all()) for w in windows)]
    assert trained == list(range(0, pool, 4))


def test_a_random_subset_is_the_seeds(tmp_path):
    path = tmp_path / "flow.hdf5"
    simulate_to_file(path, SimulationConfig(trajectories=25, resolution=8, frames=11), progress=False)
    data = data_module(Study(**TINY), {"path": path}, fraction=0.5, seed=3)
    data.setup("fit")
    assert (data.train_items, data.subset_seed, data.seed) == (11 * 4, 3, 3)


def test_no_two_files_share_an_initial_state_and_files_are_simulated_once(tmp_path):
    study = Study(**TINY | {"flows_a_file": 2, "resolution": 8})
    purposes = ("train", "val", "test", "pretrain")
    options = {"folder": tmp_path, "clock": Clock(), "device": "cpu"}
    paths = [path for purpose in purposes for path in simulated(study, Regime(0.1, 0.1), purpose, 3, **options)]
    sizes = [PDEBenchFile(path).shape.trajectories for path in paths]
    assert sizes == [2, 1] * 4
    first = {PDEBenchFile(path).read(0, 0, 1).numpy().tobytes() for path in paths}
    assert len(first) == 8
    times = [path.stat().st_mtime_ns for path in paths]
    simulated(study, Regime(0.1, 0.1), "val", 3, **options)
    assert [path.stat().st_mtime_ns for path in paths] == times


# ---- what is run -----------------------------------------------------------------------------------------------------


def test_rates_are_chosen_from_the_rows_of_seed_0_alone_and_then_go_seed_after_seed(table_4, table):
    study = Study(**TINY | {"matched": ("farms",)})

    def next_stage(number):
        stages = table_4.stages(study, [CELL], lambda: Rows(table, setting_of(study), study.epochs))
        return [(run.method, run.lr, run.seed) for run in [next(stages) for _ in range(number)][-1]]

    assert next_stage(1) == [("persistence", 0.0, 0), ("drift_free", 0.0, 0)]
    grid = [(method, rate, 0) for method in study.methods for rate in study.rates]
    assert next_stage(2) == grid
    for (method, rate, seed), val in zip(grid, [0.2, 0.3, 0.4, 0.1], strict=True):
        finished(table, study, method, rate, seed, val, test=1 - val)  # the test errors say the reverse
    finished(table, study, "adam", 4e-3, 1, 0.01, 0.01)  # as does the validation error of another seed
    finished(table, study, "farms", 1e-3, 1, 0.01, 0.01)
    finished(table, Study(**TINY | {"windows": 3}), "adam", 4e-3, 0, 0.01, 0.01)  # and that of another setting
    assert next_stage(2) == [("adam", 1e-3, 1), ("farms", 4e-3, 1)]
    assert next_stage(3) == [("adam", 1e-3, 2), ("farms", 4e-3, 2)]
    assert next_stage(4) == [("adam", 1e-3, 1), ("farms", 1e-3, 1)]
    assert next_stage(6) == [], "no run yet whose mean rate is known"
    finished(table, study, "farms", 4e-3, 1, 0.1, 0.1)  # of mean multiplier 1.5
    assert next_stage(6) == [("adam", 6e-3, 1)]
    assert next_stage(7) == [("adam", 6e-3, 2)]


def test_a_training_that_diverged_has_its_say_and_one_that_failed_has_none(table_4, table):
    study = Study(**TINY | {"methods": ("adam",)})
    run = Run(setting_of(study), CELL.data, 1.0, "adam", 4e-3, 0, study.epochs)
    finished(table, study, "adam", 1e-3, 0, 0.2, 0.2)
    table.append(run, None, "OSError: no space left on device")
    rows = Rows(table, setting_of(study), study.epochs)
    assert rows.errors(CELL, "adam", 0) == {1e-3: 0.2}
    stages = table_4.stages(study, [CELL], lambda: rows)
    assert [[each.lr for each in stage] for stage in stages] == [[0.0, 0.0], [4e-3]], "nothing is chosen"
    table.append(run, None, "FloatingPointError: The loss is not finite")
    assert rows.errors(CELL, "adam", 0) == {1e-3: 0.2}, "as of when the rows were read"
    assert Rows(table, setting_of(study), study.epochs).errors(CELL, "adam", 0) == {1e-3: 0.2, 4e-3: math.inf}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": (0, 1)}, "`seeds` not to hold 0"),
        ({"rates": (2.0, 1.0)}, "`rates` to be positive and ascending"),
        ({"fractions": (0.0,)}, r"`fractions` to be in \(0, 1\]"),
        ({"methods": ("farms",)}, "`methods` to hold adam"),
    ],
)
def test_studies_that_compare_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Study(**options)


def test_command_line(table_4):
    parser = table_4._parser()
    given = ["--config", "examples/table_4/full.yaml", "--seeds", "[3]", "--slice_minutes", "9"]
    settings = parser.instantiate(parser.parse_args(given)).as_dict()
    assert settings["seeds"] == [3]
    assert settings["flows"] == (1000, 64, 200)
    assert all(settings["flows_a_file"] * fraction % 1 == 0 for fraction in settings["fractions"])
    assert settings["regimes"] == [Regime(0.1, 0.01), Regime(0.1, 0.1)]
    assert settings["slice_minutes"] == 9
    for wrong in ("--slice_minutes=0", "--methods=[none]", "--subset=first"):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([wrong])


# ---- training --------------------------------------------------------------------------------------------------------


class Slice(Clock):
    """A clock that is over when it has been looked at so often."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    def over(self):
        self.looks -= 1
        return self.looks < 0


SLICED = TINY | {
    "rates": (2e-3,), "seeds": (1,), "windows": 4, "batch_size": 4, "evaluations": 2, "flows_a_file": 2,
    "pretrain_flows": 8,
}  # fmt: skip


def test_a_run_that_is_stopped_within_epochs_ends_as_a_straight_one(tmp_path):
    study, epochs = Study(**SLICED), []
    run = Run(setting_of(study), CELL.data, 1.0, "farms", 2e-3, 1, 2)
    laboratory = Laboratory(study, tmp_path / "straight")
    laboratory.prepare()
    straight = laboratory.train(run, tmp_path / "straight" / "run", epochs.append)
    assert epochs == [0, 1, 2]

    seen, sliced = set(), None
    for _ in range(20):
        laboratory = Laboratory(study, tmp_path / "sliced", Slice(2))
        try:
            laboratory.prepare()
            sliced = laboratory.train(run, tmp_path / "sliced" / "run", lambda _: None)
            break
        except OutOfTimeError:
            for path in (tmp_path / "sliced").rglob("last.ckpt"):
                seen.add((path.parent.name.partition("-")[0], torch.load(path, weights_only=True)["global_step"]))
    assert {kind for kind, step in seen if step % 4} == {"pretrained", "run"}, "within epochs, of four steps"
    assert sliced is not None
    assert sliced._replace(seconds=0) == straight._replace(seconds=0)
    assert not list((tmp_path / "sliced").rglob("*.ckpt")), "that of a finished run"


def rows_of(folder):
    rows = list(csv.DictReader((folder / "runs.csv").read_text().splitlines()))
    assert {row["status"] for row in rows} == {"finished"}
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_call_whose_time_is_over_says_that_there_is_more_to_do(table_4, tmp_path, capsys):
    class Quick(Laboratory):
        def prepare(self):
            self.clock.check()

        def train(self, run, folder, on_epoch):
            self.clock.check()
            return Result(0.1 * run.lr, 0.1, 0.2 + run.seed, 2.0)

    study = Study(**TINY)
    assert table_4.go_on(Quick(study, tmp_path / "straight")) == 0
    statuses = []
    while not statuses or statuses[-1]:
        statuses.append(table_4.go_on(Quick(study, tmp_path / "sliced", Slice(8))))
    assert statuses == [75] * (len(statuses) - 1) + [0]
    assert len(statuses) > 1
    assert "there is more to do" in capsys.readouterr().out
    assert rows_of(tmp_path / "sliced") == rows_of(tmp_path / "straight")


@pytest.mark.slow
def test_slices_of_a_study_lead_to_the_rows_of_a_straight_one(table_4, tmp_path):
    assert table_4.go_on(Laboratory(Study(**SLICED), tmp_path / "straight")) == 0
    calls = 1
    while table_4.go_on(Laboratory(Study(**SLICED), tmp_path / "sliced", Slice(5))) == 75:
        calls += 1
        assert calls < 60
    assert calls > 5
    assert rows_of(tmp_path / "sliced") == rows_of(tmp_path / "straight")
    assert (tmp_path / "sliced" / "table.md").read_text() == (tmp_path / "straight" / "table.md").read_text()
    assert (tmp_path / "sliced" / "table.png").read_bytes().startswith(b"\x89PNG")


def test_a_failing_run_is_noted_and_the_others_go_on(table_4, tmp_path, capsys):
    class Failing(Laboratory):
        def train(self, run, folder, on_epoch):
            if run.method == "farms" and run.lr == 4e-3:
                raise FloatingPointError("The loss is not finite")
            return Result(0.1, 0.1, 0.2, 2.0)

        def prepare(self):
            pass

    assert table_4.go_on(Failing(Study(**TINY), tmp_path)) == 1
    assert "1 runs failed" in capsys.readouterr().out
    text = (tmp_path / "table.md").read_text()
    assert (
        "| TB_Sigmoid + FARMS | 0.001 | 1.00 | 20.000 ± 0.000 | 2.000 ± 0.000 | +0.000 ± 0.000 | +0.000 ± 0.000 |"
        in text
    )
    assert "| TB_Sigmoid + FARMS | 10.000 | inf |" in text


def test_a_file_of_another_resolution_is_refused_before_the_first_run(tmp_path):
    simulate_to_file(tmp_path / "f.hdf5", SimulationConfig(trajectories=2, resolution=8, frames=11), progress=False)
    with pytest.raises(ValueError, match="`resolution` to be 8, as f"):
        Laboratory(Study(**TINY | {"path": tmp_path / "f.hdf5"}), tmp_path).prepare()


def test_trivial_predictors_are_judged_by_the_test_flows(tmp_path):
    laboratory = Laboratory(Study(**TINY | {"start": "given"}), tmp_path)
    laboratory.prepare()
    run = Run("", CELL.data, 1.0, "persistence", 0.0, 0, 0)
    data = laboratory.data(CELL.data)
    data.setup("test")
    errors, deviations = [], []
    for given, target in ((x.numpy().astype(float), y.numpy().astype(float)) for x, y in data.test_dataloader()):
        error = given[:, :, :, -1:] - target
        errors.append(np.sqrt((error**2).sum((1, 2, 3)) / (target**2).sum((1, 2, 3))))
        deviations.append(np.sqrt((error**2).mean((1, 2)) / (target.var((1, 2)) + 1e-7)))
    result = laboratory.train(run, tmp_path, lambda _: None)
    assert result.test_l2re == pytest.approx(np.concatenate(errors).mean(), rel=1e-4)
    assert result.test_vrmse == pytest.approx(np.concatenate(deviations).mean(), rel=1e-4)
    other = laboratory.train(run._replace(method="drift_free"), tmp_path, lambda _: None)
    assert other.test_l2re < result.test_l2re


def test_the_mean_multiplier_counts_what_is_trained():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
    model[2].weight.requires_grad_(False)
    assert weighted_mean(model, {"0": 3.0, "2": 5.0}) == pytest.approx((3 * (72 + 16) + 5 * 2) / 90)
    assert weighted_mean(model, {"0": 3.0, "2": 5.0}, norms=False) == pytest.approx((3 * 72 + 16 + 5 * 2) / 90)
    assert weighted_mean(model, {}) == 1.0


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_the_table_is_made_of_the_rows(table):
    study = Study(**TINY | {"seeds": (1, 2, 3), "matched": ("farms",)})
    for method, rate, val in (("adam", 1e-3, 0.3), ("adam", 4e-3, 0.2), ("farms", 1e-3, 0.1), ("farms", 4e-3, 0.2)):
        finished(table, study, method, rate, 0, val, 9.0)
    for seed, error in enumerate([0.2, 0.2, 0.25], 1):
        finished(table, study, "adam", 1.5e-3, seed, 0.5, error)
    layers = layer_text({"fc": 2.0}, {"fc": 1.8}, {"fc": 0.5}, {"fc": 0.25})
    adam, farms, shared = [0.20, 0.22, 0.21], [0.18, 0.21, 0.22], [0.3, 0.3]
    for method, rate, errors in (("adam", 4e-3, adam), ("farms", 1e-3, farms), ("farms", 4e-3, shared)):
        for seed, error in enumerate(errors, 1):
            finished(table, study, method, rate, seed, error / 2, error, layers if method == "farms" else "")
    text = tables(Rows(table, setting_of(study), study.epochs), [CELL], study)
    own, of_shared = (text.split("Each method")[1].split("All at")[0], text.split("All at")[1].split("Validation")[0])
    low, high = (100 * bound for bound in stats.ttest_rel(farms, adam).confidence_interval())
    spread = f"{100 * np.mean(farms):.3f} ± {100 * np.std(farms, ddof=1):.3f}"
    assert f"| TB_Sigmoid + FARMS | 0.001 | 1.50 | {spread} |" in own
    assert f"| {(low + high) / 2:+.3f} ± {(high - low) / 2:.3f} | {(low + high) / 4:+.3f} ± " in own
    low, high = (100 * bound for bound in stats.ttest_rel(farms, [0.2, 0.2, 0.25]).confidence_interval())
    matched = text.split("mean rate of another")[1].split("Validation")[0]
    assert f"| TB_Sigmoid + FARMS | 0.001 | 0.0015 | {spread} | 21.667 ± 2.887 |" in matched
    assert f"| {(low + high) / 2:+.3f} ± {(high - low) / 2:.3f} |" in matched
    low, high = (100 * bound for bound in stats.ttest_rel(shared, adam[:2]).confidence_interval())
    assert "| TB_Sigmoid + FARMS | 0.004 | 1.50 | 30.000 ± 0.000 (2) |" in of_shared
    assert f"| {(low + high) / 2:+.3f} ± {(high - low) / 2:.3f} (2) |" in of_shared
    assert "| TB_Sigmoid + FARMS | 10.000 | 20.000 |" in text
    assert "| `fc` | 0.50; 2.00, 1.80; 0.25 |" in text


class NamedRun(NamedTuple):
    name: str
    label: str = "a run"
    epochs: int = 1

    @property
    def key(self):
        return {"name": self.name}


def test_a_row_is_added_whole_or_not_at_all(tmp_path, monkeypatch):
    table = RunTable(tmp_path / "runs.csv", ("name",), ("score",))
    table.append(NamedRun("first"), {"score": 1.5})
    before = table.path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"runs\.csv' to be a file .*, but writing failed: No space left"):
        table.append(NamedRun("second"), {"score": 2.5})
    assert table.path.read_bytes() == before
    assert [path.name for path in table.path.parent.iterdir()] == ["runs.csv"]
