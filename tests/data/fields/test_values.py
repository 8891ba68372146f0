"""Values that no flow has are refused, with channel and frame."""

import h5py
import numpy as np
import pytest

from lightning_farms.data import FilePart, PDEBenchFile
from lightning_farms.data.fields.trajectories import Trajectories

NAMES = ("density", "pressure", "Vx", "Vy")


def write(path, kind=np.float32, **changes):
    with h5py.File(path, "w") as file:
        for name in NAMES:
            values = np.full((2, 5, 4, 4), 2.0, kind)
            if name in changes:
                values[1, 3, 1, 2] = changes[name]
            file[name] = values
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"density": 1e39},
            r"`density` of .*a.h5 to be finite, but .* 1 has too large \(up to 1e\+39, .* in frame 3\.",
        ),
        ({"Vx": -1e300}, r"`Vx` .* too large"),
        ({"density": 0.0}, r"`density` .* to be above 0.* zero values in frame 3"),
        ({"pressure": -0.5}, r"`pressure` .* to be above 0.* negative values in frame 3"),
        ({"pressure": 1e-60}, r"`pressure` .* zero values"),
        ({"Vy": np.nan}, r"`Vy` .* 1 NaN values in frame 3"),
    ],
)
def test_what_is_refused(tmp_path, changes, message, recwarn):
    file = PDEBenchFile(write(tmp_path / "a.h5", np.float64, **changes))
    file.read(0)
    file.read(1, 0, 3)
    with pytest.raises(ValueError, match=message):
        file.read(1)
    with pytest.raises(ValueError, match=message):
        Trajectories([FilePart(file, range(2))]).check(1)
    assert not recwarn


def test_the_largest_single_is_no_fault_and_velocities_may_be_zero(tmp_path):
    largest = float(np.finfo(np.float32).max)
    item = PDEBenchFile(write(tmp_path / "a.h5", np.float64, Vx=0.0, Vy=-largest)).read(1)
    assert (item[1, 2, 3, 0], item[1, 2, 3, 1]) == (0, -largest)


def test_other_files_may_have_negative_pressures(tmp_path):
    """Incompressible flow: only the gradient of the pressure matters."""
    file = PDEBenchFile(write(tmp_path / "a.h5", pressure=-3.0), fields={"u": "Vx", "pressure": "pressure"})
    assert file.read(1)[1, 2, 3, 1] == -3.0


def test_a_file_of_predictions_may_hold_any_finite_density(tmp_path):
    path = write(tmp_path / "a.h5", density=-3.0)
    with h5py.File(path, "a") as file:
        file.attrs["given_frames"] = 2
    assert PDEBenchFile(path).read(1)[1, 2, 3, 2] == -3.0


def test_a_velocity_that_stops_at_once_is_no_flow(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file["Vy"][1, 3:] = 0.0
    with pytest.raises(ValueError, match=r"channel `Vy` of trajectory 1 is 0 in frames 3 to 4, though not in others"):
        PDEBenchFile(path).read(1)
    PDEBenchFile(path).read(1, 0, 3)


def test_a_velocity_that_is_zero_throughout_is_told_once(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file["Vy"][...] = 0.0
    file = PDEBenchFile(path)
    with pytest.warns(
        UserWarning,
        match=r"channel `Vy` of trajectory 1 is 0 in whole frames. If these were "
        r"never written",
    ):
        file.read(1)
    file.read(0)


def test_a_velocity_may_begin_at_rest(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file["Vx"][1, 0] = 0.0
    PDEBenchFile(path).read(1)
