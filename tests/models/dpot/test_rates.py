"""Learning rates by layer act on the layers of DPOT that are neither linear nor plain convolutions."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_farms import TBSigmoid, TempBalance, analyze
from lightning_farms.models import DPOT
from tests.callbacks.conftest import Used

# layer -> the parameters that it is trained by
LAYERS = {
    "pos_embed": ["pos_embed"],
    "time_agg_layer.w": ["time_agg_layer.w", "time_agg_layer.gamma"],
    "blocks.0.filter.w1": ["blocks.0.filter.w1", "blocks.0.filter.b1"],
    "blocks.0.filter.w2": ["blocks.0.filter.w2", "blocks.0.filter.b2"],
    "out_layer.0": ["out_layer.0.weight", "out_layer.0.bias"],
}


class Job(pl.LightningModule):
    """DPOT by plain gradient descent on both its outputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = DPOT(
            img_size=16, patch_size=4, in_timesteps=4, embed_dim=32, depth=1, n_blocks=2, out_layer_dim=16
        ).double()

    def training_step(self, batch, batch_idx):
        prediction, logits = self.network(batch[0])
        return (prediction - batch[0][..., -1:, :]).square().mean() + logits.square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def test_analysis_names_them():
    report = analyze(Job().network)
    assert set(LAYERS) <= set(report.alphas)


@pytest.mark.parametrize("make", [TBSigmoid, TempBalance])
def test_rates_act_on_them(make, tmp_path):
    callback, used = make(summary=False), Used()
    trainer = pl.Trainer(
        callbacks=[callback, used],
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        precision="64-true",
        log_every_n_steps=1,
        logger=CSVLogger(tmp_path),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    frames = torch.randn(2, 16, 16, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    trainer.fit(Job(), DataLoader(TensorDataset(frames), batch_size=1))
    multipliers = [callback.multipliers[f"network.{layer}"] for layer in LAYERS]
    assert len({round(multiplier, 3) for multiplier in multipliers}) == len(LAYERS)
    assert max(multipliers) / min(multipliers) > 1.1
    for layer, parameters in LAYERS.items():
        for parameter in parameters:
            for step in used.multipliers:
                expected = callback.multipliers[f"network.{layer}"]
                assert step[f"network.{parameter}"] == pytest.approx(expected, rel=1e-4), parameter
