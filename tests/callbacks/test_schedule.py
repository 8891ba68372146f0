"""When analyses take place, in a list of moments and in a Trainer."""

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_farms import SpectralMonitor, TempBalance
from lightning_farms.callbacks._spectral.schedule import Moment, Schedule


def due(schedule, moments):
    last, found = None, []
    for moment in moments:
        if schedule.is_due(moment, last):
            last = moment
            found.append(moment)
    return found


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (Schedule(4), [0, 4, 8]),
        (Schedule(4, start_epoch=3), [3, 7]),
        (Schedule(start_epoch=8), [8, 9]),
        (Schedule(start_epoch=10), []),
    ],
    ids=str,
)
def test_epochs(schedule, expected):
    assert [moment.epochs for moment in due(schedule, (Moment(epoch, 5 * epoch) for epoch in range(10)))] == expected


@pytest.mark.parametrize(
    ("schedule", "stride", "expected"),
    [
        (Schedule(every_n_steps=10), 1, [0, 10, 20, 30]),
        (Schedule(every_n_steps=10), 2, [0, 10, 20, 30]),  # two optimizers
        (Schedule(every_n_steps=10), 4, [0, 12, 20, 32]),  # the first step at or after each tenth
        (Schedule(every_n_steps=10, start_epoch=2), 1, [16, 20, 30]),
        (Schedule(every_n_epochs=3, every_n_steps=15), 1, [0, 15, 30]),
    ],
    ids=str,
)
def test_steps(schedule, stride, expected):
    assert [m.step for m in due(schedule, (Moment(step // 8, step) for step in range(0, 40, stride)))] == expected


def test_a_schedule_may_change_between_a_run_and_its_resumption():
    assert not Schedule(5).is_due(Moment(4, 0), Moment(3, 0))
    assert Schedule(5).is_due(Moment(5, 0), Moment(3, 0))
    assert Schedule(every_n_steps=10).is_due(Moment(3, 30), Moment(3, 25))


@pytest.mark.parametrize(
    ("option", "value", "least"), [("every_n_epochs", 0, 1), ("every_n_steps", 0, 1), ("start_epoch", -1, 0)]
)
def test_wrong_numbers(option, value, least):
    with pytest.raises(ValueError, match=f"`{option}` to be at least {least}, but got {value}"):
        TempBalance(**{option: value})


@pytest.mark.parametrize(("accumulate", "expected"), [(1, [0, 3, 6, 9, 12]), (2, [0, 3, 6])])
def test_every_n_steps_in_a_trainer(accumulate, expected, small_net, loader, make_trainer, logged):
    monitor = SpectralMonitor(every_n_steps=3, summary=False)
    trainer = make_trainer([monitor], max_epochs=3, accumulate_grad_batches=accumulate)
    trainer.fit(small_net(), loader)
    assert monitor.history.steps == expected
    written = logged(trainer)
    assert written["farms/alpha/head"] == pytest.approx(monitor.history.rows("alpha")[2])
    assert len(written["farms/time/epoch_share"]) == 3  # once an epoch
    assert all(0 <= share < 1 for share in written["farms/time/epoch_share"])


def test_start_epoch_leaves_base_rates_until_then(small_net, loader, make_trainer, logged):
    balance = TempBalance(start_epoch=2, summary=False)
    trainer = make_trainer([balance], max_epochs=4)
    trainer.fit(small_net(), loader)
    assert balance.history.epochs == [2, 3, 4]
    rates = logged(trainer)["layer_lr/SGD/conv"]
    assert rates[:1] == [0.1]
    assert all(rate != 0.1 for rate in rates[1:])


def test_callbacks_with_other_schedules_share_the_analyses_that_coincide(small_net, loader, make_trainer, logged):
    by_step = SpectralMonitor(every_n_steps=2, summary=False)
    by_epoch = TempBalance(summary=False)
    trainer = make_trainer([by_step, by_epoch], max_epochs=2)
    trainer.fit(small_net(), loader)
    assert by_step.history.steps == [0, 2, 4, 6, 8]
    assert by_epoch.history.steps == [0, 4, 8]
    assert by_step.history.rows("alpha")[0][::2] == by_epoch.history.rows("alpha")[0]


@pytest.mark.parametrize("order", [1, -1])
def test_alphas_are_drawn_from_the_longest_history(order, small_net, loader, make_trainer, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    callbacks = [TempBalance(every_n_epochs=3, summary=False), SpectralMonitor(esd_layers=0, summary=False)][::order]
    make_trainer(callbacks, max_epochs=5, logger=logger).fit(small_net(), loader)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    widths = [image.width for image in events.Images("farms/alpha_map")]
    assert widths == [max(3 * 24, analyses * 24) for analyses in range(1, 7)], "three layers, each 24 pixels high"
    assert len(events.Images("farms/learning_rate_map")) == 2
    assert len(events.Images("farms/alpha_map_labelled")) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: SpectralMonitor(every_n_epochs=None),
        lambda: SpectralMonitor(every_n_steps=2.5),
        lambda: SpectralMonitor(start_epoch=True),
    ],
)
def test_wrong_kinds_of_numbers(make):
    with pytest.raises(TypeError, match=r"Expected argument `.*` to be an integer, but got"):
        make()


@pytest.mark.parametrize("options", [{}, {"every_n_steps": 3}], ids=str)
def test_mean_alpha_can_be_monitored_from_the_first_validation_on(options, small_net, loader, make_trainer, tmp_path):
    """Also by callbacks that look at it at a validation in mid-epoch."""
    seen = []

    class Look(EarlyStopping):
        def on_validation_end(self, trainer, pl_module):
            super().on_validation_end(trainer, pl_module)
            if not trainer.sanity_checking:
                seen.append(float(trainer.callback_metrics["farms/alpha_mean"]))

    monitor = SpectralMonitor(summary=False, **options)
    model = small_net()
    model.validation_step = lambda batch, batch_idx: None
    save = ModelCheckpoint(tmp_path, monitor="farms/alpha_mean", save_top_k=-1, filename="{farms/alpha_mean:.4f}")
    trainer = make_trainer(
        [Look("farms/alpha_mean", patience=100), monitor, save],
        max_epochs=2,
        val_check_interval=0.5,
        enable_checkpointing=True,
    )
    trainer.fit(model, loader, loader)
    alphas = [sum(row) / 3 for row in zip(*monitor.history.rows("alpha"), strict=True)]
    expected = {"{}": [0, 0, 1, 1], "{'every_n_steps': 3}": [0, 1, 2, 2]}[str(options)]
    assert seen == pytest.approx([alphas[index] for index in expected], rel=1e-6)
