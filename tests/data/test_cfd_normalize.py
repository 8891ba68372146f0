import h5py
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_farms.data.fields.trajectories import FilePart, Trajectories, sampled_statistics
from tests.data.fields.labelled_flows import module

NAMES = ("Vx", "Vy", "density", "pressure")


def write(path, seed=0, trajectories=12, scale=1.0):
    random = np.random.RandomState(seed)
    arrays = {}
    for channel, name in enumerate(NAMES):
        normal = random.standard_normal((trajectories, 8, 4, 4)) + (10 if channel > 1 else 0)  # those are positive
        arrays[name] = (normal * scale * 10.0**channel + channel).astype("f4")
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return np.stack([arrays[name] for name in NAMES], axis=-1).astype(np.float64)


@pytest.fixture
def flows(tmp_path):
    return tmp_path / "flows.hdf5", write(tmp_path / "flows.hdf5")


def test_scales_by_the_statistics_of_the_training_part(flows):
    path, arrays = flows
    data = module(path, normalize=True)
    data.setup("fit")
    data.setup("test")
    train = arrays[:11].reshape(-1, 4)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        both = torch.cat(next(iter(loader)), dim=3)
        expected = ((arrays[11] - train.mean(0)) / train.std(0)).transpose(1, 2, 0, 3)
        np.testing.assert_allclose(both[0].numpy(), expected, rtol=1e-4, atol=1e-5)
        physical = arrays[11].transpose(1, 2, 0, 3)
        np.testing.assert_allclose(data.denormalize(both)[0].numpy(), physical, rtol=1e-5, atol=1e-5)
    shown = torch.cat([torch.cat(batch, dim=3) for batch in data.train_dataloader()])
    assert 0.9 < shown.std() < 1.1
    assert data.denormalize(shown).std() > 100


def test_off_by_default(flows):
    data = module(flows[0])
    data.setup("test")
    x, y = next(iter(data.test_dataloader()))
    assert data.denormalize(x) is x
    np.testing.assert_array_equal(torch.cat((x, y), dim=3)[0].numpy(), flows[1][11].transpose(1, 2, 0, 3))


def test_noise_is_in_units_of_the_normalized_input(flows):
    noisy, plain = (module(flows[0], normalize=True, noise=noise) for noise in (0.5, 0.0))
    batches = []
    for data in (noisy, plain):
        data.setup("fit")
        batches.append(next(iter(data.train_dataloader()))[0])
    assert 0.4 < (batches[0] - batches[1]).std() < 0.6


def test_the_statistics_do_not_depend_on_the_stage_and_follow_the_fraction(flows):
    def statistics(stage, **options):
        data = module(flows[0], normalize=True, **options)
        data.setup(stage)
        return data.denormalize(torch.zeros(4, dtype=torch.float64))

    assert torch.equal(statistics("fit"), statistics("predict"))
    assert not torch.equal(statistics("fit"), statistics("fit", train_fraction=0.5))
    with pytest.raises(ValueError, match="the train split to have trajectories to take the statistics of `normalize`"):
        statistics("test", train_fraction=0.05)


def test_denormalize_before_setup(flows):
    with pytest.raises(RuntimeError, match="Expected `setup` to have built the train data"):
        module(flows[0], normalize=True).denormalize(torch.zeros(4))


def test_a_large_set_is_sampled(flows):
    """The same few trajectories each time, all of them different, and of every part of the set."""
    read = []

    class File:
        shape = type("Shape", (), {"trajectories": 1000, "frames": 2})

        def read(self, trajectory, *args, **options):
            read.append(trajectory)
            return torch.full((1, 1, 2, 1), float(trajectory))

    pool = Trajectories([FilePart(File(), range(500)), FilePart(File(), range(500, 1000))])
    statistics = sampled_statistics(pool, seed=1)
    assert len(set(read)) == len(read) == 64
    assert read == sorted(read)
    assert min(read) < 100 < 900 < max(read)
    torch.testing.assert_close(statistics.mean.item(), np.mean(read))
    torch.testing.assert_close(statistics.std.item(), np.std(read))
    assert torch.equal(sampled_statistics(pool, seed=1).mean, statistics.mean)
    assert not torch.equal(sampled_statistics(pool, seed=2).mean, statistics.mean)


class Copy(LightningModule):
    """Predicts what it is given; records it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen = []

    def training_step(self, batch, batch_index):
        return self.weight.square().sum()

    def validation_step(self, batch, batch_index):
        pass

    def test_step(self, batch, batch_index):
        self.seen.append(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer():
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )


@pytest.fixture
def checkpoint(flows, tmp_path):
    run = trainer()
    run.fit(Copy(), datamodule=module(flows[0], normalize=True))
    run.save_checkpoint(tmp_path / "run.ckpt")
    return tmp_path / "run.ckpt"


def test_a_checkpoint_brings_its_trainings_statistics_to_other_data(flows, tmp_path, checkpoint):
    arrays = write(tmp_path / "other.hdf5", seed=1, scale=3.0)
    data, model = module(tmp_path / "other.hdf5", normalize=True), Copy()
    trainer().test(model, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    train = flows[1][:11].reshape(-1, 4)
    expected = ((arrays[11, :3] - train.mean(0)) / train.std(0)).transpose(1, 2, 0, 3)
    np.testing.assert_allclose(model.seen[0][0].numpy(), expected, rtol=1e-4, atol=1e-5)
    physical = arrays[11, :3].transpose(1, 2, 0, 3)
    np.testing.assert_allclose(data.denormalize(model.seen[0])[0].numpy(), physical, rtol=1e-5, atol=1e-5)


def test_a_new_training_takes_its_own_statistics(flows, tmp_path, checkpoint):
    write(tmp_path / "other.hdf5", seed=1, scale=3.0)
    data = module(tmp_path / "other.hdf5", normalize=True)
    trainer().test(Copy(), datamodule=data, ckpt_path=checkpoint, verbose=False)
    before = data.denormalize(torch.ones(4))
    trainer().fit(Copy(), datamodule=data)
    fresh = module(tmp_path / "other.hdf5", normalize=True)
    fresh.setup("fit")
    assert torch.equal(data.denormalize(torch.ones(4)), fresh.denormalize(torch.ones(4)))
    assert not torch.equal(data.denormalize(torch.ones(4)), before)


def test_checkpoints_of_another_scaling_are_refused(flows, checkpoint):
    with pytest.raises(ValueError, match="`normalize` to be True, as in the training of the checkpoint, but got False"):
        trainer().test(Copy(), datamodule=module(flows[0]), ckpt_path=checkpoint, verbose=False)
    data = module(flows[0], normalize=True)
    with pytest.raises(ValueError, match="`normalize` to be False, as in the training"):
        data.load_state_dict({"epoch": 1})


@pytest.mark.parametrize(
    ("options", "found"),
    [({"fields": {"u": "Vx"}}, r"\['u'\]"), ({"channel_order": "pdebench"}, r"\['density', 'pressure', 'Vx', 'Vy'\]")],
)
def test_checkpoints_of_other_channels_are_refused(flows, checkpoint, options, found):
    with pytest.raises(ValueError, match=rf"to be \['Vx', 'Vy', 'density', 'pressure'\], .*, but got {found}. Give"):
        trainer().test(
            Copy(), datamodule=module(flows[0], normalize=True, **options), ckpt_path=checkpoint, verbose=False
        )
