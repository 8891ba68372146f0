"""Data module for 2D compressible flow in PDEBench's format."""

import dataclasses
import hashlib
import json
from collections.abc import Sized
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_farms.data.indexing import Split, SplitName, check_split, split_trajectories
from lightning_farms.data.pdebench import ChannelOrder, PDEBenchFile, channel_names
from lightning_farms.data.simulation import SimulationConfig
from lightning_farms.data.user_cache import user_cache
from lightning_farms.data.windows import EvaluationTrajectories, TrainingWindows, WindowSampler
from lightning_farms.data.writer import simulate_to_file

_SIMULATOR_VERSION = 1
_DEFAULT_SIMULATION = SimulationConfig()
_PURPOSES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}

DatasetT = TypeVar("DatasetT", bound=Sized)

Batches = DataLoader[tuple[Tensor, Tensor]]


class CFDDataModule(LightningDataModule):
    """Training windows and test trajectories of 2D compressible flow, from a PDEBench file or a small simulated set.

    Training items are (x, y) with x of shape (X, Y, in_timesteps, 4) and y of shape (X, Y, out_timesteps, 4), at a
    random first frame drawn anew each epoch. Validation, test and prediction items are whole trajectories: x the first
    `in_timesteps` frames, y all that follow. All float32.

    An epoch's batches depend on (seed, epoch) alone, so a resumed run sees the same ones as a straight run, with any
    number of workers; under a distributed strategy the processes share them out.

    Without a file, a set is simulated at the first use and kept in `cache_dir` under a name made of its settings; the
    file appears only once it is complete.

    Args:
        path: PDEBench file (datasets density, pressure, Vx, Vy of shape (B, T, X, Y)); simulate a set when left out.
        cache_dir: folder of simulated sets; lightning_farms in the user's cache folder ($XDG_CACHE_HOME or ~/.cache)
            when left out.
        batch_size: items per batch (and process), at least 1.
        in_timesteps: given frames, at least 1.
        out_timesteps: target frames of a training item, at least 1.
        windows_per_trajectory: training items per trajectory and epoch, at least 1.
        split: "dpot" tests on the last tenth (of it at most 200 trajectories), "pdebench" on the first tenth. Default
            "dpot", because DPOT's pre-training data contain the training part of the 128x128 sets by this split, so
            PDEBench's would test a released model on flows it has seen.
        test_fraction: share of test trajectories, in (0, 1); raise it for files with fewer than 10 trajectories.
        val_fraction: 0: validate on the test trajectories, as DPOT reports after each epoch. Above 0 and below 1: hold
            out that last share of the training trajectories instead.
        train_fraction: share of the training trajectories to use, the first ones, in (0, 1].
        stride: take every stride-th cell along x and y; a divisor of the resolution.
        channel_order: "dpot" for [Vx, Vy, density, pressure], "pdebench" for [density, pressure, Vx, Vy].
        num_workers: worker processes of each data loader, at least 0; they persist over epochs.
        pin_memory: whether loaders copy batches to pinned memory.
        seed: of the training windows and their order, at least 0.
        simulation: settings of the simulated set, used when there is no path.

    Raises:
        ValueError: for arguments out of range; at `setup`, for an unsuitable file or an empty split.
        FileNotFoundError: at `setup`, if there is no file.
        OSError: at `setup`, if the file is not HDF5 or is cut short.

    Example:
        >>> data = CFDDataModule(simulation=SimulationConfig(resolution=64), stride=2, batch_size=4)
        >>> data.img_size, data.channels
        (32, ('Vx', 'Vy', 'density', 'pressure'))

    Reference:
        Hao et al., DPOT (2024), arXiv 2403.03542; Takamoto et al., PDEBench (2022), arXiv 2210.07182.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        cache_dir: str | Path | None = None,
        batch_size: int = 8,
        in_timesteps: int = 10,
        out_timesteps: int = 1,
        windows_per_trajectory: int = 1,
        split: SplitName = "dpot",
        test_fraction: float = 0.1,
        val_fraction: float = 0.0,
        train_fraction: float = 1.0,
        stride: int = 1,
        channel_order: ChannelOrder = "dpot",
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
        simulation: SimulationConfig = _DEFAULT_SIMULATION,
    ) -> None:
        super().__init__()
        _check_at_least(
            1,
            batch_size=batch_size,
            in_timesteps=in_timesteps,
            out_timesteps=out_timesteps,
            windows_per_trajectory=windows_per_trajectory,
            stride=stride,
        )
        _check_at_least(0, num_workers=num_workers, seed=seed)
        self.channels = channel_names(channel_order)
        self.path = None if path is None else Path(path)
        self.cache_dir = user_cache() if cache_dir is None else Path(cache_dir)
        self.batch_size, self.num_workers, self.pin_memory, self.seed = batch_size, num_workers, pin_memory, seed
        self.in_timesteps, self.out_timesteps = in_timesteps, out_timesteps
        self.windows_per_trajectory = windows_per_trajectory
        self.stride: int = stride
        self.channel_order: ChannelOrder = channel_order
        self.simulation = simulation
        self._split_settings = (split, test_fraction, val_fraction, train_fraction)
        self._split(simulation.trajectories)
        self._resumed_epoch = 0
        self._file: PDEBenchFile | None = None
        self._train: TrainingWindows | None = None
        self._val: EvaluationTrajectories | None = None
        self._test: EvaluationTrajectories | None = None

    @property
    def data_path(self) -> Path:
        """The file that is read: the one given, or the simulated set's in the cache folder."""
        if self.path is not None:
            return self.path
        return self.cache_dir / _cache_name(self.simulation)

    @property
    def img_size(self) -> int:
        """Cells along each side after the stride; known before `setup`, from the file's header or the settings."""
        size = (self.simulation.resolution,) * 2 if self.path is None else self._header().shape[2:]
        if size[0] != size[1]:
            raise ValueError(f"Expected {self.data_path} to have as many cells along x as along y, but got {size}.")
        if size[0] % self.stride:
            raise ValueError(
                f"Expected argument `stride` to divide the resolution {size[0]} of the data, but got {self.stride}."
            )
        return int(size[0] // self.stride)

    @property
    def n_channels(self) -> int:
        """Number of channels of a frame, 4."""
        return len(self.channels)

    @property
    def train_items(self) -> int:
        """Training items of an epoch, over all processes; known after `setup`."""
        return _length(self._train, "train")

    @property
    def val_items(self) -> int:
        """Validation trajectories; known after `setup`."""
        return _length(self._val, "val")

    @property
    def test_items(self) -> int:
        """Test trajectories; known after `setup`."""
        return _length(self._test, "test")

    def prepare_data(self) -> None:
        """Simulate the set if no path was given and the cache has no file for these settings."""
        if self.path is None and not self.data_path.exists():
            simulate_to_file(self.data_path, self.simulation)

    def setup(self, stage: str) -> None:
        """Open the file, read its header, and build the datasets of a stage.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            ValueError: for an unsuitable file, too few frames, or an empty split.
            FileNotFoundError: if there is no file.
            OSError: if the file is not HDF5 or is cut short.
        """
        if stage not in _PURPOSES:
            raise ValueError(f"Expected argument `stage` to be one of {list(_PURPOSES)}, but got {stage!r}.")
        self._resumed_epoch = 0
        file = self._file = self._header()
        _ = self.img_size
        split = self._split(file.shape.trajectories)
        _, test_fraction, val_fraction, _ = self._split_settings
        check_split(
            split,
            count=file.shape.trajectories,
            purposes=_PURPOSES[stage],
            test_fraction=test_fraction,
            val_fraction=val_fraction,
        )
        if "train" in _PURPOSES[stage]:
            self._train = TrainingWindows(
                file,
                split.train,
                in_timesteps=self.in_timesteps,
                out_timesteps=self.out_timesteps,
                windows_per_trajectory=self.windows_per_trajectory,
                stride=self.stride,
                channel_order=self.channel_order,
            )
        if "val" in _PURPOSES[stage]:
            self._val = self._evaluation(file, split.val)
        if "test" in _PURPOSES[stage]:
            self._test = self._evaluation(file, split.test)

    def teardown(self, stage: str) -> None:
        """Close the file; the datasets open it again if they are used.

        Args:
            stage: "fit", "validate", "test" or "predict".
        """
        if self._file is not None:
            self._file.close()

    def state_dict(self) -> dict[str, Any]:
        """Number of the epoch that comes next."""
        return {"epoch": self._epoch()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the epoch that comes next, for loaders that are built before the trainer's own count is restored."""
        self._resumed_epoch = int(state_dict["epoch"])

    def train_dataloader(self) -> Batches:
        """Load training windows, this process's share of them."""
        windows = _ready(self._train, "train")
        sampler = WindowSampler(windows, seed=self.seed, **self._replica())
        sampler.set_epoch(self._epoch())
        # A generator of its own keeps the loader from drawing on the global one.
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            windows,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.pin_memory,
            generator=generator,
        )

    def val_dataloader(self) -> Batches:
        """Load validation trajectories in order."""
        return self._evaluation_loader(_ready(self._val, "val"))

    def test_dataloader(self) -> Batches:
        """Load test trajectories in order."""
        return self._evaluation_loader(_ready(self._test, "test"))

    def predict_dataloader(self) -> Batches:
        """Load test trajectories in order."""
        return self.test_dataloader()

    def _header(self) -> PDEBenchFile:
        """Open the file once; its header is kept."""
        if self._file is None:
            if self.path is None and not self.data_path.exists():
                raise FileNotFoundError(
                    f"Expected the simulated set {self.data_path} to exist, but it does not: call `prepare_data()`."
                )
            self._file = PDEBenchFile(self.data_path)
        return self._file

    def _split(self, count: int) -> Split:
        split, test_fraction, val_fraction, train_fraction = self._split_settings
        return split_trajectories(
            count, split=split, test_fraction=test_fraction, val_fraction=val_fraction, train_fraction=train_fraction
        )

    def _evaluation(self, file: PDEBenchFile, trajectories: range) -> EvaluationTrajectories:
        return EvaluationTrajectories(
            file,
            trajectories,
            in_timesteps=self.in_timesteps,
            stride=self.stride,
            channel_order=self.channel_order,
        )

    def _evaluation_loader(self, trajectories: EvaluationTrajectories) -> Batches:
        return DataLoader(
            trajectories,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _replica(self) -> dict[str, int]:
        """The trainer's share-out of the data: number of replicas and this process's rank among them."""
        kwargs = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return {} if kwargs is None else {name: int(kwargs[name]) for name in ("num_replicas", "rank")}

    def _epoch(self) -> int:
        """The epoch that comes next: a resumed run starts its workers before Lightning calls `set_epoch`.

        Where `configure_optimizers` asks for the number of steps, it even starts them before Lightning has restored its
        count of epochs; this module's own state is restored by then.
        """
        if self.trainer is None:
            return 0
        # Not `trainer.current_epoch`: that still counts one epoch less when the loaders of a resumed run are built.
        done = int(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        return max(done, self._resumed_epoch)


def _check_at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"Expected argument `{name}` to be at least {least}, but got {value}.")


def _cache_name(config: SimulationConfig) -> str:
    settings = json.dumps({"version": _SIMULATOR_VERSION, **dataclasses.asdict(config)}, sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
    return (
        f"2D_CFD_Sim_M{config.mach:g}_Eta{config.eta:g}_Zeta{config.zeta:g}_periodic_{config.resolution}"
        f"_n{config.trajectories}_seed{config.seed}_{digest}.hdf5"
    )


def _ready(dataset: DatasetT | None, purpose: str) -> DatasetT:
    if dataset is None:
        raise RuntimeError(
            f"Expected `setup` to have built the {purpose} data, but it has not: call it for that stage."
        )
    return dataset


def _length(dataset: Sized | None, purpose: str) -> int:
    return len(_ready(dataset, purpose))
