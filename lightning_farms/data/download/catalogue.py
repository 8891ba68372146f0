"""The official PDEBench files of 2D compressible flow: names, addresses, checksums."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

_ADDRESS = "https://darus.uni-stuttgart.de/api/access/datafile"
_FRAMES, _FIELDS, _BYTES = 21, 4, 4


@dataclass(frozen=True)
class OfficialFile:
    """One official file of training data.

    Attributes:
        name: Short name, as the command line takes it.
        file: Name of the file itself.
        number: Number of the file in its archive.
        resolution: Cells per side.
        trajectories: Number of simulations in the file.
        md5: MD5 checksum of the file.
    """

    name: str
    file: str
    number: int
    resolution: int
    trajectories: int
    md5: str

    @property
    def url(self) -> str:
        """Address of the file."""
        return f"{_ADDRESS}/{self.number}"

    @property
    def size(self) -> int:
        """Size of the fields in bytes; the file is a few kilobytes larger."""
        return self.trajectories * _FRAMES * self.resolution**2 * _FIELDS * _BYTES


def _random(mach: str, eta: str, number: int, md5: str) -> OfficialFile:
    return _file(f"2d_cfd_M{mach}_eta{eta}", "Rand", mach, eta, number, md5)


def _turbulent(mach: str, number: int, md5: str) -> OfficialFile:
    return _file(f"2d_cfd_turb_M{mach}", "Turb", mach, "1e-08", number, md5)


def _file(name: str, start: str, mach: str, eta: str, number: int, md5: str) -> OfficialFile:
    """Describe a file; those of nearly inviscid flows (eta 1e-08) hold fewer flows on finer grids."""
    resolution, trajectories = (512, 1_000) if eta == "1e-08" else (128, 10_000)
    file = f"2D_CFD_{start}_M{mach}_Eta{eta}_Zeta{eta}_periodic_{resolution}_Train.hdf5"
    return OfficialFile(name, file, number, resolution, trajectories, md5)


OFFICIAL_FILES: tuple[OfficialFile, ...] = (
    _random("0.1", "0.01", 164687, "5b21dcccaef4d2145ca579a71153c580"),
    _random("0.1", "0.1", 164688, "b2733888745a1d64e36df813e979910b"),
    _random("0.1", "1e-08", 164689, "ae2552864d0856f58dc74132a2f95d20"),
    _random("1.0", "0.01", 164690, "21969082d0e9524bcc4708e216148e60"),
    _random("1.0", "0.1", 164691, "75a34f34a3dcd9bc8ae4b7adf8bf372c"),
    _random("1.0", "1e-08", 164692, "04fcc44c39acea69e2869b84cd653d4a"),
    _turbulent("0.1", 164685, "844555000d342d2947162c6cf46798e7"),
    _turbulent("1.0", 164686, "3f2c7376cde5fb072db0f9814f1c6992"),
)
"""The training files of 2D compressible flow, with random and with turbulent initial states."""


def official_file(name: str) -> OfficialFile:
    """Look up an official file by its name.

    Args:
        name: Short name, such as 2d_cfd_M0.1_eta0.01, or the file's own name; upper and lower case are the same.

    Returns:
        The file.

    Raises:
        ValueError: If there is no file of that name; the message suggests the nearest names.

    Example:
        >>> official_file("2d_cfd_M0.1_eta0.01").file
        '2D_CFD_Rand_M0.1_Eta0.01_Zeta0.01_periodic_128_Train.hdf5'
        >>> round(official_file("2d_cfd_turb_M1.0").size / 1e9)
        88
    """
    known = {key.lower(): found for found in OFFICIAL_FILES for key in (found.name, found.file)}
    if name.lower() in known:
        return known[name.lower()]
    names = [found.name for found in OFFICIAL_FILES]
    near = get_close_matches(name, names, n=3, cutoff=0.7)
    listed = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(names)}."
    raise ValueError(f"Expected argument `name` to be that of an official file, but got {name!r}. {listed}")
