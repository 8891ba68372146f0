"""Callbacks that ask for the same: one analysis, one history of alphas, and options that suit all of them."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_farms import FARMS, SpectralMonitor, TBSigmoid, TempBalance, WeightDecayBalance, WholeMatrix
from lightning_farms.analysis import Selection
from tests.callbacks.conftest import NotedFARMS


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


@pytest.fixture
def events(small_net, loader, make_trainer, tmp_path):
    """Fit with TensorBoard and read what was written."""

    def run(callbacks, **settings):
        logger = TensorBoardLogger(tmp_path, name="tb", version=0)
        trainer = make_trainer(callbacks, logger=logger, **settings)
        trainer.fit(small_net(), loader)
        found = EventAccumulator(logger.log_dir, {"images": 0, "scalars": 0, "tensors": 0})
        found.Reload()
        return found

    return run


def steps(found, tag):
    return [event.step for event in found.Images(tag)]


class Waiting(FARMS):
    """Notes how many layers wait for each other: read, but not fitted yet."""

    waiting, most = 0, 0

    def windows(self, rows, columns, kind):
        Waiting.waiting += 1
        Waiting.most = max(Waiting.most, Waiting.waiting)
        return super().windows(rows, columns, kind)

    def fit_tail(self, eigenvalues):
        Waiting.waiting = 0
        return super().fit_tail(eigenvalues)


@pytest.mark.parametrize(
    ("first", "second", "most"), [(10**8, 10**8, 3), (1, 10**8, 1), (10**8, 1, 1), (10**8, 2 * 9 * 8 * 3 * 4, 2)]
)
def test_the_least_workspace_holds(small_net, loader, make_trainer, first, second, most):
    """Layers are read as long as they fill less than half of it: one byte is for one layer at a time."""
    Waiting.waiting = Waiting.most = 0
    callbacks = [
        TempBalance(analysis=Waiting(), workspace=first, summary=False),
        SpectralMonitor(Waiting(), workspace=second, summary=False),
    ]
    make_trainer(callbacks, max_epochs=1).fit(small_net(), loader)
    assert Waiting.most == most


def test_the_most_frequent_figures_and_the_most_spectra_hold(events):
    often = SpectralMonitor(figures_every_n_epochs=2, esd_layers=1, summary=False)
    seldom = TempBalance(figures_every_n_epochs=0, esd_layers=3, summary=False)
    found = events([seldom, often], max_epochs=4)
    assert len(steps(found, "farms/alpha_map_labelled")) == 2  # after epochs 2 and 4, the end
    assert len(steps(found, "farms/learning_rate_map_labelled")) == 2
    assert sum(tag.startswith("farms/esd/") for tag in found.Tags()["images"]) == 3


def test_schedules_that_do_not_nest_draw_alpha_over_all_analyses(events):
    twos, threes = SpectralMonitor(every_n_epochs=2, summary=False), TempBalance(every_n_epochs=3, summary=False)
    found = events([twos, threes], max_epochs=6)
    assert twos.history.epochs == [0, 2, 4, 6]
    assert threes.history.epochs == [0, 3, 6]
    analyses = [event.step for event in found.Scalars("farms/alpha_mean")]
    assert len(analyses) == len(set(analyses)) == 5  # 0, 2, 3, 4, 6
    assert steps(found, "farms/alpha_map") == analyses
    assert len(steps(found, "farms/learning_rate_map")) == 3


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_alphas_of_a_resumed_run_are_those_of_all_callbacks(small_net, loader, make_trainer, tmp_path):
    def pair():
        return [SpectralMonitor(every_n_epochs=2, summary=False), TempBalance(every_n_epochs=3, summary=False)]

    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    make_trainer([*pair(), saver], max_epochs=3, enable_checkpointing=True).fit(small_net(), loader)
    resumed = pair()
    seen = []

    class Look(SpectralMonitor):
        def on_train_end(self, trainer, pl_module):
            seen.extend(resumed[0]._shared.history.epochs)

    saver = ModelCheckpoint(tmp_path / "resumed", filename="{epoch}", save_top_k=-1)
    callbacks = [*resumed, Look(WholeMatrix(), summary=False), saver]
    trainer = make_trainer(callbacks, max_epochs=4, enable_checkpointing=True)
    trainer.fit(small_net(), loader, ckpt_path=tmp_path / "epoch=2.ckpt")
    assert seen == [0, 2, 3, 4]


def test_one_closing_table_with_the_factors_of_all(small_net, loader, make_trainer, capsys):
    callbacks = [SpectralMonitor(summary=False), TBSigmoid(), WeightDecayBalance(summary=False)]
    make_trainer(callbacks).fit(small_net(make_optimizer=adamw), loader)
    printed = capsys.readouterr().out
    assert printed.count("Spectra after 2 epochs") == 1
    assert "decay" in printed
    assert "lr" in printed


def test_labels_are_those_of_the_trainers_order_for_the_whole_fit(events):
    one = SpectralMonitor(selection=Selection(exclude=("conv",)), summary=False)
    found = events([one, TempBalance(start_epoch=1, summary=False)], max_epochs=2)
    tags = found.Tags()["scalars"]
    assert "farms/alpha/hidden" in tags
    assert "farms-2/alpha/conv" in tags
    assert "farms/alpha/conv" not in tags


class Counting(TBSigmoid):
    """Logs a number of its own; what it balances is one layer."""

    def scalars(self):
        return {"multiplier_of_head": self.multipliers.get("head", math.nan)}

    def balanced_layers(self):
        return {"head"}


def test_scalars_of_a_subscriber_are_logged_under_the_label_with_a_chart_of_their_own(events, capsys):
    callback = Counting(every_n_epochs=2)
    found = events([callback], max_epochs=4)
    values = [event.value for event in found.Scalars("farms/multiplier_of_head")]
    assert len(values) == 1 + 4  # before training, and after every epoch
    assert values[-1] == pytest.approx(callback.multipliers["head"])
    layout = found.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"farms/multiplier_of_head$" in layout
    one = callback.report["head"].alpha
    assert f"mean alpha: {one:.3f} (std 0.000) over the 1 balanced layer," in " ".join(capsys.readouterr().out.split())


def by_epoch_and_by_step(**options):
    return [
        TBSigmoid(summary=False, esd_layers=0, **options),
        SpectralMonitor(every_n_steps=2, esd_layers=0, **options),
    ]


@pytest.mark.parametrize("settings", [{}, {"max_steps": 6}], ids=["epochs", "last epoch cut short"])
@pytest.mark.parametrize("order", [1, -1])
def test_the_epochs_last_step_is_analysed_once_for_schedules_of_steps_and_epochs(events, noted, order, settings):
    by_epoch, by_step = callbacks = by_epoch_and_by_step(analysis=NotedFARMS())
    found = events(callbacks[::order], **settings)
    last = settings.get("max_steps", 8)
    analysed = list(range(0, last + 1, 2))
    assert len(noted.others) == len(analysed)
    assert (by_epoch.history.steps, by_step.history.steps) == ([0, 4, last], analysed)
    assert by_step.history.epochs == [{4: 1, last: 2}.get(step, step // 4) for step in analysed]
    shown = [max(0, step - 1) for step in analysed]
    assert steps(found, "farms/alpha_map") == shown
    assert steps(found, "farms/learning_rate_map") == [0, 3, last - 1]
    for tag in ("farms/alpha/head", "layer_lr/SGD/head"):
        assert [event.step for event in found.Scalars(tag)] == shown


def test_an_analysis_in_the_background_is_not_made_if_the_last_step_had_one(small_net, loader, make_trainer, noted):
    callbacks = by_epoch_and_by_step(analysis=NotedFARMS(), overlap=True)
    net = small_net()
    net.validation_step = lambda batch: None
    make_trainer(callbacks).fit(net, loader, loader)
    assert (len(noted.others), noted.in_background) == (5, [])


def test_an_analysis_repeated_after_a_resumption_has_no_second_column(small_net, loader, make_trainer, tmp_path):
    kept = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    make_trainer([*by_epoch_and_by_step(), kept], enable_checkpointing=True).fit(small_net(), loader)
    callbacks = by_epoch_and_by_step()
    columns = LambdaCallback(on_train_end=lambda *_: seen.append(callbacks[0]._shared.history.steps))
    seen = []
    trainer = make_trainer([*callbacks, kept, columns], enable_checkpointing=True)
    trainer.fit(small_net(), loader, ckpt_path=tmp_path / "step=4.ckpt")
    assert seen == [[0, 2, 4, 6, 8]]
