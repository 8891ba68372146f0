"""The line that a warning names is one of the user's program."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from lightning_farms import Balancer, LinearMap
from lightning_farms.common import warning
from lightning_farms.common.warning import warn_user


def test_it_is_the_users_line_however_far_inside_the_warning_arises():
    model = nn.Linear(16, 16)
    balancer = Balancer(model, torch.optim.SGD(model.parameters(), lr=0.1), LinearMap())
    with pytest.warns(UserWarning, match="only one of them has an alpha") as warned:
        balancer.update()
    assert [each.filename for each in warned] == [__file__]


def test_without_a_line_of_the_user_it_is_one_outside_the_package():
    with pytest.warns(UserWarning, match="odd") as warned, ThreadPoolExecutor() as pool:
        pool.submit(warn_user, "odd").result()
    assert warned[0].filename != warning.__file__
