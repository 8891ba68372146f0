import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console

from lightning_farms import (
    FARMS,
    LayerSpectrum,
    SpectralMonitor,
    SpectralReport,
    TBSigmoid,
    TempBalance,
    analyze,
)
from lightning_farms.analysis import Diagnostics, Selection
from lightning_farms.analysis.history import LayerHistory
from lightning_farms.callbacks._spectral.summary import summary_table
from tests.callbacks.conftest import NotedFARMS, NotedWholeMatrix

LAYERS = ["conv", "hidden", "head"]


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


def test_scalars_reach_other_callbacks_and_the_csv_file(small_net, loader, make_trainer, logged):
    monitor = SpectralMonitor(summary=False)
    trainer = make_trainer([monitor])
    trainer.fit(small_net(), loader)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    alphas = torch.tensor(list(monitor.report.alphas.values()), dtype=torch.float64)
    assert metrics["farms/alpha_mean"] == pytest.approx(alphas.mean().item(), rel=1e-6)
    assert metrics["farms/alpha_std"] == pytest.approx(alphas.std(correction=0).item(), rel=1e-6)
    assert 0 < metrics["farms/time/epoch_share"] < 1
    written = logged(trainer)
    for layer, row in zip(LAYERS, monitor.history.rows("alpha"), strict=True):
        assert written[f"farms/alpha/{layer}"] == pytest.approx(row, rel=1e-12)
    assert len(written["farms/alpha_mean"]) == 3
    assert written["farms/alpha_mean"][-1] == pytest.approx(alphas.mean().item(), rel=1e-6)


def test_one_analysis_an_epoch_however_many_callbacks(small_net, loader, make_trainer, noted, logged):
    callbacks = [
        SpectralMonitor(NotedFARMS(), summary=False),
        TBSigmoid(analysis=NotedFARMS(), summary=False),
        SpectralMonitor(NotedFARMS(aspect_ratio=0.5), summary=False),
        SpectralMonitor(NotedWholeMatrix(), every_n_epochs=2, summary=False),
    ]
    trainer = make_trainer(callbacks)
    trainer.fit(small_net(), loader)
    methods = (NotedFARMS(), NotedFARMS(aspect_ratio=0.5), NotedWholeMatrix())
    assert [noted.others.count(method) for method in methods] == [3, 3, 2]
    assert callbacks[0].report is callbacks[1].report
    written = logged(trainer)
    assert [len(written[f"{label}/alpha/conv"]) for label in ("farms", "farms-2", "whole")] == [3, 3, 2]


def test_every_n_epochs(small_net, loader, make_trainer, noted):
    monitor = SpectralMonitor(NotedFARMS(), every_n_epochs=3, summary=False)
    make_trainer([monitor], max_epochs=7).fit(small_net(), loader)
    assert monitor.history.epochs == [0, 3, 6]
    assert len(noted.others) == 3


def test_a_monitor_that_is_due_more_often_logs_between(small_net, loader, make_trainer, noted):
    monitor = SpectralMonitor(NotedFARMS(), summary=False)
    balance = TempBalance(analysis=NotedFARMS(), every_n_epochs=2, summary=False)
    make_trainer([monitor, balance], max_epochs=3).fit(small_net(), loader)
    assert monitor.history.epochs == [0, 1, 2, 3]
    assert balance.history.epochs == [0, 2]
    assert len(noted.others) == 4


def test_fitting_again_starts_anew(small_net, loader, make_trainer):
    monitor = SpectralMonitor(summary=False)
    make_trainer([monitor]).fit(small_net(), loader)
    make_trainer([monitor], max_epochs=1).fit(small_net(), loader)
    assert monitor.history.epochs == [0, 1]


def test_the_same_trainer_with_another_model_starts_anew(small_net, loader, make_trainer):
    monitor = SpectralMonitor(summary=False)
    trainer = make_trainer([monitor])
    trainer.fit(small_net(), loader)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(small_net(), loader)
    assert monitor.history.epochs == [2, 3]


def test_the_same_trainer_goes_on(small_net, loader, make_trainer):
    monitor, model = SpectralMonitor(summary=False), small_net()
    trainer = make_trainer([monitor])
    trainer.fit(model, loader)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, loader)
    assert monitor.history.epochs == [0, 1, 2, 3]


@pytest.mark.parametrize("make", [SpectralMonitor, TempBalance])
def test_an_evaluation_of_earlier_weights_leaves_what_the_fit_has_found(
    make, small_net, loader, make_trainer, tmp_path
):
    class Evaluated(type(small_net())):
        def test_step(self, batch, batch_idx):
            self.log("error", self.training_step(batch, batch_idx))

    callback, save = make(summary=False), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer = make_trainer([callback, save], max_epochs=3, enable_checkpointing=True)
    model = Evaluated()
    trainer.fit(model, loader)
    report, rows = callback.report, callback.history.rows("alpha")
    path = str(tmp_path / "epoch=0.ckpt")
    trainer.test(model, loader, ckpt_path=path, verbose=False)
    assert callback.report is report
    assert callback.history.rows("alpha") == rows
    assert callback.history.epochs == [0, 1, 2, 3]
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, loader)  # of earlier weights, which are analysed again
    assert callback.history.epochs == [0, 1, 2, 3, 3, 4]
    fresh = make(summary=False)
    make_trainer([fresh, save], enable_checkpointing=True).test(model, loader, ckpt_path=path, verbose=False)
    assert fresh.history.epochs == [0, 1]


def test_a_pattern_that_fits_no_layer_is_refused_before_the_first_step(small_net, loader, make_trainer):
    trainer = make_trainer([SpectralMonitor(selection=Selection(exclude=("haed",)))])
    with pytest.raises(ValueError, match=r"`exclude` .* 'haed' matches none\. The closest are head"):
        trainer.fit(small_net(), loader)
    assert trainer.global_step == 0


def test_selection_is_what_is_analysed_and_drawn(small_net, loader, make_trainer, logged):
    monitor = SpectralMonitor(selection=Selection(include=("h*",), exclude=("head",)), summary=False)
    trainer = make_trainer([monitor], max_epochs=1)
    trainer.fit(small_net(), loader)
    assert [row.status for row in monitor.report] == ["skipped", "ok", "skipped"]
    assert [key for key in logged(trainer) if "/alpha/" in key] == ["farms/alpha/hidden"]


@pytest.mark.parametrize(
    ("options", "quantities"),
    [
        ({}, set()),
        ({"twin": True}, {"relative_alpha"}),
        ({"marchenko_pastur": True}, {"mp_spikes"}),
        ({"p_value": 10}, {"p_value"}),
        ({"bootstrap": 10}, set()),
        ({"twin": True, "marchenko_pastur": True, "p_value": 10}, {"relative_alpha", "mp_spikes", "p_value"}),
    ],
    ids=["none", "twin", "marchenko_pastur", "p_value", "bootstrap", "all"],
)
def test_diagnostics_are_logged_by_the_layer(options, quantities, small_net, loader, make_trainer, logged):
    monitor = SpectralMonitor(diagnostics=Diagnostics(**options), summary=False)
    trainer = make_trainer([monitor], max_epochs=1)
    trainer.fit(small_net(), loader)
    written = logged(trainer)
    by_layer = {tuple(key.split("/")[1:]) for key in written if key.startswith("farms/") and key.count("/") == 2}
    assert {q for q, _ in by_layer} == {"alpha", "time", *quantities}
    for quantity in quantities:
        for row in monitor.report:
            assert written[f"farms/{quantity}/{row.name}"][-1] == pytest.approx(getattr(row, quantity), rel=1e-12)


def test_states_of_several_questions_lie_apart_in_a_checkpoint(small_net, loader, make_trainer, tmp_path):
    callbacks = [
        SpectralMonitor(summary=False),
        SpectralMonitor(selection=Selection(exclude=("conv",)), summary=False),
        SpectralMonitor(diagnostics=Diagnostics(twin=True, level=0.9), summary=False),
        TBSigmoid(selection=Selection(exclude=("head",)), overlap=True, summary=False),
        ModelCheckpoint(tmp_path, filename="last"),
    ]
    make_trainer(callbacks, enable_checkpointing=True).fit(small_net(), loader)
    states = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert len({callback.state_key for callback in callbacks}) == len(callbacks)
    for callback in callbacks[:-1]:
        assert repr(states[callback.state_key]) == repr(callback.state_dict())
        same = type(callback)(selection=callback.selection, diagnostics=callback.diagnostics, workspace=7)
        assert same.state_key == callback.state_key


def test_a_state_from_when_factors_were_the_default_is_found(small_net, loader, make_trainer, tmp_path):
    earlier = SpectralMonitor(selection=Selection(low_rank_products=False), summary=False)
    saving = ModelCheckpoint(tmp_path, filename="last")
    make_trainer([earlier, saving], enable_checkpointing=True).fit(small_net(), loader)

    def resumed(*callbacks):
        trainer = make_trainer([*callbacks, ModelCheckpoint(tmp_path)], enable_checkpointing=True)
        trainer.fit(small_net(), loader, ckpt_path=tmp_path / "last.ckpt")

    alone, beside = SpectralMonitor(summary=False), SpectralMonitor(summary=False)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):  # Lightning's
        resumed(alone)
    assert repr(alone.state_dict()) == repr(earlier.state_dict())
    resumed(earlier, beside)
    assert beside.history.epochs == []  # the state is of the other, which is there


class OutOfMemory(FARMS):
    """A method that fails, as one of a user's own may."""

    def orient(self, matrices, kind):
        raise RuntimeError("out of memory")


def test_a_failing_analysis_is_reported_once_and_never_stops_training(small_net, loader, make_trainer):
    balance = TBSigmoid(analysis=OutOfMemory(), summary=False)
    trainer = make_trainer([balance])
    with pytest.warns(
        UserWarning, match="failed and was skipped; training goes on. RuntimeError: out of memory"
    ) as seen:
        trainer.fit(small_net(), loader)
    assert len([w for w in seen if "failed and was skipped" in str(w.message)]) == 1
    assert trainer.global_step == 8
    assert balance.report is None
    assert balance.multipliers == {}


def test_callbacks_that_share_an_analysis_write_no_empty_line(small_net, loader, make_trainer, tmp_path):
    make_trainer(
        [SpectralMonitor(summary=False), TBSigmoid(summary=False)], logger=CSVLogger(tmp_path, name="run", version=0)
    ).fit(small_net(), loader)
    header, *lines = (tmp_path / "run" / "version_0" / "metrics.csv").read_text().splitlines()
    step = header.split(",").index("step")
    assert all(any(cell for i, cell in enumerate(line.split(",")) if i != step) for line in lines)


def test_without_a_logger_it_warns_once_and_still_reports(small_net, loader, make_trainer):
    monitor = SpectralMonitor(summary=False)
    with pytest.warns(UserWarning, match="has no logger to write to") as seen:
        make_trainer([monitor], logger=False).fit(small_net(), loader)
    assert len([w for w in seen if "no logger" in str(w.message)]) == 1
    assert len(monitor.report) == 3


def test_non_finite_weights_are_a_row_and_no_log_entry(small_net, loader, make_trainer, logged):
    model = small_net()
    with torch.no_grad():
        model.head.weight[0, 0] = math.nan
    monitor = SpectralMonitor(summary=False)
    trainer = make_trainer([monitor, TBSigmoid(summary=False)], max_epochs=2)
    with pytest.warns(UserWarning, match="the weights of 'head' are not all finite") as caught:
        trainer.fit(model, loader)
    assert sum("not all finite" in str(warning.message) for warning in caught) == 1
    assert monitor.report["head"].status == "skipped"
    assert "not all finite" in monitor.report["head"].reason
    written = logged(trainer)
    assert "farms/alpha/conv" in written
    assert "farms/alpha/head" not in written


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"analysis": FARMS}, TypeError, "to be FARMS"),
        ({"selection": ("conv",)}, TypeError, r"`selection` to be Selection\(\.\.\.\), but got \('conv',\)"),
        ({"diagnostics": True}, TypeError, r"`diagnostics` to be Diagnostics\(\.\.\.\), but got True"),
        ({"workspace": 0}, ValueError, "`workspace` to be at least 1, but got 0"),
        ({"every_n_epochs": 0}, ValueError, "`every_n_epochs` to be at least 1, but got 0"),
        ({"figures_every_n_epochs": -1}, ValueError, "`figures_every_n_epochs` to be 0 or more"),
        ({"esd_layers": -1}, ValueError, "`esd_layers` to be 0 or more"),
    ],
)
def test_wrong_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        SpectralMonitor(**kwargs)


def test_a_state_of_another_version_is_refused():
    with pytest.raises(ValueError, match="state of version 1 or 2, but the checkpoint has 99"):
        SpectralMonitor().load_state_dict({"version": 99})


def test_closing_table_shows_names_as_they_are(capsys):
    report = SpectralReport(
        [
            LayerSpectrum("[bold]x", "linear", (4, 4), alpha=2.0),
            LayerSpectrum("[/red]", "linear", (1, 4), status="skipped", reason="a [vector]"),
        ]
    )
    Console(width=120).print(summary_table(report, LayerHistory(), {}))
    out = capsys.readouterr().out
    assert "[bold]x" in out
    assert "[/red]" in out
    assert "a [vector]" in out


def test_closing_table(small_net, loader, make_trainer, capsys):
    make_trainer([SpectralMonitor(), TBSigmoid()], max_epochs=1).fit(small_net(), loader)
    out = capsys.readouterr().out
    assert out.count("Spectra after 1 epoch ") == 1
    for word in ("conv", "8x3x3x3", "alpha", "first", "last", "factor", "mean alpha"):
        assert word in out
