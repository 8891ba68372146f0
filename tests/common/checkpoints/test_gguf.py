"""GGUF files in which tensors lie elsewhere than their header says: no number of them is read in silence."""

import struct

import gguf
import numpy as np
import pytest
import torch

from lightning_farms.analysis import checkpoint_weights, open_checkpoint

WEIGHTS = {"a.weight": np.arange(600, dtype=np.float32).reshape(20, 30), "b.weight": np.ones((16, 24), np.float32)}


@pytest.fixture
def written(tmp_path):
    def write(alignment=None, tensors=WEIGHTS):
        path = tmp_path / "a.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if alignment:
            writer.add_custom_alignment(alignment)
        for name, values in tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def put(path, after, at, code, value):
    """Write a number some bytes after a text of the header."""
    content = bytearray(path.read_bytes())
    start = content.index(after) + len(after) + at
    content[start : start + struct.calcsize(code)] = struct.pack(code, value)
    path.write_bytes(content)


def outcome(path):
    """All tensors, or what is said of the file."""
    try:
        tensors = open_checkpoint(path)
        return {name: tensors[name] for name in tensors}
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("alignment", [None, 8, 32, 64, 4096])
def test_every_alignment_is_read(written, alignment):
    tensors = open_checkpoint(written(alignment))
    for name, values in WEIGHTS.items():
        assert torch.equal(tensors[name], torch.from_numpy(values))


def test_a_part_without_tensors_is_not_called_damaged(written):
    with pytest.raises(ValueError, match=r"to be a checkpoint with tensors, but .* holds none"):
        open_checkpoint(written(tensors={}))


@pytest.mark.parametrize("wrong", [0, 1, 3, 8, 16, 48, 128, 2**20, 2**32 - 1])
def test_another_alignment_than_that_of_the_file_is_damage(written, wrong):
    """The same header with another number has its tensors begin elsewhere, unless that is where it ends anyway."""
    path = written(64)
    before = open_checkpoint(path)
    put(path, b"general.alignment", 4, "<I", wrong)
    found = outcome(path)
    if isinstance(found, str):
        assert f"'{path}'" in found
    else:
        assert all(torch.equal(found[name], before[name]) for name in before)


def test_an_alignment_of_another_type_is_damage(written):
    path = written(64)
    put(path, b"general.alignment", 0, "<I", 6)
    with pytest.raises(ValueError, match="an alignment of type 6, which is no number of 4 bytes"):
        open_checkpoint(path)


@pytest.mark.parametrize("place", [32, 2368])
def test_tensors_that_overlap_have_no_values(written, place):
    path = written()
    put(path, b"b.weight", 4 + 16 + 4, "<Q", place)
    behind = 2400 + 1536 - max(2400, place + 1536)
    path.write_bytes(path.read_bytes()[:-behind])
    reasons = {weight.name: weight.reason for weight in checkpoint_weights(path)}
    assert reasons == dict.fromkeys("ab", "damaged: it has bytes in common with another tensor")


def test_a_tensor_between_two_places_is_damage(written):
    path = written()
    put(path, b"b.weight", 4 + 16 + 4, "<Q", 2401)
    with pytest.raises(ValueError, match="a tensor that does not begin at a multiple of 32 bytes"):
        open_checkpoint(path)


def test_bytes_behind_the_last_tensor_are_damage(written):
    path = written()
    path.write_bytes(path.read_bytes() + bytes(32))
    with pytest.raises(ValueError, match="32 bytes follow its last tensor, which is filled up to 32"):
        open_checkpoint(path)
