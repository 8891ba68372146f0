"""The metrics in two processes; what each computes is written to a file. Run by the tests."""

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lightning_farms.metrics import RMSE
from tests.metrics.field_oracles import CASES, PERS, add_in_batches, fields


def main(folder, rank):
    """Two samples here and five there; then a metric that only one rank has fed, and one fed otherwise on each."""
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    prediction, target = (torch.from_numpy(array) for array in fields())
    mine = slice(0, 2) if rank == 0 else slice(2, 7)
    values = {}
    for case in CASES:
        for per in PERS:
            metric = case.metric(**case.settings, per=per)
            add_in_batches(metric, 2, prediction[mine], target[mine])
            values[case.name, per] = metric.compute().numpy()
            metric.update(prediction[:1], target[:1])  # goes on from the rank's own state
        one_sided = case.metric(**case.settings)
        if rank == 1:
            one_sided.update(prediction, target)
            values[case.name, "one-sided"] = one_sided.compute().numpy()
        else:
            with pytest.warns(UserWarning, match="before the ``update``"):
                values[case.name, "one-sided"] = one_sided.compute().numpy()
    unequal = RMSE()
    unequal.update(prediction[..., : rank + 1, :], target[..., : rank + 1, :])
    with pytest.raises(ValueError, match="equal numbers of frames and channels"):
        unequal.compute()
    (folder / f"{rank}.pkl").write_bytes(pickle.dumps(values))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(os.environ["LOCAL_RANK"]))
