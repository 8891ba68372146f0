"""Files of torch.save whose pickles ask for code: nothing is run, the tensors are read, and sizes are not believed."""

import argparse
import datetime
import pathlib
import struct
import subprocess
import sys
import time
import zipfile

import numpy
import pytest
import torch
from torch import nn

from lightning_farms.analysis import open_checkpoint
from lightning_farms.common.checkpoints import UnreadableTensor, read_stored


def net():
    torch.manual_seed(0)
    return {"fc.weight": torch.randn(8, 6), "fc.bias": torch.randn(8)}


class Shell:
    """Runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return subprocess.check_call, (["touch", str(self.mark)],)


class Own:
    """An object of a user's class, with a tensor in it."""

    def __init__(self):
        self.table = torch.ones(3, 3)


class Net(nn.Module):
    """A network that is saved whole."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.register_buffer("grid", torch.ones(2, 2))


def rezipped(path, change):
    """Write an archive again with its records as `change` has them."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in change(records).items():
            archive.writestr(name, content)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nothing_is_run_and_the_tensors_are_read(tmp_path, zipped, protocol):
    path, mark = tmp_path / "a.ckpt", tmp_path / "ran"
    parameters = {"do": Shell(mark), "path": pathlib.PurePosixPath("a"), "rate": numpy.float64(1e-3), "class": Own}
    parameters |= {"wait": datetime.timedelta(1), "gelu": nn.functional.gelu, "own": Own(), "eval": eval}
    content = {"state_dict": {**net(), "_metadata": {"f": Own}}, "hyper_parameters": parameters}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    stored = read_stored(path)
    assert not mark.exists()
    torch.testing.assert_close(dict(stored.tensors), net(), rtol=0, atol=0)
    assert stored.left_out["commands.check_call" if protocol == 2 else "subprocess.check_call"] == 1
    assert "datetime.timedelta" in stored.left_out
    assert stored.taken == "state_dict"


OPCODES = {
    "call of a name": b"cos\nsystem\n(S'touch ran'\ntR.",
    "call by INST": b"(S'touch ran'\nios\nsystem\n.",
    "call by OBJ": b"(cos\nsystem\nS'touch ran'\no.",
    "state of a class": b"cbuiltins\ndict\n}S'a'\nK\x01sb.",
    "call of what a call made": b"cos\nsystem\n(S'touch ran'\ntR(S'x'\ntR.",
    "attribute through a dotted name": b"\x80\x04\x8c\x08builtins\x8c\x0beval.__call__\x93\x8c\x011\x85R.",
    "extension": b"\x80\x02\x82\x01)R.",
    "import hook": b"cantigravity\nfly\n.",
    "a tensor's own state": b"ctorch\nTensor\n)\x81(K\x01K\x02tb.",
}


@pytest.mark.parametrize("code", OPCODES.values(), ids=OPCODES)
def test_hostile_opcodes_run_nothing(tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").write_bytes(code)
    before = set(sys.modules)
    with pytest.raises(ValueError, match=r"holds a|damaged"):
        open_checkpoint("a.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert "antigravity" not in set(sys.modules) - before


BOMBS = {
    "nested deeply": lambda: b"(" + b"(l" * 300_000 + b".",
    "nested lists": lambda: b"]" * 200_000 + b"a" * 199_999 + b".",
    "many empty objects": lambda: b"\x80\x02" + b"}" * 9_000_000 + b".",
    "one list in another, over and over": lambda: b"\x80\x02]q\x00" + b"]q\x01h\x00ah\x00a0h\x01q\x00" * 60 + b".",
    "memo at a far index": lambda: b"\x80\x02Kr\xff\xff\xff\x7f." + b"r\xff\xff\xff\x7f.",
    "text that claims terabytes": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 2**42) + b"abc.",
    "bytes that claim terabytes": lambda: b"\x80\x05\x96" + struct.pack("<Q", 2**42) + b"abc.",
    "no mark": lambda: b"t.",
    "empty stack": lambda: b"0.",
}


@pytest.mark.parametrize(
    "bomb", [pytest.param(name, marks=[pytest.mark.slow] if name == "many empty objects" else []) for name in BOMBS]
)
def test_bombs_end_soon(tmp_path, bomb):
    (tmp_path / "a.pt").write_bytes(BOMBS[bomb]())
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"a\.pt"):
        open_checkpoint(tmp_path / "a.pt")
    assert time.perf_counter() - start < 20


class Built:
    """A tensor with sizes of one's choice on a storage of 48 numbers."""

    def __init__(self, offset, size, stride):
        self.arguments = (torch.arange(48.0).storage(), offset, size, stride, False, {})

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


SIZES = {
    "beyond its storage": (0, (7, 7), (7, 1)),
    "offset beyond": (48, (1,), (1,)),
    "stride of zero, absurd size": (0, (2**40, 8), (0, 1)),
    "negative size": (0, (-1, 8), (8, 1)),
    "negative stride": (47, (6, 8), (-8, 1)),
    "negative offset": (-1, (6, 8), (8, 1)),
    "too few strides": (0, (6, 8), (1,)),
    "a size of text": (0, ("6", 8), (8, 1)),
    "overflowing size": (0, (2**40, 2**40), (0, 0)),
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_sizes_are_checked_against_the_storage(tmp_path, sizes):
    torch.save({"bad": Built(*SIZES[sizes]), **net()}, tmp_path / "a.pt")
    opened = open_checkpoint(tmp_path / "a.pt")
    with pytest.raises(UnreadableTensor, match=r"damaged|repeats"):
        opened["bad"]
    torch.testing.assert_close(opened["fc.weight"], net()["fc.weight"], rtol=0, atol=0)


def test_views_of_all_kinds_are_what_torch_reads(tmp_path):
    base = torch.randn(6, 8)
    saved = {
        "view": base[1:, ::2],
        "transposed": base.T,
        "expanded": base[:1].expand(5, 8),
        "conjugate": torch.randn(3, 3, dtype=torch.complex64).conj(),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "parameter": nn.Parameter(base.clone()),
        "buffer": nn.Buffer(base.clone()),
        "bf16": base.bfloat16(),
        "fp8": base.to(torch.float8_e4m3fn),
        "uint16": torch.arange(4).to(torch.uint16),
        "bool": base > 0,
        "sparse": base.relu().to_sparse(),
    }
    for zipped in (True, False):
        torch.save(saved, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        opened = open_checkpoint(tmp_path / "a.pt")
        assert list(opened) == list(saved)
        for name, tensor in saved.items():
            expected = tensor.to_dense() if tensor.is_sparse else tensor
            assert opened[name].dtype == expected.dtype
            assert opened[name].tolist() == expected.tolist()
            assert opened.without_values(name).shape == expected.shape


def test_big_endian_files_are_read(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(6.0)}, path)
    swapped = numpy.arange(6, dtype=">f4").tobytes()

    def change(records):
        return {n: swapped if n.endswith("data/0") else b"big" if "byteorder" in n else c for n, c in records.items()}

    rezipped(path, change)
    assert open_checkpoint(path)["w"].tolist() == list(range(6))


def test_a_network_saved_whole(tmp_path):
    torch.manual_seed(0)
    torch.save(Net(), tmp_path / "a.pt")
    opened = open_checkpoint(tmp_path / "a.pt")
    torch.manual_seed(0)
    expected = Net().state_dict()
    assert set(opened) == set(expected)
    assert all(torch.equal(opened[name], tensor) for name, tensor in expected.items())
    assert "grid" in opened.buffers
    assert "body.0.weight" not in opened.buffers


def test_the_crc_of_a_zip_is_looked_at(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(net(), path)
    content = bytearray(path.read_bytes())
    content[content.find(net()["fc.weight"].numpy().tobytes()) + 3] ^= 0x20
    path.write_bytes(content)
    opened = open_checkpoint(path)
    with pytest.raises(UnreadableTensor, match="CRC-32"):
        opened["fc.weight"]
    torch.testing.assert_close(opened["fc.bias"], net()["fc.bias"], rtol=0, atol=0)
    assert open_checkpoint(path, check=False)["fc.weight"].shape == (8, 6)


def test_a_file_without_crcs_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(net(), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    torch.testing.assert_close(dict(open_checkpoint(tmp_path / "a.pt")), net(), rtol=0, atol=0)


def test_a_namespace_is_a_container(tmp_path):
    torch.save({"model": net(), "args": argparse.Namespace(modes=3)}, tmp_path / "a.pt")
    assert read_stored(tmp_path / "a.pt").beside == {"args": argparse.Namespace(modes=3)}


def test_every_cut_of_a_file_has_one_message(tmp_path):
    """Also flipped bytes of the pickle: an error of ours, or tensors."""
    torch.save(net(), tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        pickled = archive.read("a/data.pkl")
    start = content.find(pickled)
    for end in range(0, len(content), 97):
        (tmp_path / "b.pt").write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"b\.pt"):
            open_checkpoint(tmp_path / "b.pt")
    for position in range(start, start + len(pickled)):
        flipped = bytearray(content)
        flipped[position] ^= 0xFF
        (tmp_path / "b.pt").write_bytes(flipped)
        with pytest.raises(ValueError, match=r"b\.pt.*damaged"):
            open_checkpoint(tmp_path / "b.pt")
