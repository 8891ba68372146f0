import io
import sys

import numpy as np
from PIL import Image

from lightning_farms.plotting import layer_heatmap_figure, pixels


def test_pixels_are_those_of_a_saved_picture():
    figure = layer_heatmap_figure([[1.0, 2.0]], layers=["a"], epochs=[0, 1], title="t", label="l")
    drawn = pixels(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=figure.dpi)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, np.asarray(Image.open(stream).convert("RGB")))


def test_pyplot_keeps_no_figure():
    plt = sys.modules.get("matplotlib.pyplot")
    before = len(plt.get_fignums()) if plt else 0
    pixels(layer_heatmap_figure([[1.0]], layers=["a"], epochs=[0], title="t", label="l"))
    plt = sys.modules.get("matplotlib.pyplot")
    assert (len(plt.get_fignums()) if plt else 0) == before
