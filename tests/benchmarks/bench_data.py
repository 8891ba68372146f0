"""Time CFDDataModule against reading the whole file: python tests/benchmarks/bench_data.py (Linux).

First part: time to the first training batch of a file that fits into memory, for the data module and for a loader that
first reads the whole file, as PDEBench's does (each field at once, transposed into one array of all trajectories with
the frames last). They take turns, each in a process of its own, first with the file's pages dropped from the page
cache, then with them in it; printed are medians. What a process takes to import its packages is not counted.

Second part: the data module on a file of the size of `--gigabytes`, whose data are the same few trajectories again and
again (segments of one file beside it), which stay in the page cache, so that no disk limits the throughput. Printed are
the time to the first batch, training items per second for several numbers of workers (from the second batch on), and
the peak resident memory of the main process and of its largest worker, Python and PyTorch included. Workers help as far
as there are free cores; the share of the machine that others take is printed as the load.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_farms.data import CFDDataModule

FIELDS = ("density", "pressure", "Vx", "Vy")
FRAMES, GIVEN = 21, 10


class WholeFile(Dataset):
    """All trajectories in memory before the first item."""

    def __init__(self, path: str) -> None:
        with h5py.File(path, "r") as file:
            trajectories, frames, x, y = file["density"].shape
            fields = np.empty((trajectories, x, y, frames, len(FIELDS)), np.float32)
            for channel, name in enumerate(FIELDS):
                fields[..., channel] = np.transpose(np.array(file[name], np.float32), (0, 2, 3, 1))
        self.fields = torch.from_numpy(fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.fields[item, :, :, :GIVEN], self.fields[item]


def whole_file(path: str, args: argparse.Namespace) -> dict[str, float]:
    """Seconds to the first batch when the whole file is read before."""
    begin = time.perf_counter()
    next(iter(DataLoader(WholeFile(path), args.batch, shuffle=True)))
    return {"first": time.perf_counter() - begin, "memory": peak_memory("self")}


def ours(path: str, args: argparse.Namespace) -> dict[str, float]:
    """Seconds to the first batch of the data module, and what follows it."""
    begin = time.perf_counter()
    data = CFDDataModule(path, batch_size=args.batch, num_workers=args.workers)
    data.setup("fit")
    batches = iter(data.train_dataloader())
    next(batches)
    first = time.perf_counter() - begin
    begin, items = time.perf_counter(), 0
    for _ in range(args.batches):
        items += len(next(batches)[0])
    rate = items / (time.perf_counter() - begin) if items else float("nan")
    workers = [peak_memory(str(process.pid)) for process in multiprocessing.active_children()]
    return {"first": first, "rate": rate, "memory": peak_memory("self"), "worker": max(workers, default=float("nan"))}


def peak_memory(process: str) -> float:
    """Peak resident memory so far, in MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def in_a_process_of_its_own(job: str, path: Path, args: argparse.Namespace, **options: int) -> dict[str, float]:
    settings = {"batch": args.batch, "workers": 0, "batches": 0, **options}
    command = [sys.executable, __file__, "--job", job, "--path", str(path)]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def drop_pages(path: Path) -> None:
    """Take the file out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def random_fields(trajectories: int, resolution: int) -> Iterator[np.ndarray]:
    """Trajectories of one field, above 0 as densities are."""
    generator = np.random.default_rng(0)
    for _ in range(trajectories):
        yield 0.5 + generator.random((FRAMES, resolution, resolution), np.float32)


def write_random(path: Path, trajectories: int, resolution: int) -> None:
    with h5py.File(path, "w") as file:
        for name in FIELDS:
            field = file.create_dataset(name, (trajectories, FRAMES, resolution, resolution), np.float32)
            for number, values in enumerate(random_fields(trajectories, resolution)):
                field[number] = values


def write_repeated(path: Path, trajectories: int, resolution: int, different: int = 16) -> None:
    """A few trajectories in a file of their own, of which all fields of this one are made."""
    values = path.with_suffix(".values")
    with values.open("wb") as file:
        for each in random_fields(different, resolution):
            file.write(each.tobytes())
    size = values.stat().st_size // different
    whole, rest = divmod(trajectories, different)
    segments = [(str(values), 0, different * size)] * whole + [(str(values), 0, rest * size)] * (rest > 0)
    with h5py.File(path, "w") as file:
        for name in FIELDS:
            shape = (trajectories, FRAMES, resolution, resolution)
            file.create_dataset(name, shape, np.float32, external=segments)


def compare_first_batch(folder: Path, args: argparse.Namespace) -> None:
    path = folder / "small.hdf5"
    write_random(path, args.trajectories, args.resolution)
    print(f"First batch of {args.batch}, {args.trajectories} trajectories, {path.stat().st_size / 2**20:.0f} MiB")
    for cached in (False, True):
        seconds: dict[str, list[float]] = {"whole": [], "ours": []}
        memory = {"whole": 0.0, "ours": 0.0}
        for _ in range(args.repeats):
            for job, times in seconds.items():
                if not cached:
                    drop_pages(path)
                found = in_a_process_of_its_own(job, path, args)
                times.append(found["first"])
                memory[job] = max(memory[job], found["memory"])
        whole, own = (statistics.median(times) for times in seconds.values())
        print(
            f"  {'in the page cache ' if cached else 'not in page cache '}  whole file {whole:7.3f} s "
            f"({memory['whole']:5.0f} MiB)   ours {own:6.3f} s ({memory['ours']:4.0f} MiB)   {whole / own:5.1f} times"
        )
    path.unlink()


def measure_large(folder: Path, args: argparse.Namespace) -> None:
    path = folder / "large.hdf5"
    size = len(FIELDS) * FRAMES * args.resolution**2 * 4
    write_repeated(path, int(args.gigabytes * 1e9 / size), args.resolution)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    on_disk = sum(each.stat().st_size for each in folder.iterdir())
    print(f"File of {args.gigabytes:.1f} GB ({on_disk / 1e6:.1f} MB on disk)")
    for workers in (0, 1, 2, 4):
        runs = [
            in_a_process_of_its_own("ours", path, args, workers=workers, batches=args.measured)
            for _ in range(args.repeats)
        ]
        first, rate = (statistics.median(run[name] for run in runs) for name in ("first", "rate"))
        memory, worker = (max(run[name] for run in runs) for name in ("memory", "worker"))
        print(
            f"  {workers} workers: first batch {first:6.3f} s   {rate:6.0f} items/s   "
            f"memory {memory:4.0f} MiB, worker {worker:4.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--trajectories", type=int, default=200, help="of the small file")
    parser.add_argument("--gigabytes", type=float, default=10.0, help="size of the large file")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--measured", type=int, default=20, help="batches after the first")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--job", choices=["whole", "ours"], help="used by the processes that this one starts")
    parser.add_argument("--path", default="")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batches", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.job is not None:
        print(json.dumps({"whole": whole_file, "ours": ours}[args.job](args.path, args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare_first_batch(Path(folder), args)
        measure_large(Path(folder), args)


if __name__ == "__main__":
    main()
