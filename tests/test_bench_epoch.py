"""What the callback costs of an epoch is still measured: the small form runs, and its figures fit together."""

import logging

import pytest

from tests.benchmarks import bench_epoch


@pytest.fixture(autouse=True)
def log_level():
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    yield
    logger.setLevel(before)


def test_small(capsys):
    found = bench_epoch.main(["--small"])
    spent = found["analysis"] + found["logging"]
    assert 0 < found["step"] < 10
    assert found["share"] == pytest.approx(spent / (500 * found["step"] + spent))
    assert found["figures"] > found["logging"] > 0
    assert found["ratio"] > 0
    assert f"labelled figures, where they are drawn: {found['figures']:.3f} s" in capsys.readouterr().out
