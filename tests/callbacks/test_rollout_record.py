"""What is kept of rollouts, and which of a process's items are repetitions."""

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from lightning_farms.callbacks._rollouts.record import RolloutRecord, Rollouts, own_items
from lightning_farms.metrics import RelativeL2Error


def names_of(number):
    return ["Vx", "Vy", "density", "pressure"][:number]


def test_only_what_is_drawn_is_kept():
    record = RolloutRecord(RelativeL2Error(per="frame_and_channel"), samples=3, columns=2, names=names_of)
    prediction, target = torch.randn(2, 2, 8, 6, 9, 4, dtype=torch.float64)
    for _ in range(4):
        assert record.add(Rollouts(prediction, target, 10), loader=None)
    assert record.drawn == [0, 8]
    assert len(record.kept) == 3
    for index, kept in enumerate(record.kept):
        for fields, of in ((kept.prediction, prediction), (kept.target, target)):
            torch.testing.assert_close(fields, of[index % 2][:, :, [0, 8]].float(), rtol=0, atol=0)
            assert fields.untyped_storage().nbytes() == 8 * 6 * 2 * 4 * 4


def test_errors_of_what_needs_no_network():
    """A field that grows by its last value in every frame: persistence is off by k / (k + 1) in frame k."""
    record = RolloutRecord(RelativeL2Error(per="frame_and_channel"), samples=0, columns=2, names=names_of)
    last = torch.rand(3, 4, 4, 1, 2) + 1
    target = last * torch.arange(2.0, 5.0).view(1, 1, 1, 3, 1)
    for part in (slice(0, 2), slice(2, 3)):
        assert record.add(Rollouts(target[part], target[part], 5, last[part]), loader=None)
    trivial = record.trivial_errors()
    assert trivial["persistence"] == pytest.approx([1 / 2, 2 / 3, 3 / 4])
    drift = last.mean((1, 2), keepdim=True).expand_as(target)
    expected = (drift - target).flatten(1, 2).norm(dim=1) / target.flatten(1, 2).norm(dim=1)
    assert trivial["drift_free"] == pytest.approx(expected.mean((0, 2)).tolist())


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("shuffle", [False, True])
def test_each_item_is_some_processs_own_once(count, processes, shuffle):
    own = []
    for rank in range(processes):
        sampler = DistributedSampler(range(count), num_replicas=processes, rank=rank, shuffle=shuffle)
        loader, seen = DataLoader(range(count), sampler=sampler, batch_size=2), 0
        for batch in loader:
            own += batch[: own_items(loader, seen, len(batch))].tolist()
            seen += len(batch)
    assert sorted(own) == list(range(count))
