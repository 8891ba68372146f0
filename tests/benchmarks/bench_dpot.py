"""Time DPOT's training step against the plain formulation: python -m tests.benchmarks.bench_dpot [--device cuda].

Forward, loss, backward and a step of Adam, of the same network computed as its definition reads and as it is here. The
two take turns step by step within one run; medians and the median ratio of pairs are printed. Before that, each trains
in a process of its own that reports how far its memory grew: on a CPU the peak of resident memory less that before the
first step, on a GPU the peak of what tensors hold.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from lightning_farms.models import DPOT
from tests.models.dpot.plain_dpot import plain_forward

SIZES = {"tiny": {}, "small": {"embed_dim": 1024, "depth": 6, "n_blocks": 8}}
VARIANTS = ("plain", "ours")


def training_step(variant: str, args: argparse.Namespace) -> Callable[[], object]:
    """Return a function that trains a fresh network by one step, always on the same batch."""
    torch.manual_seed(0)
    model = DPOT(**SIZES[args.size]).to(args.device)
    frames = torch.randn(args.batch, 128, 128, 10, 4, device=args.device)
    target = torch.randn(args.batch, 128, 128, 1, 4, device=args.device)
    labels = torch.zeros(args.batch, dtype=torch.long, device=args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    forward = model if variant == "ours" else lambda x: plain_forward(model, x)
    if args.compile:
        forward = torch.compile(forward)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.precision == "bf16-mixed"):
            prediction, logits = forward(frames)
            loss = F.mse_loss(prediction.float(), target) + F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        if args.device == "cuda":
            torch.cuda.synchronize()

    return step


def grown_memory(variant: str, args: argparse.Namespace) -> float:
    """Return the MiB that training adds to what network and data take."""
    torch.set_num_threads(args.threads)
    step = training_step(variant, args)
    if args.device == "cuda":
        before = torch.cuda.memory_allocated()
    else:
        before = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        step()
    if args.device == "cuda":
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return (1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["32", "bf16-mixed"], default="32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = parse()
    memory = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for variant in VARIANTS:
            memory[variant] = pool.apply(grown_memory, (variant, args))
    torch.set_num_threads(args.threads)
    steps = {variant: training_step(variant, args) for variant in VARIANTS}
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for number in range(args.steps + 2):
        for variant, step in steps.items():
            start = time.perf_counter()
            step()
            if number >= 2:
                seconds[variant].append(time.perf_counter() - start)
    ratio = statistics.median(plain / ours for plain, ours in zip(*seconds.values(), strict=True))
    options = f"{args.device}, {args.threads} threads, {args.precision}{', compiled' if args.compile else ''}"
    print(f"DPOT-{args.size.capitalize()}, 128 x 128, batch {args.batch}, {options}, {args.steps} rounds")
    for variant in VARIANTS:
        median, fastest = (1e3 * function(seconds[variant]) for function in (statistics.median, min))
        print(f"  {variant:6s} {median:8.1f} ms a step, fastest {fastest:8.1f}; {memory[variant]:7.0f} MiB")
    print(f"  plain / ours: time {ratio:.2f}, memory {memory['plain'] / memory['ours']:.2f}")


if __name__ == "__main__":
    main()
