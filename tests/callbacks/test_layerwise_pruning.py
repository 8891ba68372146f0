"""LayerwisePruning: zeros counted in the weights themselves, at every batch, whatever else acts on them."""

import math
from contextlib import nullcontext
from unittest import mock

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, ModelPruning, StochasticWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_farms import LayerwisePruning, SpectralMonitor, TBSigmoid, TempBalance, WholeMatrix, analyze
from lightning_farms.analysis import Selection
from lightning_farms.pruning import (
    Cubic,
    FARMSAllocation,
    FileAllocation,
    OneShot,
    OWLAllocation,
    RampAllocation,
    UniformAllocation,
    WholeMatrixAllocation,
)
from tests.callbacks.conftest import Tower

WEIGHTS = ("conv.weight", "hidden.weight", "head.weight")
SIZES = {"conv": 216, "hidden": 3072, "head": 288}
TOTAL = sum(SIZES.values())


def cubic(epochs, end, final):
    """Zhu and Gupta's polynomial from 0."""
    x = min(epochs / end, 1)
    return final * (3 * x - 3 * x**2 + x**3)


def whole(sparsity, total=TOTAL):
    return math.floor(sparsity * total + 0.5)


def zeros(model, names=WEIGHTS):
    return {name.removesuffix(".weight"): int((model.get_parameter(name) == 0).sum()) for name in names}


class Counting(pl.Callback):
    """Zeros of the weights in each forward pass and after each step, by epoch, and which weights they are."""

    def __init__(self, names=WEIGHTS):
        self.names, self.acting, self.after, self.places = names, {}, {}, []

    def on_train_start(self, trainer, pl_module):
        self.handle = pl_module.register_forward_pre_hook(lambda module, args: self.count(trainer, module, self.acting))

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.count(trainer, pl_module, self.after)
        self.places.append({name: pl_module.get_parameter(name).detach() == 0 for name in self.names})

    def on_train_end(self, trainer, pl_module):
        self.handle.remove()

    def count(self, trainer, module, numbers):
        if trainer.training:
            numbers.setdefault(trainer.current_epoch, set()).add(sum(zeros(module, self.names).values()))


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


# ---- how many, and which ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_zeros_are_exact_in_every_pass_and_after_every_step(optimizer, settings, small_net, loader, make_trainer):
    callback, counting = LayerwisePruning(0.8, schedule=Cubic(0, 4), summary=False), Counting()
    model = small_net(make_optimizer=optimizer)
    make_trainer([callback, counting], max_epochs=6, **settings).fit(model, loader)
    expected = {epoch: {whole(cubic(epoch, 4, 0.8))} for epoch in range(6)}
    assert counting.acting == counting.after == expected
    assert sum(callback.masks.zeros.values()) == whole(0.8)
    for before, now in zip(counting.places, counting.places[1:], strict=False):  # what is pruned stays pruned
        assert all(bool((now[name] >= before[name]).all()) for name in WEIGHTS)


@pytest.mark.parametrize("granularity", ["block", "layer"])  # without repeated blocks they are the same
def test_ratios_are_in_proportion_to_scores_of_alphas_and_the_least_weights_go(granularity, loader, make_trainer):
    model = Tower()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.ndim == 2}
    alphas = analyze(model).alphas
    low, high = min(alphas.values()), max(alphas.values())
    callback = LayerwisePruning(0.5, FARMSAllocation(epsilon=0.4, granularity=granularity), summary=False)
    trainer = make_trainer([callback], max_epochs=1, limit_train_batches=1, precision="64-true")
    trainer.fit(model, loader)
    size, number = 24 * 24, len(alphas)
    scores = {layer: 0.6 + 0.8 * (alpha - low) / (high - low) for layer, alpha in alphas.items()}
    share = 0.5 * number / sum(scores.values())  # the layers are of one size
    assert sum(row.zeros for row in callback.ratios) == whole(0.5, number * size)
    for row in callback.ratios:
        weight, kept = before[f"{row.name}.weight"], model.get_parameter(f"{row.name}.weight") != 0
        assert row.score == pytest.approx(scores[row.name], rel=1e-9)
        assert abs(row.zeros - scores[row.name] * share * size) < 1
        assert int((~kept).sum()) == row.zeros
        assert weight[~kept].abs().max() <= weight[kept].abs().min()


class AFNOFilter(nn.Module):
    """Complex numbers as pairs, by its name known to the analysis."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 2, 4, 4) / 4)

    def forward(self, x):
        return torch.view_as_real(torch.einsum("nbi,bio->nbo", torch.fft.fft(x), torch.complex(*self.w))).sum(-1)


class Mixed(pl.LightningModule):
    """Complex numbers, also in pairs; queries, keys and values, and gates, in one parameter; a norm; a tied head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(7, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.recurrent = nn.GRU(8, 8)
        self.normalised = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.spectral = nn.Parameter(torch.randn(8, 8, dtype=torch.cfloat) / 8)
        self.filter = AFNOFilter()
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.table.weight

    def training_step(self, batch, batch_idx):
        x = self.table(batch[0].flatten(1)[:, :4].abs().long() % 7)
        x = self.recurrent(self.attention(x, x, x)[0])[0]
        x = torch.view_as_real(torch.fft.fft(self.normalised(x)) @ self.spectral).sum(-1)
        x = self.filter(x.reshape(-1, 2, 4)).reshape(-1, 8)
        return self.head(x).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


def test_weights_of_every_kind_lose_exactly_what_was_asked(loader, make_trainer, capsys):
    model = Mixed()
    callback = LayerwisePruning(0.6, schedule=Cubic(0, 2), figures_every_n_epochs=0)
    make_trainer([callback], max_epochs=4).fit(model, loader)
    pairs = model.filter.w == 0
    assert torch.equal(pairs[0], pairs[1])
    holders = (model.attention.in_proj_weight, model.attention.out_proj.weight, model.spectral)
    gates = [p for name, p in model.recurrent.named_parameters() if name.startswith("weight")]
    number = sum(int((p == 0).sum()) for p in (*holders, *gates)) + int(pairs[0].sum())
    assert number == whole(0.6, 3 * 64 + 64 + 6 * 64 + 64 + 32)
    assert (model.table.weight != 0).all()
    assert (model.normalised.weight != 0).all()
    rows = {row.name: row.zeros for row in callback.ratios}
    for part, held in zip("qkv", model.attention.in_proj_weight.chunk(3), strict=True):
        assert rows[f"attention.in_proj_weight.{part}"] == int((held == 0).sum())
    printed = " ".join(capsys.readouterr().out.split())
    assert "pruned: 442 of 736 weights (60.05%, 60.00% asked for at the last step)" in printed
    assert "when the last alphas were measured, 60.05% of the weights were pruned" in printed
    assert "normalised stays dense: its values are computed" in printed
    assert "head stays dense: it is a table of embeddings too" in printed


class Blocks(pl.LightningModule):
    """Four equal blocks in a list, between two layers of their own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Linear(24, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)) for _ in range(4))
        self.head = nn.Linear(16, 5)

    def training_step(self, batch, batch_idx):
        x = self.stem(batch[0].flatten(1)[:, :24])
        for block in self.blocks:
            x = x + block(x)
        return self.head(x).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_layers_of_a_repeated_block_have_one_score(loader, make_trainer):
    scores = {}
    for granularity in ("block", "layer"):
        callback = LayerwisePruning(0.5, FARMSAllocation(granularity=granularity), summary=False)
        make_trainer([callback], max_epochs=1).fit(Blocks(), loader)
        scores[granularity] = {row.name: row.score for row in callback.ratios}
    blocks = [(scores["block"][f"blocks.{i}.0"], scores["block"][f"blocks.{i}.2"]) for i in range(4)]
    assert all(first == second for first, second in blocks)
    assert len({first for first, _ in blocks}) == 4
    assert len(set(scores["layer"].values())) == 10


def test_layers_that_are_left_out_stay_dense_and_do_not_count(small_net, loader, make_trainer):
    callback = LayerwisePruning(0.5, layers=Selection(exclude=("conv",), max_size=20), summary=False)
    model = small_net()
    make_trainer([callback], max_epochs=1).fit(model, loader)
    assert zeros(model) == {"conv": 0, "hidden": 0, "head": 144}
    assert list(callback.report.alphas) == list(SIZES)  # analysed they are
    with pytest.raises(ValueError, match="`exclude` to match layers, but 'haed' matches none"):
        make_trainer([LayerwisePruning(layers=Selection(exclude=("haed",)))]).fit(small_net(), loader)


@pytest.mark.parametrize("allocation", [UniformAllocation(), RampAllocation(epsilon=0.5)])
def test_allocations_that_look_at_no_weight(allocation, small_net, loader, make_trainer):
    model = small_net()
    callback = LayerwisePruning(0.5, allocation, summary=False)
    make_trainer([callback], max_epochs=1).fit(model, loader)
    ramp = isinstance(allocation, RampAllocation)
    q = {"conv": 0.5, "hidden": 1.0, "head": 1.5} if ramp else dict.fromkeys(SIZES, 1.0)
    factor = 0.5 * TOTAL / sum(SIZES[layer] * q[layer] for layer in SIZES)
    found = zeros(model)
    assert sum(found.values()) == whole(0.5)
    assert all(abs(found[layer] - factor * q[layer] * SIZES[layer]) < 1 for layer in SIZES)


def test_ratios_from_a_file(small_net, loader, make_trainer, tmp_path):
    (tmp_path / "ratios.json").write_text('{"conv": 0.25, "hidden": 0.5, "head": 0.75}')
    model = small_net()
    sparsity = (0.25 * 216 + 0.5 * 3072 + 0.75 * 288) / TOTAL
    allocation = FileAllocation(tmp_path / "ratios.json")
    make_trainer([LayerwisePruning(sparsity, allocation, summary=False)], max_epochs=1).fit(model, loader)
    assert zeros(model) == {"conv": 54, "hidden": 1536, "head": 216}


# ---- resumption ------------------------------------------------------------------------------------------------------

SAVED = {
    "end of the epoch": ({"every_n_epochs": 1}, {}, 8),
    "mid-epoch": ({"every_n_train_steps": 6}, {}, 6),
    "last step of the epoch": ({"every_n_train_steps": 8}, {}, 8),
    "accumulating": ({"every_n_epochs": 1}, {"accumulate_grad_batches": 2}, 4),
}
CALLBACKS = {
    "cubic": lambda: [LayerwisePruning(0.8, schedule=Cubic(0, 4), summary=False)],
    "beside rates": lambda: [
        TBSigmoid(summary=False),
        LayerwisePruning(0.7, schedule=Cubic(1, 5, 2), every_n_epochs=3, summary=False),
    ],
    "averaged": lambda: [LayerwisePruning(0.7, schedule=Cubic(0, 4), summary=False), EMAWeightAveraging(decay=0.8)],
    "by steps": lambda: [LayerwisePruning(schedule=OneShot(2), every_n_steps=3, summary=False)],
}
RESUMED = [("cubic", when) for when in SAVED] + [("averaged", "end of the epoch"), ("averaged", "mid-epoch")]
RESUMED += [("beside rates", "last step of the epoch"), ("by steps", "end of the epoch")]


@pytest.fixture
def equal_batches():
    """A loader that Lightning resumes exactly in mid-epoch: it replays batches from the first, all of them equal."""
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(4, 3, 6, 6, generator=generator), torch.randn(4, 12, generator=generator)
    return DataLoader(TensorDataset(x.repeat(4, 1, 1, 1), y.repeat(4, 1)), batch_size=4)


@pytest.fixture
def fit(small_net, equal_batches, make_trainer, tmp_path):
    def run(callbacks, ckpt_path=None, save=None, **settings):
        model = small_net(make_optimizer=OPTIMIZERS["AdamW"])
        model.validation_step = lambda batch, batch_idx: None
        extra = [ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **save)] if save else []
        checkpointing = {"enable_checkpointing": bool(save), "num_sanity_val_steps": 0}
        trainer = make_trainer([*callbacks, *extra], **{"max_epochs": 6, **checkpointing, **settings})
        trainer.fit(model, equal_batches, equal_batches, ckpt_path=ckpt_path)
        return model, trainer

    return run


@pytest.fixture(scope="module")
def known():
    """What straight runs left behind, by callbacks and settings."""
    return {}


def left_behind(model, trainer, callbacks):
    """All that training leaves, in comparable form."""
    optimizer = trainer.optimizers[0].state_dict()["state"]
    state = {i: {key: torch.as_tensor(v).tolist() for key, v in values.items()} for i, values in optimizer.items()}
    weights = {name: value.tolist() for name, value in model.state_dict().items()}
    bits = [repr(c.masks.state_dict()) for c in callbacks if isinstance(c, LayerwisePruning)]
    return weights, state, bits, [repr(callback.state_dict()) for callback in callbacks]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize(("which", "when"), RESUMED)
def test_resumed_is_as_never_stopped(which, when, fit, known, tmp_path):
    save, settings, step = SAVED[when]
    key = which, *settings
    if key not in known:
        callbacks = CALLBACKS[which]()
        known[key] = left_behind(*fit(callbacks, **settings), callbacks)
    fit(CALLBACKS[which](), save=save, **settings)
    resumed = CALLBACKS[which]()
    model, trainer = fit(resumed, ckpt_path=tmp_path / f"step={step}.ckpt", save=save, **settings)
    assert left_behind(model, trainer, resumed) == known[key]
    (callback,) = (c for c in resumed if isinstance(c, LayerwisePruning))
    assert sum(zeros(model).values()) == whole(callback.sparsity)


def test_the_case_in_which_lightnings_own_callback_loses_its_masks(fit, tmp_path):
    """ModelPruning: the first layer is at 0.51 where the run was never stopped, and at 0.30 where it was resumed."""
    found = []
    for resume in (False, True):
        save = {"every_n_epochs": 1}
        if resume:
            fit([LayerwisePruning(0.51, schedule=Cubic(0, 2), summary=False)], save=save, max_epochs=3)
        path = tmp_path / "step=12.ckpt" if resume else None
        callback = LayerwisePruning(0.51, schedule=Cubic(0, 2), summary=False)
        model, _ = fit([callback], ckpt_path=path, save=save, max_epochs=4)
        found.append((zeros(model), model.state_dict()))
    (straight, weights), (resumed, again) = found
    assert straight == resumed
    assert sum(resumed.values()) == whole(0.51)
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


def test_checkpoints_are_those_of_an_ordinary_model_with_the_sparsity_of_their_epoch(fit, small_net, tmp_path):
    fit([LayerwisePruning(0.8, schedule=Cubic(0, 4), summary=False)], save={"every_n_epochs": 1})
    for epoch in range(6):
        checkpoint = torch.load(tmp_path / f"step={4 * (epoch + 1)}.ckpt", weights_only=True)
        assert checkpoint["state_dict"].keys() == small_net().state_dict().keys()
        number = sum(int((checkpoint["state_dict"][name] == 0).sum()) for name in WEIGHTS)
        assert number == whole(cubic(epoch, 4, 0.8))  # not yet that of the step which comes next
        (state,) = (value for key, value in checkpoint["callbacks"].items() if key.startswith("LayerwisePruning"))
        bits = sum(mask["bits"].numel() for mask in state["masks"].values())
        assert bits == (TOTAL / 8 if epoch else 0)


def test_options_may_change_between_a_run_and_its_resumption(fit, tmp_path):
    fit([LayerwisePruning(0.5, schedule=Cubic(0, 2), summary=False)], save={"every_n_epochs": 1}, max_epochs=3)
    path = tmp_path / "step=8.ckpt"  # with the plan of the step that comes next
    more = LayerwisePruning(0.9, schedule=Cubic(0, 4), layers=Selection(exclude=("conv",)), summary=False)
    model, _ = fit([more], ckpt_path=path, save={"every_n_epochs": 1})
    found = zeros(model)
    assert found["hidden"] + found["head"] == whole(0.9, 3072 + 288)
    assert 0 < found["conv"] < 216  # what it has lost it has lost
    less = LayerwisePruning(0.2, schedule=Cubic(0, 4), summary=False)
    model, _ = fit([less], ckpt_path=path, save={"every_n_epochs": 1})
    assert sum(zeros(model).values()) == whole(0.5)  # as it was planned; what comes after asks for less


def test_a_trainer_that_goes_on_goes_on_pruning(small_net, loader, make_trainer):
    callback, counting = LayerwisePruning(0.8, schedule=Cubic(0, 4), summary=False), Counting()
    model = small_net(make_optimizer=OPTIMIZERS["SGD"])
    trainer = make_trainer([callback, counting], max_epochs=6)
    trainer.fit_loop.max_epochs = 2
    with pytest.warns(UserWarning, match=r"before epoch 4, but only 2 epochs are trained"):
        trainer.fit(model, loader)
    with torch.no_grad():
        model.conv.weight[callback.masks["conv.weight"].logical_not()] = 1.0  # nobody holds it between two fits
    trainer.fit_loop.max_epochs = 6
    trainer.fit(model, loader)
    assert counting.acting == counting.after == {epoch: {whole(cubic(epoch, 4, 0.8))} for epoch in range(6)}
    anew = Counting()
    make_trainer([callback, anew], max_epochs=5, limit_train_batches=1).fit(small_net(), loader)
    assert anew.acting == {epoch: {whole(cubic(epoch, 4, 0.8))} for epoch in range(5)}


def test_overlap_changes_nothing(fit):
    results = []
    for overlap in (False, True):
        callback = LayerwisePruning(0.8, schedule=Cubic(0, 4), overlap=overlap, summary=False)
        model, trainer = fit([callback])
        results.append(left_behind(model, trainer, [callback]))
    assert results[0] == results[1]


def test_half_precision(small_net, loader, make_trainer):
    counting = Counting()
    trainer = make_trainer(
        [LayerwisePruning(0.8, schedule=Cubic(0, 3), summary=False), counting], max_epochs=4, precision="bf16-true"
    )
    trainer.fit(small_net(make_optimizer=OPTIMIZERS["AdamW"]), loader)
    assert counting.acting == {epoch: {whole(cubic(epoch, 3, 0.8))} for epoch in range(4)}


# ---- beside others ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.filterwarnings("ignore:TempBalance. all layers have the same learning rate")
def test_one_analysis_for_all_that_ask_the_same(order, small_net, loader, make_trainer, monkeypatch, logged):
    decomposed = []
    decompose = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda *args, **kw: decomposed.append(1) or decompose(*args, **kw))

    def run(*callbacks):
        decomposed.clear()
        trainer = make_trainer(list(callbacks)[::order], max_epochs=4)
        trainer.fit(small_net(), loader)
        return len(decomposed), {key.partition("/")[0] for key in logged(trainer) if "/alpha/" in key}

    quiet = {"figures_every_n_epochs": 0, "esd_layers": 0, "summary": False}
    alone = run(LayerwisePruning(schedule=Cubic(0, 3), **quiet))
    both = run(TempBalance(1.0, 1.0, **quiet), LayerwisePruning(schedule=Cubic(0, 3), **quiet))
    assert both == alone
    assert alone[1] == {"farms"}
    other = run(TempBalance(1.0, 1.0, WholeMatrix(), **quiet), LayerwisePruning(schedule=Cubic(0, 3), **quiet))
    assert other[0] > both[0]


def test_who_comes_first_makes_no_difference(fit):
    results = []
    for order in (1, -1):
        callbacks = [
            TBSigmoid(summary=False),
            LayerwisePruning(0.7, schedule=Cubic(0, 3), summary=False),
            SpectralMonitor(WholeMatrix(), summary=False),
        ][::order]
        model, _ = fit(callbacks)
        results.append((model.state_dict(), {type(c).__name__: c.history.state_dict() for c in callbacks}))
    (weights, histories), (again, others) = results
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert repr(sorted(histories.items())) == repr(sorted(others.items()))


def test_alphas_are_those_of_masked_weights(fit):
    """The last report is that of the weights as they are in the end."""
    callback = LayerwisePruning(0.8, schedule=Cubic(0, 3), summary=False)
    model, _ = fit([TBSigmoid(summary=False), callback])
    assert callback.report.alphas == analyze(model).alphas
    sparsity = dict(zip(SIZES, callback.history.rows("sparsity"), strict=True))
    assert {layer: row[-1] * SIZES[layer] for layer, row in sparsity.items()} == pytest.approx(zeros(model))
    assert [row[0] for row in sparsity.values()] == [0, 0, 0]  # the first alphas were those of dense ones


@pytest.mark.parametrize(
    "average",
    [
        lambda: EMAWeightAveraging(decay=0.9),
        lambda: EMAWeightAveraging(decay=0.9, update_starting_at_epoch=1, update_every_n_steps=0),
        lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2),
    ],
    ids=["each step", "each epoch", "SWA"],
)
def test_averages_are_zero_where_the_weights_are(average, fit, tmp_path):
    callback = LayerwisePruning(0.8, schedule=Cubic(0, 4), summary=False)
    seen = []

    class Validation(pl.Callback):
        def on_validation_batch_end(self, trainer, pl_module, *args):
            seen.append((trainer.current_epoch, sum(zeros(pl_module).values())))

    model, _ = fit([average(), callback, Validation()], save={"every_n_epochs": 1})
    assert sum(zeros(model).values()) == whole(0.8)
    for name, mask in ((name, callback.masks[name]) for name in WEIGHTS):
        assert torch.equal(model.get_parameter(name) != 0, mask)
    assert {number for epoch, number in seen if epoch >= 2} == {whole(cubic(e, 4, 0.8)) for e in range(2, 6)}
    checkpoint = torch.load(tmp_path / "step=24.ckpt", weights_only=True)
    assert sum(int((checkpoint["state_dict"][name] == 0).sum()) for name in WEIGHTS) == whole(0.8)


def test_two_optimizers(loader, make_trainer):
    class Two(pl.LightningModule):
        automatic_optimization = False

        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24)

        def training_step(self, batch, batch_idx):
            x = batch[0].flatten(1)[:, :24]
            for optimizer in self.optimizers():
                loss = self.second(self.first(x).tanh()).square().mean()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

        def configure_optimizers(self):
            first = torch.optim.SGD(self.first.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
            return first, torch.optim.Adam(self.second.parameters(), 0.01, weight_decay=0.1)

    names = ("first.weight", "second.weight")
    counting = Counting(names)
    make_trainer([LayerwisePruning(0.5, schedule=OneShot(1), summary=False), counting], max_epochs=3).fit(Two(), loader)
    assert counting.after == {0: {0}, 1: {576}, 2: {576}}


def test_optimizers_remember_nothing_of_pruned_weights_and_clipping_does_not_see_them(fit):
    seen = []

    class BeforeClipping(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append([bool(pl_module.get_parameter(n).grad[~callback.masks[n]].any()) for n in callback.masks])

    callback = LayerwisePruning(0.8, schedule=OneShot(1), summary=False)
    model, trainer = fit([callback, BeforeClipping()], max_epochs=2, gradient_clip_val=0.01)
    assert seen == [[]] * 4 + [[False] * 3] * 4
    for name in WEIGHTS:
        parameter, pruned = model.get_parameter(name), ~callback.masks[name]
        state = trainer.optimizers[0].state[parameter]
        assert not state["exp_avg"][pruned].any()
        assert not state["exp_avg_sq"][pruned].any()
        assert state["exp_avg"][~pruned].any()


# ---- zeros that are there --------------------------------------------------------------------------------------------


def test_fine_tuning_keeps_the_zeros_of_a_pruned_model(small_net, loader, make_trainer):
    model = small_net(make_optimizer=OPTIMIZERS["SGD"])
    with torch.no_grad():
        model.hidden.weight[::2] = 0
        model.conv.weight[0, 0] = 0
    counting, callback = Counting(), LayerwisePruning(None, summary=False)
    make_trainer([callback, counting], max_epochs=3).fit(model, loader)
    assert zeros(model) == {"conv": 9, "hidden": 1536, "head": 0}
    assert counting.acting == counting.after == {epoch: {1545} for epoch in range(3)}
    assert callback.ratios is None


def test_zeros_are_kept_on_resumption_even_if_others_have_come(fit, tmp_path, small_net):
    def pruned(module):
        with torch.no_grad():
            module.hidden.weight[::2] = 0

    class Load(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            pruned(pl_module)

    fit([Load(), LayerwisePruning(None, summary=False)], save={"every_n_epochs": 1}, max_epochs=2)
    callback = LayerwisePruning(None, summary=False)
    model, _ = fit([callback], ckpt_path=tmp_path / "step=4.ckpt", save={"every_n_epochs": 1}, max_epochs=3)
    assert zeros(model) == {"conv": 0, "hidden": 1536, "head": 0}


def test_a_layer_of_zeros_alone_learns_and_a_dense_model_is_said_to_be_one(small_net, loader, make_trainer):
    model = small_net()
    nn.init.zeros_(model.head.weight)
    with (
        pytest.warns(UserWarning, match="all weights of head are zero, so that it is trained and not held at zero"),
        pytest.warns(UserWarning, match="no weight is zero, so that none is held at zero. Load the pruned model"),
    ):
        make_trainer([LayerwisePruning(None, summary=False)], max_epochs=1).fit(model, loader)
    assert (model.head.weight != 0).any()


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_layer_that_is_not_finite_has_score_1_and_loses_its_finite_weights_first(small_net, loader, make_trainer):
    model = small_net()
    with torch.no_grad():
        model.head.weight[0, :3] = torch.nan
    callback = LayerwisePruning(0.5, summary=False)
    trainer = make_trainer([callback], max_epochs=1, limit_train_batches=0.25)
    with (
        pytest.warns(UserWarning, match="weights of head are not finite, and are pruned last"),
        pytest.warns(UserWarning, match="weights of 'head' are not all finite, and are left out of the analysis"),
    ):
        trainer.fit(model, loader)
    rows = {row.name: row for row in callback.ratios}
    assert rows["head"].score == 1
    assert math.isnan(rows["head"].source)
    assert sorted(row.score for row in callback.ratios) == pytest.approx([0.8, 1, 1.2])
    assert callback.masks["head.weight"][0, :3].all()
    assert sum(callback.masks.zeros.values()) == whole(0.5)


def test_without_alphas_all_layers_lose_the_same_share(small_net, loader, make_trainer, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    model = small_net()
    callback = LayerwisePruning(0.5, summary=False)
    with (
        pytest.warns(UserWarning, match="analysis failed and was skipped; training goes on. OutOfMemoryError"),
        pytest.warns(UserWarning, match="every layer loses the same share at this step. There is no analysis"),
    ):
        make_trainer([callback], max_epochs=1).fit(model, loader)
    assert zeros(model) == {layer: size // 2 for layer, size in SIZES.items()}


def test_layers_that_are_initialised_by_the_first_batch_are_pruned_too(small_net, loader, make_trainer):
    model = small_net()
    model.late = nn.Sequential(nn.LazyLinear(20), nn.LazyLinear(8))
    model.on_train_batch_start = lambda *args: [model.late(torch.ones(2, 16))].clear()
    names = (*WEIGHTS, "late.0.weight", "late.1.weight")
    callback = LayerwisePruning(0.5, UniformAllocation(), OneShot(1), summary=False)
    make_trainer([callback], max_epochs=2).fit(model, loader)
    found = zeros(model, names)
    assert (found["late.0"], found["late.1"]) == (160, 80)
    assert sum(found.values()) == whole(0.5, TOTAL + 480)


def test_a_model_of_lazy_layers_alone_is_refused_with_the_remedy(small_net, loader, make_trainer):
    model = small_net()
    for name in ("conv", "hidden", "head"):
        setattr(model, name, nn.LazyLinear(4))
    with pytest.raises(MisconfigurationException, match="not initialised yet: run a batch through it"):
        make_trainer([LayerwisePruning(0.5, summary=False)], max_epochs=1).fit(model, loader)


def test_layers_that_come_later_are_pruned_from_the_next_step_on(small_net, loader, make_trainer):
    model = small_net()

    def grow():
        if model.current_epoch == 1:
            model.late = nn.Linear(20, 20, bias=False)
            model.trainer.optimizers[0].add_param_group({"params": model.late.parameters()})

    model.on_train_epoch_start = grow
    callback = LayerwisePruning(0.8, schedule=Cubic(0, 2), summary=False)
    make_trainer([callback], max_epochs=3).fit(model, loader)
    assert sum(zeros(model, (*WEIGHTS, "late.weight")).values()) == whole(0.8, TOTAL + 400)
    assert callback.ratios.zeros == whole(0.8, TOTAL + 400)
    assert callback.ratios["hidden"].score != 1  # of the last analysis, which the new layer is not in


def test_a_file_of_other_layers_is_refused_before_the_training(small_net, loader, make_trainer, tmp_path):
    (tmp_path / "a.json").write_text('{"conv": 0.5, "hidden": 0.5, "heads": 0.5}')
    callback = LayerwisePruning(0.5, FileAllocation(tmp_path / "a.json"), OneShot(1), summary=False)
    with pytest.raises(ValueError, match=r"1 of 3 are not: 'heads' \(did you mean 'head'\?\)"):
        make_trainer([callback], max_epochs=2).fit(small_net(), loader)


def test_weights_that_something_else_revives_are_zero_in_the_checkpoint(fit, tmp_path):
    class Meddle(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            nn.init.ones_(pl_module.head.weight) if batch_idx == 3 else None

    with pytest.warns(UserWarning, match="pruned weights were not zero at the end of the epoch") as warned:
        fit([Meddle(), LayerwisePruning(0.5, summary=False)], save={"every_n_epochs": 1}, max_epochs=2)
    assert len([w for w in warned if "not zero at the end" in str(w.message)]) == 1
    for step in (4, 8):
        weights = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"]
        assert sum(int((weights[name] == 0).sum()) for name in WEIGHTS) == whole(0.5)


class Taught(pl.LightningModule):
    """A student and its teacher, which is frozen, or only left out of the optimizer."""

    def __init__(self, frozen):
        super().__init__()
        self.student, self.teacher = nn.Linear(12, 24), nn.Linear(12, 24).requires_grad_(not frozen)

    def training_step(self, batch, batch_idx):
        x = batch[0].flatten(1)[:, :12]
        return nn.functional.mse_loss(self.student(x), self.teacher(x).detach())

    def configure_optimizers(self):
        return torch.optim.SGD(self.student.parameters(), lr=0.01)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_teacher_that_would_be_pruned_is_named_unless_it_was_chosen(frozen, loader, make_trainer):
    callback = LayerwisePruning(0.5, schedule=Cubic(0, 2), summary=False)
    with pytest.warns(UserWarning, match=r"no optimizer trains.*1 in all: teacher\. .*exclude=\['teacher', ") as told:
        make_trainer([callback], max_epochs=3).fit(Taught(frozen), loader)
    assert sum("no optimizer trains" in str(each.message) for each in told) == 1
    for layers in (Selection(exclude=("teacher",)), Selection(include=("student", "teacher"))):
        callback = LayerwisePruning(0.5, summary=False, layers=layers)
        make_trainer([callback], max_epochs=1).fit(Taught(frozen), loader)  # and no warning, which would be an error
        assert ("teacher.weight" in callback.masks) == bool(layers.include)


def test_a_schedule_that_ends_after_the_training_is_said_to(small_net, loader, make_trainer):
    model = small_net()
    with pytest.warns(
        UserWarning, match=r"before epoch 3, but only 3 epochs are trained, so that 77.04% of the weights"
    ):
        make_trainer([LayerwisePruning(0.8, schedule=Cubic(0, 3), summary=False)], max_epochs=3).fit(model, loader)
    assert sum(zeros(model).values()) == whole(cubic(2, 3, 0.8))


def test_a_training_that_ends_by_steps_says_so_too(small_net, loader, make_trainer):
    trainer = make_trainer([LayerwisePruning(0.8, schedule=OneShot(3), summary=False)], max_epochs=-1, max_steps=6)
    with pytest.warns(
        UserWarning,
        match=r"before epoch 3, but only 2 epochs are trained, so that 0.00% of the "
        r"weights",
    ):
        trainer.fit(small_net(), loader)


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_batch_end"])
def test_weights_that_the_module_replaces_are_pruned_like_those_before(hook, small_net, loader, make_trainer):
    model, epochs = small_net(make_optimizer=OPTIMIZERS["SGD"]), []

    def replace(*args):
        if model.current_epoch == 2 and not epochs:
            epochs.append(2)
            model.head.weight = nn.Parameter(torch.ones_like(model.head.weight))
            model.trainer.optimizers[0].add_param_group({"params": [model.head.weight]})

    setattr(model, hook, replace)
    counting = Counting()
    with pytest.warns(UserWarning, match="not zero at the end") if hook == "on_train_batch_end" else nullcontext():
        make_trainer([LayerwisePruning(0.5, summary=False), counting], max_epochs=3).fit(model, loader)
    assert sum(zeros(model).values()) == whole(0.5)
    assert (counting.acting[2] == {whole(0.5)}) == (hook == "on_train_epoch_start")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsity": 1.0}, ValueError, r"`sparsity` to be in \[0, 1\), but got 1.0"),
        ({"sparsity": -0.1}, ValueError, r"`sparsity` to be in \[0, 1\), but got -0.1"),
        ({"sparsity": "half"}, TypeError, "`sparsity` to be a number or None, but got 'half'"),
        ({"sparsity": True}, TypeError, "`sparsity` to be a number or None, but got True"),
        ({"allocation": OWLAllocation()}, ValueError, "to need no calibration text, but got OWLAllocation"),
        (
            {"allocation": FARMSAllocation(cap=0.6)},
            ValueError,
            r"in \[floor, cap\] of "
            r"`allocation`, \[0.0, 0.6\], but got 0.7",
        ),
        ({"allocation": "farms"}, TypeError, "`allocation` to be a Allocation, but got 'farms'"),
        ({"schedule": 3}, TypeError, "`schedule` to be a PruningSchedule, but got 3"),
        ({"layers": ("conv",)}, TypeError, "`layers` to be a Selection, but got"),
        ({"analysis": WholeMatrix()}, TypeError, "multiple values for argument 'analysis'"),
    ],
)
def test_options_out_of_range_are_named(options, error, message):
    with pytest.raises(error, match=message):
        LayerwisePruning(**options)


def test_trainers_that_do_not_suit_are_refused_at_the_start(small_net, loader, make_trainer):
    for other in (LayerwisePruning(0.2, WholeMatrixAllocation()), ModelPruning("l1_unstructured", amount=0.5)):
        with pytest.raises(MisconfigurationException, match=f"LayerwisePruning and {type(other).__name__} would both"):
            make_trainer([LayerwisePruning(), other]).fit(small_net(), loader)
    with pytest.raises(MisconfigurationException, match=r"FSDP1 flattens\. Use ModelParallelStrategy"):
        LayerwisePruning().setup(mock.Mock(strategy=FSDPStrategy(), callbacks=[]), small_net(), "fit")

    class Nothing(Tower):
        def __init__(self):
            super().__init__()
            self.layers = nn.utils.parametrizations.weight_norm(nn.Linear(24, 24)).double()

    with pytest.raises(MisconfigurationException, match="finds no weight in the model that it could prune"):
        make_trainer([LayerwisePruning()], precision="64-true").fit(Nothing(), loader)


# ---- what is logged --------------------------------------------------------------------------------------------------


def test_sparsity_and_ratios_in_tensorboard(small_net, loader, make_trainer, tmp_path):
    logger = TensorBoardLogger(tmp_path, name="tb", version=0)
    callback = LayerwisePruning(0.8, schedule=Cubic(0, 3), summary=False)
    trainer = make_trainer([callback], max_epochs=5, logger=logger)
    trainer.fit(small_net(), loader)
    events = EventAccumulator(logger.log_dir, {"images": 0, "scalars": 0}).Reload()
    total = {event.step: event.value for event in events.Scalars("pruning/sparsity")}
    reached = [whole(cubic(epoch, 3, 0.8)) / TOTAL for epoch in range(5)]
    assert [total[step] for step in (3, 7, 11, 15, 19)] == pytest.approx(reached)
    assert [total[step] for step in (4, 8, 12)] == pytest.approx(reached[1:4])  # at the steps
    for layer, size in SIZES.items():
        last = events.Scalars(f"sparsity/{layer}")[-1]
        assert last.value * size == pytest.approx(callback.ratios[layer].zeros, rel=1e-6)
    assert [event.step for event in events.Images("pruning/ratios")] == [4, 8, 12]
    assert {"farms/sparsity_map", "farms/sparsity_map_labelled"} <= set(events.Tags()["images"])
    assert trainer.callback_metrics["pruning/sparsity"] == pytest.approx(reached[-1])


def test_no_key_is_the_beginning_of_another(small_net, loader, make_trainer, logged):
    trainer = make_trainer([LayerwisePruning(summary=False), TBSigmoid(summary=False)])
    trainer.fit(small_net(), loader)
    keys = [key for key in logged(trainer) if "sparsity" in key]
    assert len(keys) == 4
    assert not [key for key in keys for other in logged(trainer) if other.startswith(f"{key}/")]
