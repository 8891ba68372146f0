"""Statistics, stratified parts, crops and flips against NumPy, one image at a time."""

import numpy as np
import pytest
import torch

from lightning_farms.data.images._labelled_images import (
    LabelledImages,
    crop_and_flip,
    image_statistics,
    normalise,
    stratified_split,
)


def some_images(number=7, channels=3, height=8, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crops_and_flips_are_those_of_single_images(padding):
    images = some_images(20)
    generator = torch.Generator().manual_seed(1)
    shifts = torch.randint(2 * padding + 1, (20, 2), generator=generator)
    flips = torch.rand(20, generator=generator) < 0.5
    expected = []
    for image, (top, left), flip in zip(images.numpy(), shifts.tolist(), flips.tolist(), strict=True):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        crop = padded[:, top : top + 8, left : left + 6]
        expected.append(crop[:, :, ::-1] if flip else crop)
    before = images.clone()
    result = crop_and_flip(images, shifts, flips, padding)
    assert result.dtype == torch.uint8
    assert result.is_contiguous()
    assert torch.equal(result, torch.from_numpy(np.stack(expected)))
    assert torch.equal(images, before)


def test_statistics_are_those_of_numpy():
    images = some_images(50)
    values = images.numpy() / 255
    statistics = image_statistics(images)
    np.testing.assert_allclose(statistics.mean, values.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(statistics.std, values.std((0, 2, 3)), rtol=1e-6)


def test_normalised_images_have_mean_zero_and_variance_one():
    images = some_images(50)
    values = normalise(images, image_statistics(images))
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std((0, 2, 3), correction=0), torch.ones(3))


def test_a_constant_channel_is_refused():
    images = some_images()
    images[:, 1] = 9
    with pytest.raises(ValueError, match="to vary in every channel"):
        image_statistics(images)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_every_class_gives_the_same_share(fraction):
    labels = torch.arange(5).repeat_interleave(torch.tensor([20, 40, 60, 80, 100]))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    kept, held_out = stratified_split(labels, fraction, seed=3)
    assert torch.equal(torch.cat((kept, held_out)).sort().values, torch.arange(len(labels)))
    assert torch.bincount(labels[held_out]).tolist() == [round(fraction * n) for n in (20, 40, 60, 80, 100)]
    again = stratified_split(labels, fraction, seed=3)
    assert torch.equal(held_out, again[1])
    assert not torch.equal(held_out, stratified_split(labels, fraction, seed=4)[1])


def test_nothing_held_out():
    kept, held_out = stratified_split(torch.tensor([1, 0, 1]), 0.0, seed=0)
    assert kept.tolist() == [0, 1, 2]
    assert held_out.tolist() == []


@pytest.mark.parametrize(
    ("fraction", "message"),
    [(0.01, "but 0.01 holds out 0.*between 0.17 and 0.83"), (0.9, "holds out 3"), (1.0, r"\[0, 1\)"), (-0.1, "in")],
)
def test_shares_that_cannot_be(fraction, message):
    with pytest.raises(ValueError, match=message):
        stratified_split(torch.tensor([0, 0, 0]), fraction, seed=0)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_fractions_out_of_range(value):
    with pytest.raises(ValueError, match=r"Expected argument `fraction` to be in \[0, 1\), but got"):
        stratified_split(torch.zeros(4, dtype=torch.int64), value, 0)


def test_part():
    part = LabelledImages(some_images(), torch.arange(7)).part(torch.tensor([4, 2]))
    assert part.labels.tolist() == [4, 2]
    assert torch.equal(part.images, some_images()[[4, 2]])
