"""Curves in a logger have one point at a step."""

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
