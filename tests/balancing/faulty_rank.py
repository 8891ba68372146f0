import datetime, os, sys, warnings, time
from pathlib import Path
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from lightning_farms import Balancer, LinearMap
from tests.callbacks.injection import Fault, counted, fault_in, functions
from contextlib import nullcontext

ROOMS = ("balancing", "analysis", "optim")


def group(rank, folder, name):
    store = distributed.FileStore(str(folder / name), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=3))


def train(rank, fault=None):
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Linear(16, 12)))
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    with Balancer(model, opt, LinearMap(0.5, 1.5), warn=lambda *a: None) as b:
        b.update()
        for e in range(2):
            opt.zero_grad()
            model(torch.randn(4, 12)).square().mean().backward()
            opt.step()
            with fault_in(fault) if fault and e == 0 and rank else nullcontext():
                b.update()
        return b.multipliers, len(b.history.epochs)


def main(folder):
    rank = int(os.environ["LOCAL_RANK"])
    everything = functions(*(f"lightning_farms.{r}" for r in ROOMS))
    group(rank, folder, "plain")
    with counted() as reached:
        whole = train(rank)
    distributed.destroy_process_group()
    names = [n for n, f in everything.items() if f.__code__ in reached]
    common = folder / "names"
    if rank == 0:
        common.write_text("\n".join(names))
    else:
        while not common.exists() or not common.read_text():
            time.sleep(0.1)
        names = common.read_text().split("\n")
    out = []
    for i, n in enumerate(names):
        group(rank, folder, str(i))
        r = None
        try:
            r = train(rank, everything[n])
            out.append(f"{n}: ok {r[1]}")
        except BaseException as e:
            out.append(f"{n}: {type(e).__name__} {str(e)[:100]!r}")
        try:
            distributed.destroy_process_group()
        except Exception:
            pass
        (folder / f"out-{rank}.txt").write_text("\n".join(out))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
