import pytest
import torch

from lightning_farms.common.devices import chosen_device


def test_devices_that_are_there():
    assert chosen_device("cpu") == chosen_device(torch.device("cpu")) == torch.device("cpu")
    assert chosen_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta"])
def test_devices_on_which_nothing_can_be_computed(device):
    with pytest.raises(ValueError, match=f"`device` to be one that PyTorch finds, but got '{device}'. Use 'auto'"):
        chosen_device(device)
