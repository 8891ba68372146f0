"""Looking through a whole file for what would spoil a training."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lightning_farms.data.fields._opening import DamagedFlowError
from lightning_farms.data.fields._values import Survey
from lightning_farms.data.fields.trajectory_files import FlowFile, TrajectoryFiles


class FileFault(NamedTuple):
    """Something wrong with a trajectory.

    Args:
        trajectory: its number in the file.
        channel: name of the channel, empty if all are meant.
        frame: the (first) frame, None if all are meant.
        what: what is wrong, in words.
    """

    trajectory: int
    channel: str
    frame: int | None
    what: str


def check_file(
    file: FlowFile,
    advance: Callable[[int], object] = lambda count: None,
    *,
    known: dict[tuple[int, ...], str] | None = None,
) -> Iterator[FileFault]:
    """Read every value of a file once and report what is wrong, with a few frames in memory at a time.

    It finds NaN and infinities, values beyond float32, those that mark missing ones (netCDF's attributes), densities
    and pressures that are not above 0 (in PDEBench's compressible flows), trajectories that HDF5 makes up, channels
    that are constant over space and time or the same as another, frames that repeat the one before, and trajectories
    that repeat another.

    Args:
        file: the file, or set of files.
        advance: called after each trajectory, with the number of trajectories done since the last call.
        known: digests of other files' trajectories, and where these are; those of this file are added.

    Yields:
        What is wrong, by trajectory.

    Raises:
        OSError: if the file cannot be read; a damaged part, or file of a set, is reported as its trajectory's fault.

    Example:
        >>> import tempfile
        >>> from lightning_farms.data import PDEBenchFile, SimulationConfig, simulate_to_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = SimulationConfig(trajectories=2, resolution=8, frames=5)
        ...     simulate_to_file(f"{folder}/flow.hdf5", config, progress=False)
        ...     list(check_file(PDEBenchFile(f"{folder}/flow.hdf5")))
        []
    """
    known = {} if known is None else known
    for trajectory in range(file.shape.trajectories):
        if trajectory in file.made_up:
            yield FileFault(
                trajectory, "", None, f"not stored, so that HDF5 makes up its values: {file.made_up[trajectory]}"
            )
        else:
            yield from _faults_of(file, trajectory, known)
        advance(1)


def _faults_of(file: FlowFile, trajectory: int, known: dict[tuple[int, ...], str]) -> list[FileFault]:
    try:
        surveys = [file.survey(trajectory, frames) for frames in file.blocks()]
    except (ValueError, OSError) as error:
        if not isinstance(error, DamagedFlowError) and not isinstance(file, TrajectoryFiles):
            raise
        return [FileFault(trajectory, "", None, f"cannot be read: {error}")]
    found = [FileFault(trajectory, fault.channel, fault.frame, fault.what) for each in surveys for fault in each.faults]
    constant = _constant_channels(file, surveys)
    for channel, value in constant.items():
        found.append(FileFault(trajectory, file.channels[channel], None, f"constant ({value:g} everywhere)"))
    for channel, first in _copies(file, surveys).items():
        name = file.channels[channel]
        if not any(fault.channel == name for fault in found):
            found.append(FileFault(trajectory, name, None, f"the same as {file.channels[first]}"))
    place = f"trajectory {trajectory} of {file.path}"
    other = known.setdefault(tuple(number for each in surveys for number in each.digest), place)
    if len(constant) + len(surveys[0].numbers) == len(file.channels):
        return found
    repeats = [frame for each in surveys for frame in each.repeats]
    if repeats:
        more = f", and so are {len(repeats) - 1} more" if len(repeats) > 1 else ""
        found.append(FileFault(trajectory, "", repeats[0], f"the same as the frame before{more}"))
    if other != place:
        found.append(FileFault(trajectory, "", None, f"the same as {other}"))
    return found


def _constant_channels(file: FlowFile, surveys: Sequence[Survey]) -> dict[int, float]:
    """Return {channel: its value} for those that do not vary though the file's layout lets them."""
    if file.shape.x * file.shape.y * file.shape.frames == 1:
        return {}
    values = {}
    for channel in _fields(file, surveys):
        low = min(each.extents[channel][0] for each in surveys)
        if low == max(each.extents[channel][1] for each in surveys):
            values[channel] = low
    return values


def _copies(file: FlowFile, surveys: Sequence[Survey]) -> dict[int, int]:
    """Return {channel: the first one that has the same values}."""
    digests = [tuple(each.digest[channel] for each in surveys) for channel in range(len(file.channels))]
    firsts = {channel: digests.index(digests[channel]) for channel in _fields(file, surveys)}
    return {channel: first for channel, first in firsts.items() if first < channel}


def _fields(file: FlowFile, surveys: Sequence[Survey]) -> list[int]:
    """Return the channels that are no single numbers by the file's layout."""
    return [channel for channel in range(len(file.channels)) if channel not in surveys[0].numbers]
