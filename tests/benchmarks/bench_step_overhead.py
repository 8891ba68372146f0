"""Time what layer-wise scaling adds to a step: python tests/benchmarks/bench_step_overhead.py [--device cuda].

Fifty linear layers, AdamW(foreach=True), or fused where that is said. First the optimizer's step alone, then whole
training steps (forward, backward, step; batch 64) of several widths. The variants take turns within one run, four steps
each, as a training's follow each other: the first, for which the caches are another's, is not counted. Medians are
printed. "Plain, layer groups" is PyTorch alone with a group for each layer: what "distinct, one group" costs beyond it
is ours (scaling and its proof); likewise "distinct, fused" beyond "plain fused, layer groups". "Proof" proves in every
step that the rates arrive, which else happens in the first steps and then in one of fifty at most. At the end of each
table stands what is ours, and what a proof costs, the median of pairs.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn
from torch.optim import AdamW

from lightning_farms.optim import LayerwiseScaling, layerwise_param_groups
from lightning_farms.optim._proof import RARELY, Proof

Step = Callable[[], object]
OURS = {"distinct, one group": "plain, layer groups", "distinct, fused": "plain fused, layer groups"}
PROOF = {"distinct, one group, proof": "distinct, one group", "distinct, fused, proof": "distinct, fused"}
TURN = 4  # steps in succession, the first of which is not counted


def build(width: int, depth: int, device: str) -> tuple[nn.Sequential, dict[torch.Tensor, str]]:
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
    layer_of: dict[torch.Tensor, str] = {}
    for name, layer in model.to(device).named_children():
        nn.init.orthogonal_(layer.weight)  # so that neither activations nor gradients vanish over the depth
        layer_of.update(dict.fromkeys(layer.parameters(), name))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model, layer_of


def variant(name: str, width: int, depth: int, device: str) -> tuple[nn.Sequential, AdamW]:
    model, layer_of = build(width, depth, device)
    layerwise = "layer groups" in name
    params = layerwise_param_groups(model.named_parameters(), layer_of) if layerwise else model.parameters()
    optimizer = AdamW(params, lr=1e-5, fused=True) if "fused" in name else AdamW(params, lr=1e-5, foreach=True)
    distinct = {"distinct": depth, "five values": 5, "equal to 1": 0}
    for multipliers, number in distinct.items():
        if multipliers in name:
            scaling = LayerwiseScaling(optimizer, layer_of)
            scaling.attach()
            scaling.multipliers = {
                layer: 0.5 + (i % number) / number if number else 1.0 for i, layer in enumerate(scaling.multipliers)
            }
            if "proof" in name:
                optimizer.register_step_post_hook(partial(prove_again, scaling))
    return model, optimizer


def prove_again(scaling: LayerwiseScaling, *_: object) -> None:
    scaling._proof = Proof(scaling.key)


def update(name: str, width: int, depth: int, device: str) -> Step:
    _, optimizer = variant(name, width, depth, device)
    return (lambda: optimizer.step(lambda: None)) if "closure" in name else optimizer.step


def training_step(name: str, width: int, depth: int, device: str) -> Step:
    model, optimizer = variant(name, width, depth, device)
    batch = torch.randn(64, width, device=device)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)


def report(
    title: str,
    steps: Mapping[str, Step],
    rounds: int,
    synchronize: Step,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 5):
        for name, step in steps.items():
            for turn in range(TURN):
                synchronize()
                start = clock()
                step()
                synchronize()
                if number >= 5 and turn:
                    times[name].append(1e6 * (clock() - start))
    print(f"{title}, {rounds} rounds, microseconds")
    base = next(iter(times.values()))
    for name, values in times.items():
        ratio = statistics.median(mine / plain for mine, plain in zip(values, base, strict=True))
        median = statistics.median(values)
        print(f"  {name:32s} {median:9.0f}  {median - statistics.median(base):+8.0f}  {100 * (ratio - 1):+6.1f} %")
    for what, pairs, every in (("ours", OURS, 1), ("the proof", PROOF, RARELY)):
        for mine, plain in pairs.items():
            added = [m - p for m, p in zip(times[mine], times[plain], strict=True)]
            share = statistics.median(a / p for a, p in zip(added, times[plain], strict=True))
            often = f" (one step in {every}: {100 * share / every:+.2f} % of all)" if every > 1 else ""
            print(f"  {what} in {mine!r}: {statistics.median(added):+.0f}, {100 * share:+.1f} % of {plain!r}{often}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="of the one thread, where others use the machine")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    synchronize = torch.cuda.synchronize if args.device == "cuda" else (lambda: None)
    clock = time.thread_time if args.cpu_time else time.perf_counter
    alone = [
        "plain, one group",
        "plain, layer groups",
        "equal to 1, one group",
        "five values, one group",
        "distinct, one group",
        "distinct, one group, closure",
        "distinct, layer groups",
        "plain, fused",
        "plain fused, layer groups",
        "distinct, fused",
        "distinct, one group, proof",
        "distinct, fused, proof",
    ]
    whole = [
        "plain, one group",
        "plain, layer groups",
        "equal to 1, one group",
        "five values, one group",
        "distinct, one group",
        "plain, fused",
        "plain fused, layer groups",
        "distinct, fused",
        "distinct, one group, proof",
        "distinct, fused, proof",
    ]
    layers = f"{args.depth} layers of"
    first = args.widths[0]
    steps = {name: update(name, first, args.depth, args.device) for name in alone}
    report(f"AdamW step alone, {layers} {first}x{first}", steps, args.rounds, synchronize, clock)
    for width in args.widths:
        steps = {name: training_step(name, width, args.depth, args.device) for name in whole}
        report(f"training step, batch 64, {layers} {width}x{width}", steps, args.rounds, synchronize, clock)


if __name__ == "__main__":
    main()
