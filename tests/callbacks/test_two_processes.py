"""Two real processes: equal reports on both, equal to one process's, the work shared, and no rank left waiting."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lightning_farms.callbacks
from lightning_farms.analysis import FARMS, WholeMatrix, analyze
from tests.callbacks.two_processes import CALLBACKS, DEPTH, EVERYTHING, SIZE, Net
from tests.callbacks.two_processes_launch import launch
from tests.callbacks.two_processes_rollouts import CALLBACKS as OF_ROLLOUTS

QUESTIONS = {"SpectralMonitor": (WholeMatrix(), EVERYTHING), "sharded": (FARMS(), EVERYTHING)}
LAYERS = [*(f"layers.{i}.0" for i in range(DEPTH)), f"layers.{DEPTH + 1}"]
FITS = [*CALLBACKS, "broken", "logger everywhere", "logger on rank 0", "logger on rank 1", "fast_dev_run", "sharded"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder that the processes wrote to, and what they printed."""
    folder = tmp_path_factory.mktemp("two_processes")
    launch("tests.callbacks.two_processes", folder)
    return folder


@pytest.fixture
def results(run):
    def read(name):
        files = [run / f"{name}-rank{rank}.pkl" for rank in (0, 1)]
        return [SimpleNamespace(**pickle.loads(file.read_bytes())) for file in files]

    return read


def test_every_callback_takes_part():
    names = lightning_farms.callbacks.__all__
    assert {*CALLBACKS, *OF_ROLLOUTS} == {
        n for n in names if issubclass(getattr(lightning_farms.callbacks, n), Callback)
    }


@pytest.mark.parametrize("name", FITS)
def test_both_ranks_end_with_the_same(name, results):
    first, second = results(name)
    assert first.rows == second.rows
    assert [row.name for row in first.rows] == LAYERS
    assert repr(first.history) == repr(second.history)
    assert first.multipliers == second.multipliers
    assert first.steps == second.steps == (1 if name == "fast_dev_run" else 4)
    assert all(torch.equal(weight, second.weights[key]) for key, weight in first.weights.items())


@pytest.mark.parametrize("name", [name for name in FITS if name != "broken"])
def test_the_report_is_that_of_one_process_bit_for_bit(name, results):
    method, diagnostics = QUESTIONS.get(name, (FARMS(), lightning_farms.analysis.Diagnostics()))
    model = Net()
    first, _ = results(name)
    model.load_state_dict(first.weights)
    expected = list(analyze(model, method, diagnostics=diagnostics))
    assert first.rows == expected
    assert all(row.status == "ok" for row in expected)
    assert all((row.twin is not None) == diagnostics.twin for row in first.rows)


@pytest.mark.parametrize("name", [*CALLBACKS, "sharded"])
def test_each_rank_measures_a_part(name, results):
    first, second = results(name)
    assert first.measured | second.measured == set(LAYERS)
    drawn = 2 if name == "sharded" else 0  # layers of which rank zero made the figures
    assert len(first.measured & second.measured) <= drawn
    assert min(len(first.measured), len(second.measured)) >= 3


def test_two_processes_write_and_print_once(run):
    assert "Spectra after 2 epochs" in (run / "out0.txt").read_text()
    assert "Spectra after" not in (run / "out1.txt").read_text()
    header, *lines = (run / "TBSigmoid" / "version_0" / "metrics.csv").read_text().splitlines()
    step, column = (header.split(",").index(key) for key in ("step", "farms/alpha/layers.0.0"))
    assert [line.split(",")[step] for line in lines if line.split(",")[column]] == ["0", "1", "3"]


@pytest.mark.parametrize("name", FITS)
def test_no_warning_from_lightning_about_ranks(name, results):
    for result in results(name):
        assert not [message for message in result.warnings if "sync_dist" in message]


def test_an_analysis_that_raises_on_one_rank_costs_its_layers_only(results):
    healthy, raised = results("broken")
    assert not raised.measured
    failed = {row.name for row in healthy.rows if row.reason.startswith("out of memory; try")}
    assert failed == set(LAYERS) - healthy.measured
    assert {healthy.multipliers[name] for name in failed} == {1.0}
    assert {0.5, 1.5} <= set(healthy.multipliers.values())
    message = "The analysis failed on this rank: RuntimeError: out of memory"
    assert message in raised.warnings
    assert message not in healthy.warnings


@pytest.mark.parametrize(
    ("folder", "label"), [("everywhere", "farms"), ("tensorboard0", "farms"), ("sharded", "farms")]
)
def test_figures_are_drawn_where_rank_zero_has_a_logger(run, folder, label):
    images = EventAccumulator(str(run / folder / "version_0")).Reload().Tags()["images"]
    assert {f"{label}/esd/{LAYERS[0]}", f"{label}/esd/{LAYERS[-1]}", f"{label}/alpha_over_depth"} <= set(images)


def test_no_figures_where_only_another_rank_has_a_logger(run, results):
    assert not list((run / "tensorboard1").rglob("events*"))
    first, _ = results("logger on rank 1")
    assert any("has no logger to write to" in message for message in first.warnings)


def test_sharded_weights_are_gathered_a_layer_at_a_time(results):
    for result in results("sharded"):
        figures = 2 * 2  # spectra of two layers after each epoch
        assert result.gathered == 3 * len(LAYERS) + figures
        assert 0 < result.most_alive <= 2 * SIZE * SIZE * 4  # the one that is measured and the one that comes


def test_a_sharded_run_resumes(results):
    for straight, resumed in zip(results("sharded"), results("resumed"), strict=True):
        assert resumed.rows == straight.rows
        assert resumed.history == straight.history
        assert all(torch.equal(weight, resumed.weights[key]) for key, weight in straight.weights.items())
        assert resumed.gathered == len(LAYERS) + 2
