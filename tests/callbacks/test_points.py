"""Curves in a logger have one point at a step."""

from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import CSVLogger

from lightning_farms import TBSigmoid


class Recording(CSVLogger):
    """Keeps every (key, step) that it is given."""

    def log_metrics(self, metrics, step=None):
        self.points = [*getattr(self, "points", []), *((key, step) for key in metrics)]


def test_an_analysis_at_an_epochs_last_step_is_one_point(make_trainer, small_net, loader, tmp_path):
    """Four batches an epoch: the analysis after every second step writes at an epoch's last step, too."""
    trainer = make_trainer([TBSigmoid(every_n_steps=2, summary=False)], logger=Recording(tmp_path))
    trainer.fit(small_net(), loader)
    points = trainer.logger.points
    found = [(key, step) for key, step in points if "hidden" in key]
    assert {step for _, step in found} >= {1, 3, 5, 7}
    assert len(set(found)) == len(found)


def test_an_analysis_at_the_step_after_which_an_epoch_is_left_is_one_point(make_trainer, small_net, loader, tmp_path):
    """The Trainer leaves the second epoch in its middle, after a step that was analysed."""

    def stop(trainer, *_):
        trainer.should_stop = trainer.global_step == 6

    callbacks = [TBSigmoid(every_n_steps=2, summary=False), LambdaCallback(on_train_batch_end=stop)]
    trainer = make_trainer(callbacks, logger=Recording(tmp_path))
    trainer.fit(small_net(), loader)
    found = [(key, step) for key, step in trainer.logger.points if "hidden" in key]
    assert [step for key, step in found if key == "farms/alpha/hidden"] == [0, 1, 3, 5]
    assert len(set(found)) == len(found)
