"""Code for GPUs on an emulated device: it mixes no devices, gives the CPU's results, and seldom lets the host wait."""

import contextlib

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from lightning_farms import FARMS, Balancer, SigmoidMap, TBSigmoid, WholeMatrix, analyze
from lightning_farms.analysis import Diagnostics, KnownLayers
from lightning_farms.callbacks import LayerwisePruning, PredictionWriter, RolloutMonitor
from lightning_farms.data import CFDDataModule
from lightning_farms.data.simulation import SimulationConfig, simulate_cfd
from lightning_farms.models import DPOT, OperatorModule, resnet18
from lightning_farms.models._divergence import all_finite
from lightning_farms.pruning import FARMSAllocation, allocate, perplexity, prune
from tests.benchmarks import bench_gpu
from tests.emulated_device import DEVICE, EmulatedTensor, emulated_device
from tests.pruning.families import tiny_decoder


def values(tensor):
    return tensor.inner if isinstance(tensor, EmulatedTensor) else tensor.detach()


# ---- the emulation -------------------------------------------------------------------------------------------------


def test_it_refuses_what_a_gpu_refuses():
    with emulated_device():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert there.device == DEVICE
        assert isinstance(there * 2 + 1, EmulatedTensor)
        for mixed in (
            lambda: there + here,
            lambda: torch.stack([there, here]),
            lambda: here[torch.zeros(2, dtype=torch.long, device="cuda")],
            lambda: torch.randn(3, generator=torch.Generator(), device="cuda"),
        ):
            with pytest.raises(RuntimeError, match=r"Expected (all tensors|a generator)"):
                mixed()
        with pytest.raises(TypeError, match=r"Tensor.cpu\(\) first"):
            there.numpy()


def test_it_counts_waits():
    with emulated_device() as waits:
        there = torch.arange(4.0, device="cuda")
        there.to("cpu", non_blocking=True)
        there[torch.tensor([1, 2])] = 7.0
        assert waits == []
        for number, waiting in enumerate(
            [
                there.sum().item,
                there.tolist,
                there.cpu,
                there.nonzero,
                lambda: bool((there > 0).all()),
                lambda: there[there > 1],
            ]
        ):
            assert len(waits) == number
            waiting()
        assert len(waits) == 6
        assert there.tolist() == [0, 7, 7, 3]


# ---- analysis ------------------------------------------------------------------------------------------------------


def layers():
    torch.manual_seed(0)
    more = [nn.Linear(200, 60), *(nn.Linear(64, 64) for _ in range(4)), nn.Linear(64, 64).bfloat16()]
    return nn.Sequential(nn.Conv2d(32, 64, 3), *more)


@pytest.mark.parametrize("where", ["auto", "device", "host"])
@pytest.mark.parametrize("method", [FARMS(), WholeMatrix(), WholeMatrix(fit="ks"), FARMS(fit="peak")], ids=repr)
def test_alphas_are_the_cpus(method, where):
    expected = analyze(layers(), method)
    with emulated_device():
        found = analyze(layers().to("cuda"), method, where=where, workers=2)
    assert found.alphas == pytest.approx(expected.alphas, abs=1e-4)
    assert {row.way for row in found} == {"host" if where == "host" else "torch"}


@pytest.mark.parametrize("method", [FARMS(), WholeMatrix()], ids=repr)
def test_the_host_waits_twice_however_many_layers_there_are(method):
    """To know which layers are finite, and for all numbers."""
    with emulated_device() as waits:
        analyze(layers().to("cuda"), method)
    assert [wait.operation for wait in waits] == ["tolist", "tolist"]


def test_diagnostics_are_the_cpus():
    wanted = Diagnostics(bootstrap=10, p_value=10, twin=True, marchenko_pastur=True, outliers=True, distributions=True)
    expected = analyze(layers(), diagnostics=wanted)
    with emulated_device():
        found = analyze(layers().to("cuda"), diagnostics=wanted)
    for got, row in zip(found, expected, strict=True):
        for name in (
            "alpha_low",
            "p_value",
            "relative_alpha",
            "mp_spikes",
            "alpha_without_outliers",
            "lognormal_ratio",
        ):
            assert getattr(got, name) == pytest.approx(getattr(row, name), abs=1e-3, nan_ok=True), (row.name, name)


def test_products_of_low_rank_and_complex_weights():
    def model():
        torch.manual_seed(0)
        layer = nn.Linear(90, 120)
        layer.lora_A, layer.lora_B = nn.Parameter(torch.randn(16, 90)), nn.Parameter(torch.randn(120, 16))
        layer.spectral = nn.Parameter(torch.randn(3, 20, 20, dtype=torch.complex64))
        return layer

    expected = analyze(model())
    with emulated_device():
        assert analyze(model().to("cuda")).alphas == pytest.approx(expected.alphas, abs=1e-4)


def test_frozen_layers_are_recalled():
    with emulated_device() as waits:
        model, known = layers().to("cuda").requires_grad_(False), KnownLayers()
        first = analyze(model, known=known)
        waits.clear()
        assert list(analyze(model, known=known)) == list(first)
        assert len(waits) == 1  # for the fingerprints


# ---- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_balanced_steps_are_the_cpus_and_never_wait(make):
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        with emulated_device() if device == "cuda" else contextlib.nullcontext([]) as waits:
            model = DPOT(img_size=16, patch_size=4, embed_dim=32, depth=1, n_blocks=4).to(device)
            optimizer = make(model.parameters(), lr=1e-3)
            balancer = Balancer(model, optimizer, SigmoidMap())
            balancer.update()
            x = torch.randn(2, 16, 16, 10, 4).to(device)
            for step in range(4):
                if step == 2:  # in the first steps the hooks are tried
                    waits.clear()
                optimizer.zero_grad()
                model(x)[0].square().mean().backward()
                optimizer.step()
            assert waits == []
            found.append([values(parameter) for parameter in model.parameters()])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


class _AnyDevice(CPUAccelerator):
    def setup_device(self, device):
        pass


def trained(device, folder):
    pl.seed_everything(0)
    simulated = SimulationConfig(trajectories=8, resolution=16, frames=13, duration=0.2, mach=1.0, eta=0.05, zeta=0.1)
    data = CFDDataModule(
        batch_size=4,
        normalize=True,
        val_fraction=0.25,
        test_fraction=0.25,
        simulation=simulated,
        cache_dir=folder / "cache",
    )
    network = DPOT(
        img_size=16, patch_size=4, embed_dim=32, depth=1, n_blocks=4, modes=4, out_layer_dim=8, normalize=True
    )
    module = OperatorModule(network, lr=1e-3, scheduler="onecycle")
    strategy = SingleDeviceStrategy(device=device, accelerator=_AnyDevice()) if device == DEVICE else "auto"
    trainer = pl.Trainer(
        accelerator="auto" if device == DEVICE else "cpu",
        strategy=strategy,
        max_epochs=2,
        inference_mode=False,  # which the emulation does not know
        enable_progress_bar=False,
        logger=CSVLogger(folder / str(device.type)),
        callbacks=[
            TBSigmoid(figures_every_n_epochs=0),
            LayerwisePruning(sparsity=0.3),
            RolloutMonitor(every_n_epochs=1),
            PredictionWriter(folder / f"{device.type}.hdf5"),
        ],
    )
    trainer.fit(module, data)
    errors = trainer.test(module, data, verbose=False)[0]
    trainer.predict(module, data)
    return errors


@pytest.mark.filterwarnings("ignore")
def test_the_main_job_is_the_cpus(tmp_path):
    """Fitting with balancing, pruning and rollouts, testing and predicting, in Lightning's own loops."""
    expected = trained(torch.device("cpu"), tmp_path)
    with emulated_device():
        found = trained(DEVICE, tmp_path)
    assert found == pytest.approx(expected, rel=1e-3)
    assert (tmp_path / "cuda.hdf5").stat().st_size == (tmp_path / "cpu.hdf5").stat().st_size


def test_a_networks_weights_are_checked_at_one_wait():
    with emulated_device() as waits:
        network = layers().to("cuda")
        assert all_finite(network.parameters())
        assert len(waits) == 1
        with torch.no_grad():
            network[3].weight[5, 7] = torch.inf
        assert not all_finite(network.parameters())


def test_classifiers_and_flows():
    torch.manual_seed(0)
    images, network = torch.randn(2, 3, 32, 32), resnet18(num_classes=10, width=8).eval()
    flows = SimulationConfig(trajectories=1, resolution=16, frames=2, duration=0.02)
    with torch.no_grad():
        expected, simulated = network(images), simulate_cfd(flows)
        with emulated_device():
            found = values(network.to("cuda")(images.to("cuda")))
            again = simulate_cfd(flows, device="cuda")
    torch.testing.assert_close(found, expected)
    for got, wanted in zip(again, simulated, strict=True):
        if isinstance(wanted, torch.Tensor):
            torch.testing.assert_close(values(got), wanted)


# ---- pruning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("family", ["llama", "qwen3-moe"])
def test_pruned_weights_are_the_cpus(family, method):
    ids = torch.randint(0, 96, (4, 32), generator=torch.Generator().manual_seed(0))
    found = []
    for device in ("cpu", "cuda"):
        with emulated_device() if device == "cuda" else contextlib.nullcontext():
            model = tiny_decoder(family).to(device)
            prune(model, allocate(model, 0.5, FARMSAllocation(epsilon=0.2)), method, ids)
            zeros = {name: values(weight).eq(0) for name, weight in model.named_parameters()}
            found.append((zeros, perplexity(model, ids, window=32).token))
    (zeros, error), (expected, wanted) = found
    assert all(torch.equal(zeros[name], expected[name]) for name in expected)
    assert error == pytest.approx(wanted, rel=1e-4)


# ---- the benchmark -------------------------------------------------------------------------------------------------


def test_the_benchmarks_lines_for_a_device_run():
    with emulated_device():
        run = bench_gpu.Run("cuda", small=True)
        list(bench_gpu.all_sections(run, ["ways", "analysis", "epoch", "dpot"]))
    errors = [row for row in run.rows if "Error" in row.result and not row.what.endswith("cupy")]
    assert [row for row in run.rows if row.what == "failed"] == errors == []
    assert {row.section for row in run.rows} == {"ways", "analysis", "epoch", "dpot"}
