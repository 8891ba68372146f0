"""The main job from the set it simulates to its checkpoint, at tiny size: DPOT, CFD data, TBSigmoid with FARMS."""

import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_farms import FARMS, TBSigmoid, analyze
from lightning_farms.data import CFDDataModule, SimulationConfig
from lightning_farms.models import DPOT, OperatorModule
from tests.forked import run_forked

SIMULATION = SimulationConfig(trajectories=12, resolution=16, frames=8, mach=0.5)
SIZES = {
    "img_size": 16, "patch_size": 4, "in_timesteps": 4, "embed_dim": 32, "depth": 2, "n_blocks": 2, "modes": 3,
    "mlp_ratio": 2.0, "out_layer_dim": 16, "n_cls": 6, "normalize": True,
}  # fmt: skip
STEPS = 3  # 12 trajectories, a quarter of them for validation, 3 in a batch
# Every trained or frozen weight matrix of the network above, by the name of its row in a report.
ROWS = {
    "pos_embed", "patch_embed.proj.0", "patch_embed.proj.2", "scale_feats_mu", "scale_feats_sigma",
    "cls_head.0", "cls_head.2", "cls_head.4", "time_agg_layer.w", "out_layer.0", "out_layer.2", "out_layer.4",
    *(f"blocks.{i}.{name}" for i in range(2) for name in ("filter.w1", "filter.w2", "mlp.0", "mlp.2")),
}  # fmt: skip


def network():
    torch.manual_seed(0)
    return DPOT(**SIZES)


def data(cache, **options):
    return CFDDataModule(
        cache_dir=cache, simulation=SIMULATION, in_timesteps=4, batch_size=3, test_fraction=0.25, **options
    )


def fit(cache, folder, *, workers=0, ckpt_path=None, callbacks=(), lr=0.01, **settings):
    """Run the job with objects of its own; returns its trainer, module and callback."""
    module, callback = OperatorModule(network(), lr=lr), TBSigmoid(analysis=FARMS(), summary=False)
    settings = {"max_epochs": 4, "devices": 1, "gradient_clip_val": 1e4, **settings}
    saver = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="csv", version=0 if ckpt_path is None else 1),
        callbacks=[callback, saver, *callbacks],
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, datamodule=data(cache, num_workers=workers), ckpt_path=ckpt_path)
    return trainer, module, callback


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Holds the simulated set after the first run."""
    return tmp_path_factory.mktemp("cache")


def saved(folder, epoch):
    return torch.load(folder / f"epoch={epoch}.ckpt", weights_only=True)


def assert_identical(first, second, where=""):
    """Equal to the last bit, tensors and plain values alike."""
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, where
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_identical(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_identical(*pair, f"{where}/{index}")
    else:
        assert first == second, where


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # the resumed job keeps its checkpoints elsewhere
def test_resumed_job_equals_the_straight_one_bit_for_bit(cache, tmp_path, workers):
    straight_trainer, _, straight = fit(cache, tmp_path / "straight", workers=workers)
    seed_everything(99)  # a resumed process has another generator state
    resumed_trainer, _, resumed = fit(
        cache, tmp_path / "resumed", workers=workers, ckpt_path=tmp_path / "straight" / "epoch=1.ckpt"
    )
    assert not (tmp_path / "resumed" / "epoch=1.ckpt").exists()
    for epoch in (2, 3):
        expected, got = (saved(tmp_path / name, epoch) for name in ("straight", "resumed"))
        for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
            assert_identical(expected[part], got[part], f"epoch {epoch}, {part}")
        assert_identical(expected["callbacks"][straight.state_key], got["callbacks"][straight.state_key], "callback")
    assert straight_trainer.global_step == resumed_trainer.global_step == 4 * STEPS
    assert_identical(straight.multipliers, resumed.multipliers)
    assert_identical(straight.report.alphas, resumed.report.alphas)
    for name in ("val/l2re", "train/loss"):
        assert_identical(straight_trainer.callback_metrics[name], resumed_trainer.callback_metrics[name], name)

    halfway, final = saved(tmp_path / "straight", 1), saved(tmp_path / "straight", 3)
    multipliers = [state["callbacks"][straight.state_key]["ramp"]["target"] for state in (halfway, final)]
    assert multipliers[0] != multipliers[1], "the multipliers move, so that equal ones say something"
    assert min(multipliers[1].values()) < 0.9
    assert max(multipliers[1].values()) > 1.1
    trained = {name for name, p in OperatorModule(network()).named_parameters() if p.requires_grad}
    moved = {n for n in trained if not torch.equal(halfway["state_dict"][n], final["state_dict"][n])}
    assert moved == trained


def test_every_weight_of_the_network_is_a_row(cache, tmp_path):
    _, _, callback = fit(cache, tmp_path, max_epochs=1)
    assert {row.name for row in analyze(network())} == ROWS
    assert {row.name for row in callback.report} == {f"network.{name}" for name in ROWS}
    matrices = {name for name, p in network().named_parameters() if p.ndim > 1 and ".b" not in name}
    assert {name.removesuffix(".weight") for name in matrices} - {"time_agg_layer.gamma"} == ROWS
    kept = {f"network.cls_head.{index}" for index in (0, 2, 4)}
    assert set(callback.multipliers) == set(callback.report.alphas) - kept, "the frozen head is shown, not adjusted"
    for name in ("pos_embed", "blocks.1.filter.w2", "time_agg_layer.w", "out_layer.0", "patch_embed.proj.0"):
        assert callback.report[f"network.{name}"].status == "ok", callback.report[f"network.{name}"].reason


def test_bf16_with_accumulated_gradients(cache, tmp_path):
    dtypes = set()

    def record(layer, inputs, output):
        if torch.is_grad_enabled():
            dtypes.add(output.dtype)

    class Watch(ModelCheckpoint):
        def on_fit_start(self, trainer, pl_module):
            pl_module.network.blocks[0].mlp[0].register_forward_hook(record)

    trainer, module, callback = fit(
        cache, tmp_path, max_epochs=8, precision="bf16-mixed", accumulate_grad_batches=2, callbacks=[Watch()]
    )
    assert trainer.global_step == 8 * 2, "3 batches are a step of two and a step of one"
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in module.parameters())
    assert trainer.callback_metrics["val/l2re"] < 0.95 * first_value(tmp_path, "val/l2re")
    assert callback.history.epochs == list(range(9))
    assert len(set(callback.multipliers.values())) > 5


def first_value(folder, name):
    header, *lines = (line.split(",") for line in (folder / "csv/version_0/metrics.csv").read_text().splitlines())
    column = header.index(name)
    return next(float(line[column]) for line in lines if line[column])


def test_two_processes_agree(tmp_path):
    """The set is simulated within the run, by one of the processes."""
    run_forked(((__file__, tmp_path), {}), folder=tmp_path)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_identical(first, second)
    assert first["alphas"].keys() == {f"network.{name}" for name in ROWS}
    assert first["step"] == 2 * 2, "9 trajectories for two processes, the first once more, in batches of 3 and 2"
    start = OperatorModule(network()).state_dict()
    assert not any(
        torch.equal(first["weights"][f"network.blocks.0.{n}"], start[f"network.blocks.0.{n}"]) for n in MOVED
    )


MOVED = ("filter.w1", "mlp.0.weight", "norm1.bias")


def main(folder):
    torch.set_num_threads(1)
    trainer, module, callback = fit(folder / "cache", folder, max_epochs=2, devices=2, strategy="ddp")
    torch.save(
        {
            "weights": module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "alphas": callback.report.alphas,
            "multipliers": callback.multipliers,
            "step": trainer.global_step,
        },
        folder / f"rank{trainer.global_rank}.pt",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))


def test_a_checkpoint_of_the_job_gives_the_network_back_by_itself(tmp_path):
    module = OperatorModule(DPOT(**{**SIZES, "act": "silu"}))
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "job.ckpt", weights_only=True)
    copy = DPOT.from_checkpoint(tmp_path / "job.ckpt")
    assert copy.config == module.network.config
    assert all(torch.equal(value, module.network.state_dict()[name]) for name, value in copy.state_dict().items())
