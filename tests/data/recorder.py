"""A module that learns nothing and keeps what it is given."""

import torch
from lightning.pytorch import LightningModule
from torch.utils.data import get_worker_info

from tests.data.fields.labelled_flows import labels


class Recorder(LightningModule):
    """Records the batches of each epoch, by what `note` takes of them."""

    note = staticmethod(labels)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = {}

    def training_step(self, batch, batch_index):
        self.seen.setdefault(self.current_epoch, []).append(self.note(batch))
        return self.weight.square().sum()

    def validation_step(self, batch, batch_index):
        assert get_worker_info() is None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
