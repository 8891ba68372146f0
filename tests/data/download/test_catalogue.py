"""The table of official files."""

import re
from urllib.parse import urlsplit

import pytest

from lightning_farms.data import OFFICIAL_FILES, official_file


@pytest.mark.parametrize("attribute", ["name", "file", "number", "md5", "url"])
def test_no_two_files_have_one(attribute):
    assert len({getattr(found, attribute) for found in OFFICIAL_FILES}) == len(OFFICIAL_FILES)


@pytest.mark.parametrize("found", OFFICIAL_FILES, ids=lambda found: found.name)
def test_an_entry_agrees_with_itself(found):
    """The short name, the file's own name and the figures say the same."""
    start, mach, eta, zeta, cells = re.fullmatch(
        r"2D_CFD_(Rand|Turb)_M(.+)_Eta(.+)_Zeta(.+)_periodic_(\d+)_Train\.hdf5", found.file
    ).groups()
    assert found.name == (f"2d_cfd_turb_M{mach}" if start == "Turb" else f"2d_cfd_M{mach}_eta{eta}")
    assert (eta, int(cells)) == (zeta, found.resolution)
    assert found.trajectories * found.resolution**2 in (10_000 * 128**2, 1_000 * 512**2)
    assert re.fullmatch("[0-9a-f]{32}", found.md5)
    address = urlsplit(found.url)
    assert (address.scheme, address.path.rpartition("/")[2]) == ("https", str(found.number))


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
