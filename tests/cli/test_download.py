"""`lightning-farms download` from a mirror on this machine."""

import os
from functools import partial

import pytest

from lightning_farms.cli import download, main
from lightning_farms.data import OFFICIAL_FILES
from lightning_farms.data.download import catalogue
from tests.data.download.range_server import CONTENT, md5, press_ctrl_c, range_server

NAME = "2d_cfd_M0.1_eta0.01"
FILE = "2D_CFD_Rand_M0.1_Eta0.01_Zeta0.01_periodic_128_Train.hdf5"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A mirror of the first file, which is small; the current folder is a new one."""
    monkeypatch.chdir(tmp_path)
    small = (catalogue.OfficialFile(NAME, FILE, 1, 64, 1, md5(CONTENT)),)
    for module in (catalogue, download):
        monkeypatch.setattr(module, "OFFICIAL_FILES", small)
    with range_server() as running:
        yield running


def ends_with(status, *args):
    with pytest.raises(SystemExit) as ended:
        main(["download", *args])
    assert ended.value.code == status


def test_to_the_current_folder_or_another(server, tmp_path, capsys):
    main(["download", NAME, "--url", server.url])
    assert capsys.readouterr() == (f"{FILE}\n", "")
    main(["download", FILE, "--url", server.url, "--dir", "sets/new"])
    assert capsys.readouterr().out == os.path.join("sets", "new", f"{FILE}\n")
    for folder in (tmp_path, tmp_path / "sets" / "new"):
        assert (folder / FILE).read_bytes() == CONTENT


def test_list(capsys):
    main(["download", "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "file", "resolution", "trajectories", "size", "MD5"]
    expected = [NAME, FILE, "128", "x", "128", "10,000", "55", "GB", "5b21dcccaef4d2145ca579a71153c580"]
    assert lines[1].split() == expected
    assert len(lines) == 1 + len(OFFICIAL_FILES)


def test_unknown_name(tmp_path, capsys):
    ends_with(1, "2d_cfd_M0.1_eta0.02", "--dir", str(tmp_path))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Expected NAME to be that of an official file, but got '2d_cfd_M0.1_eta0.02'. Did you mean" in captured.err


def test_no_name(capsys):
    ends_with(2)
    assert "Expected the NAME of a file, or --list" in capsys.readouterr().err


def test_not_found(server, tmp_path, capsys):
    server.statuses = [404]
    ends_with(1, NAME, "--url", server.url)
    assert "lightning-farms: error: Expected to download http" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_interrupted_and_run_again(server, tmp_path, capsys):
    server.drops = [len(CONTENT) // 2]
    server.halt = partial(press_ctrl_c, tmp_path / f"{FILE}.part", len(CONTENT) // 3)
    ends_with(130, NAME, "--url", server.url)
    assert "Run the same command again to continue.\nlightning-farms: interrupted" in capsys.readouterr().err
    assert not (tmp_path / FILE).exists()
    main(["download", NAME, "--url", server.url])
    assert int(server.asked[-1][0][6:-1]) >= len(CONTENT) // 3
    assert (tmp_path / FILE).read_bytes() == CONTENT
