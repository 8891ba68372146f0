"""Files that appear complete or not at all."""

import os
import resource
import time

import h5py
import pytest

from lightning_farms.common.atomic import UnwrittenFileError, complete_or_nothing


def broken_off(path):
    with complete_or_nothing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")


@pytest.mark.parametrize("before", [None, "old"])
def test_an_error_leaves_the_folder_as_it_was(before, tmp_path):
    path = tmp_path / "a"
    if before:
        path.write_text(before)
    with pytest.raises(RuntimeError, match="stop"):
        broken_off(path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_the_file_appears_at_the_end(tmp_path):
    path = tmp_path / "new" / "a"
    with complete_or_nothing(path) as temporary:
        temporary.write_text("all")
        assert not path.exists()
    assert path.read_text() == "all"
    assert len(list(path.parent.iterdir())) == 1


def test_drafts_that_killed_processes_left_are_removed_after_a_day(tmp_path):
    old, fresh = (tmp_path / f".{name}.hdf5.{16 * digit}.tmp" for name, digit in (("a", "0f"), ("b", "1e")))
    others = [tmp_path / name for name in (".a.hdf5.tmp", "notes.tmp", f".{32 * 'z'}.tmp")]
    for file in (old, fresh, *others):
        file.write_text("half")
    for file in (old, *others):
        os.utime(file, (0, time.time() - 25 * 3600))
    with complete_or_nothing(tmp_path / "c.hdf5") as temporary:
        temporary.write_text("all of it")
    assert sorted(tmp_path.iterdir()) == sorted([fresh, *others, tmp_path / "c.hdf5"])


def test_names_as_long_as_the_system_allows(tmp_path):
    """Which counts bytes."""
    for name in ("x" * 255, "\u5c42" * 85):
        with complete_or_nothing(tmp_path / name) as draft:
            draft.write_text("all of it")
        assert (tmp_path / name).read_text() == "all of it"


def test_what_hdf5_could_not_write_when_closing_is_an_ordinary_error(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with (
            pytest.raises(UnwrittenFileError, match="that can be written, but writing failed: File too large"),
            complete_or_nothing(tmp_path / "a.hdf5") as draft,
            h5py.File(draft, "x") as file,
        ):
            file.create_dataset("a", (1000, 1000), "f4")[0, 0] = 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
