"""The rate of every update in a Trainer is base rate times multiplier, and nothing that is saved holds a multiplier.

The base rates are those of a run without the callback; the multipliers are computed here from the weights at the start
of each epoch; what an update used is read off the weights (plain SGD), or the updates are repeated by an optimizer of
our own making with one group a parameter.
"""

import math
import signal
from collections import defaultdict

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn
from torch.optim import SGD, AdamW, lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from lightning_farms import FARMS, TBSigmoid, TempBalance, analyze
from lightning_farms.analysis import parameter_layers
from lightning_farms.functional import tb_linear_map, tb_sigmoid
from lightning_farms.optim import layerwise_param_groups

EPOCHS, BATCHES = 3, 4
STEPS = EPOCHS * BATCHES


class Net(pl.LightningModule):
    """Three linear layers, a norm, and a parameter that belongs to no layer; configured by functions."""

    def __init__(self, make_optimizer, make_scheduler=None, grouping="one", in_training_step=None):
        super().__init__()
        self.first, self.norm = nn.Linear(12, 16), nn.LayerNorm(16)
        self.middle, self.last = nn.Linear(16, 14), nn.Linear(14, 6)
        self.scale = nn.Parameter(torch.ones(1))
        self.make_optimizer, self.make_scheduler, self.grouping = make_optimizer, make_scheduler, grouping
        self.in_training_step = in_training_step

    def forward(self, x):
        return self.last(self.middle(self.norm(self.first(x)).relu()).relu()) * self.scale

    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("metric", float(min(self.global_step, 4)))  # falls no more after four steps, whatever the weights
        if self.in_training_step is not None:
            loss = self.in_training_step(self, loss, batch_idx)
        return loss

    def configure_optimizers(self):
        optimizer = self.make_optimizer(GROUPINGS[self.grouping](self))
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "monitor": "metric"},
        }

    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step(metric) if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else scheduler.step()


GROUPINGS = {
    "one": lambda net: net.parameters(),
    "one a parameter": lambda net: [{"params": [p], "lr": 0.01 * (1 + i)} for i, p in enumerate(net.parameters())],
    "layers mixed": lambda net: [
        {"params": [p for p in net.parameters() if p.ndim > 1], "lr": 0.02},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ],
    "named": lambda net: net.named_parameters(),
    "layerwise": lambda net: layerwise_param_groups(net.named_parameters(), parameter_layers(net)),
}


class Probe(pl.Callback):
    """Base rate of every parameter at rest, before each update; optionally what each update used, or should give."""

    def __init__(self, expected_base=None, rule=None, repeat=None):
        self.base, self.multipliers, self.steps_in_epoch = [], [], []
        self.used, self.wanted = defaultdict(list), defaultdict(list)
        self.expected_base, self.rule, self.repeat = expected_base, rule, repeat

    def on_train_start(self, trainer, pl_module):
        self.own_groups = [list(optimizer.param_groups) for optimizer in trainer.optimizers]
        self.owner = {name: parameter_layers(pl_module).get(p) for name, p in pl_module.named_parameters()}
        self.twins = {name: nn.Parameter(p.detach().clone()) for name, p in pl_module.named_parameters()}
        if self.repeat:
            self.twin_optimizer = self.repeat([{"params": [twin]} for twin in self.twins.values()])

    def on_train_epoch_start(self, trainer, pl_module):
        if self.rule:
            alphas = analyze(pl_module, FARMS()).alphas
            values = self.rule(torch.tensor(list(alphas.values()), dtype=torch.float64)).tolist()
            self.multipliers.append(dict(zip(alphas, values, strict=True)))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        self.pending = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        names = {p: name for name, p in pl_module.named_parameters()}
        self.pending.update(
            {names[p]: (group, float(group["lr"])) for group in optimizer.param_groups for p in group["params"]}
        )
        number = trainer.optimizers.index(getattr(optimizer, "optimizer", optimizer))
        assert all(x is y for x, y in zip(optimizer.param_groups, self.own_groups[number], strict=True))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not self.pending:
            return
        if self.rule:
            self._measure(trainer, pl_module)
            if self.repeat:
                self._repeat(pl_module)
        self.base.append({name: rate for name, (_, rate) in self.pending.items()})

    def _rate(self, name, kind=float):
        """Base rate times multiplier, a number or a tensor."""
        return kind(self.expected_base[len(self.base)][name]) * self.multipliers[-1].get(self.owner[name], 1.0)

    def _measure(self, trainer, pl_module):
        for name, p in pl_module.named_parameters() if self.repeat is None else ():
            change = self.before[name] - p.detach()
            direction = trainer.optimizers[0].state[p].get("momentum_buffer", p.grad)
            self.used[name].append(((change * direction).sum() / direction.square().sum()).item())
            self.wanted[name].append(self._rate(name))

    def _repeat(self, pl_module):
        """Take one step with the gradients of the real one, but none if GradScaler must have skipped it."""
        parameters = dict(pl_module.named_parameters())
        for (name, twin), group in zip(self.twins.items(), self.twin_optimizer.param_groups, strict=True):
            rate = self._rate(name, torch.tensor if isinstance(group["lr"], torch.Tensor) else float)
            own = self.pending[name][0]
            shared = {key: own[key] for key in ("betas", "momentum", "weight_decay") if key in own}
            group.update(shared, lr=rate)
            twin.grad = parameters[name].grad.clone()
        if all(twin.grad.isfinite().all() for twin in self.twins.values()):
            self.twin_optimizer.step()
        for name, twin in self.twins.items():
            assert torch.equal(twin, parameters[name]), (name, len(self.base))


TEMP_BALANCE = (lambda: TempBalance(0.3, 1.7, summary=False), lambda alphas: tb_linear_map(alphas, 0.3, 1.7))
TB_SIGMOID = (lambda: TBSigmoid(summary=False), tb_sigmoid)


@pytest.fixture
def fit(make_trainer):
    def run(net, callbacks, double=True, **settings):
        torch.manual_seed(2)
        dtype = torch.float64 if double else torch.float32
        data = TensorDataset(torch.randn(16, 12, dtype=dtype), torch.randn(16, 6, dtype=dtype))
        precision = {"precision": "64-true"} if double else {}
        trainer = make_trainer(callbacks, **{"max_epochs": EPOCHS, **precision, **settings})
        trainer.fit(net, DataLoader(data, batch_size=16 // BATCHES))
        return trainer

    return run


@pytest.fixture
def compare(fit):
    """Run without and with the callback: same base rates, and updates with base rate times multiplier."""

    def run(make_net, balance=TEMP_BALANCE, repeat=None, extra=lambda: [], settings=dict, **kwargs):
        def net():
            torch.manual_seed(1)
            return make_net()

        make, rule = balance
        plain = Probe()
        fit(net(), [plain, *extra()], **settings(), **kwargs)
        probe = Probe(plain.base, rule, repeat)
        trainer = fit(net(), [make(), probe, *extra()], **settings(), **kwargs)
        assert probe.base == plain.base
        assert len({m for epoch in probe.multipliers for m in epoch.values()}) >= 5  # not the same in every epoch
        for name, used in probe.used.items():
            assert used == pytest.approx(probe.wanted[name], rel=1e-9), name
        assert repeat or probe.used
        return trainer, probe

    return run


class OwnLists:
    """A scheduler by someone else: not torch's class, with lists of its own, one entry a group."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.start = [group["lr"] for group in optimizer.param_groups]
        self.now = list(self.start)

    def step(self, metric=None):
        self.now = [0.8 * now + 0.01 * start for now, start in zip(self.now, self.start, strict=True)]
        for group, lr in zip(self.optimizer.param_groups, self.now, strict=True):
            group["lr"] = lr

    def state_dict(self):
        return {"now": self.now}

    def load_state_dict(self, state):
        self.now = state["now"]


SCHEDULERS = {
    "none": None,
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 9], 0.3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9 if t % 2 else 1.05),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, STEPS, power=2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 8, eta_min=0.01),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2, eta_min=0.001),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=STEPS + 1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3, mode="triangular2"),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 8, eta_min=0.01)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "own lists": OwnLists,
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name, compare):
    make_scheduler = SCHEDULERS[name]
    _, probe = compare(lambda: Net(lambda p: SGD(p, lr=0.1, momentum=0.9), make_scheduler), TB_SIGMOID)
    rates = {step["scale"] for step in probe.base}
    owners = {name: probe.owner[name] for name in ("first.weight", "norm.weight", "last.bias", "scale")}
    assert owners == {"first.weight": "first", "norm.weight": "first", "last.bias": "last", "scale": None}
    assert len(probe.base) == STEPS
    assert len(rates) == 1 if name == "none" else len(rates) >= 4


class WarmUp(Net):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * min(1.0, (self.global_step + 1) / 8)


class WarmUpBefore(Net):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * min(1.0, (self.global_step + 1) / 8)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


@pytest.mark.parametrize(("kind", "rates"), [(WarmUp, 9), (WarmUpBefore, 8)])
def test_warm_up_by_hand(kind, rates, compare):
    _, probe = compare(lambda: kind(lambda p: SGD(p, lr=0.001)))
    assert len({step["scale"] for step in probe.base}) == rates


def test_stochastic_weight_averaging(compare):
    extra = lambda: [StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=2)]  # noqa: E731
    _, probe = compare(lambda: Net(lambda p: SGD(p, lr=0.1)), extra=extra, max_epochs=4)
    assert len({step["scale"] for step in probe.base}) == 3


class SignDescent(torch.optim.Optimizer):
    """An optimizer of one's own, that takes its rate apart from the group before its loop."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for lr, params in [(group["lr"], group["params"]) for group in self.param_groups]:
            for p in params:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.add_(momentum.lerp_(p.grad, 0.1).sign(), alpha=-lr)
        return loss


class SuperStep(AdamW):
    """Its step calls its parent's, so that step hooks fire twice."""

    def step(self, closure=None):
        loss = None if closure is None else closure()
        super().step()
        return loss


OPTIMIZERS = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "AdamW": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "AdamW foreach": lambda p: AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "AdamW fused": lambda p: AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "AdamW tensor": lambda p: AdamW(p, lr=torch.tensor(0.01), weight_decay=0.1, foreach=False),
    "AdamW fused tensor": lambda p: AdamW(p, lr=torch.tensor(0.01), weight_decay=0.1, fused=True),
    "one's own": lambda p: SignDescent(p, lr=0.01),
    "super().step()": lambda p: SuperStep(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, compare):
    make = OPTIMIZERS[name]
    compare(lambda: Net(make, lambda o: lr_scheduler.CosineAnnealingLR(o, 8, eta_min=0.001)), repeat=make)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_groups(grouping, compare):
    make, schedule = OPTIMIZERS["AdamW"], SCHEDULERS["CosineAnnealingLR"]
    trainer, probe = compare(lambda: Net(make, schedule, grouping), TB_SIGMOID, repeat=make)
    assert trainer.optimizers[0].param_groups == probe.own_groups[0]


def overflow(net, loss, batch_idx):
    return loss * math.inf if batch_idx == 1 else loss


class TwoOptimizers(Net):
    """Manual optimization: the first layer by one optimizer, the rest by the other, each with its scheduler."""

    def __init__(self, *args):
        super().__init__(*args)
        self.automatic_optimization = False

    def configure_optimizers(self):
        first, rest = list(self.first.parameters()), [*self.parameters()][3:]
        optimizers = [SGD(first, lr=0.1), SGD([self.scale, *rest], lr=0.2)]
        return optimizers, [lr_scheduler.ExponentialLR(o, g) for o, g in zip(optimizers, (0.9, 0.7), strict=True)]

    def training_step(self, batch, batch_idx):
        for optimizer, scheduler in zip(self.optimizers(), self.lr_schedulers(), strict=True):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(nn.functional.mse_loss(self(batch[0]), batch[1]))
            optimizer.step()
            scheduler.step()
            self.untoggle_optimizer(optimizer)


def scaler():
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))]}


SETTINGS = {
    "accumulation": (dict, {"accumulate_grad_batches": 2}, STEPS // 2),
    "clipping by norm": (dict, {"gradient_clip_val": 0.01}, STEPS),
    "clipping by value": (dict, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, STEPS),
    "scaler with skipped steps": (scaler, {"double": False}, STEPS),
    "bf16-mixed": (dict, {"double": False, "precision": "bf16-mixed"}, STEPS),
    "bf16-true": (dict, {"double": False, "precision": "bf16-true"}, STEPS),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_trainer(name, compare):
    settings, kwargs, updates = SETTINGS[name]
    in_training_step = overflow if settings is scaler else None
    make, schedule = OPTIMIZERS["AdamW"], SCHEDULERS["SequentialLR"]
    _, probe = compare(
        lambda: Net(make, schedule, "layers mixed", in_training_step), repeat=make, settings=settings, **kwargs
    )
    assert len(probe.base) == updates
    skipped = [state["step"].item() for state in probe.twin_optimizer.state.values()]
    assert set(skipped) == {updates - EPOCHS if settings is scaler else updates}


def test_two_optimizers_by_hand(compare):
    trainer, probe = compare(lambda: TwoOptimizers(None), repeat=lambda p: SGD(p, lr=1.0))
    assert trainer.global_step == 2 * STEPS
    assert probe.base[1]["first.weight"] == 0.1 * 0.9
    assert probe.base[1]["last.weight"] == pytest.approx(0.2 * 0.7)


# ---- what is saved ---------------------------------------------------------------------------------------------------


def assert_base(state, trainer):
    """The checkpoint has the base rates and the user's groups."""
    (groups,) = (s["param_groups"] for s in state["optimizer_states"])
    own = trainer.optimizers[0].param_groups
    assert [group["lr"] for group in groups] == [0.02, 0.1]
    assert [len(group["params"]) for group in groups] == [len(group["params"]) for group in own] == [3, 6]


def make_net(kind=AdamW, in_training_step=None):
    torch.manual_seed(1)
    return Net(lambda p: kind(p, lr=0.1), None, "layers mixed", in_training_step)


def assert_freed(optimizer):
    assert [(group["lr"], len(group["params"])) for group in optimizer.param_groups] == [(0.02, 3), (0.1, 6)]
    assert not optimizer._optimizer_step_pre_hooks


def test_exception_inside_training_step(fit):
    def fail(net, loss, batch_idx):
        net.inside = net.trainer
        if net.global_step == 2:
            raise RuntimeError("from the user's code")
        return loss

    net = make_net(in_training_step=fail)
    with pytest.raises(RuntimeError, match="from the user's code"):
        fit(net, [TBSigmoid(summary=False)])
    assert_freed(net.inside.optimizers[0])


def test_checkpoint_saved_inside_training_step(fit, tmp_path):
    def save(net, loss, batch_idx):
        if net.global_step == 5:
            net.trainer.save_checkpoint(tmp_path / "inside.ckpt")
        net.seen.append([(g["lr"], len(g["params"])) for g in net.trainer.optimizers[0].param_groups])
        return loss

    net, undisturbed = make_net(in_training_step=save), make_net()
    net.seen = []
    trainer = fit(net, [TempBalance(summary=False)], max_epochs=2)
    fit(undisturbed, [TempBalance(summary=False)], max_epochs=2)
    assert_base(torch.load(tmp_path / "inside.ckpt", weights_only=True), trainer)
    assert net.seen == [[(0.02, 3), (0.1, 6)]] * 8  # also after the checkpoint
    for ours, theirs in zip(net.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class Preempted(AdamW):
    """A signal arrives in the middle of the fifth update."""

    signal_number = None

    def step(self, closure=None):
        if self.signal_number is not None and any(s["step"].item() == 4.0 for s in self.state.values()):
            assert len(self.param_groups) > 2
            signal.raise_signal(self.signal_number)
        return super().step(closure)


@pytest.mark.parametrize("where", ["training_step", "update"])
def test_slurm_preemption(where, fit, tmp_path, monkeypatch):
    """Lightning saves the checkpoint inside the signal handler, and training goes on until the job is killed."""
    for name in ("JOB_ID", "NTASKS", "PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "1" if name in ("JOB_ID", "NTASKS") else "0")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    requeued = []
    monkeypatch.setattr(
        "lightning.pytorch.trainer.connectors.signal_connector.call", lambda command: requeued.append(command) or 0
    )

    def preempt(net, loss, batch_idx):
        if where == "training_step" and net.global_step == 4:
            signal.raise_signal(signal.SIGUSR1)
        return loss

    net, undisturbed = make_net(Preempted, preempt), make_net()
    monkeypatch.setattr(Preempted, "signal_number", signal.SIGUSR1 if where == "update" else None)
    environment = SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR1)
    trainer = fit(net, [TempBalance(summary=False)], max_epochs=2, plugins=[environment])
    assert requeued == [["scontrol", "requeue", "1"]]
    saved = torch.load(tmp_path / "hpc_ckpt_1.ckpt", weights_only=True)
    assert_base(saved, trainer)
    assert saved["global_step"] == 4
    monkeypatch.undo()
    fit(undisturbed, [TempBalance(summary=False)], max_epochs=2)
    for ours, theirs in zip(net.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("where", ["training_step", "update"])
def test_termination(where, fit, tmp_path, monkeypatch):
    """SIGTERM ends the fit after the batch."""

    def terminate(net, loss, batch_idx):
        net.inside = net.trainer
        if where == "training_step" and net.global_step == 4:
            signal.raise_signal(signal.SIGTERM)
        return loss

    class Save(pl.Callback):
        def on_exception(self, trainer, pl_module, exception):
            trainer.save_checkpoint(tmp_path / f"{trainer.callbacks.index(self)}.ckpt")

    net = make_net(Preempted, terminate)
    monkeypatch.setattr(Preempted, "signal_number", signal.SIGTERM if where == "update" else None)
    with pytest.raises(SIGTERMException):
        fit(net, [Save(), TempBalance(summary=False), Save()])  # before and after our own hook
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 2
    for file in files:
        saved = torch.load(file, weights_only=True)
        assert_base(saved, net.inside)
        assert saved["global_step"] == 5
    assert_freed(net.inside.optimizers[0])
