"""Two real processes: exact errors without the sampler's repetitions, one set of pictures, one file of predictions."""

import pickle
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_farms.metrics import conserved_rmse, normalized_rmse, relative_l2_error, rmse
from tests.callbacks.rollouts import CHANNELS, GROWTH, Operator, expected, flows
from tests.callbacks.two_processes_launch import launch
from tests.callbacks.two_processes_rollouts import COUNT


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_processes_rollouts")
    launch("tests.callbacks.two_processes_rollouts", folder)
    return folder


@pytest.fixture
def results(run):
    return [SimpleNamespace(**pickle.loads((run / f"rank{rank}.pkl").read_bytes())) for rank in (0, 1)]


def test_errors_are_exact_on_both_ranks(results):
    for result in results:
        for errors in (result.val, result.test):
            torch.testing.assert_close(torch.tensor(errors), expected(COUNT), rtol=1e-6, atol=0)
        torch.testing.assert_close(torch.tensor(result.single), GROWTH, rtol=1e-6, atol=0)
        torch.testing.assert_close(result.metrics["val/l2re_frame/7"], expected(COUNT)[-1].mean(), rtol=1e-6, atol=0)
    assert results[0].state == results[1].state


def test_errors_of_the_operator_module_are_those_of_the_whole_set(results):
    x, y = flows(COUNT).tensors
    prediction = x[:, :, :, -1:].expand_as(y)
    for result in results:
        for name, error in (
            ("val/l2re", relative_l2_error),
            ("val/nrmse", normalized_rmse),
            ("test/l2re", relative_l2_error),
            ("test/rmse", rmse),
            ("test/conserved_rmse", conserved_rmse),
        ):
            torch.testing.assert_close(result.operator[name], error(prediction, y), rtol=1e-5, atol=0)


def test_rank_zero_draws_what_it_has(run):
    found = EventAccumulator(str(run / "tb" / "version_0"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in found.Images("val/error_over_time")] == [0, 1]
    assert {"val/fields/channel 0/2", "test/fields/channel 1", "test/error_over_time"} <= set(found.Tags()["images"])
    writers = {path.name.split(".")[-2] for path in (run / "tb" / "version_0").glob("events*")}
    assert len(writers) == 1  # process


@pytest.mark.parametrize("name", ["two", "repeating"])
def test_predictions_are_those_of_one_process(name, run):
    x, y = flows(COUNT).tensors
    fields = torch.cat((x, Operator().rollout((x, y))), dim=3).numpy()
    with h5py.File(run / f"{name}.hdf5") as file:
        for channel in range(CHANNELS):
            np.testing.assert_array_equal(file[f"channel {channel}"][...], np.moveaxis(fields[..., channel], 3, 1))
        assert file["trajectory"][...].tolist() == list(range(COUNT))


def test_no_share_is_left_and_an_existing_file_is_refused_on_both_ranks(run, results):
    assert not list(run.glob(".*"))
    for result in results:
        assert result.written == str(run / "two.hdf5")
        assert "exists" in result.refused
