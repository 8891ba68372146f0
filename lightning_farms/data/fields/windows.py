"""Datasets of training windows and evaluation trajectories, and the sampler of the former."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_farms.common.arguments import check_at_least
from lightning_farms.common.noise import add_noise
from lightning_farms.common.seeding import seeded_generator
from lightning_farms.common.warning import warn_user
from lightning_farms.data.augmentation import Augmentation
from lightning_farms.data.epochs import EpochSampler
from lightning_farms.data.fields.indexing import WindowKey, epoch_windows
from lightning_farms.data.fields.trajectories import Trajectories

_NOISE = 0x6E6F697365  # keeps its draws apart from those of the same seed for other purposes


class TrainingWindows(Dataset[tuple[Tensor, Tensor]]):
    """Windows of consecutive frames: the first are the input, the others the target.

    An item's key, drawn by `WindowSampler`, determines its window, how this is moved, and its noise. With a stride in
    time, a window may begin at any frame of the file, not only at every time_stride-th. At the first item of a
    trajectory, all of its frames are read and checked, so that bad values show in the first epoch.

    Attributes:
        identities: a number for each trajectory that identifies its values; 0 if it has not been read yet.

    Args:
        trajectories: the training trajectories.
        in_timesteps: frames of the input, at least 1.
        out_timesteps: frames of the target, at least 1.
        windows_per_trajectory: items for each trajectory, at least 1.
        noise: amplitude of the Gaussian noise on the input, in units of each item's and channel's root mean square, at
            least 0.
        seed: seed of the noise, at least 0.
        augmentation: moves each window by a symmetry of the grid, before it is standardized; none when left out.

    Raises:
        ValueError: if the files have too few frames for one window.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        *,
        in_timesteps: int = 10,
        out_timesteps: int = 1,
        windows_per_trajectory: int = 1,
        noise: float = 0.0,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        check_frames(trajectories, in_timesteps, out_timesteps)
        self.trajectories = trajectories
        self.in_timesteps, self.out_timesteps = in_timesteps, out_timesteps
        self.windows_per_trajectory = windows_per_trajectory
        self.noise, self.seed, self.augmentation = noise, seed, augmentation
        self.identities = torch.zeros(len(trajectories), dtype=torch.int64).share_memory_()  # all workers share it

    @property
    def starts(self) -> int:
        """Number of possible first frames of a window."""
        return self.trajectories.stored_frames - self._span + 1

    def __len__(self) -> int:
        return len(self.trajectories) * self.windows_per_trajectory

    def __getitem__(self, key: WindowKey | int) -> tuple[Tensor, Tensor]:
        item, start, epoch = WindowKey(key, 0, 0) if isinstance(key, int) else key
        number = item // self.windows_per_trajectory
        if not self.identities[number]:
            self.identities[number] = self.trajectories.check(number)
        change = None if self.augmentation is None else partial(self.augmentation, epoch=epoch, item=item)
        window = self.trajectories.read(number, start, start + self._span, change=change)
        x, y = window[:, :, : self.in_timesteps], window[:, :, self.in_timesteps :]
        return add_noise(x, self.noise, seeded_generator((_NOISE, self.seed, epoch, item))), y

    @property
    def _span(self) -> int:
        """Number of frames in the file from a window's first to its last."""
        return (self.in_timesteps + self.out_timesteps - 1) * self.trajectories.time_stride + 1


_KNOWN = (
    "was trained on, and others may too. Errors on such flows say nothing about new ones",
    "the training was validated with, and others may too. Their errors may be too low if the best of several "
    "checkpoints was taken",
)


class EvaluationTrajectories(Dataset[tuple[Tensor, Tensor]]):
    """Whole trajectories: the first frames are the input, all that follow the target.

    Attributes:
        identities: a number for each trajectory that identifies its values; 0 if it has not been read as a whole yet.

    Args:
        trajectories: the trajectories.
        in_timesteps: frames of the input, at least 1.
        predicted: number of frames to predict; if given, only the input is read, and the target of so many frames is
            NaN.
        trained: identities of trajectories that were trained on, as in `TrainingWindows.identities`; the first of these
            that is read causes a warning, whatever its name is here.
        validated: likewise, of trajectories that the training was validated with.

    Raises:
        ValueError: if the files have no frame to predict.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        *,
        in_timesteps: int = 10,
        predicted: int | None = None,
        trained: Sequence[Tensor] = (),
        validated: Sequence[Tensor] = (),
    ) -> None:
        if predicted is None:
            check_frames(trajectories, in_timesteps, 1)
        else:
            check_at_least(1, in_timesteps=in_timesteps, predicted=predicted)
            _check_given(trajectories, in_timesteps)
        self.trajectories, self.in_timesteps, self.predicted = trajectories, in_timesteps, predicted
        self._known, self._told = (trained, validated), torch.zeros(2, dtype=torch.bool).share_memory_()
        self.identities = torch.zeros(len(trajectories), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.trajectories)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        if self.predicted is not None:
            given = self.trajectories.read(item, 0, (self.in_timesteps - 1) * self.trajectories.time_stride + 1)
            return given, given.new_full((*given.shape[:2], self.predicted, given.shape[3]), torch.nan)
        frames = self.trajectories.read(item, change=partial(self._tell_known, item))
        return frames[:, :, : self.in_timesteps], frames[:, :, self.in_timesteps :]

    def _tell_known(self, item: int, frames: Tensor) -> Tensor:
        """Record an item's identity; warn, once for each, if it was trained on or helped to choose the checkpoint."""
        identity = self.identities[item] = self.trajectories.identity(frames)
        for kind, known in enumerate(self._known):
            if not self._told[kind] and any((each == identity).any() for each in known):
                self._told[kind] = True
                part, number = self.trajectories.place(item)
                warn_user(
                    f"Trajectory {number} of {part.file.path} has the values of one that {_KNOWN[kind]}. "
                    "`lightning-farms check`, with all files, names them; leave them out (`skip`).",
                )
        return frames


class WindowSampler(EpochSampler[WindowKey]):
    """Sampler of an epoch's windows and their order, drawn from (seed, epoch) alone: this process's share of them.

    Args:
        windows: the training items.
        seed: at least 0.
        num_replicas: processes that share the items, at least 1.
        rank: this process among them, in [0, num_replicas).

    Example:
        >>> import tempfile
        >>> from lightning_farms.data import FilePart, PDEBenchFile, SimulationConfig, simulate_to_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = SimulationConfig(trajectories=3, resolution=8, frames=6)
        ...     simulate_to_file(f"{folder}/flow.hdf5", config, progress=False)
        ...     flows = Trajectories([FilePart(PDEBenchFile(f"{folder}/flow.hdf5"), range(3))])
        ...     windows = TrainingWindows(flows, in_timesteps=2)
        ...     sampler = WindowSampler(windows, seed=0)
        ...     sampler.set_epoch(1)
        ...     x, y = windows[next(iter(sampler))]
        ...     len(sampler), windows.starts, x.shape, y.shape
        (3, 4, torch.Size([8, 8, 2, 4]), torch.Size([8, 8, 1, 4]))
    """

    def __init__(self, windows: TrainingWindows, *, seed: int = 0, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(windows, seed=seed, num_replicas=num_replicas, rank=rank)
        self._windows = windows

    def keys(self, items: Sequence[int]) -> Iterator[WindowKey]:
        """Draw the epoch and return the windows at some positions of its order."""
        drawn = epoch_windows(len(self._windows), self._windows.starts, seed=self.seed, epoch=self.epoch)
        return iter([drawn[item] for item in items])


def _check_given(trajectories: Trajectories, in_timesteps: int) -> None:
    """Refuse files that do not have the given frames."""
    if in_timesteps > trajectories.frames:
        raise ValueError(
            f"Expected {trajectories.parts[0].file.path} to have at least {in_timesteps} given frames, but it has "
            f"{trajectories.frames}."
        )


def check_frames(trajectories: Trajectories, in_timesteps: int, out_timesteps: int) -> None:
    """Refuse windows that the files cannot hold."""
    check_at_least(1, in_timesteps=in_timesteps, out_timesteps=out_timesteps)
    if in_timesteps + out_timesteps > trajectories.frames:
        stride = trajectories.time_stride
        thinned = f" at a stride in time of {stride}" if stride > 1 else ""
        remedy = "lower `in_timesteps`, `out_timesteps`, `autoregressive_steps` or `time_stride`"
        if trajectories.stored_frames == 1:
            remedy = "nothing can be predicted of fields that do not change in time"
        raise ValueError(
            f"Expected {trajectories.parts[0].file.path} to have at least {in_timesteps} given + {out_timesteps} "
            f"target frames{thinned}, but it has {trajectories.frames}: {remedy}."
        )
