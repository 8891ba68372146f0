"""What validation, test and predict return and log: physical units, every error, per channel."""

import warnings

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from lightning_farms import metrics
from lightning_farms.models.operator_module import OperatorModule
from tests.models.small_operators import CHANNELS, Doubling, Fields, Linear, trainer

SCALE = torch.tensor([2.0, 0.5])
SHIFT = torch.tensor([1.0, -3.0])
ERRORS = {
    "test/l2re": metrics.relative_l2_error,
    "test/nrmse": metrics.normalized_rmse,
    "test/rmse": metrics.rmse,
    "test/vrmse": metrics.vrmse,
    "test/conserved_rmse": metrics.conserved_rmse,
    "test/max_error": metrics.max_error,
    "test/boundary_rmse": metrics.boundary_rmse,
}


class Normalized(Fields):
    """Fields that the network sees in other units than the physical ones."""

    channels = ("Vx", "density")

    def denormalize(self, fields):
        return fields * SCALE + SHIFT


class Returned(Callback):
    """What the steps returned, and which loss was logged."""

    def __init__(self):
        self.fields = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.fields.append({name: value.clone() for name, value in outputs.items()})

    on_test_batch_end = on_validation_batch_end

    def all(self, name):
        return torch.cat([fields[name] for fields in self.fields])


def evaluated(folder, datamodule, stage):
    seed_everything(0)
    module, returned = OperatorModule(Linear(img_size=datamodule.size)), Returned()
    run = trainer(folder, callbacks=[returned])
    (logged,) = getattr(run, stage)(module, datamodule=datamodule, verbose=False)
    return module, returned, logged


@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize("normalized", [False, True])
def test_steps_return_physical_fields(tmp_path, stage, normalized):
    data = (Normalized if normalized else Fields)(size=26)
    physical = data.denormalize if normalized else torch.clone
    module, returned, _ = evaluated(tmp_path, data, stage)
    x, y = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    with torch.no_grad():
        expected = {"given": physical(x), "prediction": physical(module.rollout(x, 5)), "target": physical(y)}
    assert set(returned.fields[0]) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(returned.all(name), value)


@pytest.mark.parametrize("kind", [Fields, Normalized])
def test_every_error_of_the_whole_test_set_is_logged(tmp_path, kind):
    """Batches of two and one: the expectation is the function on all samples at once, in physical units."""
    _, returned, logged = evaluated(tmp_path, kind(size=26), "test")
    prediction, target = returned.all("prediction"), returned.all("target")
    expected = {name: float(function(prediction, target)) for name, function in ERRORS.items()}
    bands = metrics.fourier_rmse(prediction, target).tolist()
    expected |= {f"test/fourier_{band}": value for band, value in zip(("low", "mid", "high"), bands, strict=True)}
    names = getattr(kind, "channels", ("channel 0", "channel 1"))
    channels = metrics.relative_l2_error(prediction, target, per="channel").tolist()
    expected |= {f"test/l2re_channel/{name}": value for name, value in zip(names, channels, strict=True)}
    expected |= trivial("test", returned, names)
    assert logged == pytest.approx(expected, rel=1e-5)
    assert [(key, other) for key in logged for other in logged if other.startswith(f"{key}/")] == []


def trivial(stage, returned, names):
    """Errors of the trivial predictors on all samples at once."""
    given, target = returned.all("given"), returned.all("target")
    predictions = {"persistence": given[:, :, :, -1:].expand_as(target)}
    if "Vx" in names:
        calm = given[:, :, :, -1:].clone()
        calm[..., 0] = calm[..., 0].mean((1, 2), keepdim=True)
        predictions["drift_free"] = calm.expand_as(target)
    functions = {"l2re": metrics.relative_l2_error, "vrmse": metrics.vrmse}
    return {
        f"{stage}/{error}_{name}": float(function(prediction, target))
        for name, prediction in predictions.items()
        for error, function in functions.items()
    }


def test_validation_logs_errors_in_physical_units(tmp_path):
    _, returned, logged = evaluated(tmp_path, Normalized(), "validate")
    prediction, target = returned.all("prediction"), returned.all("target")
    expected = {
        "val/l2re": float(metrics.relative_l2_error(prediction, target)),
        "val/nrmse": float(metrics.normalized_rmse(prediction, target)),
        "val/vrmse": float(metrics.vrmse(prediction, target)),
        **trivial("val", returned, Normalized.channels),
    }
    assert logged == pytest.approx(expected, rel=1e-5)


def test_grids_without_a_high_band_leave_it_out_and_say_so(tmp_path, caplog):
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        _, _, logged = evaluated(tmp_path, Fields(), "test")
    (said,) = (message for message in caplog.messages if "Leaving out test/fourier_low" in message)
    assert "highest band needs 26 x 26 points, but the fields have 4 x 4" in said
    assert set(logged) == {
        *(*ERRORS, "test/l2re_channel/channel 0", "test/l2re_channel/channel 1"),
        *("test/l2re_persistence", "test/vrmse_persistence"),
    }


def test_a_second_test_starts_anew(tmp_path):
    module, run = OperatorModule(Linear()), trainer(tmp_path)
    first, second = (run.test(module, datamodule=Fields(), verbose=False) for _ in range(2))
    assert first == second


class BreaksOff(Callback):
    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        raise ArithmeticError


def test_a_validation_after_one_that_broke_off_starts_anew(tmp_path):
    data = Normalized()
    module, run = OperatorModule(Linear(img_size=data.size)), trainer(tmp_path)
    (expected,) = run.validate(module, datamodule=data, verbose=False)
    with torch.no_grad():  # so that what is left over is of another network
        for parameter in module.parameters():
            parameter.mul_(2)
    with pytest.raises(ArithmeticError):
        trainer(tmp_path, callbacks=[BreaksOff()]).validate(module, datamodule=data, verbose=False)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.div_(2)
    assert trainer(tmp_path).validate(module, datamodule=data, verbose=False) == [expected]


def test_predictions_are_physical_and_the_loss_is_not(tmp_path):
    """Of doubling fields the loss is that of the numbers the network sees; a shift would change it."""
    data = Normalized(train_frames=1)
    module = OperatorModule(Doubling(), lr=1e-12)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=data)
    assert float(run.callback_metrics["train/loss"]) == pytest.approx((2 - 0.9) / 0.9, rel=1e-5)
    predictions = torch.cat(run.predict(module, datamodule=data))
    x = torch.cat([x for x, _ in data.predict_dataloader()])
    doubled = torch.cat([x[:, :, :, -1:] * 2.0**k for k in range(1, 6)], dim=3)
    assert predictions.shape[-1] == CHANNELS
    torch.testing.assert_close(predictions, doubled * SCALE + SHIFT)


class Scaled(Normalized):
    """Of a data module that keeps its scaling in checkpoints."""

    def __init__(self, **options):
        super().__init__(**options)
        self.shift = SHIFT

    def denormalize(self, fields):
        return fields * SCALE + self.shift

    def state_dict(self):
        statistics = {"mean": self.shift.double(), "std": SCALE.double()}
        return {"channels": list(self.channels), "normalize": True, "statistics": statistics}


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize("change", [{}, {"shift": SHIFT + 1}, {"channels": ("density", "Vx")}])
def test_weights_are_evaluated_in_the_units_of_their_training(tmp_path, stage, change):
    seed_everything(0)
    run = trainer(tmp_path)
    run.fit(OperatorModule(Linear(img_size=8)), datamodule=Scaled(size=8))
    run.save_checkpoint(tmp_path / "run.ckpt")
    module = OperatorModule.load_from_checkpoint(tmp_path / "run.ckpt", network=Linear(img_size=8))
    data = Scaled(size=8)
    for name, value in change.items():
        setattr(data, name, value)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        getattr(trainer(tmp_path), stage)(module, datamodule=data)
    said = [str(each.message) for each in found if "weights were trained on the channels" in str(each.message)]
    assert len(said) == bool(change)
    if stage == "test" and change:  # a training on them makes them its own
        again = OperatorModule.load_from_checkpoint(tmp_path / "run.ckpt", network=Linear(img_size=8))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="The weights were trained")
            trainer(tmp_path).fit(again, datamodule=data)
            trainer(tmp_path).test(again, datamodule=data, verbose=False)


@pytest.mark.parametrize(("precision", "told"), [("bf16-true", 1), ("bf16-mixed", 0)])
def test_a_precision_that_rounds_the_data_is_told_once(tmp_path, precision, told):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run = trainer(tmp_path, precision=precision)
        run.test(OperatorModule(Linear(img_size=8)), datamodule=Fields(size=8), verbose=False)
    said = [str(each.message) for each in found if "persistence" in str(each.message)]
    assert len(said) == told
    assert all("precision bf16-true rounds the data to torch.bfloat16" in each for each in said)
