"""Time what layer-wise scaling adds to an optimizer step: python tests/benchmarks/bench_step_overhead.py.

Fifty linear layers, AdamW(foreach=True) in one group. The variants take turns within one run; medians are printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import AdamW

from lightning_farms.optim import LayerwiseScaling, layerwise_param_groups


def build(width: int, depth: int) -> tuple[nn.Sequential, dict[torch.Tensor, str]]:
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
    layer_of: dict[torch.Tensor, str] = {}
    for name, layer in model.named_children():
        layer_of.update(dict.fromkeys(layer.parameters(), name))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model, layer_of


def variant(name: str, width: int, depth: int) -> Callable[[], object]:
    model, layer_of = build(width, depth)
    layerwise = "groups" in name
    params = layerwise_param_groups(model.named_parameters(), layer_of) if layerwise else model.parameters()
    optimizer = AdamW(params, lr=1e-3, foreach=True)
    if "scaled" in name:
        scaling = LayerwiseScaling(optimizer, layer_of)
        scaling.attach()
        if "equal" not in name:
            scaling.multipliers = {layer: 0.5 + i / depth for i, layer in enumerate(scaling.multipliers)}
    return (lambda: optimizer.step(lambda: None)) if "closure" in name else optimizer.step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = [
        "plain, one group",
        "plain, layer groups",
        "scaled equal, one group",
        "scaled, one group",
        "scaled, one group, closure",
        "scaled, layer groups",
    ]
    steps = {name: variant(name, args.width, args.depth) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(1e6 * (time.perf_counter() - start))
    base = statistics.median(times[names[0]])
    print(f"{args.depth} layers of {args.width}x{args.width}, AdamW foreach, {args.rounds} rounds, microseconds a step")
    for name in names:
        median = statistics.median(times[name])
        print(f"{name:28s} {median:9.0f}  {median - base:+9.0f}")


if __name__ == "__main__":
    main()
