"""The one place that knows both packages: against the classes themselves."""

import pickle
from importlib import import_module
from typing import get_args

import lightning.pytorch as newer
import pytest
import pytorch_lightning as older

from lightning_farms.common.lightning_packages import Kind, kinds, misconfiguration, versions
from tests.forked import run_forked


@pytest.mark.parametrize("name", get_args(Kind))
def test_each_kind_is_a_class_of_both_packages(name):
    module, _, kind = name.rpartition(".")
    assert kinds(name) == tuple(getattr(import_module(f"{p.__name__}.{module}"), kind) for p in (newer, older))
    assert len(set(kinds(name))) == 2


@pytest.mark.parametrize("package", [newer, older])
def test_objects_of_either_package_are_of_the_kind(package):
    assert isinstance(package.strategies.FSDPStrategy(), kinds("strategies.FSDPStrategy"))
    assert not isinstance(package.strategies.DDPStrategy(), kinds("strategies.FSDPStrategy"))


@pytest.mark.parametrize("package", [newer, older])
def test_an_exception_is_caught_as_that_of_either_package(package):
    with pytest.raises(package.utilities.exceptions.MisconfigurationException, match=r"^Use another$"):
        raise misconfiguration("Use another")
    assert type(misconfiguration("a")) is type(misconfiguration("b"))
    assert type(misconfiguration("a")).__name__ == "MisconfigurationException"


def test_an_exception_can_be_sent_to_another_process():
    sent = pickle.loads(pickle.dumps(misconfiguration("Use another")))
    assert type(sent) is type(misconfiguration(""))
    assert str(sent) == "Use another"


def test_versions_are_those_of_the_packages():
    assert versions() == {"lightning": newer.__version__, "pytorch_lightning": older.__version__}


ALONE = """
import sys
import lightning_farms
from lightning_farms import callbacks, data, models
from lightning_farms.cli import train
from lightning_farms.common.lightning_packages import kinds, misconfiguration, versions
from lightning_farms.loggers import pictures
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger

for name in lightning_farms.__all__:
    getattr(lightning_farms, name)
assert kinds("loggers.TensorBoardLogger") == (TensorBoardLogger,)
assert type(misconfiguration("")).__mro__[1:] == MisconfigurationException.__mro__
assert list(versions()) == ["lightning"]
print(*(name for name in sys.modules if name.split(".")[0] in ("pytorch_lightning", "lightning_fabric")))
"""


def test_nothing_here_imports_the_older_package(tmp_path):
    (tmp_path / "alone.py").write_text(ALONE)
    run_forked(((tmp_path / "alone.py",), {}), folder=tmp_path)
    assert (tmp_path / "out0.txt").read_text().strip() == ""
