"""Errors name the file and have a remedy of their own; handles are few."""

import gzip
import os
import resource
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager

import h5py
import numpy as np
import pytest

from lightning_farms.data import CFDDataModule, PDEBenchFile
from lightning_farms.data.fields.file_check import check_file
from lightning_farms.data.fields.paths import file_paths
from tests.data.fields.labelled_flows import write_labelled
from tests.forked import run_forked


@pytest.fixture
def path(tmp_path):
    return write_labelled(tmp_path / "flow.hdf5", trajectories=4)


def handles():
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def limit(count):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_another_process_writes(path):
    code = f"import h5py; f = h5py.File({str(path)!r}, 'r+'); print(1, flush=True); input()"
    writer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    writer.stdout.readline()
    with pytest.raises(BlockingIOError, match=r"flow.hdf5 to be readable, but another process has it open") as error:
        PDEBenchFile(path)
    writer.communicate("\n")
    assert "download" not in str(error.value)
    PDEBenchFile(path)


@pytest.mark.skipif("os.geteuid() != 0", reason="takes another user's place")
def test_no_permission(path):
    folder = path.parent
    while folder != folder.parent:  # pytest's own folders are its user's alone
        folder.chmod(folder.stat().st_mode | 0o055)
        folder = folder.parent
        if folder.name == "tmp":
            break
    path.chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(
            PermissionError, match=r"flow.hdf5 to be readable, but this user has no permission"
        ) as error:
            PDEBenchFile(path)
    finally:
        os.seteuid(0)
    assert "download" not in str(error.value)


NO_ROOM = """
import gc, os, resource, sys
from lightning_farms.data import PDEBenchFile
PDEBenchFile(sys.argv[1])  # what is imported late is imported now
gc.collect()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(open(os.devnull))
except OSError:
    pass
try:
    PDEBenchFile(sys.argv[1])
except OSError as error:
    held.clear()
    print(error)
"""


def test_no_room_for_a_handle(tmp_path, path):
    """In a process of its own: here, readers of other tests would be closed to make room."""
    (tmp_path / "no_room.py").write_text(NO_ROOM)
    run_forked(((tmp_path / "no_room.py", path), {}), folder=tmp_path)
    said = (tmp_path / "out0.txt").read_text()
    assert "flow.hdf5 to be readable, but too many files" in said
    assert "download" not in said


@pytest.mark.filterwarnings("ignore:Flows count twice")
def test_many_files_do_with_few_handles(tmp_path, path):
    for number in range(150):
        shutil.copy(path, tmp_path / f"{number}.hdf5")
    with limit(100):
        data = CFDDataModule(sorted(tmp_path.glob("[0-9]*.hdf5")), in_timesteps=3, test_fraction=0.25)
        data.setup("fit")
        before = handles()
        items = sum(len(x) for x, _ in data.train_dataloader())
        assert items == 450
        assert 0 < handles() - before <= 25  # fewer where those of readers elsewhere were closed to make room
    data.teardown("fit")
    assert handles() <= before


def test_a_filter_that_is_not_installed(path):
    with h5py.File(path, "a") as file:
        values = file["Vx"][...]
        del file["Vx"]
        space, properties = h5py.h5s.create_simple(values.shape), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(values.shape)
        properties.set_filter(32_999, h5py.h5z.FLAG_OPTIONAL)
        h5py.h5d.create(file.id, b"Vx", h5py.h5t.IEEE_F32LE, space, properties)
    with pytest.raises(OSError, match=r"filters of dataset `Vx` .*flow.hdf5 to be installed.*32999") as error:
        PDEBenchFile(path)
    assert "download" not in str(error.value)


@pytest.mark.parametrize("address", ["s3://bucket/flow.hdf5", "https://example.org/flow.hdf5", "hf://datasets/a/b.h5"])
def test_an_address_is_no_file(address):
    for call in (PDEBenchFile, CFDDataModule, lambda path: CFDDataModule([path])):
        with pytest.raises(ValueError, match=f"to be a file on this machine, but got the address {address}"):
            call(address)


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "pipe", tmp_path / "socket", "/dev/null"):
            with pytest.raises(OSError, match=f"to be a regular file, but {path} is"):
                PDEBenchFile(path)


def test_three_dimensions(tmp_path):
    with h5py.File(tmp_path / "3d.hdf5", "w") as file:
        for name in ("density", "pressure", "Vx", "Vy", "Vz"):
            file[name] = np.ones((2, 3, 4, 4, 4), np.float32)
    with pytest.raises(ValueError, match=r"3d.hdf5 to hold 2-D fields, .* it is a 3-D file"):
        PDEBenchFile(tmp_path / "3d.hdf5")


def test_a_link_to_another_file_that_is_missing(path):
    with h5py.File(path, "a") as file:
        del file["Vx"]
        file["Vx"] = h5py.ExternalLink("velocities.hdf5", "Vx")
    with pytest.raises(ValueError, match=r"\['Vx'\] are missing.* `Vx` is a link to the file velocities.hdf5"):
        PDEBenchFile(path)


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        (h5py.SoftLink("/elsewhere"), "`/elsewhere`, where there is no dataset"),
        (h5py.ExternalLink("cut.hdf5", "Vx"), r"cut.hdf5, which cannot be read \(.*truncated"),
        (h5py.ExternalLink("other.hdf5", "U"), "other.hdf5, which has no dataset `U`"),
    ],
)
def test_links_that_lead_nowhere(path, link, reason):
    for name in ("cut.hdf5", "other.hdf5"):
        shutil.copy(path, path.with_name(name))
    os.truncate(path.with_name("cut.hdf5"), 4000)
    with h5py.File(path, "a") as file:
        del file["Vx"]
        file["Vx"] = link
    with pytest.raises(ValueError, match=rf"\['Vx'\] are missing: `Vx` is a link to .*{reason}") as error:
        PDEBenchFile(path)
    assert "fields" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", r"only a Git LFS pointer .*`git lfs pull`"),
        (b"\n<!DOCTYPE html><title>403</title>", "a web page"),
        (gzip.compress(b"flows", mtime=0), r"compressed \(gzip\): unpack"),
        (b"CDF\x01\0\0\0\0", "classic format"),
    ],
)
def test_files_of_another_format(tmp_path, content, what):
    (tmp_path / "flow.hdf5").write_bytes(content)
    with pytest.raises(OSError, match=rf"flow.hdf5 to be an HDF5 file, but it is .*{what}"):
        PDEBenchFile(tmp_path / "flow.hdf5")


def test_a_damaged_flow_is_named_and_others_are_read(path, capsys):
    with h5py.File(path, "a") as file:
        values = np.random.default_rng(0).random(file["Vy"].shape, np.float32)
        del file["Vy"]
        file.create_dataset("Vy", data=values, chunks=(1, *values.shape[1:]), compression="gzip")
        place = file["Vy"].id.get_chunk_info(2).byte_offset
    with path.open("r+b") as file:
        file.seek(place + 8)
        file.write(bytes(64))
    file = PDEBenchFile(path)
    with pytest.raises(OSError, match=r"dataset `Vy` of trajectory 2 of .*flow.hdf5 to be readable.*`skip`"):
        file.read(2)
    file.read(3)
    (fault,) = check_file(file)
    assert (fault.trajectory, fault.what.startswith("cannot be read")) == (2, True)


@pytest.mark.parametrize("kind", [np.float32, np.int16])
def test_packed_values_are_not_taken_as_they_are(path, kind):
    with h5py.File(path, "a") as file:
        values = file["Vx"][...].astype(kind)
        del file["Vx"]
        file["Vx"] = values
        file["Vx"].attrs["scale_factor"] = 0.01
    with pytest.raises(ValueError, match=r"`Vx` of .* packed \(netCDF's scale_factor .* 0.01 and 0\).* unpacked"):
        PDEBenchFile(path)


@pytest.mark.parametrize("first", ["0000", "1", "seed_7"])
def test_groups_of_one_dimension(tmp_path, first):
    """PDEBench's diffusion-sorption."""
    with h5py.File(tmp_path / "1d.hdf5", "w") as file:
        file[f"{first}/data"], file[f"{first}/grid/x"] = np.ones((5, 8, 1), np.float32), np.arange(8.0)
    with pytest.raises(ValueError, match="it seems to hold 1-D fields"):
        PDEBenchFile(tmp_path / "1d.hdf5")


@pytest.mark.parametrize("name", ["tensor", "*/data[0]"])
def test_one_dimension_by_name(tmp_path, name):
    """PDEBench's Burgers and diffusion-sorption are no single trajectories, which the shape alone would suggest."""
    with h5py.File(tmp_path / "1d.hdf5", "w") as file:
        file["tensor"], file["x-coordinate"] = np.ones((3, 5, 8), np.float32), np.arange(8.0)
        file["a/data"] = np.ones((5, 8, 1), np.float32)
    with pytest.raises(
        ValueError, match=r"found `.*` \(\d, 5, 8.*\)\. With an x-coordinate .* seems to hold 1-D fields"
    ):
        PDEBenchFile(tmp_path / "1d.hdf5", fields={"u": name})


def test_one_dimension(tmp_path):
    with h5py.File(tmp_path / "flow.hdf5", "w") as file:
        file["tensor"] = np.ones((2, 5, 8), np.float32)
        file["x-coordinate"] = np.arange(8.0)
    with pytest.raises(ValueError, match=r"found .*tensor \(2, 5, 8\).* seems to hold 1-D fields"):
        PDEBenchFile(tmp_path / "flow.hdf5")


def test_home_and_globs(tmp_path, path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert PDEBenchFile("~/flow.hdf5").path == path
    assert CFDDataModule("~/flow.hdf5").data_paths == (path,)
    shutil.copy(path, tmp_path / "flow2.hdf5")
    shutil.copy(path, tmp_path / "flow[1].hdf5")
    assert CFDDataModule("~/flow?.hdf5").data_paths == (tmp_path / "flow2.hdf5",)
    assert CFDDataModule(str(tmp_path / "flow[1].hdf5")).data_paths == (tmp_path / "flow[1].hdf5",)
    assert len(CFDDataModule(["~/flow?.hdf5", path]).data_paths) == 2
    with pytest.raises(FileNotFoundError, match=r"to match files, but .*none\*.hdf5 matches none"):
        CFDDataModule("~/none*.hdf5")


@pytest.mark.parametrize("length", [1, 4, 64])
def test_a_damaged_header_always_names_the_file(path, length):
    clean = path.read_bytes()
    said = {}
    for start in range(0, 6000, 97 if length < 64 else 41):
        damaged = bytearray(clean)
        damaged[start : start + length] = bytes(255 - byte for byte in clean[start : start + length])
        copy = path.with_name(f"{length}-{start}.hdf5")  # HDF5 may keep a handle of a file that failed
        copy.write_bytes(damaged)
        try:
            PDEBenchFile(copy).read(1)
        except (OSError, ValueError) as error:
            said[copy] = str(error)
    assert len(said) > 3
    assert all(str(copy) in text for copy, text in said.items())


def test_a_writer_that_was_killed(tmp_path):
    """It leaves the mark of SWMR in the file, and no lock."""
    path = tmp_path / "flow.hdf5"
    code = f"import h5py, os; f = h5py.File({str(path)!r}, 'w', libver='latest'); f.swmr_mode = True; os._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(BlockingIOError, match=r"flow.hdf5 to be readable, but it is marked as being written.*h5clear"):
        PDEBenchFile(path)


def test_globs_in_a_folder_whose_name_has_brackets(tmp_path):
    folder = tmp_path / "run [1]"
    folder.mkdir()
    for number in (2, 10, 1):
        (folder / f"data_{number}.hdf5").touch()
    names = [path.name for path in file_paths(folder / "data_*.hdf5")]
    assert names == ["data_1.hdf5", "data_2.hdf5", "data_10.hdf5"] == [path.name for path in file_paths(folder)]
