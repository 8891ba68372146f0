"""Pictures and curves of rollouts: what TensorBoard holds, exact errors, when they are drawn, what is forgiven."""

import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lightning_farms import RolloutMonitor
from lightning_farms.callbacks._rollouts import drawings as rollout_pictures
from lightning_farms.data import CFDDataModule, SimulationConfig
from lightning_farms.models import OperatorModule
from tests.callbacks.conftest import in_order
from tests.callbacks.rollouts import FRAMES, GIVEN, Flows, Operator, Shift, expected, loader

CURVES = {"mean", "Vx", "density"}


@pytest.fixture
def trainer(make_trainer, tmp_path):
    def make(monitor, *others, **kwargs):
        logger = TensorBoardLogger(tmp_path, name="tb", version=0)
        return make_trainer([monitor, *others], **{"logger": logger, "num_sanity_val_steps": 0, **kwargs})

    return make


@pytest.fixture
def drawn(monkeypatch):
    """Arguments of the figures to draw, {function: [(args, kwargs), ...]}; pictures are small and grey instead."""
    calls = {}
    for name in ("field_figure", "error_curves_figure"):

        def record(*args, _name=name, **kwargs):
            calls.setdefault(_name, []).append((args, kwargs))

        monkeypatch.setattr(rollout_pictures, name, record)
    monkeypatch.setattr(rollout_pictures, "pixels", lambda figure: np.full((2, 3, 3), 128, np.uint8))
    return calls


def events(trainer):
    return EventAccumulator(in_order(trainer.log_dir), size_guidance={"images": 0, "scalars": 0}).Reload()


def steps(found):
    return [event.step for event in found]


def test_everything_the_docstring_promises(trainer):
    run = trainer(RolloutMonitor(2, samples=2, frames=2), max_epochs=3)
    run.fit(Operator(), datamodule=Flows())
    run.test(Operator(), datamodule=Flows(), verbose=False)
    found = events(run)
    fields = {f"fields/{name}{number}" for name in ("Vx", "density") for number in ("", "/2")}
    pictures = {f"{stage}/{name}" for stage in ("val", "test") for name in (*fields, "error_over_time")}
    assert set(found.Tags()["images"]) == pictures
    scalars = set(found.Tags()["scalars"])
    assert {f"{stage}/l2re_frame/{number}" for stage in ("val", "test") for number in (3, 5, 7)} <= scalars
    assert {f"test/l2re_over_time/{name}" for name in CURVES} <= scalars
    assert steps(found.Images("val/fields/Vx")) == [5, 8]  # after two epochs of three steps, and at the end
    assert steps(found.Images("val/error_over_time")) == [5, 8]
    assert steps(found.Scalars("val/l2re_frame/3")) == [2, 5, 8]


def test_a_tests_curves_have_the_frames_as_steps(trainer, drawn):
    run = trainer(RolloutMonitor())
    run.test(Operator(), datamodule=Flows(), verbose=False)
    found = events(run)
    for channel, name in enumerate(("Vx", "density")):
        curve = found.Scalars(f"test/l2re_over_time/{name}")
        assert steps(curve) == list(range(GIVEN, GIVEN + FRAMES))
        assert [event.value for event in curve] == pytest.approx(expected()[:, channel].tolist(), rel=1e-6)
    mean = [event.value for event in found.Scalars("test/l2re_over_time/mean")]
    assert mean == pytest.approx(expected().mean(1).tolist(), rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_errors_are_exact_for_any_batches(batch_size, trainer, drawn):
    monitor = RolloutMonitor()
    run = trainer(monitor)
    run.validate(Operator(), loader(7, batch_size), verbose=False)
    torch.testing.assert_close(torch.tensor(monitor.errors), expected(7), rtol=1e-6, atol=0)
    middle = run.callback_metrics["val/l2re_frame/5"]  # which other callbacks can monitor
    torch.testing.assert_close(middle, expected(7)[2].mean(), rtol=1e-6, atol=0)


def test_an_operator_module_on_simulated_flows(trainer, tmp_path):
    settings = {"cache_dir": tmp_path, "simulation": SimulationConfig(trajectories=8, resolution=16, frames=14)}
    data = CFDDataModule(**settings, test_fraction=0.4, batch_size=2)
    monitor, module = RolloutMonitor(0, frames=2), OperatorModule(Shift(), lr=1e-3)
    run = trainer(monitor, max_epochs=2, precision="32-true")
    run.fit(module, datamodule=data)
    with np.errstate(all="raise"):
        errors = [relative_errors(module, *(part.numpy() for part in batch)) for batch in data.val_dataloader()]
    np.testing.assert_allclose(monitor.errors, np.concatenate(errors).mean(0), rtol=1e-5)
    run.test(module, datamodule=data, verbose=False)
    found = events(run)
    for stage in ("val", "test"):
        assert {f"{stage}/fields/{name}" for name in data.channels} <= set(found.Tags()["images"])
    frames = [event.step for event in found.Scalars("test/l2re_over_time/pressure")]
    assert frames == [10, 11, 12, 13]


def relative_errors(module, x, y):
    """Of each trajectory, frame and channel, with numpy."""
    predicted, frame = [], x[:, :, :, -1]
    for _ in range(y.shape[3]):
        frame = module.network.factor.item() * np.roll(frame, 1, 1)
        predicted.append(frame)
    error = np.stack(predicted, 3) - y
    return np.sqrt((error**2).sum((1, 2)) / (y**2).sum((1, 2)))


@pytest.mark.parametrize(("often", "epochs"), [(0, [5]), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (10, [5])])
def test_when_it_draws(often, epochs, trainer, drawn):
    run = trainer(RolloutMonitor(often), max_epochs=5)
    run.fit(Operator(), loader(2), loader(2))
    assert steps(events(run).Images("val/error_over_time")) == [epoch - 1 for epoch in epochs]


def test_several_validations_an_epoch(trainer, drawn):
    run = trainer(RolloutMonitor(1), max_epochs=2, val_check_interval=0.5)
    run.fit(Operator(), loader(4, 1), loader(2))
    assert steps(events(run).Images("val/error_over_time")) == [3, 7]
    assert steps(events(run).Scalars("val/l2re_frame/3")) == [1, 3, 5, 7]
    first, _ = drawn["error_curves_figure"]
    assert first[1]["title"].endswith("after 1 epoch")


def test_names_and_times_come_from_the_data_module(trainer, drawn):
    trainer(RolloutMonitor(frames=3)).validate(Operator(), datamodule=Flows(), verbose=False)
    fields = drawn["field_figure"]
    assert [kwargs["title"] for _, kwargs in fields] == [
        "Vx, validation trajectory 1",
        "density, validation trajectory 1",
    ]
    assert fields[0][1]["frames"] == ["frame 3\nt = 0.3", "frame 5\nt = 0.5", "frame 7\nt = 0.7"]
    ((errors,), curves) = drawn["error_curves_figure"][0]
    assert curves["channels"] == ["Vx", "density"]
    assert curves["positions"] == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7])
    assert curves["unit"] == "time t"
    torch.testing.assert_close(torch.tensor(errors), expected(), rtol=1e-6, atol=0)


def test_what_needs_no_network_is_drawn_and_logged_beside_it(trainer, drawn):
    data = Flows()
    run = trainer(RolloutMonitor())
    run.test(Operator(), datamodule=data, verbose=False)
    x, y = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
    persistence = x[:, :, :, -1:].expand_as(y)
    drift = persistence.clone()
    drift[..., 0] = drift[..., 0].mean((1, 2), keepdim=True)  # of Vx; density is frozen
    references = drawn["error_curves_figure"][0][1]["references"]
    assert set(references) == {"persistence", "drift-free"}
    for name, prediction in (("persistence", persistence), ("drift-free", drift)):
        errors = (prediction - y).flatten(1, 2).norm(dim=1) / y.flatten(1, 2).norm(dim=1)
        torch.testing.assert_close(torch.tensor(references[name]), errors.mean((0, 2)), rtol=1e-5, atol=0)
        logged = events(run).Scalars(f"test/l2re_over_time/{name.replace('-', '_')}")
        assert [event.value for event in logged] == pytest.approx(references[name], rel=1e-5)


def test_what_is_drawn_without_names_is_the_first_trajectory(trainer, drawn):
    data = loader()
    run = trainer(RolloutMonitor(frames=2))
    run.validate(Operator(), data, verbose=False)
    (truth, prediction), kwargs = drawn["field_figure"][1]
    x, y = (part[:1] for part in data.dataset.tensors)
    assert kwargs["title"] == "channel 1, validation trajectory 1"
    assert kwargs["frames"] == ["frame 3", "frame 7"]
    assert torch.equal(truth, y[0, :, :, [0, -1], 1])
    assert torch.equal(prediction, Operator().rollout((x, y))[0, :, :, [0, -1], 1])
    assert {"val/fields/channel 0", "val/fields/channel 1"} <= set(events(run).Tags()["images"])


def test_the_curves_are_laid_over_those_of_the_first_validation(trainer, drawn):
    class Improving(Operator):
        def rollout(self, batch):
            return batch[1] + (super().rollout(batch) - batch[1]) / (self.trainer.current_epoch + 1)

    run = trainer(RolloutMonitor(0), max_epochs=2)
    run.fit(Improving(), loader(), loader())
    ((errors,), kwargs) = drawn["error_curves_figure"][0]
    torch.testing.assert_close(torch.tensor(errors), expected() / 2, rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.tensor(kwargs["before"]), expected(), rtol=1e-6, atol=0)
    assert kwargs["before_label"] == "after 1 epoch"
    run.test(Improving(), loader(), verbose=False)  # another data set
    assert drawn["error_curves_figure"][1][1]["before"] is None


def test_a_resumed_run_is_the_straight_one(trainer, drawn, tmp_path):
    def fit(max_epochs, ckpt_path=None):
        monitor = RolloutMonitor(2)
        save = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
        run = trainer(monitor, save, max_epochs=max_epochs, enable_checkpointing=True)
        run.fit(Operator(), loader(), loader(), ckpt_path=ckpt_path)
        return monitor

    straight, first = fit(4), list(drawn["error_curves_figure"])
    fit(3)
    drawn["error_curves_figure"].clear()
    resumed = fit(4, tmp_path / "epoch=2.ckpt")
    assert resumed.state_dict() == straight.state_dict()
    assert len(drawn["error_curves_figure"]) == 1  # after epoch 4, not again for epoch 2
    assert repr(drawn["error_curves_figure"][-1]) == repr(first[-1])
    assert pickle.loads(pickle.dumps(resumed)).state_dict() == straight.state_dict()


def test_a_state_of_another_version():
    with pytest.raises(ValueError, match="state of version 1, but the checkpoint has 2"):
        RolloutMonitor().load_state_dict({"version": 2})


def test_a_new_fit_starts_anew(trainer, drawn):
    monitor = RolloutMonitor(1)
    for count in (3, 5):
        trainer(monitor, max_epochs=1).fit(Operator(), loader(count), loader(count))
        first = monitor.state_dict()["first"][""]
        torch.testing.assert_close(torch.tensor(first["errors"]), expected(count), rtol=1e-6, atol=0)


def test_the_sanity_check_does_not_count(trainer, drawn):
    class Look(Callback):
        def on_sanity_check_end(self, run, module):
            self.seen = (monitor.errors, dict(run.callback_metrics))

    monitor, look = RolloutMonitor(1), Look()
    run = trainer(monitor, look, num_sanity_val_steps=2)
    run.fit(Operator(), loader(), loader())
    assert look.seen == (None, {})
    assert steps(events(run).Images("val/error_over_time")) == [2, 5]


@pytest.mark.parametrize(
    ("outputs", "got"),
    [
        (None, "None"),
        (torch.ones(()), "a Tensor"),
        ({"loss": torch.ones(())}, r"the keys \['loss'\]"),
        ({"prediction": torch.ones(2, 3), "target": torch.ones(2, 3)}, r"torch.float32 of shape \(2, 3\)"),
        ({"prediction": torch.ones(1, 2, 2, 1, 1), "target": torch.ones(1, 2, 2, 1, 1).int()}, r"and torch.int32"),
        ({"prediction": torch.ones(1, 2, 2, 2, 1), "target": torch.ones(1, 2, 2, 1, 1)}, r"of \(1, 2, 2, 1, 1\)"),
    ],
)
def test_a_module_that_returns_something_else_is_told_once(outputs, got, trainer):
    class Other(Operator):
        def validation_step(self, batch, batch_idx):
            return outputs

        def test_step(self, batch, batch_idx):
            return None

    run = trainer(RolloutMonitor(1))
    with pytest.warns(UserWarning, match=f"expected `validation_step` to return .* but got .*{got}") as warned:
        run.fit(Other(), loader(), loader())
    assert len([warning for warning in warned if "validation_step" in str(warning.message)]) == 1
    assert run.current_epoch == 2
    with pytest.warns(UserWarning, match="expected `test_step` to return .* but got None"):
        run.test(Other(), loader(), verbose=False)


def test_several_data_loaders(trainer, drawn):
    run = trainer(RolloutMonitor(1), max_epochs=1)
    run.fit(Operator(), loader(), [loader(3), loader(5)])
    found = events(run)
    for index, count in enumerate((3, 5)):
        last = found.Scalars(f"val/l2re_frame/7/dataloader_idx_{index}")[-1].value
        assert last == pytest.approx(float(expected(count)[-1].mean()), rel=1e-6)
    assert {"val/error_over_time/dataloader_idx_1", "val/fields/channel 0/dataloader_idx_0"} <= set(
        found.Tags()["images"]
    )


def test_rollouts_of_another_length_are_left_out_and_told(trainer, drawn):
    monitor = RolloutMonitor()
    data = DataLoader([*loader(4, 2), *loader(1, frames=2)], batch_size=None)
    with pytest.warns(UserWarning, match="as many frames and channels as the first, but some"):
        trainer(monitor).validate(Operator(), data, verbose=False)
    torch.testing.assert_close(torch.tensor(monitor.errors), expected(4), rtol=1e-6, atol=0)


def test_half_precision_and_values_that_are_not_finite(trainer):
    class Half(Operator):
        def validation_step(self, batch, batch_idx):
            outputs = super().validation_step(batch, batch_idx)
            outputs["prediction"][0, 0, 0, -1] = torch.inf
            return {name: fields.bfloat16() for name, fields in outputs.items()}

    monitor = RolloutMonitor()
    run = trainer(monitor)
    run.validate(Half(), loader(), verbose=False)
    torch.testing.assert_close(torch.tensor(monitor.errors[:-1]), expected()[:-1], rtol=0.02, atol=0)
    assert set(map(str, monitor.errors[-1])) == {"inf"}
    assert "val/error_over_time" in events(run).Tags()["images"]


def test_training_is_not_disturbed(trainer):
    results = []
    for monitors in ([], [RolloutMonitor(0, samples=3, frames=2)]):
        torch.manual_seed(5)
        model = Operator()
        trainer(*monitors or [Callback()]).fit(model, loader(), loader())
        results.append((model.weight.detach(), torch.get_rng_state()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_picture_that_fails_is_reported_once_and_costs_no_other(trainer, monkeypatch, drawn):
    def fail(*args, **kwargs):
        raise RuntimeError("no ink")

    monkeypatch.setattr(rollout_pictures, "field_figure", fail)
    run = trainer(RolloutMonitor(1))
    with pytest.warns(UserWarning, match="could not be written. RuntimeError: no ink") as warned:
        run.fit(Operator(), loader(), loader())
    assert len([warning for warning in warned if "no ink" in str(warning.message)]) == 1
    assert len(events(run).Images("val/error_over_time")) == 2


def test_a_logger_without_pictures_gets_the_numbers_and_nothing_is_kept(make_trainer, tmp_path, logged, drawn):
    class Look(Callback):
        def on_validation_end(self, run, module):
            self.kept = [evaluation.kept for evaluation in monitor._undrawn]

    monitor, look = RolloutMonitor(0), Look()
    run = make_trainer([monitor, look], logger=CSVLogger(tmp_path / "csv"), num_sanity_val_steps=0)
    run.fit(Operator(), loader(), loader())
    assert logged(run)["val/l2re_frame/7"] == pytest.approx([float(expected()[-1].mean())] * 2, rel=1e-6)
    assert look.kept == [[]]
    assert not drawn


@pytest.mark.parametrize("job", ["fit", "validate", "test"])
def test_without_a_logger(job, make_trainer):
    monitor = RolloutMonitor(1)
    run = make_trainer([monitor], logger=False)
    data = {"train_dataloaders": loader(), "val_dataloaders": loader()} if job == "fit" else {"dataloaders": loader()}
    with pytest.warns(UserWarning, match="RolloutMonitor has no logger to write to"):
        getattr(run, job)(Operator(), **data)
    torch.testing.assert_close(torch.tensor(monitor.errors), expected(), rtol=1e-6, atol=0)


def test_fast_dev_run(make_trainer):
    monitor = RolloutMonitor(1)
    make_trainer([monitor], fast_dev_run=True).fit(Operator(), loader(), loader())
    assert len(monitor.errors) == FRAMES


@pytest.mark.parametrize(("option", "value"), [("every_n_epochs", -1), ("samples", -1), ("frames", 0)])
def test_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=rf"`{option}` to be at least \d, but got {value}"):
        RolloutMonitor(**{option: value})
