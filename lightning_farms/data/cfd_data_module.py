"""Data module for 2D compressible flow in PDEBench's format, and for other files of 2D trajectories."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from lightning_farms.common.arguments import check_at_least, check_not_negative
from lightning_farms.common.image_size import ImageSize, plain_size
from lightning_farms.common.plain_values import plain
from lightning_farms.common.user_cache import user_cache
from lightning_farms.data._augmenting import augmentation_of, check_augment
from lightning_farms.data._data_module import DataModule, items_to_predict, length, ready
from lightning_farms.data._flow_sources import Choice, FlowSources, check_scales
from lightning_farms.data._lineage import Lineage, recorded
from lightning_farms.data._normalization import ChannelStatistics, restore
from lightning_farms.data._simulated_set import simulate_unless_kept, simulated_set
from lightning_farms.data.augmentation import Augment, Augmentation
from lightning_farms.data.epochs import EpochLoader, Progress, own_generator, progress_of, replica_of
from lightning_farms.data.fields._arguments import check_extra_paths, check_fields, file_strides
from lightning_farms.data.fields._file_set import FileSet, strided_size
from lightning_farms.data.fields.indexing import SplitName
from lightning_farms.data.fields.paths import file_paths
from lightning_farms.data.fields.pdebench import ChannelOrder, channel_names
from lightning_farms.data.fields.trajectories import Coordinates, Trajectories, sampled_statistics
from lightning_farms.data.fields.windows import EvaluationTrajectories, TrainingWindows, WindowSampler
from lightning_farms.data.simulation.flows import SimulationConfig

_DEFAULT_SIMULATION = SimulationConfig()
_PURPOSES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}

Batches = DataLoader[tuple[Tensor, Tensor]]


class CFDDataModule(DataModule):
    """Training windows and test trajectories of 2D compressible flow, from PDEBench files or a small simulated set.

    Training items are (x, y) with x of shape (X, Y, in_timesteps, C) and y of shape (X, Y, out_timesteps *
    autoregressive_steps, C), from a random first frame that is drawn anew each epoch. Validation, test and prediction
    items are whole trajectories: x is the first `in_timesteps` frames, y all that follow. All are float32. PDEBench's
    flows have C = 4 channels; other files are read by naming their `fields`.

    An epoch's batches depend on (seed, epoch) alone, so a resumed run sees the same ones as an uninterrupted run, even
    from within an epoch and with any number of workers; under a distributed strategy, the processes share them out.

    Without a file, a set is simulated at the first use and kept in `cache_dir` under a name made of its settings; the
    file appears only once it is complete.

    Args:
        path: PDEBench file (datasets density, pressure, Vx, Vy of shape (B, T, X, Y)), or a list or folder of files
            to mix: each file is split on its own, training items are shuffled over all files, and other items come
            file by file. All files must have the same number of frames and, after the stride, of cells. If files hold
            the same flows at several resolutions, they must have equally many trajectories; otherwise, flows tested in
            one file are trained on in another. When left out, a set is simulated.
        val_path: files whose flows are all used for validation, instead of a part of `path`.
        test_path: files whose flows are all used for testing (and for validation, unless set otherwise), instead of a
            part of `path`, whose flows are then all for training; `predict` takes them too.
        skip: numbers of trajectories to leave out, such as those that `lightning-farms check` names; with several
            files, {file: numbers}. The split of the others stays the same.
        predict_frames: number of frames that `predict` predicts, at least 1; when left out, as many as follow the given
            ones in the file, or `out_timesteps` if none do. `predict` takes every trajectory and reads only its input.
        cache_dir: folder of simulated sets; when left out, lightning_farms in the user's cache folder ($XDG_CACHE_HOME
            or ~/.cache).
        batch_size: items per batch (and process), at least 1.
        in_timesteps: number of given frames (the input), at least 1.
        out_timesteps: number of frames that the network predicts at once, at least 1.
        autoregressive_steps: number of successive predictions in a training item, at least 1; above 1, the module must
            train on its own predictions.
        windows_per_trajectory: training items per trajectory and epoch, at least 1.
        split: "dpot" trains on the first nine tenths and tests on the last tenth (on at most 200 trajectories of it);
            "pdebench" tests on the first tenth and trains on the rest. Default "dpot", because DPOT's pre-training data
            contain the first nine tenths of the 128x128 sets: with PDEBench's split, a released model is tested on
            flows that it was trained on.
        test_fraction: share of test trajectories, in (0, 1]; raise it for files with fewer than 10 trajectories.
        val_fraction: 0: validate on the test trajectories, as DPOT reports after each epoch. Above 0 and below 1: hold
            out this share of the training trajectories instead, the last ones.
        train_fraction: share of the training trajectories to use, in (0, 1], drawn at random: for one `subset_seed`, a
            smaller share is a subset of a larger one. Validation and test do not change with it.
        subset_seed: seed of that draw, in [0, 2^32).
        stride: take every stride-th cell along x and y; a divisor of the resolution. A list has one for each file.
        time_stride: take every time_stride-th frame, at least 1. A training window may begin at any frame of the file.
        channel_order: "dpot" for [Vx, Vy, density, pressure], "pdebench" for [density, pressure, Vx, Vy]; not used with
            `fields`.
        fields: {channel: dataset} in the order of the channels, for HDF5 files with other names than PDEBench's 2D
            compressible flow. "t1_fields/velocity[0]" is the first component of a vector dataset, as in The Well:
            {"vx": "t1_fields/velocity[0]", "vy": "t1_fields/velocity[1]", "density": "t0_fields/density"}.
        axes: order of the axes of the datasets in `fields`: b for trajectory, t for frame, x, y, and c for components
            (last when left out). Without a b, each file is one trajectory and all are one set, as in DPOT's folders:
            "xytc". A dataset that is the same in all frames may lack t (a force, The Well's static fields and scalars);
            it is predicted and counts in the errors, while The Well's own program only gives it as input.
        augment: "shifts": move each training window by any number of cells, on periodic domains; "symmetries": turn and
            reflect it and its velocities, by one of the eight symmetries of the square, or four of a rectangle; "all":
            both. It is seeded as the noise is, and exact if the equations have these symmetries (no gravity).
        vectors: pairs of channels that are a vector's x- and y-component, for `augment`: [[vx, vy]]. All others are
            taken as scalars. When left out, vectors are recognised by name (Vx and Vy, velocity_x and velocity_y,
            momentum_x, ux, ...) or as components of one dataset, `velocity` or one of The Well's t1_fields; other
            channels that may be a vector are refused.
        periodic: whether the domain is periodic, for `augment`. When left out, PDEBench's compressible flows are
            periodic, and The Well's files say it themselves.
        noise: amplitude of the Gaussian noise added to x of training items, in units of each item's and channel's root
            mean square, at least 0. It depends on (seed, epoch, item) alone, as the windows do. OperatorModule has a
            `noise` of its own, drawn on the device; with both, both are added.
        normalize: subtract each channel's mean from x and y, and divide by its standard deviation. The statistics are
            those of up to 64 trajectories of the training part, drawn by `subset_seed`; a checkpoint keeps them, and
            `denormalize` undoes the scaling. A channel that does not vary in these trajectories is refused.
        num_workers: worker processes of each data loader, at least 0; they persist over epochs.
        pin_memory: whether loaders copy batches to pinned memory.
        seed: seed of the training windows, their order and their noise, at least 0.
        simulation: settings of the simulated set, used when there is no path; a checkpoint keeps them as a mapping.

    Raises:
        ValueError: for arguments out of range; at `setup`, for an unsuitable file or an empty split.
        FileNotFoundError: at `setup`, if there is no file.
        OSError: at `setup`, if the file is not HDF5 or is cut short.

    Example:
        >>> data = CFDDataModule(simulation=SimulationConfig(resolution=64), stride=2, batch_size=4)
        >>> data.img_size, data.channels
        (32, ('Vx', 'Vy', 'density', 'pressure'))

    Reference:
        Hao et al., DPOT (2024), arXiv 2403.03542; Takamoto et al., PDEBench (2022), arXiv 2210.07182; Ohana et al., The
        Well (2024), arXiv 2412.00568.
    """

    left_out: Callable[[], Collection[int]] | None = None
    """Returns the items of a prediction that are there already; called when the prediction's loader is built."""
    _sources: FlowSources
    _pool: Trajectories | None = None
    _train: TrainingWindows | None = None
    _val: EvaluationTrajectories | None = None
    _test: EvaluationTrajectories | None = None
    _predict: EvaluationTrajectories | None = None
    _statistics: ChannelStatistics | None = None
    _lineage: Lineage
    _sampler: WindowSampler | None = None
    _resumed = Progress()

    def __init__(
        self,
        path: str | Path | list[str | Path] | None = None,
        *,
        val_path: str | Path | list[str | Path] | None = None,
        test_path: str | Path | list[str | Path] | None = None,
        skip: list[int] | dict[str, list[int]] | None = None,
        predict_frames: int | None = None,
        cache_dir: str | Path | None = None,
        batch_size: int = 8,
        in_timesteps: int = 10,
        out_timesteps: int = 1,
        autoregressive_steps: int = 1,
        windows_per_trajectory: int = 1,
        split: SplitName = "dpot",
        test_fraction: float = 0.1,
        val_fraction: float = 0.0,
        train_fraction: float = 1.0,
        subset_seed: int = 0,
        stride: int | list[int] = 1,
        time_stride: int = 1,
        channel_order: ChannelOrder = "dpot",
        fields: dict[str, str] | None = None,
        axes: str = "btxy",
        augment: Augment | None = None,
        vectors: list[list[str]] | None = None,
        periodic: bool | None = None,
        noise: float = 0.0,
        normalize: bool = False,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
        simulation: SimulationConfig = _DEFAULT_SIMULATION,
    ) -> None:
        super().__init__()
        check_at_least(
            1,
            batch_size=batch_size,
            in_timesteps=in_timesteps,
            out_timesteps=out_timesteps,
            autoregressive_steps=autoregressive_steps,
            windows_per_trajectory=windows_per_trajectory,
            time_stride=time_stride,
            predict_frames=1 if predict_frames is None else predict_frames,
        )
        check_at_least(0, num_workers=num_workers, seed=seed)
        check_not_negative(noise=noise)
        check_fields(path, fields, axes)
        check_augment(augment, vectors, periodic)
        self.path = file_paths(path)
        strides = file_strides(stride, self.path)
        self.val_path, self.test_path = file_paths(val_path), file_paths(test_path)
        check_extra_paths(self.path, strides, self.val_path, self.test_path, val_fraction)
        self.predict_frames, self.skip = predict_frames, skip
        self.channels = channel_names(channel_order) if fields is None else tuple(fields)
        self.cache_dir = user_cache() if cache_dir is None else Path(cache_dir)
        self.batch_size, self.num_workers, self.pin_memory, self.seed = batch_size, num_workers, pin_memory, int(seed)
        self.in_timesteps, self.out_timesteps = in_timesteps, out_timesteps
        self.autoregressive_steps, self.windows_per_trajectory = autoregressive_steps, windows_per_trajectory
        self.stride, self.time_stride, self.subset_seed = stride, time_stride, subset_seed
        self.channel_order: ChannelOrder = channel_order
        self.fields, self.axes, self.noise, self.normalize = fields, axes, noise, normalize
        self.augment, self.vectors, self.periodic = augment, vectors, periodic
        self.simulation = SimulationConfig(**simulation) if isinstance(simulation, Mapping) else simulation
        fractions = dict(test_fraction=test_fraction, val_fraction=val_fraction, train_fraction=train_fraction)
        beside = dict(seed=self.seed, stride=stride, time_stride=time_stride, simulated=self.path is None)
        self._lineage = Lineage()
        self._sources = FlowSources(
            self.data_paths,
            strides,
            val=self.val_path,
            test=self.test_path,
            layout={"channel_order": channel_order, "fields": fields, "axes": axes},
            choice=Choice(split, fractions, subset_seed, skip, beside),
        )

    @property
    def data_path(self) -> Path:
        """The file that is read: the (first) given one, or that of the simulated set in the cache folder."""
        return self.data_paths[0]

    @property
    def data_paths(self) -> tuple[Path, ...]:
        """All files that are read."""
        if self.path is None:
            return (simulated_set(self.cache_dir, self.simulation),)
        return tuple(self.path) if isinstance(self.path, list) else (self.path,)

    @property
    def img_size(self) -> ImageSize:
        """Cells along each side of a square grid, or along x and y; see `grid_size`."""
        return plain_size(self.grid_size)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Cells along x and y after the stride; known before `setup`, from the file's header or the settings."""
        if self.path is None:
            return 2 * (strided_size(self.simulation.resolution, self._sources.strides[0]),)
        return self._files().grid

    @property
    def n_channels(self) -> int:
        """Number of channels of a frame."""
        return len(self.channels)

    @property
    def coordinates(self) -> Coordinates:
        """Centres of the cells and times of the frames, after the strides; None where files lack them or differ."""
        return self._files("test" if self._predict is not None else "train").coordinates(self.time_stride)

    @property
    def physics(self) -> dict[str, float]:
        """The values of eta, zeta and M, as far as they are known and equal in all files."""
        return self._files().physics()

    @property
    def train_items(self) -> int:
        """Number of training items of an epoch, over all processes; known after `setup`."""
        return length(self._train, "train")

    @property
    def val_items(self) -> int:
        """Number of validation trajectories; known after `setup`."""
        return length(self._val, "val")

    @property
    def test_items(self) -> int:
        """Number of test trajectories, or of predicted ones if only `setup("predict")` ran; known after `setup`."""
        return length(self._predict if self._test is None else self._test, "test")

    def prepare_data(self) -> None:
        """Simulate the set if no path was given and the cache has no file for these settings."""
        if self.path is None:
            simulate_unless_kept(self.data_path, self.simulation)

    def setup(self, stage: str) -> None:
        """Open the files, read their headers, and build the datasets of a stage.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            ValueError: for an unsuitable file, too few frames, or an empty split.
            FileNotFoundError: if there is no file.
            OSError: if a file is not HDF5 or is cut short.
        """
        if stage not in _PURPOSES:
            raise ValueError(f"Expected argument `stage` to be one of {list(_PURPOSES)}, but got {stage!r}.")
        if stage == "fit":
            self._resumed, self._sampler, self._statistics = Progress(), None, None
        self._predict = None
        self._lineage.begin(stage)
        self._files()
        self._sources.tell_remarks(_PURPOSES[stage], self.time_stride)
        parts = {purpose: self._part(purpose) for purpose in _PURPOSES[stage]}
        self._pool = parts["train"] if "train" in parts else self._part("train", used=False)
        if "train" in parts:
            self._train = TrainingWindows(
                self._pool,
                in_timesteps=self.in_timesteps,
                out_timesteps=self.out_timesteps * self.autoregressive_steps,
                windows_per_trajectory=self.windows_per_trajectory,
                noise=self.noise,
                seed=self.seed,
                augmentation=self._augmentation(),
            )
            self._lineage.identities["trained"].append(self._train.identities)
            self._lineage.order = {"batch_size": self.batch_size, "items": len(self._train), **replica_of(self.trainer)}
        given, known = self.in_timesteps, dict[str, Any](self._lineage.identities)
        if "val" in parts:
            self._val = EvaluationTrajectories(parts["val"], in_timesteps=given, trained=known["trained"])
            known["validated"].extend([self._val.identities] if stage == "fit" else [])
        if "test" in parts:
            self._test = EvaluationTrajectories(parts["test"], in_timesteps=given, **known)
        if "predict" in parts:
            ahead = max(parts["predict"].frames - given, 0) or self.out_timesteps
            frames = ahead if self.predict_frames is None else self.predict_frames
            self._predict = EvaluationTrajectories(parts["predict"], in_timesteps=given, predicted=frames)

    def teardown(self, stage: str) -> None:
        """Close the files; the datasets open them again if they are used.

        Args:
            stage: "fit", "validate", "test" or "predict".
        """
        self._sources.close()

    def check(self, purpose: str) -> None:
        """Read all frames of a part's flows once and refuse bad values.

        Args:
            purpose: "train", "val" or "test".

        Raises:
            ValueError: for values that no flow can have, or an empty part.
            OSError: if the data cannot be read.
        """
        part = self._sources.part(purpose, time_stride=self.time_stride).trajectories
        for number in range(len(part)):
            part.check(number)

    def state_dict(self) -> dict[str, Any]:
        """Return the training's progress (epoch and batches done in it), the channels, their scaling, and the flows.

        The flows used for training and validation are kept by file (its size, header and both ends) and number,
        together with the settings of the split.
        """
        progress = progress_of(self.trainer)
        statistics = None if self._statistics is None else self._statistics._asdict()
        return {
            "epoch": progress.epoch,
            "batches": progress.batches,
            "channels": list(self.channels),
            "normalize": self.normalize,
            "statistics": statistics,
            **self._sources.scales(self.time_stride),
            "lineage": plain(self._lineage.state(self._sources.choice.settings())),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume where a checkpoint was written, with its scaling; warn of flows that it was trained on.

        Args:
            state_dict: what `state_dict` returned.

        Warns:
            UserWarning: if flows that are to be evaluated or predicted were trained on, or have another time step or
                cell width.

        Raises:
            ValueError: if the checkpoint's training normalized its data and this module does not, or the reverse, or if
                its channels differ or are in another order.
        """
        channels = tuple(state_dict.get("channels", self.channels))
        if channels != self.channels:
            raise ValueError(
                f"Expected the channels to be {list(channels)}, as in the training of the checkpoint, but got "
                f"{list(self.channels)}. Give the `channel_order` or `fields` of its training."
            )
        normalized = bool(state_dict.get("normalize", False))
        if normalized != self.normalize:
            raise ValueError(
                f"Expected argument `normalize` to be {normalized}, as in the training of the checkpoint, but got "
                f"{self.normalize}."
            )
        statistics = state_dict.get("statistics")
        if statistics is not None:
            self._statistics = ChannelStatistics(**statistics)
            self._hand_out_statistics()
        check_scales(state_dict, self._sources.scales(self.time_stride), self.time_stride)
        self._lineage.load(state_dict, self._sources.choice.settings())
        self._resumed = Progress(int(state_dict["epoch"]), int(state_dict.get("batches", 0)))
        if self._sampler is not None:
            self._resume(self._sampler)

    def train_dataloader(self) -> Batches:
        """Load training windows, this process's share of them."""
        windows = ready(self._train, "train")
        self._hand_out_statistics()
        self._sampler = WindowSampler(windows, seed=self.seed, **replica_of(self.trainer))
        self._resume(self._sampler)
        return EpochLoader(windows, sampler=self._sampler, **self._loader_options())

    def val_dataloader(self) -> Batches:
        """Load validation trajectories in order."""
        return self._evaluation_loader(ready(self._val, "val"))

    def test_dataloader(self) -> Batches:
        """Load test trajectories in order."""
        return self._evaluation_loader(ready(self._test, "test"))

    def predict_dataloader(self) -> Batches:
        """Load the given frames of every trajectory in order, with NaN in place of the frames to predict."""
        trajectories = ready(self._predict, "predict")
        there = () if self.left_out is None else set(self.left_out())
        items = items_to_predict(len(trajectories), there, replica_of(self.trainer)["num_replicas"])
        return self._evaluation_loader(trajectories, items)

    def prediction_settings(self) -> dict[str, Any]:
        """Return what predictions depend on besides the network: the flows, their files, and how they are read.

        Returns:
            Plain values, equal for equal items of `predict_dataloader`; known after `setup("predict")`.
        """
        statistics = self._known_statistics() if self.normalize else ()
        return {
            "flows": recorded(self._lineage.flows("predict")),
            "modified": [file.path.stat().st_mtime_ns for file in self._files("predict").files],
            "channels": list(self.channels),
            "cells": list(self.grid_size),
            "given_frames": self.in_timesteps,
            "predicted_frames": ready(self._predict, "predict").predicted,
            "time_stride": self.time_stride,
            "normalize": [values.tolist() for values in statistics],
        }

    def denormalize(self, fields: Tensor) -> Tensor:
        """Undo the scaling of normalized data.

        Args:
            fields: (..., C), as the loaders give them or a network predicts them.

        Returns:
            The same in physical units, in at least float32; `fields` itself without `normalize`.

        Raises:
            RuntimeError: if the statistics are not known yet, before `setup`.
        """
        return restore(fields, self._known_statistics()) if self.normalize else fields

    def _files(self, purpose: str = "train") -> FileSet:
        """Return the files of a purpose."""
        if self.path is None and not self.data_path.exists():
            raise FileNotFoundError(
                f"Expected the simulated set {self.data_path} to exist, but it does not: call `prepare_data()`."
            )
        return self._sources.files(purpose)

    def _part(self, purpose: str, *, used: bool = True) -> Trajectories:
        """Return the trajectories of a purpose; with `used`, refuse unreadable ones and record the flows."""
        part = self._sources.part(purpose, time_stride=self.time_stride, used=used)
        if used:
            self._lineage.use(purpose, part.flows)
        return part.trajectories

    def _augmentation(self) -> Augmentation | None:
        if self.augment is None:
            return None
        options: dict[str, Any] = {"vectors": self.vectors, "periodic": self.periodic, "seed": self.seed}
        return augmentation_of(self.augment, self._files(), **options)

    def _evaluation_loader(self, trajectories: EvaluationTrajectories, items: list[int] | None = None) -> Batches:
        self._hand_out_statistics()
        return DataLoader(trajectories, sampler=items, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": self.pin_memory,
            "generator": own_generator(self.seed),
        }

    def _known_statistics(self) -> ChannelStatistics:
        """Return the checkpoint's statistics, or a training sample's, which are the same in every process."""
        if self._statistics is None:
            self._statistics = sampled_statistics(ready(self._pool, "train"), seed=self.subset_seed)
        return self._statistics

    def _hand_out_statistics(self) -> None:
        """Give the datasets the scaling; only when a loader is built, as a checkpoint's comes after `setup`."""
        if self.normalize:
            statistics = self._known_statistics()
            for dataset in (self._train, self._val, self._test, self._predict):
                if dataset is not None:
                    dataset.trajectories.statistics = statistics

    def _resume(self, sampler: WindowSampler) -> None:
        sampler.resume(self._resumed.epoch, self._resumed.batches * self.batch_size)
