"""Strategies that train in child processes: what a user reads is there afterwards, as after an ordinary run."""

import copy
import pickle

import pytest
import torch

from lightning_farms import SpectralMonitor
from tests.forked import run_forked


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Results by strategy, and the temporary folder that was used."""
    done = {}

    def of(strategy):
        if strategy not in done:
            folder = tmp_path_factory.mktemp(strategy)
            temporary = folder / "tmp"
            temporary.mkdir()
            program = ("tests.callbacks.child_processes", strategy, folder), {"TMPDIR": str(temporary)}
            run_forked(program, folder=folder, timeout=280)
            done[strategy] = pickle.loads((folder / "results.pkl").read_bytes()), temporary
        return done[strategy]

    return of


def plain(value):
    """Tensors as lists, so that nested values can be compared."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


CHILDREN = [*(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp_spawn", "ddp_fork")), "ddp_notebook"]


@pytest.mark.parametrize("strategy", CHILDREN)
@pytest.mark.parametrize("fit", ["first", "second"])
def test_all_that_is_read_is_that_of_one_process(strategy, fit, run):
    found, expected = run(strategy)[0]["trained"][fit], run("auto")[0]["trained"][fit]
    assert found["reports"] == expected["reports"]
    assert found["multipliers"] == expected["multipliers"]
    assert len(found["multipliers"]) == 2
    assert found["ratios"] == expected["ratios"]
    for name in ("histories", "states", "masks"):
        assert plain(found[name]) == plain(expected[name])
    assert found["histories"][0]["epochs"] == {"first": [0, 1, 2], "second": [0, 1, 2, 3]}[fit]


@pytest.mark.parametrize("strategy", CHILDREN)
def test_files_are_the_users_own_and_gone_in_the_end(strategy, run):
    results, temporary = run(strategy)
    assert (results["trained"]["files"], results["trained"]["modes"]) == (3, {"0o600"})
    assert list(temporary.glob("*lightning_farms*")) == []  # also those of callbacks that nobody asked


def test_ordinary_runs_have_no_files(run):
    assert run("auto")[0]["trained"]["files"] == 0


def test_errors_of_rollouts_and_the_written_file_are_there_too(run):
    assert run("ddp_notebook")[0]["predicted"] == run("auto")[0]["predicted"]


def test_a_copy_of_a_callback_does_not_take_the_others_results():
    callback = SpectralMonitor()
    assert copy.deepcopy(callback)._handover._name != callback._handover._name
