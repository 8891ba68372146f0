"""Files of torch.save on a disk that takes less than all."""

import errno
import os
import resource
from pathlib import Path

import pytest
import torch

from lightning_farms.common.torch_writing import save_to
from tests.forked import run_forked


def test_what_is_written_is_what_torch_writes(tmp_path):
    content = {"a": torch.randn(40, 30), "b": [torch.arange(5), "text"]}
    save_to(content, tmp_path / "a.pt")
    read = torch.load(tmp_path / "a.pt")
    assert torch.equal(read["a"], content["a"])
    assert torch.equal(read["b"][0], content["b"][0])


def test_a_full_device_is_called_so():
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as error:
        save_to({"a": torch.ones(4)}, Path("/dev/full"))
    assert error.value.errno == errno.ENOSPC


def test_other_errors_stay_as_they_are(tmp_path):
    with pytest.raises(AttributeError, match=r"pickle|local object"):
        save_to({"a": lambda: None}, tmp_path / "a.pt")


PROGRAM = """
import resource, sys, torch
from pathlib import Path
from lightning_farms.common.torch_writing import save_to
found = []
for most in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    try:
        save_to({"a": torch.randn(100, 100), "b": torch.randn(50)}, Path(sys.argv[1]))
    except OSError as error:
        found.append(error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(*found)
"""


def test_a_disk_that_takes_a_part(tmp_path):
    limits = [1, 100, 1000, 5000, 40000, 40900]
    (tmp_path / "program.py").write_text(PROGRAM)
    run_forked(((tmp_path / "program.py", tmp_path / "a.pt", *limits), {}), folder=tmp_path)
    assert (tmp_path / "out0.txt").read_text().split() == [str(errno.EFBIG)] * len(limits)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
