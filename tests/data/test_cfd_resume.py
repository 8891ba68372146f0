import json
from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_farms.data import epoch_windows
from tests.data.fields.labelled_flows import label, module, write_labelled
from tests.data.recorder import Recorder
from tests.forked import run_forked


@pytest.fixture
def path(tmp_path):
    return write_labelled(tmp_path / "labelled.hdf5")


class ScheduledRecorder(Recorder):
    """Asks for the number of steps, as OneCycle schedules do, so that Lightning builds the loaders early."""

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()


def fit(path, folder, *, epochs, resume=None, data=None, model=Recorder, callbacks=(), **options):
    checkpoint = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=[checkpoint, *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    model = model()
    trainer.fit(model, datamodule=data or module(path), ckpt_path=resume)
    return model.seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("model", [Recorder, ScheduledRecorder])
def test_resumed_epochs_have_the_batches_of_a_straight_run(path, tmp_path, workers, model):
    straight = fit(path, tmp_path / "straight", epochs=4, data=module(path, num_workers=workers), model=model)
    fit(path, tmp_path / "half", epochs=2, data=module(path, num_workers=workers), model=model)
    torch.manual_seed(123)
    resumed = fit(
        path,
        tmp_path / "half",
        epochs=4,
        resume=tmp_path / "half" / "last.ckpt",
        data=module(path, num_workers=workers),
        model=model,
    )
    assert sorted(resumed) == [2, 3]
    assert resumed == {epoch: straight[epoch] for epoch in (2, 3)}
    assert all(straight[epoch] != straight[epoch + 1] for epoch in range(3))
    for epoch, batches in straight.items():
        drawn = epoch_windows(11, 4, seed=0, epoch=epoch)
        assert [first for batch in batches for first, _ in batch] == [label(key.item, key.start) for key in drawn]


class BatchRecorder(Recorder):
    """Records whole batches by epoch and number."""

    def training_step(self, batch, batch_index):
        self.seen[self.current_epoch, batch_index] = torch.cat(batch, dim=3)
        return super().training_step(batch, batch_index)


class ScheduledBatchRecorder(ScheduledRecorder, BatchRecorder):
    pass


def noisy(path, workers=0):
    return module(path, num_workers=workers, noise=0.1, seed=3)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of three epochs of three batches, with a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("straight")
    path = write_labelled(folder / "labelled.hdf5")
    return path, folder, fit(path, folder, epochs=3, data=noisy(path), model=BatchRecorder, callbacks=[saver(folder)])


def saver(folder):
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # the resumed run keeps its checkpoints elsewhere
@pytest.mark.parametrize(
    ("step", "workers", "model"),
    [
        *((step, 0, BatchRecorder) for step in range(1, 9)),
        *((step, 0, ScheduledBatchRecorder) for step in (2, 3, 4)),
        *((step, 2, ScheduledBatchRecorder) for step in (3, 5)),
    ],
)
def test_resumed_within_an_epoch_the_rest_of_it_is_that_of_a_straight_run(straight, tmp_path, step, workers, model):
    path, folder, expected = straight
    seen = fit(
        path,
        tmp_path,
        epochs=3,
        data=noisy(path, workers),
        model=model,
        resume=folder / f"step={step}.ckpt",
        callbacks=[saver(tmp_path)],
    )
    keys = [(epoch, batch) for epoch in range(3) for batch in range(3)][step:]
    assert [key for key in seen if isinstance(key, tuple)] == keys
    for key in keys:
        assert torch.equal(seen[key], expected[key]), key


def test_training_items_are_noisy_and_the_others_are_not(straight, path, tmp_path):
    plain = fit(path, tmp_path, epochs=1, data=module(path, seed=3), model=BatchRecorder)
    for batch in range(3):
        noise = straight[2][0, batch] - plain[0, batch]
        assert torch.equal(noise[..., 3:, :], torch.zeros_like(noise[..., 3:, :])), "the target is left alone"
        scale = plain[0, batch][..., :3, :].square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        assert 0.08 < (noise[..., :3, :] / scale).std() < 0.12
    data = noisy(path)
    data.setup("fit")
    assert all(torch.equal(x.round(decimals=1), x) for x, _ in data.val_dataloader())


def test_a_new_run_after_a_resumed_one_starts_at_the_first_epoch(path, tmp_path):
    data = module(path, num_workers=1)
    first = fit(path, tmp_path, epochs=1, data=data, model=ScheduledRecorder)
    fit(path, tmp_path, epochs=2, data=data, model=ScheduledRecorder, resume=tmp_path / "last.ckpt")
    assert fit(path, tmp_path, epochs=1, data=data, model=ScheduledRecorder) == first


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling")
def test_overfitting_one_batch_repeats_it(path, tmp_path):
    """Lightning then puts plain numbers in place of our keys."""
    seen = fit(path, tmp_path, epochs=2, overfit_batches=1)
    assert seen[0] == seen[1] == [[(label(t, 0), label(t, 3)) for t in range(4)]]


def test_two_processes_share_each_epoch(path, tmp_path):
    script = f"""
import json, os, sys, torch
torch.set_num_threads(1)
from lightning.pytorch import LightningModule, Trainer
from lightning_farms.data import CFDDataModule

class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = [[], []]

    def training_step(self, batch, batch_index):
        self.seen[self.current_epoch] += batch[0][:, 0, 0, 0, 2].int().tolist()
        return self.weight.square().sum()

    def on_train_end(self):
        with open(f"{{sys.argv[1]}}/rank{{self.global_rank}}.json", "w") as file:
            json.dump(self.seen, file)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

if __name__ == "__main__":
    data = CFDDataModule({str(path)!r}, in_timesteps=3, out_timesteps=2, batch_size=2, seed=5)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(Model(), datamodule=data)
"""
    (tmp_path / "script.py").write_text(script)
    run_forked(((tmp_path / "script.py", tmp_path), {}), folder=tmp_path)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for epoch in (0, 1):
        drawn = [label(key.item, key.start) for key in epoch_windows(11, 4, seed=5, epoch=epoch)]
        assert ranks[0][epoch] == drawn[0::2]
        # 11 items for two processes: the last one's second half is filled up with the first item.
        assert ranks[1][epoch] == drawn[1::2] + drawn[:1]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"batch_size": 4}, "batch_size 2, and .* with batch_size 4"),
        ({"seed": 1}, "seed 0, and .* with seed 1"),
        ({"windows_per_trajectory": 2}, "items 11, and .* with items 22"),
        ({}, None),
    ],
)
def test_other_batches_within_an_epoch_are_told(path, tmp_path, changed, told):
    """Two batches of two are done; with four in a batch, items 4 to 7 of the epoch would be left out."""

    def run(**options):
        saver = ModelCheckpoint(tmp_path, filename="within", every_n_train_steps=2, enable_version_counter=False)
        data = module(path, **{"batch_size": 2, **options.pop("changed", {})})
        return fit(path, tmp_path / "end", epochs=2, data=data, callbacks=[saver], **options)

    run(max_steps=2)
    expected = nullcontext() if told is None else pytest.warns(UserWarning, match=rf"within an epoch, with {told}\. In")
    with expected:
        run(changed=changed, resume=tmp_path / "within.ckpt")
