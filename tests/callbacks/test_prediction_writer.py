"""Files of predictions: what they hold, when they are refused, and that they appear whole or not at all."""

import fcntl
import os

import h5py
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_farms import PredictionWriter
from lightning_farms.data import CFDDataModule, PDEBenchFile, SimulationConfig, simulate_to_file
from lightning_farms.models import OperatorModule
from tests.callbacks.rollouts import CHANNELS, FRAMES, GIVEN, Flows, Operator, Shift, flows, loader


@pytest.fixture
def predict(make_trainer):
    def run(writer, model=None, *, ckpt_path=None, dataloaders=None, datamodule=None, **settings):
        trainer = make_trainer([writer], **{"logger": False, **settings})
        data = {"dataloaders": dataloaders} if datamodule is None else {"datamodule": datamodule}
        trainer.predict(model or Operator(), **data, ckpt_path=ckpt_path, return_predictions=False)
        return trainer

    return run


def read(path):
    with h5py.File(path) as file:
        return {name: file[name][...] for name in file}, dict(file.attrs)


def expected_fields(model, data):
    """Given and predicted frames of a whole data set, {channel: (trajectories, frames, X, Y)}."""
    x, y = data.tensors
    fields = torch.cat((x, model.rollout((x, y))), dim=3).numpy()
    return [np.moveaxis(fields[..., channel], 3, 1) for channel in range(CHANNELS)]


@pytest.mark.parametrize("order", ["dpot", "pdebench"])
def test_a_cfd_file_round_trip(order, predict, tmp_path):
    settings = {"cache_dir": tmp_path, "simulation": SimulationConfig(trajectories=8, resolution=16, frames=14)}
    data = CFDDataModule(**settings, test_fraction=0.4, batch_size=2, channel_order=order)
    module = OperatorModule(Shift())
    path = tmp_path / "new" / "predicted.hdf5"
    writer = PredictionWriter(path)
    predict(writer, module, datamodule=data)
    assert writer.written == path
    source, result = PDEBenchFile(data.data_path), PDEBenchFile(path)
    assert result.shape == (8, 14, 16, 16)
    assert (result.eta, result.zeta, result.mach) == (source.eta, source.zeta, source.mach)
    for axis in "xy":
        torch.testing.assert_close(getattr(result, axis), getattr(source, axis), rtol=0, atol=0)
    torch.testing.assert_close(result.t, source.t)
    held, attributes = read(path)
    assert held["trajectory"].tolist() == list(range(8))
    assert {name.decode() for name in held["source-file"]} == {str(data.data_path)}
    assert attributes["given_frames"] == 10
    assert attributes["channels"].tolist() == list(data.channels)
    assert "checkpoint" not in attributes
    for row in range(8):
        frames = source.read(row)
        predicted = module.rollout(frames[None, :, :, :10], frames=4)[0].detach()
        torch.testing.assert_close(result.read(row), torch.cat((frames[:, :, :10], predicted), dim=2), rtol=0, atol=0)
    again = CFDDataModule(path, in_timesteps=10, predict_frames=7)
    again.setup("predict")
    assert next(iter(again.predict_dataloader()))[1].shape == (8, 16, 16, 7, 4)


def test_trajectories_of_several_files_are_told_apart(predict, tmp_path):
    files = [tmp_path / "a.hdf5", tmp_path / "b.hdf5"]
    for seed, file in enumerate(files):
        config = SimulationConfig(trajectories=5, resolution=8, frames=4, seed=seed)
        simulate_to_file(file, config, progress=False)
    data = CFDDataModule(files, test_fraction=0.4, in_timesteps=2, batch_size=3)
    predict(PredictionWriter(tmp_path / "predicted.hdf5"), OperatorModule(Shift()), datamodule=data)
    held, _ = read(tmp_path / "predicted.hdf5")
    origins = list(zip(held["source-file"].astype(str), held["trajectory"].tolist(), strict=True))
    assert origins == [(str(file), trajectory) for file in files for trajectory in range(5)]
    for row, (file, trajectory) in enumerate(origins):
        first = PDEBenchFile(file).read(trajectory)[:, :, 0, 2]
        np.testing.assert_array_equal(held["density"][row, 0], first)


def test_units_names_times_and_physics_of_a_data_module(predict, tmp_path):
    path = tmp_path / "a.hdf5"
    data = Flows()
    predict(PredictionWriter(path), datamodule=data)
    held, attributes = read(path)
    x, y = flows().tensors
    predicted = Operator().rollout((x, y)).numpy()
    for channel, name in enumerate(data.channels):
        np.testing.assert_array_equal(held[name][:, :GIVEN], 10 * np.moveaxis(x.numpy()[..., channel], 3, 1))
        np.testing.assert_array_equal(held[name][:, GIVEN:], np.moveaxis(predicted[..., channel], 3, 1))
    np.testing.assert_allclose(held["t-coordinate"], np.arange(GIVEN + FRAMES + 1) / 10, rtol=1e-6)
    assert {name: attributes[name] for name in data.physics} == data.physics


def test_without_a_data_module_there_are_numbers(predict, tmp_path):
    path = tmp_path / "a.hdf5"
    predict(PredictionWriter(str(path)), dataloaders=loader())
    held, attributes = read(path)
    for channel, fields in enumerate(expected_fields(Operator(), flows())):
        np.testing.assert_array_equal(held[f"channel {channel}"], fields)
    assert held["x-coordinate"].tolist() == list(range(6))
    assert held["y-coordinate"].tolist() == list(range(4))
    assert held["t-coordinate"].tolist() == list(range(GIVEN + FRAMES + 1))
    assert held["trajectory"].tolist() == list(range(5))
    assert set(attributes) == {"given_frames", "channels"}


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_a_shuffling_sampler_gives_the_order_of_the_data_set(batch_size, predict, tmp_path):
    data = flows(7)
    path = tmp_path / "a.hdf5"
    predict(PredictionWriter(path), dataloaders=DataLoader(data, batch_size, sampler=[3, 6, 0, 2, 5, 1, 4]))
    held, _ = read(path)
    for channel, fields in enumerate(expected_fields(Operator(), data)):
        np.testing.assert_array_equal(held[f"channel {channel}"], fields)
    assert held["trajectory"].tolist() == list(range(7))


def test_a_part_of_the_data(predict, tmp_path):
    path = tmp_path / "a.hdf5"
    predict(PredictionWriter(path), dataloaders=loader(7), limit_predict_batches=2)
    held, _ = read(path)
    assert held["trajectory"].tolist() == [0, 1, 2, 3]
    assert len(held["channel 0"]) == 4


def test_data_without_places_are_numbered_as_they_come(predict, tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(list(zip(*flows(3).tensors, strict=True)))

    path = tmp_path / "a.hdf5"
    with pytest.warns(UserWarning, match="Couldn't infer the batch indices"):  # Lightning's
        predict(PredictionWriter(path), dataloaders=DataLoader(Stream(), batch_size=2))
    held, _ = read(path)
    np.testing.assert_array_equal(held["channel 1"], expected_fields(Operator(), flows(3))[1])


def test_a_prediction_may_be_in_a_mapping(predict, tmp_path):
    class Mapped(Operator):
        def predict_step(self, batch, batch_idx):
            return {"prediction": self.rollout(batch).bfloat16()}

    data = flows()
    data.tensors[0].add_(1e-4)  # given frames that half precision has not
    predict(PredictionWriter(tmp_path / "a.hdf5"), Mapped(), dataloaders=DataLoader(data, 2))
    held, _ = read(tmp_path / "a.hdf5")
    expected = expected_fields(Operator(), data)[0]
    np.testing.assert_allclose(held["channel 0"], expected, rtol=0.01)
    np.testing.assert_array_equal(held["channel 0"][:, :GIVEN], expected[:, :GIVEN])


def test_the_checkpoint_is_told(predict, make_trainer, tmp_path):
    trainer = make_trainer([], max_epochs=1)
    trainer.fit(Operator(), loader(), loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    predict(PredictionWriter(tmp_path / "a.hdf5"), dataloaders=loader(), ckpt_path=tmp_path / "last.ckpt")
    assert read(tmp_path / "a.hdf5")[1]["checkpoint"] == str(tmp_path / "last.ckpt")


def test_the_default_place_is_the_loggers_folder(predict, tmp_path):
    writer = PredictionWriter()
    trainer = predict(writer, dataloaders=loader(), logger=CSVLogger(tmp_path, name="runs"))
    assert str(writer.written) == f"{trainer.log_dir}/predictions.hdf5"
    assert writer.written.exists()
    predict(writer, dataloaders=loader())
    assert writer.written == tmp_path / "predictions.hdf5"


class Unwanted(Operator):
    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        raise AssertionError("predicted")


def test_an_existing_file_is_refused_before_predicting(predict, tmp_path):
    path = tmp_path / "a.hdf5"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match=r"but .*a\.hdf5 exists\. .* set `overwrite=True`"):
        predict(PredictionWriter(path), Unwanted(), dataloaders=loader())
    assert path.read_text() == "precious"
    predict(PredictionWriter(path, overwrite=True), dataloaders=loader())
    assert len(read(path)[0]["channel 0"]) == 5
    with pytest.raises(FileExistsError, match="exists"):  # a folder is never replaced
        predict(PredictionWriter(tmp_path, overwrite=True), Unwanted(), dataloaders=loader())


def test_several_data_loaders_are_refused_before_predicting(predict, tmp_path):
    with pytest.raises(
        MisconfigurationException, match=r"but got 2 data loaders\. Call `trainer.predict` once for each"
    ):
        predict(PredictionWriter(tmp_path / "a.hdf5"), Unwanted(), dataloaders=[loader(), loader()])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, "precious"])
def test_what_breaks_off_leaves_nothing(error, before, predict, tmp_path):
    class Breaks(Operator):
        def predict_step(self, batch, batch_idx):
            if batch_idx == 2:
                assert len(list(tmp_path.glob(".*.tmp"))) == 1
                raise error("stop")
            return super().predict_step(batch, batch_idx)

    path = tmp_path / "a.hdf5"
    if before:
        path.write_text(before)
    with pytest.raises((error, SystemExit)):
        predict(PredictionWriter(path, overwrite=True), Breaks(), dataloaders=loader())
    assert [file.read_text() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_each_batch_is_written_as_it_comes(predict, tmp_path):
    sizes = []

    class Watched(Operator):
        def on_predict_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
            (part,) = tmp_path.glob(".a.hdf5.0-0.*.tmp")
            with h5py.File(part, locking=False) as file:
                sizes.append(file["state"][...].tolist())

    writer = PredictionWriter(tmp_path / "a.hdf5")
    predict(writer, Watched(), dataloaders=loader(7))
    assert sizes == [[1] * count + [0] * (7 - count) for count in (2, 4, 6, 7)]


def test_what_a_killed_process_left_is_removed_after_a_day(predict, tmp_path):
    left = []

    class Watched(Operator):
        def on_predict_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
            left.extend(tmp_path.glob(".*.tmp"))

    writer = PredictionWriter(tmp_path / "a.hdf5")
    predict(writer, Watched(), dataloaders=loader())
    left[0].touch()
    os.utime(left[0], (0, 0))
    predict(PredictionWriter(tmp_path / "b.hdf5"), dataloaders=loader())
    assert {path.name for path in tmp_path.iterdir()} == {"a.hdf5", "b.hdf5"}


def test_fast_dev_run_leaves_no_file(predict, tmp_path):
    writer = PredictionWriter(tmp_path / "a.hdf5")
    predict(writer, dataloaders=loader(), fast_dev_run=True)
    assert writer.written is None
    assert not list(tmp_path.glob("*.hdf5*"))
    assert not list(tmp_path.glob(".*"))


def test_values_that_are_not_finite_are_written_and_told(predict, tmp_path):
    class Diverging(Operator):
        def rollout(self, batch):
            fields = super().rollout(batch)
            fields[0, 0, 0, -1] = torch.inf
            return fields

    with pytest.warns(UserWarning, match="3 of the 5 predicted trajectories in .* have values that are not finite"):
        predict(PredictionWriter(tmp_path / "a.hdf5"), Diverging(), dataloaders=loader())
    assert np.isinf(read(tmp_path / "a.hdf5")[0]["channel 0"][:, -1]).sum() == 3


@pytest.mark.parametrize(
    ("output", "data", "error", "message"),
    [
        (torch.ones(2, 3), None, TypeError, r"`predict_step` to return .* but got shape \(2, 3\)"),
        (7.0, None, TypeError, "`predict_step` to return .* but got float"),
        (
            torch.ones(1, 6, 4, 2, 2),
            [torch.ones(6, 4)],
            TypeError,
            r"pair whose first part .* but got shape \(1, 6, 4\)",
        ),
        (torch.ones(1, 6, 4, 2, 2), [{"x": 1}], TypeError, "pair whose first part .* but got dict"),
    ],
)
def test_other_modules_and_data_are_told_what_is_needed(output, data, error, message, predict, tmp_path):
    class Other(pl.LightningModule):
        def predict_step(self, batch, batch_idx):
            return output

    with pytest.raises(error, match=message):
        predict(PredictionWriter(tmp_path / "a.hdf5"), Other(), dataloaders=DataLoader(data) if data else loader())
    assert not list(tmp_path.iterdir())


def test_other_jobs_are_left_alone(make_trainer, tmp_path):
    path = tmp_path / "a.hdf5"
    path.write_text("precious")
    trainer = make_trainer([PredictionWriter(path)], max_epochs=1)
    trainer.fit(Operator(), loader(), loader())
    trainer.test(Operator(), loader(), verbose=False)
    assert path.read_text() == "precious"


# ---- interrupted predictions -----------------------------------------------------------------------------------------


class Counting(OperatorModule):
    """Predicts the frames in turn; notes the trajectories, and ends in some way before one."""

    def __init__(self, end=None, before=None, scale=1.0):
        super().__init__(Shift())
        self.scale = nn.Parameter(torch.tensor(scale))
        self.end, self.before, self.seen = end, before, []

    def predict_step(self, batch, batch_idx):
        frames = super().predict_step(batch, batch_idx) * self.scale
        if len(self.seen) == self.before:
            self.end()
        self.seen.append(len(batch[0]))
        return frames


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    path = tmp_path_factory.mktemp("flows") / "flow.hdf5"
    simulate_to_file(path, SimulationConfig(trajectories=7, resolution=8, frames=6), progress=False)
    return path


def data_of(path, **options):
    return CFDDataModule(path, **({"in_timesteps": 3, "predict_frames": 4, "batch_size": 2} | options))


def stop():
    raise RuntimeError("stop")


def end_at_once():
    os._exit(9)


def interrupted(predict, path, flow, end=stop, before=2, **options):
    """Leave a part of the file; in another process where this one would end."""
    model = Counting(end, before)
    if end is end_at_once:
        child = os.fork()
        if not child:
            predict(PredictionWriter(path), model, datamodule=data_of(flow, **options))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    else:
        with pytest.raises((RuntimeError, SystemExit)):
            predict(PredictionWriter(path), model, datamodule=data_of(flow, **options))
    return model


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(("end", "before"), [(stop, 2), (end_at_once, 0), (end_at_once, 1), (end_at_once, 3)])
def test_an_interrupted_prediction_goes_on_at_the_next_batch(end, before, predict, flow, tmp_path):
    straight, resumed = tmp_path / "straight.hdf5", tmp_path / "resumed.hdf5"
    predict(PredictionWriter(straight), Counting(), datamodule=data_of(flow))
    interrupted(predict, resumed, flow, end, before)
    assert not resumed.exists()
    model, writer = Counting(), PredictionWriter(resumed)
    predict(writer, model, datamodule=data_of(flow))
    assert model.seen == [2, 2, 2, 1][before:]
    assert writer.written == resumed
    (held, attributes), (expected, others) = read(resumed), read(straight)
    assert sorted(held) == sorted(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(held[name], values)
    assert {name: str(value) for name, value in attributes.items()} == {k: str(v) for k, v in others.items()}
    np.testing.assert_allclose(held["t-coordinate"], 0.2 * np.arange(8), rtol=1e-6)  # beyond the file's own
    assert {path.name for path in tmp_path.iterdir()} == {"straight.hdf5", "resumed.hdf5"}


def test_the_way_to_go_on_is_told_if_the_logger_numbers_its_runs(predict, flow, tmp_path, caplog):
    def run(path=None, end=None):
        writer, model = PredictionWriter(path), Counting(end, before=2 if end else None)
        logger = CSVLogger(tmp_path / "runs", name="a")
        with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
            predict(writer, model, datamodule=data_of(flow), logger=logger)
        return model

    with pytest.raises(RuntimeError, match="stop"):
        run(end=stop)
    (told,) = [line for line in caplog.messages if line.startswith("Kept in ")]
    path = told.partition("PredictionWriter('")[2].partition("')")[0]
    assert path == str(tmp_path / "runs/a/version_0/predictions.hdf5")
    assert told.endswith(f"--trainer.callbacks.path={path}`.")
    assert run(path).seen == [2, 1]
    assert sorted(os.listdir(os.path.dirname(path))) == ["hparams.yaml", "predictions.hdf5"]


def test_a_prediction_that_had_all_but_its_name(predict, flow, tmp_path):
    """Nothing is left to do but to give it its name; one trajectory is predicted again to get there."""
    interrupted(predict, tmp_path / "a.hdf5", flow, before=3)
    part = tmp_path / "a.hdf5.0.part"
    with h5py.File(part, "r+") as file:
        file["state"][6] = 1
    model = Counting()
    predict(PredictionWriter(tmp_path / "a.hdf5"), model, datamodule=data_of(flow))
    assert model.seen == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]


@pytest.mark.parametrize(
    ("model", "options", "differing"),
    [
        (Counting(scale=2.0), {}, "weights"),
        (Counting(), {"predict_frames": 5}, "predicted_frames"),
        (Counting(), {"skip": [1]}, "flows"),
        (Counting(), {"time_stride": 2, "in_timesteps": 2}, "given_frames, time_stride"),
    ],
)
def test_a_part_of_other_settings_is_refused(model, options, differing, predict, flow, tmp_path):
    interrupted(predict, tmp_path / "a.hdf5", flow)
    before = (tmp_path / "a.hdf5.0.part").read_bytes()
    with pytest.raises(FileExistsError, match=rf"a.hdf5.0.part to be of the same .* differ: {differing}\. .*overwrite"):
        predict(PredictionWriter(tmp_path / "a.hdf5"), model, datamodule=data_of(flow, **options))
    assert (tmp_path / "a.hdf5.0.part").read_bytes() == before
    assert model.seen == []
    predict(PredictionWriter(tmp_path / "a.hdf5", overwrite=True), model, datamodule=data_of(flow, **options))
    assert sum(model.seen) == (6 if "skip" in options else 7)
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]
    model.seen.clear()


def test_a_part_of_another_file_of_the_same_name_is_refused(predict, flow, tmp_path):
    (tmp_path / "flow.hdf5").write_bytes(flow.read_bytes())
    interrupted(predict, tmp_path / "a.hdf5", tmp_path / "flow.hdf5")
    simulate_to_file(
        tmp_path / "flow.hdf5", SimulationConfig(trajectories=7, resolution=8, frames=6, seed=1), progress=False
    )
    with pytest.raises(FileExistsError, match="differ: flows"):
        predict(PredictionWriter(tmp_path / "a.hdf5"), Counting(), datamodule=data_of(tmp_path / "flow.hdf5"))


def test_a_part_of_a_file_that_was_changed_since_is_refused(predict, flow, tmp_path):
    path = tmp_path / "flow.hdf5"
    path.write_bytes(flow.read_bytes())
    interrupted(predict, tmp_path / "a.hdf5", path)
    with path.open("r+b") as file:  # in place, as HDF5 writes a value
        file.seek(path.stat().st_size // 2)
        file.write(bytes(4))
    with pytest.raises(FileExistsError, match=r"differ: .*modified"):
        predict(PredictionWriter(tmp_path / "a.hdf5"), Counting(), datamodule=data_of(path))


def test_a_damaged_part_is_named(predict, flow, tmp_path):
    interrupted(predict, tmp_path / "a.hdf5", flow)
    part = tmp_path / "a.hdf5.0.part"
    part.write_bytes(part.read_bytes()[:500])
    with pytest.raises(
        OSError, match=r"a.hdf5.0.part to hold predictions that were interrupted, but it is damaged .*remove it"
    ):
        predict(PredictionWriter(tmp_path / "a.hdf5"), Counting(), datamodule=data_of(flow))


def test_a_part_that_another_process_writes(predict, flow, tmp_path):
    interrupted(predict, tmp_path / "a.hdf5", flow)
    with (tmp_path / "a.hdf5.0.part").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process has it open"):
            predict(PredictionWriter(tmp_path / "a.hdf5"), Counting(), datamodule=data_of(flow))


def test_a_part_of_the_flows_is_not_gone_on_with(predict, flow, tmp_path):
    with pytest.raises(RuntimeError, match="stop"):
        predict(
            PredictionWriter(tmp_path / "a.hdf5"), Counting(stop, 1), datamodule=data_of(flow), limit_predict_batches=2
        )
    assert list(tmp_path.iterdir()) == []


def test_the_file_that_is_read_is_never_replaced(predict, tmp_path):
    path, link = tmp_path / "flow.hdf5", tmp_path / "link.hdf5"
    simulate_to_file(path, SimulationConfig(trajectories=2, resolution=8, frames=12), progress=False)
    link.symlink_to(path)
    before = path.read_bytes()
    for data in (CFDDataModule(path), CFDDataModule(path, test_path=write_other(tmp_path / "other.hdf5"))):
        target = link if data.test_path is None else data.test_path
        with pytest.raises(FileExistsError, match="another file than those that are predicted from"):
            predict(PredictionWriter(target, overwrite=True), OperatorModule(Shift()), datamodule=data)
    assert path.read_bytes() == before


def write_other(path):
    simulate_to_file(path, SimulationConfig(trajectories=2, resolution=8, frames=12, seed=5), progress=False)
    return path
