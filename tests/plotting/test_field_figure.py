"""Fields beside each other: what stands where, colours, and what is refused."""

import numpy as np
import pytest
import torch

from lightning_farms.plotting import field_figure, pixels

NAMES = ["frame 10\nt = 0.5", "frame 12\nt = 0.6", "frame 14\nt = 0.7"]


@pytest.fixture
def fields():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(12, 8, 3, generator=generator)
    return truth, truth + 0.1 * torch.rand(12, 8, 3, generator=generator)


def test_rows_columns_and_bars(fields):
    truth, prediction = fields
    figure = field_figure(truth, prediction, frames=NAMES, title="density of $trajectory$ 1")
    rows, bars = figure.axes[:3], figure.axes[3:]
    assert [axes.texts[0].get_text() for axes in rows] == ["truth", "prediction", "error"]
    assert [text.get_text() for text in rows[0].texts] == ["truth", *NAMES]
    assert [text.get_text() for text in figure.texts] == ["density of $trajectory$ 1"]
    for axes, expected in zip(rows, (truth, prediction, prediction.double() - truth.double()), strict=True):
        for column, image in enumerate(axes.images):  # x to the right, y upwards
            assert image.origin == "lower"
            np.testing.assert_allclose(image.get_array(), expected[:, :, column].T)
    assert len(bars) == 2


def test_truth_and_prediction_share_the_truths_colours_and_errors_are_symmetric(fields):
    truth, prediction = fields
    figure = field_figure(truth, prediction, frames=NAMES)
    for axes in figure.axes[:2]:
        for image in axes.images:
            assert image.get_clim() == pytest.approx((truth.min().item(), truth.max().item()))
    most = (prediction.double() - truth.double()).abs().max().item()
    assert all(image.get_clim() == pytest.approx((-most, most)) for image in figure.axes[2].images)


@pytest.mark.parametrize(
    ("change", "extend"), [(0.0, "neither"), (5.0, "max"), (-5.0, "min"), (torch.tensor([5.0, -5.0, 0.0]), "both")]
)
def test_the_bar_tells_that_a_prediction_passes_its_end(change, extend, fields):
    truth, _ = fields
    figure = field_figure(truth, truth + change, frames=NAMES)
    assert figure.axes[3]._colorbar.extend == extend


def test_relative_errors(fields):
    truth, prediction = (part.double() for part in fields)
    figure = field_figure(truth, prediction, frames=NAMES)
    shown = [float(text.get_text().removeprefix("rel. L2 ")) for text in figure.axes[2].texts[1:]]
    expected = (prediction - truth).norm(dim=(0, 1)) / truth.norm(dim=(0, 1))
    assert shown == pytest.approx(expected.tolist(), rel=0.005)


def test_cells_that_are_not_finite_are_grey_and_errors_say_so(fields):
    truth, prediction = fields
    prediction = prediction.clone()
    prediction[:, :, 2] = torch.nan
    prediction[0, 0, 1] = torch.inf
    figure = field_figure(truth, prediction, frames=NAMES)
    assert [text.get_text() for text in figure.axes[2].texts[2:]] == ["rel. L2 not finite"] * 2
    image = pixels(figure)
    box = figure.axes[1].get_position()
    height, width = image.shape[:2]
    last = image[int((1 - (box.y0 + box.y1) / 2) * height), int((box.x1 - 0.05) * width)]
    assert last.tolist() == [191, 191, 191]


@pytest.mark.parametrize("truth", [torch.zeros(4, 4, 1), torch.full((4, 4, 1), 3.0), torch.full((4, 4, 1), torch.nan)])
def test_fields_without_a_range(truth):
    image = pixels(field_figure(truth, truth, frames=["frame 1"]))
    assert min(image.shape[:2]) > 200


@pytest.mark.parametrize(("size", "columns"), [((128, 128), 5), ((64, 16), 2), ((8, 200), 8), ((300, 2), 1)])
def test_figures_are_of_a_size_to_look_at(size, columns):
    truth = torch.rand(*size, columns, generator=torch.Generator().manual_seed(0))
    height, width, _ = pixels(field_figure(truth, truth, frames=[f"frame {i}" for i in range(columns)])).shape
    assert 200 <= height <= 1300
    assert 300 <= width <= 1500


@pytest.mark.parametrize(
    ("truth", "prediction", "frames", "message"),
    [
        (torch.ones(4, 4), torch.ones(4, 4), ["a"], r"`truth` to have 3 dimension\(s\), but got shape \(4, 4\)"),
        (torch.ones(4, 4, 1), torch.ones(4, 4, 2), ["a"], "`prediction` to have the shape of `truth`"),
        (torch.ones(4, 4, 0), torch.ones(4, 4, 0), [], "`truth` to have cells and frames"),
        (torch.ones(4, 4, 2), torch.ones(4, 4, 2), ["a"], r"`frames` to be 2 name\(s\), but got 1"),
    ],
)
def test_mistakes(truth, prediction, frames, message):
    with pytest.raises(ValueError, match=message):
        field_figure(truth, prediction, frames=frames)
