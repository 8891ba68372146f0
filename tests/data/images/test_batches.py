"""Batches depend on (seed, epoch) alone, and a resumed training sees those of a straight one."""

import time
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from scipy import stats
from torch import nn

from lightning_farms.data.image_data_module import ImageDataModule, TrainAndTest
from lightning_farms.data.images._batches import Augmentation, ImageBatches, ImageBatchSampler, image_loader
from lightning_farms.data.images._labelled_images import LabelledImages, image_statistics
from lightning_farms.models import ImageClassifier

NUMBER = 50


def dataset(number=NUMBER, padding=2, side=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (number, 3, side, side), dtype=torch.uint8, generator=generator)
    return ImageBatches(LabelledImages(images, torch.arange(number)), image_statistics(images), padding)


def keys(epoch=0, **options):
    options = {"batch_size": 16, "shuffle": True, "augmentation": Augmentation(2, True), **options}
    sampler = ImageBatchSampler(dataset(), **options)
    sampler.set_epoch(epoch)
    return list(sampler)


def joined(batches):
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(joined(first), joined(second), strict=True))


def test_every_image_once_and_a_smaller_last_batch():
    batches = keys()
    assert [len(batch.indices) for batch in batches] == [16, 16, 16, 2]
    assert joined(batches)[0].sort().values.tolist() == list(range(NUMBER))
    assert len(ImageBatchSampler(dataset(), batch_size=16)) == 4


def test_the_draw_depends_on_seed_and_epoch_alone():
    first = keys(epoch=3, seed=5)
    state = torch.get_rng_state()
    torch.rand(7)
    assert same(first, keys(epoch=3, seed=5))
    assert not same(first, keys(epoch=4, seed=5))
    assert not same(first, keys(epoch=3, seed=6))
    torch.set_rng_state(state)
    keys()
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn from the global generator"


def test_shifts_and_flips_are_uniform():
    drawn = [joined(keys(epoch=epoch)) for epoch in range(60)]
    shifts = torch.cat([shift for _, shift, _ in drawn])
    flips = torch.cat([flip for *_, flip in drawn])
    for axis in (0, 1):
        assert stats.chisquare(torch.bincount(shifts[:, axis], minlength=5).numpy()).pvalue > 1e-3
    assert stats.binomtest(int(flips.sum()), len(flips)).pvalue > 1e-3
    assert not joined(keys(augmentation=Augmentation(2, False)))[2].any()


def test_without_augmentation_images_come_as_they_are():
    data = dataset(padding=0)
    images, labels = next(iter(image_loader(data, ImageBatchSampler(data, batch_size=NUMBER))))
    restored = images * data.statistics.std[:, None, None] + data.statistics.mean[:, None, None]
    torch.testing.assert_close(restored * 255, data.data.images.float(), atol=1e-3, rtol=0)
    assert labels.tolist() == list(range(NUMBER))


@pytest.mark.parametrize("replicas", [2, 3])
def test_processes_share_an_epoch(replicas):
    parts = [joined(keys(num_replicas=replicas, rank=rank)) for rank in range(replicas)]
    assert len({len(part[0]) for part in parts}) == 1, "all have as many, or the slower ones wait for ever"
    assert set(torch.cat([part[0] for part in parts]).tolist()) == set(range(NUMBER))
    whole = joined(keys())
    for rank, part in enumerate(parts):
        number = len(whole[0][rank::replicas])
        assert all(torch.equal(p[:number], w[rank::replicas]) for p, w in zip(part, whole, strict=True))


def test_only_the_first_iteration_skips():
    sampler = ImageBatchSampler(dataset(), batch_size=16, shuffle=True)
    sampler.resume_first(lambda: 3 * 16)
    assert [len(list(sampler)) for _ in range(2)] == [1, 4]


def test_a_batch_takes_about_a_millisecond():
    data = dataset(number=256, padding=4, side=32)
    sampler = ImageBatchSampler(data, batch_size=128, shuffle=True, augmentation=Augmentation(4, True))
    loader = image_loader(data, sampler)
    list(loader)
    fastest = min(_seconds(lambda: list(loader)) for _ in range(10))
    assert fastest / len(loader) < 0.02, "twenty times what it takes alone on one core"


def _seconds(act):
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


class Noise(ImageDataModule):
    """Two classes of random images."""

    def __init__(self, **options):
        settings = {"batch_size": 8, "augmentation": Augmentation(1, True), "val_fraction": 0.0, "seed": None}
        super().__init__(2, **{**settings, "split_seed": 0, "pin_memory": False, **options})

    def read(self):
        images = dataset(44).data.images
        train, test = (LabelledImages(part, torch.arange(len(part)) % 2) for part in (images[:36], images[36:]))
        return TrainAndTest(train, test)


class Watch(Callback):
    """Keeps what every batch is recognised by; may go through the loaders itself as well."""

    def __init__(self, by_hand=False):
        self.seen, self.by_hand = [], by_hand

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(((trainer.current_epoch, batch_idx), batch.images.sum().item()))

    def on_train_epoch_end(self, trainer, pl_module):
        if self.by_hand:
            assert len(list(trainer.train_dataloader)) == 5
            assert len(list(trainer.datamodule.train_dataloader())) == 5


def trained(folder=None, *, ckpt_path=None, by_hand=False, **settings):
    seed_everything(7, verbose=False)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    watch = Watch(by_hand=by_hand)
    savers = [ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=1, filename="{step}")] if folder else []
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=3, logger=False, callbacks=[watch, *savers], enable_progress_bar=False,
        enable_checkpointing=bool(folder), enable_model_summary=False, num_sanity_val_steps=0, **settings,
    )  # fmt: skip
    module = ImageClassifier(network, lr=0.01)
    trainer.fit(module, datamodule=Noise(), ckpt_path=ckpt_path)
    return watch.seen, module.state_dict()


@pytest.fixture(scope="module", params=[{}, {"val_check_interval": 0.4}], ids=["validates at the end", "within"])
def straight(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, request.param, *trained(folder, **request.param)


@pytest.mark.filterwarnings(
    "ignore:Be aware that when using .ckpt_path.:UserWarning"
)  # of the ModelCheckpoint left out
@pytest.mark.parametrize("step", [3, 4, 5, 6, 9, 10, 12])
def test_a_resumed_training_sees_the_batches_of_a_straight_one(straight, step):
    folder, settings, seen, weights = straight
    assert len(seen) == 15
    assert len({image for _, image in seen}) == 15
    resumed, ended = trained(ckpt_path=folder / f"step={step}.ckpt", by_hand=True, **settings)
    assert resumed == seen[step:]
    for name, value in weights.items():
        assert torch.equal(ended[name], value), name


def test_the_seed_is_that_of_seed_everything_unless_given():
    def first(everything, **options):
        seed_everything(everything, verbose=False)
        data = Noise(**options)
        data.setup("fit")
        return next(iter(data.train_dataloader())).images

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    assert torch.equal(first(1, seed=5), first(2, seed=5))


def test_validation_is_the_test_part_or_held_out():
    data, held = Noise(), Noise(val_fraction=0.25)
    for module in (data, held):
        module.setup("fit")
    val, test = (torch.cat([b.images for b in load()]) for load in (data.val_dataloader, data.test_dataloader))
    assert torch.equal(val, test)
    assert torch.equal(val, torch.cat([b.images for b in data.predict_dataloader()]))
    labels = torch.cat([b.labels for b in held.val_dataloader()])
    assert torch.bincount(labels).tolist() == [4, 4], "a quarter of 18, ties to even, of each class"
    assert sum(len(b.labels) for b in held.train_dataloader()) == 28
    assert len(data.statistics.mean) == 3


def test_misuse():
    with pytest.raises(RuntimeError, match="Expected `setup` to have read the train images"):
        Noise().train_dataloader()
    with pytest.raises(ValueError, match="Expected argument `stage` to be one of"):
        Noise().setup("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` to be at least 1, but got 0"),
        ({"augmentation": Augmentation(-1)}, "`padding` to be at least 0, but got -1"),
        ({"seed": -1}, "`seed` to be at least 0"),
        ({"split_seed": -1}, "`split_seed` to be at least 0"),
        ({"val_fraction": 1.0}, "`val_fraction` to be in"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        partial(Noise, **options)()
