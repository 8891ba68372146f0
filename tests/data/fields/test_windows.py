import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_farms.data import EvaluationTrajectories, FilePart, TrainingWindows, Trajectories, WindowSampler
from lightning_farms.data.fields.windows import check_frames


class File:
    """Stands for a file: values tell trajectory and frame, and reads outside it fail."""

    path = "file.hdf5"

    def __init__(self, trajectories, frames, offset=0):
        self.shape = type("Shape", (), {"trajectories": trajectories, "frames": frames})
        self.offset = offset

    def blocks(self):
        return [range(self.shape.frames)]

    def read(self, trajectory, start=0, stop=None, *, stride=1, time_stride=1):
        stop = self.shape.frames if stop is None else stop
        assert 0 <= trajectory < self.shape.trajectories
        assert 0 <= start < stop <= self.shape.frames
        values = self.offset + 1000 * trajectory + np.arange(start, stop, time_stride)
        return torch.from_numpy(np.broadcast_to(values[None, None, :, None], (2, 2, len(values), 1)).astype(np.float64))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_windows_lie_within_the_training_trajectories(data):
    frames = data.draw(st.integers(2, 30), "frames")
    time_stride = data.draw(st.integers(1, 4), "time_stride")
    thinned = -(-frames // time_stride)
    given_frames = data.draw(st.integers(1, max(1, thinned - 1)), "in_timesteps")
    targets = data.draw(st.integers(1, 8), "out_timesteps")
    counts = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3), "trajectories")
    chosen = [data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1), "chosen") for n in counts]
    files = [File(n, frames, offset=1_000_000 * i) for i, n in enumerate(counts)]
    pool = Trajectories([FilePart(*part) for part in zip(files, chosen, strict=True)], time_stride=time_stride)
    options = {"in_timesteps": given_frames, "out_timesteps": targets, "windows_per_trajectory": 2}
    if given_frames + targets > thinned:
        with pytest.raises(
            ValueError, match=f"{given_frames} given .* {targets} target frames.*, but it has {thinned}: "
        ):
            TrainingWindows(pool, **options)
        return
    windows = TrainingWindows(pool, **options)
    expected = sorted(1_000_000 * i + 1000 * number for i, part in enumerate(chosen) for number in part)
    seen = []
    for key in WindowSampler(windows, seed=data.draw(st.integers(0, 9), "seed")):
        x, y = windows[key]
        values = torch.cat((x, y), dim=2)[0, 0, :, 0]
        assert (x.shape[2], y.shape[2]) == (given_frames, targets)
        assert (values.diff() == time_stride).all()
        seen.append(int(values[0]) // 1000 * 1000)
    assert sorted(seen) == sorted(expected * 2)
    evaluation = EvaluationTrajectories(pool, in_timesteps=given_frames)
    shown = [torch.cat(evaluation[i], dim=2)[0, 0, :, 0] for i in range(len(evaluation))]
    assert [int(values[0]) for values in shown] == [
        1_000_000 * i + 1000 * number for i, part in enumerate(chosen) for number in part
    ]
    assert all(len(values) == thinned == pool.frames for values in shown)


@settings(max_examples=60, deadline=None)
@given(
    items=st.integers(1, 40),
    replicas=st.integers(1, 5),
    seen=st.integers(0, 50),
    epochs=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_processes_share_an_epoch_and_go_on_within_it(items, replicas, seen, epochs):
    windows = TrainingWindows(Trajectories([FilePart(File(items, 20), range(items))]))
    whole = WindowSampler(windows, seed=1)
    shares = [WindowSampler(windows, seed=1, num_replicas=replicas, rank=rank) for rank in range(replicas)]
    for sampler in (whole, *shares):
        sampler.set_epoch(epochs[0])
    parts = [list(sampler) for sampler in shares]
    assert len({len(part) for part in parts}) == 1
    dealt = [key for round_ in zip(*parts, strict=True) for key in round_]
    keys = list(whole)
    assert dealt[:items] == keys
    assert dealt[items:] == (keys * replicas)[: len(dealt) - items]
    for sampler, part in zip(shares, parts, strict=True):
        sampler.resume(epochs[1], seen)
        assert list(sampler) == (part[seen:] if epochs[0] == epochs[1] else part)


def test_noise_belongs_to_the_item_and_the_epoch():
    pool = Trajectories([FilePart(File(5, 20), range(5))])
    windows = TrainingWindows(pool, noise=0.1, seed=2)
    plain = TrainingWindows(pool)
    for sampler in (WindowSampler(windows), WindowSampler(windows, num_replicas=2, rank=1)):
        for key in sampler:
            x, y = windows[key]
            assert not torch.equal(x, plain[key][0])
            assert torch.equal(y, plain[key][1])
            assert torch.equal(x, windows[key][0])
            assert not torch.equal(x, windows[key._replace(epoch=1)][0])
            assert not torch.equal(x, TrainingWindows(pool, noise=0.1, seed=3)[key][0])
    assert torch.equal(windows[2][0], windows[(2, 0, 0)][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "`in_timesteps` to be at least 1, but got 0"),
        ((1, 0), "`out_timesteps` to be at least 1, but got 0"),
        (
            (4, 1),
            r"file.hdf5 to have at least 4 given \+ 1 target frames at a stride in time of 2, but it has 4: lower",
        ),
    ],
)
def test_windows_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_frames(Trajectories([FilePart(File(1, 7), range(1))], time_stride=2), *arguments)


def test_a_single_frame_leaves_nothing_to_predict():
    """PDEBench's Darcy flow."""
    with pytest.raises(ValueError, match="has 1: nothing can be predicted of fields that do not change in time"):
        check_frames(Trajectories([FilePart(File(1, 1), range(1))]), 1, 1)


@pytest.mark.parametrize("number", [-1, 5])
def test_trajectories_that_there_are_not(number):
    pool = Trajectories([FilePart(File(2, 3), range(2)), FilePart(File(3, 3), range(3))])
    with pytest.raises(IndexError, match=rf"`number` to be in \[0, 5\), but got {number}"):
        pool.read(number)


def test_no_parts_or_a_wrong_stride():
    with pytest.raises(ValueError, match="`parts` to hold at least one part of a file, but got none"):
        Trajectories([])
    with pytest.raises(ValueError, match="`time_stride` to be at least 1, but got 0"):
        Trajectories([FilePart(File(1, 2), range(1))], time_stride=0)
