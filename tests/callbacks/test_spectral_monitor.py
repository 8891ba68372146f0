import math
from unittest import mock

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy

from lightning_farms import FARMS, SpectralMonitor, TBSigmoid, TempBalance, WholeMatrix, analyze
from lightning_farms.callbacks import spectral_monitor

LAYERS = ["conv", "hidden", "head"]


@pytest.fixture
def count_analyses(monkeypatch):
    """The methods with which the callbacks have analysed, in order."""
    calls = []

    def counted(model, method, **kwargs):
        if not kwargs:  # the figures' own analysis keeps eigenvalues
            calls.append(method)
        return analyze(model, method, **kwargs)

    monkeypatch.setattr(spectral_monitor, "analyze", counted)
    return calls


def test_report_is_that_of_the_trained_weights_and_training_is_untouched(small_net, loader, make_trainer):
    plain, watched = small_net(), small_net()
    make_trainer([]).fit(plain, loader)
    monitor = SpectralMonitor(summary=False)
    make_trainer([monitor]).fit(watched, loader)
    assert monitor.report.alphas == analyze(watched).alphas
    assert monitor.history.epochs == [0, 1, 2]
    assert monitor.history.layers("alpha") == LAYERS
    assert [row[-1] for row in monitor.history.rows("alpha")] == list(monitor.report.alphas.values())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def test_first_analysis_sees_the_untrained_weights(small_net, loader, make_trainer):
    model = small_net()
    before = analyze(model).alphas
    monitor = SpectralMonitor(summary=False)
    make_trainer([monitor]).fit(model, loader)
    assert [row[0] for row in monitor.history.rows("alpha")] == list(before.values())


def test_scalars_reach_other_callbacks_and_the_csv_file(small_net, loader, make_trainer, tmp_path):
    monitor = SpectralMonitor(summary=False)
    trainer = make_trainer([monitor], logger=CSVLogger(tmp_path, name="run", version=0))
    trainer.fit(small_net(), loader)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for layer in LAYERS:
        assert metrics[f"farms/alpha/{layer}"] == pytest.approx(monitor.report[layer].alpha, rel=1e-6)
    alphas = torch.tensor(list(monitor.report.alphas.values()), dtype=torch.float64)
    assert metrics["farms/alpha_mean"] == pytest.approx(alphas.mean().item(), rel=1e-6)
    assert metrics["farms/alpha_std"] == pytest.approx(alphas.std(correction=0).item(), rel=1e-6)
    assert 0 < metrics["farms/time/epoch_share"] < 1
    lines = (tmp_path / "run" / "version_0" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("farms/alpha/conv")
    assert len([line for line in lines[1:] if line.split(",")[column]]) == 3


def test_one_analysis_an_epoch_however_many_callbacks(small_net, loader, make_trainer, count_analyses):
    callbacks = [
        SpectralMonitor(summary=False),
        TBSigmoid(summary=False),
        SpectralMonitor(FARMS(aspect_ratio=0.5), summary=False),
        SpectralMonitor(WholeMatrix(), every_n_epochs=2, summary=False),
    ]
    trainer = make_trainer(callbacks)
    trainer.fit(small_net(), loader)
    assert [count_analyses.count(m) for m in (FARMS(), FARMS(aspect_ratio=0.5), WholeMatrix())] == [3, 3, 2]
    assert callbacks[0].report is callbacks[1].report
    for key in ("farms/alpha/conv", "farms-2/alpha/conv", "whole/alpha/conv"):
        assert key in trainer.callback_metrics


def test_every_n_epochs(small_net, loader, make_trainer, count_analyses):
    monitor = SpectralMonitor(every_n_epochs=3, summary=False)
    make_trainer([monitor], max_epochs=7).fit(small_net(), loader)
    assert monitor.history.epochs == [0, 3, 6]
    assert len(count_analyses) == 3


def test_a_monitor_that_is_due_more_often_logs_between(small_net, loader, make_trainer, count_analyses):
    monitor, balance = SpectralMonitor(summary=False), TempBalance(every_n_epochs=2, summary=False)
    make_trainer([monitor, balance], max_epochs=3).fit(small_net(), loader)
    assert monitor.history.epochs == [0, 1, 2, 3]
    assert balance.history.epochs == [0, 2]
    assert len(count_analyses) == 4


def test_fitting_again_starts_anew(small_net, loader, make_trainer):
    monitor = SpectralMonitor(summary=False)
    make_trainer([monitor]).fit(small_net(), loader)
    make_trainer([monitor], max_epochs=1).fit(small_net(), loader)
    assert monitor.history.epochs == [0, 1]


def test_the_same_trainer_goes_on(small_net, loader, make_trainer):
    monitor, model = SpectralMonitor(summary=False), small_net()
    trainer = make_trainer([monitor])
    trainer.fit(model, loader)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, loader)
    assert monitor.history.epochs == [0, 1, 2, 3]


def test_a_failing_analysis_is_reported_once_and_never_stops_training(small_net, loader, make_trainer, monkeypatch):
    def broken(model, method, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(spectral_monitor, "analyze", broken)
    balance = TBSigmoid(summary=False)
    trainer = make_trainer([balance])
    with pytest.warns(
        UserWarning, match="failed and was skipped; training goes on. RuntimeError: out of memory"
    ) as seen:
        trainer.fit(small_net(), loader)
    assert len([w for w in seen if "failed and was skipped" in str(w.message)]) == 1
    assert trainer.global_step == 8
    assert balance.report is None
    assert balance.multipliers == {}


def test_without_a_logger_it_warns_once_and_still_reports(small_net, loader, make_trainer):
    monitor = SpectralMonitor(summary=False)
    with pytest.warns(UserWarning, match="has no logger to write to") as seen:
        make_trainer([monitor], logger=False).fit(small_net(), loader)
    assert len([w for w in seen if "no logger" in str(w.message)]) == 1
    assert len(monitor.report) == 3


def test_non_finite_weights_are_a_row_and_no_log_entry(small_net, loader, make_trainer):
    model = small_net()
    with torch.no_grad():
        model.head.weight[0, 0] = math.nan
    monitor = SpectralMonitor(summary=False)
    trainer = make_trainer([monitor], max_epochs=1)
    trainer.fit(model, loader)
    assert monitor.report["head"].status == "skipped"
    assert "not all finite" in monitor.report["head"].reason
    assert "farms/alpha/head" not in trainer.callback_metrics


@pytest.mark.parametrize("strategy", [DeepSpeedStrategy, FSDPStrategy])
@pytest.mark.parametrize("callback", [SpectralMonitor, TBSigmoid])
def test_sharded_strategies_are_refused_at_setup(strategy, callback):
    trainer = mock.Mock(strategy=mock.Mock(spec=strategy), callbacks=[])
    with pytest.raises(MisconfigurationException, match=r"needs whole weights on every rank, but .*shards them"):
        callback().setup(trainer, mock.Mock(), "fit")


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"analysis": FARMS}, TypeError, "to be FARMS"),
        ({"every_n_epochs": 0}, ValueError, "`every_n_epochs` to be at least 1, but got 0"),
        ({"figures_every_n_epochs": -1}, ValueError, "`figures_every_n_epochs` to be 0 or more"),
        ({"esd_layers": -1}, ValueError, "`esd_layers` to be 0 or more"),
    ],
)
def test_wrong_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        SpectralMonitor(**kwargs)


def test_a_state_of_another_version_is_refused():
    with pytest.raises(ValueError, match="state of version 1, but the checkpoint has 99"):
        SpectralMonitor().load_state_dict({"version": 99})


def test_closing_table(small_net, loader, make_trainer, capsys):
    make_trainer([SpectralMonitor(), TBSigmoid()], max_epochs=1).fit(small_net(), loader)
    out = capsys.readouterr().out
    assert out.count("Spectra after 1 epochs") == 1
    for word in ("conv", "8x3x3x3", "alpha first", "last", "lr factor", "mean alpha"):
        assert word in out
