"""Official files under their own names, from a mirror on this machine."""

import pytest

from lightning_farms.data import OFFICIAL_FILES, download_pdebench, official_file
from lightning_farms.data.download import catalogue
from lightning_farms.data.download import pdebench as module
from tests.data.download.range_server import CONTENT, md5, range_server


@pytest.fixture
def small_files(monkeypatch):
    """The catalogue with checksums of a small file."""
    small = tuple(
        catalogue.OfficialFile(found.name, found.file, found.number, 64, 1, md5(CONTENT)) for found in OFFICIAL_FILES
    )
    monkeypatch.setattr(catalogue, "OFFICIAL_FILES", small)


@pytest.mark.usefixtures("small_files")
def test_from_a_mirror(tmp_path):
    with range_server() as server:
        path = download_pdebench("2d_cfd_turb_m0.1", tmp_path / "new", url=server.url)
    assert path == tmp_path / "new" / "2D_CFD_Turb_M0.1_Eta1e-08_Zeta1e-08_periodic_512_Train.hdf5"
    assert path.read_bytes() == CONTENT


def test_another_file_at_the_mirror(tmp_path):
    with range_server() as server, pytest.raises(ValueError, match=r"at least 55\.\d GB, but it has 3\.0 MB"):
        download_pdebench("2d_cfd_M0.1_eta0.01", tmp_path, url=server.url)
    assert list(tmp_path.iterdir()) == []


def test_the_official_address_is_asked_unless_a_mirror_is_named(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "fetch_file", lambda *args, **settings: asked.append((args, settings)))
    download_pdebench("2d_cfd_M1.0_eta0.1", str(tmp_path), progress=False)
    found = official_file("2d_cfd_M1.0_eta0.1")
    assert asked == [((found.url, tmp_path / found.file), {"md5": found.md5, "least": found.size, "progress": False})]


def test_unknown_name(tmp_path):
    with pytest.raises(ValueError, match="Did you mean"):
        download_pdebench("2d_cfd_M0.1", tmp_path / "new")
    assert not (tmp_path / "new").exists()
