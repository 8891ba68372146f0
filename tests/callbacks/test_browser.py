"""TensorBoard in headless Chromium, as a person looks at it; with two variables it takes the README's pictures.

SCREENSHOTS=folder LOGDIR=runs pytest -m slow tests/callbacks/test_browser.py -k each_tab
"""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from lightning_farms import SpectralMonitor, TBSigmoid, WholeMatrix

pytestmark = pytest.mark.slow

EPOCHS = 4
LAYERS = 3
WIDTH = 1500  # of the window, in pixels
MOST_WAIT = 30  # seconds, for a tab to show something


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("This test needs a Chromium: install `chromium` or `google-chrome`, and the extra `slow`.")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        pytest.fail('This test needs playwright: pip install -e ".[slow]".')
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@contextmanager
def tensorboard(logdir):
    """The address of a TensorBoard that shows ``logdir``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", "--host=127.0.0.1", f"--port={port}"]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: urllib.request.urlopen(f"{address}/data/runs").read() != b"[]", "TensorBoard found no run")
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def eventually(condition, message, seconds=MOST_WAIT):
    """Wait until the condition holds; what is not there yet, or an address that does not answer yet, counts as not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return
        except (OSError, IndexError):
            pass
        time.sleep(0.2)
    raise AssertionError(message)


class Visitor:
    """Someone who clicks through the tabs; each method fails unless its tab shows data."""

    def __init__(self, browser, address, seconds=MOST_WAIT):
        self.page = browser.new_page(viewport={"width": WIDTH, "height": 1200})
        self.page.set_default_timeout(1000 * seconds)
        self.page.goto(address)
        self.seconds = seconds

    def open(self, tab):
        self.page.get_by_role("tab", name=re.compile(rf"^\s*{tab}\s*$", re.IGNORECASE)).click()

    def eventually(self, condition, message):
        eventually(condition, message, self.seconds)

    def see_time_series(self):
        self.open("Time Series")
        charts = self.page.locator("scalar-card").filter(has_text="farms/alpha/").locator("line-chart")
        self.eventually(lambda: charts.count() > 0, "Time Series shows no chart")
        self.eventually(lambda: coloured(charts.first.screenshot()) > 100, "Time Series shows no line")

    def see_scalars(self):
        self.open("Scalars")
        lines = self.page.locator("tf-scalar-card path.line")
        self.eventually(lambda: max(points(lines)) > 1, "Scalars shows no line")

    def see_custom_scalars(self):
        """Gives {chart: how many lines it has}; TensorBoard draws each twice, as it is and smoothed."""
        self.open("Custom Scalars")
        charts = self.page.locator("tf-custom-scalar-multi-line-chart-card")
        self.eventually(lambda: charts.count() > 0, "Custom Scalars shows no chart")
        self.eventually(
            lambda: all(max(points(charts.nth(i).locator("path.line"))) > 1 for i in range(charts.count())),
            "Custom Scalars has a chart without a line",
        )
        counts = {}
        for i in range(charts.count()):
            title = charts.nth(i).locator("tf-card-heading").evaluate("heading => heading.displayName")
            counts.setdefault(title, []).append(charts.nth(i).locator("path.line").count() // 2)
        return counts

    def see_images(self):
        """Gives {tag: (width, height)}."""
        self.open("Images")
        cards = self.page.locator("tf-image-loader")
        script = (
            "cards => cards.map(card => [card.tag, card.querySelector('img') || card.shadowRoot.querySelector('img')])"
        )
        script += ".map(([tag, image]) => [tag, image ? image.naturalWidth : 0, image ? image.naturalHeight : 0])"
        self.eventually(lambda: cards.count() > 0, "Images shows no image")
        self.eventually(lambda: all(min(size[1:]) > 0 for size in cards.evaluate_all(script)), "An image is empty")
        return {tag: (width, height) for tag, width, height in cards.evaluate_all(script)}

    def see_histograms(self):
        self.open("Histograms")
        outlines = self.page.locator("tf-histogram-loader vz-histogram-timeseries path")
        length = "paths => Math.max(...paths.map(path => (path.getAttribute('d') || '').length))"
        self.eventually(lambda: outlines.evaluate_all(length) > 200, "Histograms shows no histogram")

    def see_text(self):
        """Gives the text."""
        self.open("Text")
        texts = self.page.locator("tf-text-loader table")
        self.eventually(lambda: texts.count() > 0, "Text shows no table")
        return texts.evaluate_all("tables => tables.map(table => table.parentElement.textContent).join(' ')")

    def show_values_as_they_are(self):
        """Turn off, in Custom Scalars, the smoothing and the clipping of outliers, and make the first charts larger."""
        smoothing = self.page.locator("tf-custom-scalar-dashboard tf-smoothing-input input")
        smoothing.fill("0")
        smoothing.press("Enter")
        self.page.locator("tf-custom-scalar-dashboard paper-checkbox", has_text="Ignore outliers").click()
        for i in range(2):
            chart = self.page.locator("tf-custom-scalar-multi-line-chart-card").nth(i)
            chart.locator("paper-icon-button[icon=fullscreen]").click()
            self.page.wait_for_timeout(1000)
            chart.locator("paper-icon-button[icon=settings-overscan]").click()

    def shoot(self, name, height=1200):
        """Take a picture into the folder that the variable SCREENSHOTS names, if it does."""
        if folder := os.environ.get("SCREENSHOTS"):
            self.page.set_viewport_size({"width": WIDTH, "height": height})
            self.page.wait_for_timeout(2000)  # for what is animated
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(folder) / f"{name}.png")


def points(lines):
    """How many points each drawn line has; none is drawn: [0]."""
    return lines.evaluate_all("lines => lines.map(line => (line.getAttribute('d') || '').split('L').length)") or [0]


def coloured(png):
    """How many pixels of a picture are far from grey: a chart without a line has none."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return int((np.ptp(pixels, axis=2) > 25).sum())


@pytest.fixture
def run(small_net, loader, make_trainer, tmp_path):
    """The folder of a run with two analyses."""
    logger = TensorBoardLogger(tmp_path / "tb", name="run", version=0)
    callbacks = [
        TBSigmoid(figures_every_n_epochs=2, summary=False),
        SpectralMonitor(WholeMatrix(), figures_every_n_epochs=0, esd_layers=1, summary=False),
    ]
    make_trainer(callbacks, logger=logger, max_epochs=EPOCHS).fit(small_net(), loader)
    return tmp_path / "tb"


def test_each_tab_shows_data(browser, run):
    """With LOGDIR set, of that run; it must be one of a TBSigmoid or the like."""
    logdir = os.environ.get("LOGDIR")
    with tensorboard(logdir or run) as address:
        visitor = Visitor(browser, address)
        visitor.see_time_series()
        visitor.shoot("time_series")
        visitor.see_scalars()
        visitor.shoot("scalars")
        charts = visitor.see_custom_scalars()
        visitor.show_values_as_they_are()
        visitor.shoot("custom_scalars", height=1060)
        images = visitor.see_images()
        visitor.shoot("images", height=1660)
        visitor.see_histograms()
        visitor.shoot("histograms")
        text = visitor.see_text()
        visitor.shoot("text")
    maps = {f"farms/{quantity}_map{kind}" for quantity in ("alpha", "learning_rate") for kind in ("", "_labelled")}
    assert images.keys() >= maps | {"farms/alpha_over_depth"}
    assert all(min(size) >= 200 for tag, size in images.items() if not tag.endswith("_map"))
    assert "TBSigmoid" in text
    assert "tau" in text
    if not logdir:
        assert charts["alpha of every layer"] == [LAYERS, LAYERS]
        assert charts["layer_lr/SGD of every layer"] == [LAYERS]
        assert charts["mean of alpha over layers"] == [1, 1]


def test_the_visitor_fails_where_there_is_no_data(browser, tmp_path):
    """A run with a layout and one scalar: charts and tabs are there, and empty, or missing."""
    from playwright.sync_api import Error

    with SummaryWriter(tmp_path / "empty") as writer:
        writer.add_custom_scalars({"farms": {"alpha of every layer": ["Multiline", ["farms/alpha/"]]}})
        writer.add_scalar("loss", 1.0, 0)
    with tensorboard(tmp_path) as address:
        visitor = Visitor(browser, address, seconds=4)
        with pytest.raises(AssertionError, match="Custom Scalars has a chart without a line"):
            visitor.see_custom_scalars()
        with pytest.raises(AssertionError, match="Scalars shows no line"):
            visitor.see_scalars()
        for see in (visitor.see_images, visitor.see_histograms, visitor.see_text):
            with pytest.raises((AssertionError, Error)):
                see()


def test_a_chart_without_a_line_has_no_colour():
    empty = Image.new("RGB", (300, 200), (250, 250, 250))
    drawn = empty.copy()
    drawn.paste((255, 112, 67), (0, 100, 300, 102))
    for image, expected in ((empty, 0), (drawn, 600)):
        stream = io.BytesIO()
        image.save(stream, format="PNG")
        assert coloured(stream.getvalue()) == expected
