"""Analyses that run while validation does: the same as those that do not, and nothing left behind."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_farms import FARMS, SpectralMonitor, TBSigmoid, TempBalance
from lightning_farms.analysis import WORKSPACE, Diagnostics, Selection, analyze, layer_weights
from lightning_farms.analysis._engine.decompose import one_thread_each
from lightning_farms.callbacks._spectral.in_trainer import BackgroundAnalysis
from lightning_farms.callbacks._spectral.options import AnalysisOptions
from tests.callbacks.conftest import NotedFARMS, NotedWholeMatrix, SmallNet

PATIENCE = 20.0
OPTIONS = AnalysisOptions(FARMS(), Selection(), Diagnostics())
EVERYTHING = Diagnostics(bootstrap=5, p_value=5, marchenko_pastur=True, twin=True)
VALIDATED = [  # settings of the Trainer, and how many of four epochs end with a validation
    ({}, 4),
    ({"num_sanity_val_steps": 0}, 4),
    ({"val_check_interval": 0.5}, 4),
    ({"check_val_every_n_epoch": 2}, 2),
    ({"check_val_every_n_epoch": None, "val_check_interval": 3}, 1),
    ({"limit_train_batches": 3}, 4),
    ({"accumulate_grad_batches": 3}, 4),
    ({"limit_val_batches": 0}, 0),
]


class Validated(SmallNet):
    """With a validation, which calls a function at its start and its end."""

    def __init__(self, start=None, end=None, **options):
        torch.manual_seed(1)
        super().__init__(**options)
        self.start, self.end = start, end

    def validation_step(self, batch, batch_idx):
        self.log("validation", self.training_step(batch, batch_idx))

    def on_validation_epoch_start(self):
        if self.start and not self.trainer.sanity_checking:
            self.start(self)

    def on_validation_epoch_end(self):
        if self.end and not self.trainer.sanity_checking:
            self.end(self)


def our_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("background", "spectra"))]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert our_threads() == []


@pytest.fixture
def started(noted):
    """The methods of the analyses in the background, of those that note it."""
    return noted.in_background


@pytest.fixture
def in_background(noted):
    """Have the analyses in the background call a function first, with a method that notes them."""
    return partial(setattr, noted, "first")


@pytest.fixture
def fit(loader, make_trainer):
    def run(*callbacks, model=None, ckpt_path=None, **settings):
        model = model or Validated()
        trainer = make_trainer(list(callbacks), **{"max_epochs": 4, **settings})
        trainer.fit(model, loader, loader, ckpt_path=ckpt_path)
        return model, trainer

    return run


def assert_same(ours, theirs):
    """Pairs of (model, callbacks): equal bit for bit."""
    (model, callbacks), (other_model, other_callbacks) = ours, theirs
    for name, value in model.state_dict().items():
        assert torch.equal(value, other_model.state_dict()[name]), name
    for one, other in zip(callbacks, other_callbacks, strict=True):
        assert list(one.report) == list(other.report)
        assert repr(one.state_dict()) == repr(other.state_dict())


@pytest.mark.parametrize(("settings", "validations"), VALIDATED, ids=str)
@pytest.mark.parametrize(
    ("callback", "options"), [(SpectralMonitor, {"diagnostics": EVERYTHING}), (TBSigmoid, {})], ids=str
)
def test_same_report_and_multipliers(callback, options, settings, validations, fit, started):
    runs = []
    for overlap in (False, True):
        one = callback(analysis=NotedFARMS(), overlap=overlap, summary=False, **options)
        runs.append((fit(one, **settings)[0], [one]))
        assert len(started) == (validations if overlap else 0)
    assert_same(*runs)
    assert one.history.epochs == [0, 1, 2, 3, 4]


def test_every_second_epoch(fit, started):
    monitor = SpectralMonitor(NotedFARMS(), every_n_epochs=2, overlap=True, summary=False)
    fit(monitor)
    assert monitor.history.epochs == [0, 2, 4]
    assert len(started) == 2


def test_callbacks_that_share_an_analysis_start_it_once(fit, started):
    def callbacks(overlap):
        return [
            SpectralMonitor(NotedFARMS(), overlap=overlap, summary=False),
            TBSigmoid(analysis=NotedFARMS(), overlap=overlap, summary=False),
            SpectralMonitor(NotedWholeMatrix(), overlap=overlap, summary=False),
            SpectralMonitor(NotedFARMS(aspect_ratio=0.5), summary=False),  # while the others may still be at work
        ]

    runs = []
    for overlap in (False, True):
        several = callbacks(overlap)
        runs.append((fit(*several, max_epochs=2)[0], several))
    assert_same(*runs)
    methods = (NotedFARMS(), NotedWholeMatrix(), NotedFARMS(aspect_ratio=0.5))
    assert [started.count(method) for method in methods] == [2, 2, 0]
    assert several[0].report is several[1].report


def test_weights_that_change_during_validation_are_seen_as_they_were(fit, in_background):
    """As when a moving average takes their place for the validation."""
    changed = threading.Event()

    def average(module):
        module.kept = {name: p.detach().clone() for name, p in module.named_parameters()}
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn_like(parameter))
        changed.set()

    def put_back(module):
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(module.kept[name])

    in_background(lambda: changed.wait(PATIENCE))
    runs = []
    for overlap in (False, True):
        one = TempBalance(analysis=NotedFARMS(), overlap=overlap, summary=False)
        torch.manual_seed(3)
        runs.append((fit(one, model=Validated(average, put_back))[0], [one]))
        assert changed.is_set()
        changed.clear()
    assert_same(*runs)


def test_the_epochs_end_waits_for_the_analysis(fit, in_background):
    """It is let go by the end of the validation only, and the time waited is no more than the analysis's."""
    validated = threading.Event()
    in_background(lambda: validated.wait(PATIENCE))
    monitor = SpectralMonitor(NotedFARMS(), overlap=True, summary=False)
    fit(monitor, model=Validated(end=lambda module: validated.set()), max_epochs=1)
    assert monitor.history.epochs == [0, 1]


@pytest.mark.parametrize(("error", "raised"), [(RuntimeError, RuntimeError), (KeyboardInterrupt, SystemExit)])
def test_an_exception_in_validation_leaves_no_thread_and_the_users_groups(error, raised, fit, in_background, started):
    def fail(module):
        assert our_threads()
        failing.set()
        raise error("in the validation")

    failing, optimizers = threading.Event(), []
    in_background(lambda: failing.wait(PATIENCE))
    model = Validated(start=fail)
    make = model.make_optimizer
    model.make_optimizer = lambda parameters: optimizers.append(make(parameters)) or optimizers[0]
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(raised):
            fit(TBSigmoid(analysis=NotedFARMS(), overlap=True, summary=False), model=model)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it from the first interrupt on
    assert our_threads() == []
    assert len(started) == 1
    assert [group["lr"] for group in optimizers[0].param_groups] == [0.1]


def test_a_layer_that_raises_in_the_thread_costs_itself_alone(fit, in_background):
    def fail():
        raise RuntimeError("out of memory")

    in_background(fail)
    balance = TBSigmoid(analysis=NotedFARMS(), overlap=True, summary=False)
    with pytest.warns(UserWarning, match="The analysis failed for conv: RuntimeError: out of memory"):
        _, trainer = fit(balance)
    assert trainer.global_step == 16
    assert balance.history.epochs == [0, 1, 2, 3, 4]
    assert [row.name for row in balance.report if row.reason.startswith("out of memory")] == ["conv"]
    assert balance.multipliers["conv"] == 1.0
    assert len(set(balance.multipliers.values())) == 3


class Uncopied(torch.Tensor):
    """Fails where it is to be copied."""

    def clone(self, **options):
        raise RuntimeError("out of memory")


class UncopiedLinear(torch.nn.Linear):
    asked = 0

    def spectral_weights(self):
        UncopiedLinear.asked += 1
        yield "", self.weight.as_subclass(Uncopied), (self.weight, self.bias)


def test_weights_that_cannot_be_copied_are_analysed_in_their_place(fit, started):
    runs, asked = [], []
    for overlap in (False, True):
        one = TBSigmoid(analysis=NotedFARMS(), overlap=overlap, summary=False)
        model = Validated()
        model.head = UncopiedLinear(24, 12)
        UncopiedLinear.asked = 0
        runs.append((fit(one, model=model)[0], [one]))
        asked.append(UncopiedLinear.asked)
    assert_same(*runs)
    assert one.history.epochs == [0, 1, 2, 3, 4]
    assert one.report["head"].status == "ok"
    assert asked[1] == asked[0] + 4, "a copy is tried at every validation"
    assert started == []


def test_validating_apart_from_training_starts_nothing(fit, loader, started):
    monitor = SpectralMonitor(NotedFARMS(), overlap=True, summary=False)
    model, trainer = fit(monitor, max_epochs=1)
    trainer.validate(model, loader, verbose=False)
    assert len(started) == 1
    assert monitor.history.epochs == [0, 1]


def test_a_sanity_check_starts_nothing(fit, loader, started):
    """Also that of a second fit, which finds the last batch of the first one done."""
    monitor = SpectralMonitor(NotedFARMS(), overlap=True, summary=False)
    model, trainer = fit(monitor, max_epochs=2)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, loader, loader)
    assert len(started) == 3
    assert monitor.history.epochs == [0, 1, 2, 3]


@pytest.mark.parametrize("every", [{"every_n_epochs": 1}, {"every_n_train_steps": 8}], ids=["epoch end", "last step"])
def test_resuming_gives_the_straight_run(every, fit, tmp_path):
    def run(max_epochs, overlap=True, ckpt_path=None):
        callbacks = [TBSigmoid(overlap=overlap, summary=False)]
        save = ModelCheckpoint(tmp_path, filename="{epoch}-{step}", save_top_k=-1, **every)
        settings = {"max_epochs": max_epochs, "enable_checkpointing": True, "val_check_interval": 0.5}
        return fit(*callbacks, save, ckpt_path=ckpt_path, **settings)[0], callbacks

    straight = run(4, overlap=False)
    run(2)
    assert_same(straight, run(4, ckpt_path=tmp_path / "epoch=1-step=8.ckpt"))


# ---- threads -------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def number_in_a_new_thread():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


@pytest.mark.usefixtures("two_threads")
def test_the_number_of_threads_is_put_back(fit, in_background):
    validated = threading.Event()
    in_background(lambda: validated.wait(PATIENCE))  # the analysis is late
    monitor = SpectralMonitor(NotedFARMS(), overlap=True, summary=False)
    fit(monitor, model=Validated(end=lambda module: validated.set()))
    assert (torch.get_num_threads(), number_in_a_new_thread()) == (2, 2)


@pytest.mark.usefixtures("two_threads")
def test_analyses_at_one_time_leave_the_users_number_of_threads():
    """One begins while another has set the number to 1, and ends after it."""
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with one_thread_each():
            inside.set()
            leave.wait(PATIENCE)
        return torch.get_num_threads()

    model = torch.nn.Linear(220, 220)  # large enough for sums to ask for the number of threads
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold)
        assert inside.wait(PATIENCE)
        analysis = BackgroundAnalysis(list(layer_weights(model)), OPTIONS, WORKSPACE, "auto")
        threading.Timer(0.1, leave.set).start()
        report = analysis.report()
        assert held.result() == 2
    assert all(row.status == "ok" for row in report)
    assert (torch.get_num_threads(), number_in_a_new_thread()) == (2, 2)


@pytest.mark.usefixtures("two_threads")
def test_many_analyses_at_one_time(fit):
    model = torch.nn.Sequential(*(torch.nn.Linear(40 + 3 * i, 60) for i in range(6)))
    weights = [list(layer_weights(model)) for _ in range(6)]
    analyses = [
        BackgroundAnalysis(each, OPTIONS._replace(diagnostics=Diagnostics(twin=True)), 10**5, "auto")
        for each in weights
    ]
    reports = [list(analysis.report()) for analysis in analyses]
    assert all(report == reports[0] for report in reports)
    assert (torch.get_num_threads(), number_in_a_new_thread()) == (2, 2)


@pytest.mark.usefixtures("two_threads")
def test_bits_do_not_depend_on_the_users_number_of_threads():
    """So that ranks, which have fewer each, find what one process finds: 96,000 eigenvalues make long sums."""
    model = torch.nn.Linear(16, 16 * 6000)
    diagnostics = Diagnostics(marchenko_pastur=True)
    with_two = list(analyze(model, diagnostics=diagnostics))
    torch.set_num_threads(1)
    assert list(analyze(model, diagnostics=diagnostics)) == with_two
