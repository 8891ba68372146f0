"""Looking through a whole file for what would spoil a training."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from lightning_farms.data.fields.trajectories import FlowFile


class FileFault(NamedTuple):
    """Something wrong with a trajectory.

    Args:
        trajectory: its number in the file.
        channel: name of the channel, empty where all are meant.
        frame: the (first) frame, None where all are meant.
        what: what is wrong, in words.
    """

    trajectory: int
    channel: str
    frame: int | None
    what: str


def check_file(file: FlowFile, advance: Callable[[int], object] = lambda count: None) -> Iterator[FileFault]:
    """Read every value of a file once and tell what is wrong, a few frames in memory at a time.

    Found are NaN and infinities, values beyond float32, densities and pressures that are not above 0 (in PDEBench's
    compressible flows), trajectories that HDF5 makes up, and channels that are constant over space and time.

    Args:
        file: the file.
        advance: is told the number of trajectories that are done.

    Yields:
        What is wrong, by trajectory.

    Raises:
        OSError: if the data cannot be read.

    Example:
        >>> import tempfile
        >>> from lightning_farms.data import PDEBenchFile, SimulationConfig, simulate_to_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = SimulationConfig(trajectories=2, resolution=8, frames=5)
        ...     simulate_to_file(f"{folder}/flow.hdf5", config, progress=False)
        ...     list(check_file(PDEBenchFile(f"{folder}/flow.hdf5")))
        []
    """
    for trajectory in range(file.shape.trajectories):
        if trajectory in file.made_up:
            yield FileFault(trajectory, "", None, f"made up: {file.made_up[trajectory]}")
        else:
            found, extents = _looked_through(file, trajectory)
            yield from found
            for name, (low, high) in zip(file.channels, extents, strict=True):
                if low == high and file.shape.x * file.shape.y * file.shape.frames > 1:
                    yield FileFault(trajectory, name, None, f"constant, {low:g} everywhere")
        advance(1)


def _looked_through(file: FlowFile, trajectory: int) -> tuple[list[FileFault], list[tuple[float, float]]]:
    """What is wrong with the values, and the range of each channel."""
    found: list[FileFault] = []
    lows, highs = [float("inf")] * len(file.channels), [float("-inf")] * len(file.channels)
    for frames in file.blocks():
        faults, extents = file.survey(trajectory, frames)
        found += [FileFault(trajectory, fault.channel, fault.frame, fault.what) for fault in faults]
        for channel, (low, high) in enumerate(extents):
            lows[channel], highs[channel] = min(lows[channel], low), max(highs[channel], high)
    return found, list(zip(lows, highs, strict=True))
