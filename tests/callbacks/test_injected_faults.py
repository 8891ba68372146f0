"""A fault in any function of ours that a run reaches is said once, and neither ends the training nor changes it."""

import csv
import warnings
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import writer

from lightning_farms import SpectralMonitor, TBSigmoid
from tests.callbacks.injection import Fault, counted, fault_in, functions

ROOMS = ("callbacks", "loggers", "balancing", "plotting", "analysis._engine.decompose")
LEFT_OUT = {
    "callbacks._guard": "it is what catches and says the others",
}
LEAST = {"monitor": 130, "balance": 170}  # functions that a run reaches


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(12, 12), nn.Dropout(0.2), nn.Linear(12, 12), nn.Linear(12, 8))

    def training_step(self, batch, batch_idx):
        return self.layers(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Setting(NamedTuple):
    kind: str
    epochs: int
    figures_every_n_epochs: int
    pictures: bool = True  # whether there is a logger that takes some

    def callback(self):
        kind = {"monitor": SpectralMonitor, "balance": TBSigmoid}[self.kind]
        return kind(figures_every_n_epochs=self.figures_every_n_epochs, esd_layers=1)


class Run:
    """A fit, with what came of it."""

    def __init__(self, folder, setting, callback=None, fault=None):
        torch.manual_seed(1)
        data = TensorDataset(torch.randn(8, 12, generator=torch.Generator().manual_seed(2)))
        saver = ModelCheckpoint(folder / "saved", filename="{epoch}", save_top_k=-1)
        loggers = [CSVLogger(folder, name="csv")] + [TensorBoardLogger(folder, name="tb")] * setting.pictures
        trainer = pl.Trainer(
            max_epochs=setting.epochs,
            accelerator="cpu",
            devices=1,
            logger=loggers,
            callbacks=[saver, *([callback] if callback else [])],
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        model = Net()
        self.error, self.said, self.reached = None, [], set()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                if fault is None:
                    with counted() as self.reached:
                        trainer.fit(model, DataLoader(data, batch_size=4))
                else:
                    with fault_in(fault):
                        trainer.fit(model, DataLoader(data, batch_size=4))
            except Exception as error:
                self.error = error
        self.said = [str(w.message) for w in caught if Fault.__name__ in str(w.message)]
        self.other_warnings = [str(w.message) for w in caught if Fault.__name__ not in str(w.message)]
        self.weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        self.random = torch.get_rng_state()
        self.optimizer = trainer.optimizers[0] if trainer.optimizers else None
        self.checkpoints = sorted((folder / "saved").glob("*.ckpt"))
        self.metrics = Path(loggers[0].log_dir) / "metrics.csv"


def wrong_with(run, setting, callback, plain):
    """What is wrong with a run into which a fault was put, but for its weights."""
    if run.error is not None:
        return [f"ended with {run.error!r}"]
    optimizer = run.optimizer
    with run.metrics.open() as file:
        logged = any(row.get("farms/alpha_mean") for row in csv.DictReader(file))
    enough = callback.history.epochs[-1:] == [setting.epochs] and len(callback.history.epochs) >= setting.epochs
    checks = {
        f"said {len(run.said)} times: {run.said}": len(run.said) <= 1,
        f"followed by {run.other_warnings}": set(run.other_warnings) <= set(plain.other_warnings),
        f"{len(run.checkpoints)} checkpoints": len(run.checkpoints) == setting.epochs,
        "other random numbers": torch.equal(run.random, plain.random),
        f"analyses after epochs {callback.history.epochs} only": enough,
        "hooks left": not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks,
        "groups left": [group["lr"] for group in optimizer.param_groups] == [0.1],
        "no scalars": logged,
    }
    return [text for text, good in checks.items() if not good]


def wrong_with_weights(run, setting, callback, plain):
    """A monitor's are those of a run without it; of a balancing callback there are multipliers in the end."""
    if setting.kind == "monitor":
        return [] if torch.equal(run.weights, plain.weights) else ["other weights"]
    return [] if len(callback.multipliers) == 3 else [f"multipliers {callback.multipliers}"]


@pytest.fixture(scope="module")
def everything():
    found = functions(*(f"lightning_farms.{room}" for room in ROOMS))
    out = tuple(f"lightning_farms.{name}." for name in LEFT_OUT)
    return {name: function for name, function in found.items() if not name.startswith(out)}


@pytest.fixture
def unpainted(monkeypatch):
    """Figures are made, but neither rendered nor compressed, which takes most of the time."""
    monkeypatch.setattr(FigureCanvasAgg, "draw", lambda self: self.get_renderer())
    monkeypatch.setattr(writer, "image", lambda tag, *args, **options: Summary(value=[Summary.Value(tag=tag)]))


# Functions that a run without pictures reaches, too, meet their fault there, in the quick form; in the whole one where
# figures are drawn once, at the end. All others where they are drawn most often. Figures take most of a run's time.
@pytest.mark.parametrize(
    ("setting", "quicker", "which"),
    [
        (Setting("monitor", 2, 2), Setting("monitor", 2, 2, pictures=False), slice(0, None, 3)),
        (Setting("balance", 2, 2), Setting("balance", 2, 2, pictures=False), slice(1, None, 3)),
        *(
            pytest.param(Setting(kind, 3, 1), Setting(kind, 3, 3), slice(half, None, 2), marks=pytest.mark.slow)
            for kind in ("monitor", "balance")
            for half in (0, 1)
        ),
    ],
    ids=lambda value: f"from-{value.start}" if isinstance(value, slice) else f"{value.kind}-{value.epochs}-epochs",
)
def test_a_fault_in_any_function_is_said_once_and_stops_nothing(
    setting, quicker, which, everything, unpainted, tmp_path, capsys
):
    plain = {each: Run(tmp_path / f"plain{number}", each) for number, each in enumerate((setting, quicker))}
    whole = {each: Run(tmp_path / f"whole{number}", each, each.callback()) for number, each in enumerate(plain)}
    unseen = Setting(setting.kind, setting.epochs, 1, pictures=False)
    unseen = Run(tmp_path / "unseen", unseen, unseen.callback())
    reached = {name: function for name, function in everything.items() if function.__code__ in whole[setting].reached}
    assert len(reached) >= LEAST[setting.kind], "the walk or the count finds too little"
    wrong = []
    for number, (name, function) in list(enumerate(reached.items()))[which]:
        chosen = quicker if function.__code__ in unseen.reached else setting
        callback = chosen.callback()
        run = Run(tmp_path / str(number), chosen, callback, function)
        same = whole[chosen] if chosen.kind == "balance" else plain[chosen]
        found = wrong_with(run, chosen, callback, same) or wrong_with_weights(run, chosen, callback, plain[chosen])
        wrong += [f"{name}: {'; '.join(found)}"] if found else []
    assert not wrong, "\n" + "\n".join(wrong)
