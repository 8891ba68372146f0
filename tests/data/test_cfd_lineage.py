"""Which flows are trained on, evaluated and predicted: other files, flows left out, and what a checkpoint remembers."""

import shutil
import warnings

import h5py
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_farms.callbacks import PredictionWriter
from lightning_farms.data import CFDDataModule, PDEBenchFile, SimulationConfig
from tests.data.fields.labelled_flows import label, labels, module, write_labelled


class Last(LightningModule):
    """Predicts the last given frame again."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return self.gain * batch[0].mean() * 0

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        pass

    def predict_step(self, batch, batch_idx):
        x, y = batch
        assert y.isnan().all()
        return x[:, :, :, -1:].expand(-1, -1, -1, y.shape[3], -1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**{"max_epochs": 1, "enable_checkpointing": False, **quiet, **options})


@pytest.fixture
def path(tmp_path):
    return write_labelled(tmp_path / "flow.hdf5")


@pytest.fixture
def checkpoint(path, tmp_path):
    """Of a training on the flows 0 to 8 of 12."""
    run = trainer()
    run.fit(Last(), datamodule=module(path, test_fraction=0.25, num_workers=0))
    run.save_checkpoint(tmp_path / "run.ckpt")
    return tmp_path / "run.ckpt"


def told(path, checkpoint, stage, capture, **options):
    """Warnings of a stage, and what it says besides."""
    capture.clear()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        getattr(trainer(), stage)(Last(), datamodule=module(path, **options), ckpt_path=checkpoint)
    return [str(each.message) for each in found if "trained on" in str(each.message)], capture.text


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
class TestCheckpoint:
    def test_the_same_split_says_only_who_validated(self, path, checkpoint, caplog):
        caplog.set_level("INFO")
        warned, said = told(path, checkpoint, "test", caplog, test_fraction=0.25)
        assert warned == []
        assert "validated with 3 of the 3 test flows" in said

    @pytest.mark.parametrize(
        ("stage", "options", "message"),
        [
            ("test", {"split": "pdebench"}, "The checkpoint was trained on 1 of the 1 flow to test on: 0 of "),
            (
                "test",
                {"test_fraction": 0.5},
                "trained on 3 of the 6 flows to test on: 6-8 of .*not those of its training: test_fraction",
            ),
            (
                "validate",
                {"test_fraction": 0.25, "val_fraction": 0.4},
                "trained on 3 of the 3 .* validate with: 6-8 of",
            ),
            ("predict", {"skip": [1]}, "trained on 8 of the 11 flows to predict: 0, 2-8 of "),
        ],
    )
    def test_every_flow_that_was_trained_on_is_told(self, path, checkpoint, caplog, stage, options, message):
        shutil.copy(path, path.with_name("renamed.hdf5"))
        for name in (path, path.with_name("renamed.hdf5")):
            warned, _ = told(name, checkpoint, stage, caplog, **options)
            assert len(warned) == 1
            with pytest.warns(UserWarning, match=message):
                warnings.warn(warned[0], stacklevel=1)

    def test_other_flows_are_no_concern(self, path, checkpoint, caplog):
        caplog.set_level("INFO")
        other = write_labelled(path.with_name("other.hdf5"))
        with h5py.File(other, "r+") as file:
            file["density"][0, 0, 0, 0] = 7.0
        warned, said = told(other, checkpoint, "test", caplog, split="pdebench")
        assert warned == []
        assert "validated with none of the test flows" in said

    def test_a_resumed_training_remembers_both_splits(self, path, checkpoint, tmp_path):
        run = trainer(max_epochs=2)
        with pytest.warns(UserWarning, match=r"trained on 1 of the 1 flow to validate with: 0 of"):
            run.fit(Last(), datamodule=module(path, split="pdebench"), ckpt_path=checkpoint)
        run.save_checkpoint(tmp_path / "later.ckpt")
        state = torch.load(tmp_path / "later.ckpt", weights_only=True)["CFDDataModule"]["lineage"]
        assert [entry["flows"] for entry in state["trained"]] == [[[0, 11]]]
        assert [entry["flows"] for entry in state["validated"]] == [[[0, 0], [9, 11]]]
        assert (state["settings"]["split"], state["settings"]["test_fraction"]) == ("pdebench", 0.1)

    def test_a_file_that_was_changed_since_is_told_where_a_training_goes_on(self, path, checkpoint):
        write_labelled(path, offset=3000)
        with pytest.warns(UserWarning, match=r"goes on with other flows: .*flow.hdf5 is not the file of that name"):
            trainer(max_epochs=2).fit(Last(), datamodule=module(path), ckpt_path=checkpoint)

    def test_flows_that_chose_the_checkpoint_are_known_in_another_file(self, path, checkpoint, tmp_path):
        """Flows 9 to 11 were validated with; a file of them alone is no file of new flows."""
        other = extract(path, tmp_path / "other.hdf5", slice(9, 12), compression="gzip")
        new = write_labelled(tmp_path / "new.hdf5", offset=7000)
        said = r"Trajectory 0 of .*other.hdf5 has the values of one that the training was validated with"
        for name, found in ((other, pytest.warns(UserWarning, match=said)), (new, warnings.catch_warnings())):
            with found:
                data = module(path, test_path=name, val_fraction=0.25)
                trainer().test(Last(), datamodule=data, ckpt_path=checkpoint, verbose=False)


def test_simulated_flows_in_place_of_a_file_that_was_forgotten_are_told(checkpoint, tmp_path):
    simulated = CFDDataModule(
        cache_dir=tmp_path,
        simulation=SimulationConfig(trajectories=3, resolution=8, frames=8),
        in_timesteps=3,
        test_fraction=0.4,
    )
    with pytest.warns(UserWarning, match="trained on flow.hdf5, but these flows are simulated, since no file is"):
        trainer().test(Last(), datamodule=simulated, ckpt_path=checkpoint)
    run = trainer()
    run.fit(Last(), datamodule=simulated)
    run.save_checkpoint(tmp_path / "simulated.ckpt")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*are simulated, since")
        trainer().test(Last(), datamodule=simulated, ckpt_path=tmp_path / "simulated.ckpt")


def test_a_checkpoint_is_written_though_the_file_is_gone(path, tmp_path):
    """It was moved during the training, which holds it open."""

    class Move(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            path.rename(tmp_path / "moved.hdf5")

    run = trainer(callbacks=[Move()])
    run.fit(Last(), datamodule=module(path, test_fraction=0.25, num_workers=0))
    run.save_checkpoint(tmp_path / "run.ckpt")
    with pytest.warns(UserWarning, match="The checkpoint was trained on 3 of the . flows to .*: 6-8 of .*moved.hdf5"):
        trainer().test(
            Last(), datamodule=module(tmp_path / "moved.hdf5", test_fraction=0.5), ckpt_path=tmp_path / "run.ckpt"
        )


def test_files_for_validation_and_testing(path, tmp_path):
    val = write_labelled(tmp_path / "val.hdf5", trajectories=2)
    test = write_labelled(tmp_path / "test.hdf5", trajectories=3)
    data = module(path, val_path=val, test_path=test)
    data.setup("fit")
    data.setup("test")
    assert (data.train_items, data.val_items, data.test_items) == (12, 2, 3)
    assert [first for batch in data.test_dataloader() for first, _ in labels(batch)] == [label(t, 0) for t in range(3)]
    only_test = module(path, test_path=str(test))
    only_test.setup("fit")
    assert (only_test.train_items, only_test.val_items) == (12, 3)
    held_out = module(path, test_path=test, val_fraction=0.25)
    held_out.setup("fit")
    assert (held_out.train_items, held_out.val_items) == (9, 3)
    only_val = module(path, val_path=val)
    only_val.setup("fit")
    only_val.setup("test")
    assert (only_val.train_items, only_val.val_items, only_val.test_items) == (11, 2, 1)


def test_files_that_go_together_badly(path, tmp_path):
    with pytest.raises(ValueError, match=r"`test_path` to name other files than `path`"):
        module(path, test_path=path)
    with pytest.raises(ValueError, match=r"`path` to name files.* when `val_path` is given, but got None"):
        CFDDataModule(val_path=path)
    with pytest.raises(ValueError, match=r"`val_fraction` to be 0 when `val_path` is given"):
        module(path, val_path=tmp_path / "other.hdf5", val_fraction=0.1)
    large = write_labelled(tmp_path / "large.hdf5", size=(16, 16))
    with pytest.raises(ValueError, match=r"as many cells .* as .*flow.hdf5, 8, but .*large.hdf5 has 16"):
        module(path, test_path=large).setup("test")


def test_flows_left_out_leave_the_split_of_the_others(path, tmp_path):
    data = module(path, test_fraction=0.25, skip=[2, 10])
    data.setup("fit")
    data.setup("test")
    shown = {first // 100 for batch in data.train_dataloader() for first, _ in labels(batch)}
    assert shown == {0, 1, 3, 4, 5, 6, 7, 8}
    assert [first for batch in data.test_dataloader() for first, _ in labels(batch)] == [label(9, 0), label(11, 0)]
    other = write_labelled(tmp_path / "other.hdf5", offset=1)
    both = module([path, other], test_fraction=0.25, skip={"other.hdf5": [0, 1]})
    both.setup("fit")
    assert both.train_items == 16
    with pytest.raises(ValueError, match="`skip` to name the file of each list"):
        module([path, other], skip=[1]).setup("fit")
    with pytest.raises(ValueError, match=r"`skip` to map names of \['flow.hdf5'\]"):
        module(path, skip={"none.hdf5": [1]}).setup("fit")
    with pytest.raises(
        ValueError, match=r"`skip` to name trajectories of .*, which are numbered from 0 to 11, but got \[12\]"
    ):
        module(path, skip=[1, 12]).setup("fit")
    with pytest.raises(ValueError, match="`skip` leaves none"):
        module(path, skip=[11]).setup("test")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_value_ends_the_first_epoch(path, workers):
    with h5py.File(path, "r+") as file:
        file["Vx"][3, 7, 0, 0] = np.nan
    for seed in range(1 if workers else 3):  # what is drawn does not depend on the workers
        data = module(path, seed=seed, num_workers=workers)
        data.setup("fit")
        with pytest.raises(ValueError, match=r"`Vx` .* trajectory 3 has 1 NaN values in frame 7"):
            list(data.train_dataloader())
    if not workers:
        data = module(path, skip=[3])
        data.setup("fit")
        assert sum(len(x) for x, _ in data.train_dataloader()) == 10


def test_made_up_flows_are_told_at_setup(path):
    with h5py.File(path, "r+") as file:
        values = file["Vy"][...]
        del file["Vy"]
        file.create_dataset("Vy", values.shape, "f4", chunks=(1, *values.shape[1:]))[:5] = values[:5]
        file["Vy"][11] = values[11]
    with pytest.raises(
        ValueError, match=r"trajectories of .*flow.hdf5 to be stored, but \[5, 6, 7, 8, 9, 10\] are not"
    ):
        module(path).setup("fit")
    data = module(path, skip=[5, 6, 7, 8, 9, 10])
    data.setup("fit")
    assert data.train_items == 5


def predicted(path, target, **options):
    writer = PredictionWriter(target)
    trainer(callbacks=[writer]).predict(Last(), datamodule=module(path, **options), return_predictions=False)
    return PDEBenchFile(target)


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
class TestPrediction:
    @pytest.mark.parametrize(
        ("trajectories", "frames", "ahead", "expected"), [(5, 3, 9, 12), (1, 3, None, 5), (12, 8, None, 8)]
    )
    def test_every_flow_from_its_given_frames(self, tmp_path, trajectories, frames, ahead, expected):
        path = write_labelled(tmp_path / "given.hdf5", trajectories=trajectories, frames=frames)
        with h5py.File(path, "r+") as file:
            file["t-coordinate"] = 0.25 * np.arange(frames)
            file["Vx"][:, 3:] = np.nan  # the future is not read
        result = predicted(path, tmp_path / "out.hdf5", predict_frames=ahead)
        assert result.shape[:2] == (trajectories, expected)
        torch.testing.assert_close(result.t, 0.25 * torch.arange(expected + 1))
        last = result.read(trajectories - 1)[0, 0, :, 2]
        expected_labels = [label(trajectories - 1, min(frame, 2)) for frame in range(expected)]
        np.testing.assert_allclose(last, expected_labels, atol=1e-20)

    def test_a_stride_in_time(self, tmp_path):
        path = write_labelled(tmp_path / "given.hdf5", frames=5)
        result = predicted(path, tmp_path / "out.hdf5", predict_frames=2, time_stride=2)
        assert result.read(4)[0, 0, :, 2].tolist() == [400, 402, 404, 404, 404]

    def test_too_few_given_frames(self, tmp_path):
        path = write_labelled(tmp_path / "given.hdf5", frames=2)
        with pytest.raises(ValueError, match=r"given.hdf5 to have at least 3 given frames, but it has 2"):
            module(path).setup("predict")
        with pytest.raises(ValueError, match="`predict_frames` to be at least 1"):
            module(path, predict_frames=0)

    def test_predictions_are_no_truth(self, path, tmp_path):
        predicted(path, tmp_path / "out.hdf5")
        for stage in ("fit", "validate", "test"):
            with pytest.raises(
                ValueError, match=r"out.hdf5 to hold data, but it is a file of predictions: .* from 3 on"
            ):
                module(tmp_path / "out.hdf5").setup(stage)
        module(tmp_path / "out.hdf5", predict_frames=4).setup("predict")
        with pytest.raises(ValueError, match="file of predictions"):
            module(path, test_path=tmp_path / "out.hdf5").setup("test")


def extract(path, other, flows, **options):
    """Some flows of a file in one of their own."""
    with h5py.File(path) as source, h5py.File(other, "w") as file:
        for name in source:
            file.create_dataset(name, data=source[name][flows], **options)
    return other


@pytest.mark.parametrize("options", [{}, {"normalize": True, "stride": 2, "time_stride": 2}])
def test_flows_that_were_trained_on_are_known_in_another_file(path, tmp_path, options):
    """An extract of the training file, packed anew, is no file of new flows."""
    other = extract(path, tmp_path / "other.hdf5", slice(4, 8), compression="gzip")
    new = write_labelled(tmp_path / "new.hdf5", offset=7000)
    said = r"Trajectory 0 of .*other.hdf5 has the values of one that was trained on"
    data = module(path, test_path=other, val_path=new, out_timesteps=1, **options)
    run = trainer()
    run.fit(Last(), datamodule=data)
    with pytest.warns(UserWarning, match=said) as found:
        run.test(Last(), datamodule=data, verbose=False)
    assert sum("has the values of one" in str(warning.message) for warning in found) == 1, "once"
    run.save_checkpoint(tmp_path / "run.ckpt")
    settings = {"test_fraction": 1.0, "ckpt_path": tmp_path / "run.ckpt", "options": options}
    with pytest.warns(UserWarning, match=said):
        evaluate(other, **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Trajectory")
        evaluate(new, **settings)


def evaluate(path, ckpt_path, options, **split):
    data = module(path, out_timesteps=1, **options, **split)
    trainer().test(Last(), datamodule=data, ckpt_path=ckpt_path, verbose=False, weights_only=True)


def test_a_flow_that_stands_twice_in_a_file_is_no_new_one(path):
    with h5py.File(path, "r+") as file:
        for name in file:
            file[name][10] = file[name][2]
    data = module(path, test_fraction=0.25)
    with pytest.warns(UserWarning, match=r"Trajectory 10 of .*flow.hdf5 has the values of one that was trained on"):
        trainer(num_sanity_val_steps=0).fit(Last(), datamodule=data)


def test_equal_lists_of_sources_are_no_copies(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_labelled(tmp_path / name / "part.hdf5", offset=ord(name))
    first, second = (tmp_path / name / "all.hdf5" for name in "ab")
    with h5py.File(first, "w") as file:
        for channel in ("density", "Vx", "Vy", "pressure"):
            layout = h5py.VirtualLayout((12, 8, 8, 8), "f4")
            layout[:] = h5py.VirtualSource("part.hdf5", channel, (12, 8, 8, 8))
            file.create_virtual_dataset(channel, layout)
    shutil.copy(first, second)  # written twice, they would differ by the second that HDF5 notes
    data = module(first, test_path=second)
    data.setup("fit")
    data.setup("test")
    assert data.test_items == 12
    shutil.copy(tmp_path / "a" / "part.hdf5", tmp_path / "b" / "part.hdf5")
    with pytest.raises(ValueError, match="it is a copy of it"):
        module(first, test_path=second).setup("test")
