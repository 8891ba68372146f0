"""scikit-learn's digits: enlarged, in three channels, split by class."""

import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lightning_farms.data import DigitsDataModule


def set_up(**options):
    data = DigitsDataModule(**options)
    data.setup("fit")
    return data


@pytest.mark.parametrize("size", [8, 16, 32])
def test_images_are_those_of_scikit_learn(size):
    digits = load_digits()
    train, test = DigitsDataModule(size=size).read()
    images, labels = torch.cat((train.images, test.images)), torch.cat((train.labels, test.labels))
    assert images.shape == (1797, 3, size, size)
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])
    factor = size // 8
    small = images[:, 0].unfold(1, factor, factor).unfold(2, factor, factor).flatten(3).double()
    assert (small.amax(-1) == small.amin(-1)).all(), "each pixel is a square of pixels"
    grey = np.rint(digits.images * 255 / 16)

    def ordered(pictures, classes):
        rows = np.column_stack((classes, pictures.reshape(len(pictures), -1)))
        return rows[np.lexsort(rows.T)]

    np.testing.assert_array_equal(ordered(small.mean(-1).numpy(), labels.numpy()), ordered(grey, digits.target))


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_the_split_is_by_class_and_fixed(fraction):
    train, test = DigitsDataModule(test_fraction=fraction).read()
    counts = np.bincount(load_digits().target)
    assert torch.bincount(test.labels).tolist() == [round(fraction * int(count)) for count in counts]
    assert len(train.labels) + len(test.labels) == 1797
    assert torch.equal(test.images, DigitsDataModule(test_fraction=fraction, seed=5).read().test.images)
    assert not torch.equal(test.labels, DigitsDataModule(test_fraction=fraction, split_seed=1).read().test.labels)


def test_batches():
    data = set_up(batch_size=64, seed=0)
    assert data.num_classes == 10
    assert data.augmentation == (2, False)
    assert set_up(size=32, padding=0).augmentation == (0, False)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (64, 3, 16, 16)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert sum(len(batch.labels) for batch in data.val_dataloader()) == len(data.read().test.labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 12}, "`size` to be a multiple of 8, but got 12"),
        ({"size": 0}, "`size` to be a multiple of 8, but got 0"),
        ({"test_fraction": 0.0}, r"`test_fraction` to be in \(0, 1\)"),
        ({"test_fraction": 1.0}, r"`test_fraction` to be in \[0, 1\)"),
        ({"padding": -1}, "`padding` to be at least 0"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"Expected argument {message}"):
        DigitsDataModule(**options)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "lightning-farms\[images\]"'):
        DigitsDataModule().setup("fit")
