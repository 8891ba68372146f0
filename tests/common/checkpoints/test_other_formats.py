"""Files of known other formats are named as such, never called damaged."""

import gzip
import io
import json
import os
import tarfile
import zipfile

import numpy
import pytest
import torch

from lightning_farms.analysis import open_checkpoint


def zipped(**records):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in records.items():
            archive.writestr(name.replace("__", "."), content)
    return stream.getvalue()


def tarred():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return stream.getvalue()


def array(save):
    stream = io.BytesIO()
    save(stream, numpy.ones(3))
    return stream.getvalue()


FORMATS = {
    "Git LFS pointer": ("a.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
    "web page": ("a.pt", b"<!DOCTYPE html><html></html>", "download the file itself"),
    "pointer": ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
    "page": ("a.safetensors", b"<!DOCTYPE html><html>nothing here</html>", "download the file itself"),
    "answer": ("a.ckpt", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "download the file itself"),
    "picture": ("a.pt", b"\x89PNG\r\n\x1a\n\0\0", "Give the checkpoint"),
    "GGML": ("a.bin", b"tjgg" + bytes(60), "made from"),
    "NumPy archive": ("a.npz", array(lambda stream, a: numpy.savez(stream, a=a)), "torch.from_numpy"),
    "NumPy array": ("a.npy", array(numpy.save), "torch.from_numpy"),
    "TensorFlow Lite": ("a.tflite", b"\x1c\0\0\0TFL3" + bytes(60), "made from"),
    "TensorFlow": ("saved_model.pb", b"\x08\x01\x12", "torch.from_numpy"),
    "Flax": ("a.msgpack", b"\x81\xa6params\x80", "torch.from_numpy"),
    "tar": ("a.nemo", tarred(), "tar -xf"),
    "compressed": ("a.pt.gz", gzip.compress(b"x" * 99), "Unpack it first"),
    "zip archive": ("a.zip", zipped(notes__txt="x"), "give the checkpoint in it"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_known_formats_are_named(tmp_path, name):
    file, content, remedy = FORMATS[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"is an? .*{name}") as error:
        open_checkpoint(tmp_path / file)
    assert remedy in str(error.value)
    assert "damaged" not in str(error.value)


def test_pipes_say_what_to_do(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("-", tmp_path / "pipe", "/dev/null"):
        with pytest.raises(ValueError, match=r"is a pipe or device.*Write the checkpoint to a file first"):
            open_checkpoint(path)


@pytest.mark.parametrize("shard", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", ""])
def test_shards_outside_the_folder_are_refused(tmp_path, shard):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"x")
    (folder / "a.bin.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(ValueError, match="to be in its folder, but"):
        open_checkpoint(folder / "a.bin.index.json")


def test_an_index_nested_deeply_is_damaged(tmp_path):
    (tmp_path / "a.index.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="damaged"):
        open_checkpoint(tmp_path / "a.index.json")


@pytest.mark.parametrize("name", ["a.bin", "a.safetensors"])
@pytest.mark.parametrize("text", ["Entry not found", '{"error": "Repository not found"}'])
def test_messages_of_servers_are_texts(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"\(it is a text\)\. Look at it: .* download the file itself"):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("count", [1, 2])
def test_of_several_checkpoints_in_a_tar_archive_none_is_taken(tmp_path, count):
    """NeMo's files have one."""
    torch.save({"fc.weight": torch.ones(3, 2)}, tmp_path / "weights.ckpt")
    with tarfile.open(tmp_path / "a.nemo", "w") as archive:
        for number in range(count):
            archive.add(tmp_path / "weights.ckpt", f"{number}.ckpt")
    if count == 1:
        assert list(open_checkpoint(tmp_path / "a.nemo")) == ["fc.weight"]
    else:
        with pytest.raises(ValueError, match=r"is a tar archive\. Unpack it"):
            open_checkpoint(tmp_path / "a.nemo")
