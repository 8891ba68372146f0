"""What every callback must do; a callback without settings here fails. (For two processes, test_two_processes.py.)"""

import inspect
import pickle

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

import lightning_farms.callbacks
from lightning_farms import FARMS, Control, LinearMap, Log2Map, SpectralMonitor, SqrtMap, StepMap, WholeMatrix
from lightning_farms.analysis import Diagnostics, Selection
from lightning_farms.pruning import Cubic, WholeMatrixAllocation

SETTINGS = {
    "LayerwiseLearningRate": [
        {"alpha_map": SqrtMap()},
        {"alpha_map": Log2Map(), "every_n_steps": 3, "control": Control(ema_decay=0.5, ramp_steps=2)},
        {"alpha_map": StepMap(), "start_epoch": 1, "control": Control(compensate_weight_decay=True, norms=False)},
    ],
    "LayerwisePruning": [
        {},
        {
            "sparsity": 0.8,
            "allocation": WholeMatrixAllocation(granularity="layer", floor=0.1),
            "schedule": Cubic(0, 1, initial_sparsity=0.5),
            "layers": Selection(exclude=("conv",)),
        },
    ],
    "PredictionWriter": [{}, {"path": "predicted.hdf5", "overwrite": True}],
    "RolloutMonitor": [{}, {"every_n_epochs": 0, "samples": 2, "frames": 3}],
    "SpectralMonitor": [
        {},
        {"analysis": WholeMatrix(), "every_n_epochs": 2},
        {
            "selection": Selection(exclude=("conv",)),
            "diagnostics": Diagnostics(10, 10, marchenko_pastur=True, twin=True),
        },
    ],
    "TBSigmoid": [{}, {"s_low": 0.5, "s_high": 0.25, "tau": 5.0, "overlap": True, "workspace": 1}],
    "TempBalance": [
        {},
        {
            "lr_min_ratio": 0.3,
            "lr_max_ratio": 1.7,
            "analysis": FARMS(aspect_ratio=0.5),
            "selection": Selection(min_size=4),
            "diagnostics": Diagnostics(twin=True),
        },
    ],
    "WeightDecayBalance": [{}, {"alpha_map": LinearMap(0.5, 1.5), "every_n_steps": 5, "overlap": True}],
}
CALLBACKS = [
    name for name in lightning_farms.callbacks.__all__ if issubclass(getattr(lightning_farms.callbacks, name), Callback)
]
CASES = [pytest.param(name, options, id=f"{name}{i}") for name in SETTINGS for i, options in enumerate(SETTINGS[name])]
ANALYSING = [case for case in CASES if issubclass(getattr(lightning_farms.callbacks, case.values[0]), SpectralMonitor)]


def build(name, options):
    kind = getattr(lightning_farms.callbacks, name)
    return kind(**({"summary": False} if issubclass(kind, SpectralMonitor) else {}), **options)


def adamw(parameters):
    """With a weight decay, which some callbacks balance."""
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


@pytest.fixture
def small_net(small_net):
    return lambda: small_net(make_optimizer=adamw)


def test_every_callback_has_settings():
    assert sorted(CALLBACKS) == sorted(SETTINGS)


def state(model, trainer):
    return model.state_dict(), trainer.optimizers[0].state_dict()["param_groups"]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_training_twice_gives_one_result(name, options, small_net, loader, make_trainer):
    results = []
    for _ in range(2):
        model, callback = small_net(), build(name, options)
        make_trainer([callback]).fit(model, loader)
        results.append((model.state_dict(), callback.state_dict()))
    (weights, first), (again, second) = results
    assert all(torch.equal(value, again[key]) for key, value in weights.items())
    assert repr(first) == repr(second)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_resuming_gives_the_straight_run(name, options, small_net, loader, make_trainer, tmp_path):
    def fit(max_epochs, ckpt_path=None):
        model, callback = small_net(), build(name, options)
        trainer = make_trainer(
            [callback, ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")],
            max_epochs=max_epochs,
            enable_checkpointing=True,
        )
        trainer.fit(model, loader, ckpt_path=ckpt_path)
        return model, callback

    straight, callback = fit(4)
    fit(2)
    resumed, resumed_callback = fit(4, tmp_path / "epoch=1.ckpt")
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in straight.state_dict().items())
    assert repr(callback.state_dict()) == repr(resumed_callback.state_dict())  # as text, NaN equals NaN


@pytest.mark.parametrize(("name", "options"), CASES)
def test_pickling(name, options, small_net, loader, make_trainer):
    callback = build(name, options)
    copy = pickle.loads(pickle.dumps(callback))
    assert copy.state_key == callback.state_key
    make_trainer([callback]).fit(small_net(), loader)
    assert repr(pickle.loads(pickle.dumps(callback)).state_dict()) == repr(callback.state_dict())


@pytest.mark.parametrize(("name", "options"), ANALYSING)
def test_without_a_logger(name, options, small_net, loader, make_trainer):
    callback = build(name, options)
    with pytest.warns(UserWarning, match="has no logger to write to"):
        make_trainer([callback], logger=False).fit(small_net(), loader)
    assert callback.report is not None


@pytest.mark.parametrize(("name", "options"), CASES)
def test_fast_dev_run(name, options, small_net, loader, make_trainer):
    callback = build(name, options)
    make_trainer([callback], fast_dev_run=True).fit(small_net(), loader)
    assert not isinstance(callback, SpectralMonitor) or callback.report is not None


@pytest.mark.parametrize(("name", "options"), ANALYSING)
def test_csv_logger_only(name, options, small_net, loader, make_trainer, tmp_path):
    callback = build(name, options)
    make_trainer([callback], logger=CSVLogger(tmp_path, name="csv", version=0)).fit(small_net(), loader)
    header = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert f"{callback.analysis.label}/alpha/hidden" in header
    rates = name not in ("LayerwisePruning", "SpectralMonitor", "WeightDecayBalance")
    assert ("layer_lr/AdamW/hidden" in header) == rates
    assert ("layer_wd/AdamW/hidden" in header) == (name == "WeightDecayBalance")
    assert ("sparsity/hidden" in header) == (name == "LayerwisePruning")


def constructors(kind):
    """The classes whose arguments a callback takes: its own, and those to which it hands its ``**options``."""
    for base in kind.__mro__:
        if "__init__" in vars(base):
            yield base
            if not any(p.kind == p.VAR_KEYWORD for p in inspect.signature(base).parameters.values()):
                return


@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_option_is_an_attribute_and_documented(name, options):
    callback = build(name, options)
    kinds = list(constructors(type(callback)))
    assert (SpectralMonitor in kinds) == isinstance(callback, SpectralMonitor), "the common options are there"
    for kind in kinds:
        documented = inspect.getdoc(kind).split("Args:")[1].split("Raises:")[0]
        for option, parameter in inspect.signature(kind).parameters.items():
            assert hasattr(callback, option) or parameter.kind == parameter.VAR_KEYWORD
            assert f"{option}:" in documented


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ("PredictionWriter", "RolloutMonitor")])
def test_an_option_that_is_unknown_is_named(name):
    kind = getattr(lightning_farms.callbacks, name)
    options = {"alpha_map": SqrtMap()} if name == "LayerwiseLearningRate" else {}
    with pytest.raises(TypeError, match="every_n_epoch'"):
        kind(**options, every_n_epoch=5)
