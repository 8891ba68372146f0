"""What is kept of rollouts, and which of a process's items are repetitions."""

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from lightning_farms.callbacks._rollouts.record import RolloutRecord, Rollouts, own_items
from lightning_farms.metrics import RelativeL2Error


def test_only_what_is_drawn_is_kept():
    record = RolloutRecord(RelativeL2Error(per="frame_and_channel"), samples=3, columns=2)
    prediction, target = torch.randn(2, 2, 8, 6, 9, 4, dtype=torch.float64)
    for _ in range(4):
        assert record.add(Rollouts(prediction, target, 10), loader=None)
    assert record.drawn == [0, 8]
    assert len(record.kept) == 3
    for index, kept in enumerate(record.kept):
        for fields, of in ((kept.prediction, prediction), (kept.target, target)):
            torch.testing.assert_close(fields, of[index % 2][:, :, [0, 8]].float(), rtol=0, atol=0)
            assert fields.untyped_storage().nbytes() == 8 * 6 * 2 * 4 * 4


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
