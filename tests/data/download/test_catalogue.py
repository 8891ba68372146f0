"""The table of official files."""

import re

import pytest

from lightning_farms.data import OFFICIAL_FILES, official_file


def test_names_and_files():
    assert [found.name for found in OFFICIAL_FILES] == [
        "2d_cfd_M0.1_eta0.01",
        "2d_cfd_M0.1_eta0.1",
        "2d_cfd_M0.1_eta1e-08",
        "2d_cfd_M1.0_eta0.01",
        "2d_cfd_M1.0_eta0.1",
        "2d_cfd_M1.0_eta1e-08",
        "2d_cfd_turb_M0.1",
        "2d_cfd_turb_M1.0",
    ]
    assert len({found.md5 for found in OFFICIAL_FILES}) == len({found.url for found in OFFICIAL_FILES}) == 8
    assert all(re.fullmatch("[0-9a-f]{32}", found.md5) for found in OFFICIAL_FILES)
    turbulent = official_file("2d_cfd_turb_M1.0")
    assert turbulent.file == "2D_CFD_Turb_M1.0_Eta1e-08_Zeta1e-08_periodic_512_Train.hdf5"
    assert (turbulent.resolution, turbulent.trajectories) == (512, 1000)
    assert turbulent.url == "https://darus.uni-stuttgart.de/api/access/datafile/164686"


@pytest.mark.parametrize(
    ("name", "size"), [("2d_cfd_M0.1_eta0.01", 55_050_245_208), ("2d_cfd_turb_M1.0", 88_080_392_528)]
)
def test_sizes_are_those_of_the_real_files_without_headers(name, size):
    assert 0 < size - official_file(name).size < 10_000


@pytest.mark.parametrize("found", OFFICIAL_FILES, ids=lambda found: found.name)
def test_found_by_either_name_in_any_case(found):
    for name in (found.name, found.file, found.name.upper(), found.file.lower()):
        assert official_file(name) is found


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("2d_cfd_M0.1_eta0.001", r"Did you mean 2d_cfd_M0.1_eta0.01 or "),
        ("2d_cfd_turb_M10", r"Did you mean 2d_cfd_turb_M1.0 or "),
        ("burgers", r"There are 2d_cfd_M0.1_eta0.01, .*2d_cfd_turb_M1.0\.$"),
    ],
)
def test_unknown_names(name, hint):
    with pytest.raises(ValueError, match=rf"Expected argument `name` .*, but got '{name}'. {hint}"):
        official_file(name)
