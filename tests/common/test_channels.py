"""Names of channels, with and without a data module that has them."""

from types import SimpleNamespace

import pytest

from lightning_farms.common.channels import channel_names


@pytest.mark.parametrize(
    ("datamodule", "expected"),
    [
        (SimpleNamespace(channels=("u", "v")), ["u", "v"]),
        (SimpleNamespace(channels=["u", "v"]), ["u", "v"]),
        (SimpleNamespace(channels=("u",)), ["channel 0", "channel 1"]),
        (SimpleNamespace(channels=None), ["channel 0", "channel 1"]),
        (object(), ["channel 0", "channel 1"]),
        (None, ["channel 0", "channel 1"]),
    ],
)
def test_names(datamodule, expected):
    assert channel_names(datamodule, 2) == expected
