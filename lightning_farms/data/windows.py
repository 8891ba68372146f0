"""Datasets of training windows and evaluation trajectories, and the sampler of the former."""

from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from lightning_farms.data.indexing import WindowKey, epoch_windows
from lightning_farms.data.pdebench import ChannelOrder, PDEBenchFile


class TrainingWindows(Dataset[tuple[Tensor, Tensor]]):
    """Windows of consecutive frames: the first are the input, the others the target.

    The dataset holds no state that changes: which window an item shows is in its key, drawn by `WindowSampler`.

    Args:
        file: where to read.
        trajectories: numbers of the training trajectories.
        in_timesteps: frames of the input, at least 1.
        out_timesteps: frames of the target, at least 1.
        windows_per_trajectory: items for each trajectory, at least 1.
        stride: every stride-th cell along x and y.
        channel_order: "dpot" or "pdebench".

    Raises:
        ValueError: if the file has too few frames for one window.
    """

    def __init__(
        self,
        file: PDEBenchFile,
        trajectories: range,
        *,
        in_timesteps: int = 10,
        out_timesteps: int = 1,
        windows_per_trajectory: int = 1,
        stride: int = 1,
        channel_order: ChannelOrder = "dpot",
    ) -> None:
        check_frames(file, in_timesteps, out_timesteps)
        self.file, self.trajectories = file, trajectories
        self.in_timesteps, self.out_timesteps = in_timesteps, out_timesteps
        self.windows_per_trajectory = windows_per_trajectory
        self.stride, self.channel_order = stride, channel_order

    @property
    def starts(self) -> int:
        """Number of possible first frames of a window."""
        return self.file.shape.frames - self.in_timesteps - self.out_timesteps + 1

    def __len__(self) -> int:
        return len(self.trajectories) * self.windows_per_trajectory

    def __getitem__(self, key: WindowKey | int) -> tuple[Tensor, Tensor]:
        item, start = (key, 0) if isinstance(key, int) else key
        trajectory = self.trajectories[item // self.windows_per_trajectory]
        frames = self.in_timesteps + self.out_timesteps
        window = self.file.read(trajectory, start, start + frames, stride=self.stride, channel_order=self.channel_order)
        return window[:, :, : self.in_timesteps], window[:, :, self.in_timesteps :]


class EvaluationTrajectories(Dataset[tuple[Tensor, Tensor]]):
    """Whole trajectories: the first frames are the input, all that follow the target.

    Args:
        file: where to read.
        trajectories: their numbers.
        in_timesteps: frames of the input, at least 1.
        stride: every stride-th cell along x and y.
        channel_order: "dpot" or "pdebench".

    Raises:
        ValueError: if the file has no frame to predict.
    """

    def __init__(
        self,
        file: PDEBenchFile,
        trajectories: range,
        *,
        in_timesteps: int = 10,
        stride: int = 1,
        channel_order: ChannelOrder = "dpot",
    ) -> None:
        check_frames(file, in_timesteps, 1)
        self.file, self.trajectories, self.in_timesteps = file, trajectories, in_timesteps
        self.stride, self.channel_order = stride, channel_order

    def __len__(self) -> int:
        return len(self.trajectories)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        frames = self.file.read(self.trajectories[item], stride=self.stride, channel_order=self.channel_order)
        return frames[:, :, : self.in_timesteps], frames[:, :, self.in_timesteps :]


class WindowSampler(DistributedSampler[WindowKey]):
    """Order and windows of an epoch, drawn from (seed, epoch) alone, and this process's share of them.

    It is a DistributedSampler so that Lightning leaves it as it is under a distributed strategy and calls its
    `set_epoch` before each epoch. Every process draws the same epoch; process r takes keys r, r + replicas, and so on,
    the first keys repeated at the end where the count is not divisible.

    Args:
        windows: the training items.
        seed: at least 0.
        num_replicas: processes that share the items, at least 1.
        rank: this process among them, in [0, num_replicas).

    Example:
        >>> import tempfile
        >>> from lightning_farms.data import SimulationConfig, simulate_to_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = SimulationConfig(trajectories=3, resolution=8, frames=6)
        ...     simulate_to_file(f"{folder}/flow.hdf5", config, progress=False)
        ...     windows = TrainingWindows(PDEBenchFile(f"{folder}/flow.hdf5"), range(3), in_timesteps=2)
        ...     sampler = WindowSampler(windows, seed=0)
        ...     sampler.set_epoch(1)
        ...     x, y = windows[next(iter(sampler))]
        ...     len(sampler), windows.starts, x.shape, y.shape
        (3, 4, torch.Size([8, 8, 2, 4]), torch.Size([8, 8, 1, 4]))
    """

    def __init__(self, windows: TrainingWindows, *, seed: int = 0, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(windows, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self._windows = windows

    def __iter__(self) -> Iterator[WindowKey]:
        windows = self._windows
        keys = epoch_windows(len(windows), windows.starts, seed=self.seed, epoch=self.epoch)
        shares = range(self.rank, self.total_size, self.num_replicas)
        return iter([keys[position % len(keys)] for position in shares])


def check_frames(file: PDEBenchFile, in_timesteps: int, out_timesteps: int) -> None:
    """Refuse windows that a file cannot hold.

    Args:
        file: the file.
        in_timesteps: frames of the input, at least 1.
        out_timesteps: frames of the target, at least 1.

    Raises:
        ValueError: naming the frames there are.
    """
    for name, value in (("in_timesteps", in_timesteps), ("out_timesteps", out_timesteps)):
        if value < 1:
            raise ValueError(f"Expected argument `{name}` to be at least 1, but got {value}.")
    if in_timesteps + out_timesteps > file.shape.frames:
        raise ValueError(
            f"Expected {file.path} to have at least `in_timesteps` + `out_timesteps` = {in_timesteps} + "
            f"{out_timesteps} frames, but it has {file.shape.frames}: ask for fewer."
        )
