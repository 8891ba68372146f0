"""One model trained in a plain loop, with Fabric, by Lightning's Trainer and by transformers': the same multipliers."""

import lightning as L
import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_farms import Balancer, Control, LinearMap, TempBalance, analyze
from lightning_farms.integrations.transformers import SpectralBalanceCallback

EPOCHS, BATCHES, SIZE = 3, 4, 8
CONTROL = Control(ramp_steps=3, ema_decay=0.3, normalize="mean")


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 12))

    def forward(self, x, y):
        return {"loss": nn.functional.mse_loss(self.net(x), y)}


class Data(Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.x, self.y = torch.randn(2, BATCHES * SIZE, 12, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "y": self.y[index]}


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def in_a_loop(fabric=None, wrapped=True):
    model = Regression()
    optimizer, loader = optimizer_of(model), DataLoader(Data(), batch_size=SIZE)
    given = model, optimizer
    if fabric is not None:
        ready = fabric.setup(model, optimizer)
        given = ready if wrapped else given
        model, optimizer = ready
    balancer = Balancer(*given, LinearMap(0.5, 1.5), control=CONTROL)
    balancer.update()
    for _ in range(EPOCHS):
        for batch in loader:
            optimizer.zero_grad()
            loss = model(**batch)["loss"]
            loss.backward() if fabric is None else fabric.backward(loss)
            optimizer.step()
        balancer.update()
    balancer.detach()
    assert balancer.fault is None
    return balancer.multipliers, weights(model), balancer.history.rows("alpha")


@pytest.fixture(scope="module")
def plain():
    return in_a_loop()


@pytest.mark.parametrize("wrapped", [True, False])
def test_fabric(plain, wrapped):
    multipliers, trained, alphas = in_a_loop(L.Fabric(accelerator="cpu", devices=1), wrapped)
    assert multipliers == plain[0]
    assert alphas == plain[2]
    assert torch.equal(trained, plain[1])
    assert len(set(multipliers.values())) == 3


@pytest.mark.filterwarnings("ignore:.*no logger to write to")
def test_lightning(plain):
    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Regression()

        def training_step(self, batch, batch_idx):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return optimizer_of(self)

    module, callback = Module(), TempBalance(0.5, 1.5, control=CONTROL, summary=False)
    L.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback],
    ).fit(module, DataLoader(Data(), batch_size=SIZE))  # fmt: skip
    assert callback.multipliers == {f"model.{layer}": value for layer, value in plain[0].items()}
    assert torch.equal(weights(module), plain[1])


def test_transformers(plain, tmp_path):
    class InOrder(transformers.Trainer):
        def get_train_dataloader(self):
            return self.accelerator.prepare(DataLoader(self.train_dataset, batch_size=SIZE))

    model, callback = Regression(), SpectralBalanceCallback(LinearMap(0.5, 1.5), control=CONTROL)
    optimizer = optimizer_of(model)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=EPOCHS, per_device_train_batch_size=SIZE, max_grad_norm=0,
        report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    InOrder(
        model, arguments, train_dataset=Data(), callbacks=[callback], optimizers=(optimizer, constant)
    ).train()  # fmt: skip
    assert callback.multipliers == plain[0]
    assert torch.equal(weights(model), plain[1])


def test_fabric_saves_and_loads_the_balancer(tmp_path):
    fabric = L.Fabric(accelerator="cpu", devices=1)

    def made():
        model = Regression()
        wrapped, optimizer = fabric.setup(model, optimizer_of(model))
        return wrapped, optimizer, Balancer(wrapped, optimizer, LinearMap(0.5, 1.5), control=CONTROL)

    def train(model, optimizer, balancer, epochs):
        with balancer:
            if balancer.report is None and not balancer.multipliers:
                balancer.update()
            for _ in range(epochs):
                for batch in DataLoader(Data(), batch_size=SIZE):
                    optimizer.zero_grad()
                    fabric.backward(model(**batch)["loss"])
                    optimizer.step()
                balancer.update()

    straight = made()
    train(*straight, 3)
    first = made()
    train(*first, 2)
    fabric.save(tmp_path / "state.ckpt", dict(zip(("model", "optimizer", "balancer"), first, strict=True)))
    resumed = made()
    fabric.load(tmp_path / "state.ckpt", dict(zip(("model", "optimizer", "balancer"), resumed, strict=True)))
    train(*resumed, 1)
    assert resumed[2].multipliers == straight[2].multipliers
    assert resumed[2].history.state_dict() == straight[2].history.state_dict()
    assert torch.equal(weights(resumed[0]), weights(straight[0]))


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own, in torch.compile
def test_names_are_the_users_own_under_every_wrapper():
    model = Regression()
    names = set(analyze(model).alphas)
    for wrapped in (torch.compile(model), nn.DataParallel(model), L.Fabric(accelerator="cpu", devices=1).setup(model)):
        with Balancer(wrapped, optimizer_of(model), LinearMap()) as balancer:
            assert set(balancer.update().alphas) == names
