"""Time the analysis of whole models against a loop of one svdvals a window: python tests/benchmarks/bench_analysis.py.

The loop does what the authors' program does, layer by layer: cut the windows, one ``torch.linalg.svdvals`` each,
square, sort, Hill estimate of each block of a convolution, mean over blocks. Both take turns within one run, on the
same weights and with the same number of threads; medians of the ratios of pairs are printed, with the largest
difference of alphas. ``--spikes`` adds a strong rank-4 part to every weight, as training does. ``--profile`` prints
where one thread's time goes; ``--frozen`` what an epoch's analysis costs where all but the last weight are frozen.
``--one SIZE`` times nothing but one square weight, as one window: by one worker, and by as many as there are threads.
"""

import argparse
import cProfile
import math
import pstats
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_farms.analysis import FARMS, KnownLayers, SpectralMethod, WholeMatrix, analyze, layer_weights
from lightning_farms.functional.submatrices import slice_windows
from lightning_farms.models import DPOT, resnet18, vgg16

MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": lambda: resnet18(num_classes=100),
    "VGG-16": lambda: vgg16(num_classes=100),
    "DPOT-Tiny": lambda: DPOT(img_size=128, embed_dim=512, depth=4, n_blocks=4),
    "DPOT-Small": lambda: DPOT(img_size=128, embed_dim=1024, depth=6, n_blocks=8),
    # the shapes of one block of LLaMA-7B: hours on a CPU, meant for --device cuda
    "LLaMA-block": lambda: nn.ModuleList(
        [nn.Linear(4096, 4096, bias=False) for _ in range(4)]
        + [nn.Linear(4096, 11008, bias=False), nn.Linear(4096, 11008, bias=False), nn.Linear(11008, 4096, bias=False)]
    ),
}
METHODS = {"LLaMA-block": FARMS(window=2000, steps=10)}


def hill(eigenvalues: Tensor) -> Tensor:
    ordered = eigenvalues.sort().values
    tail = ordered[len(ordered) // 2 :]
    return 1 + len(tail) / (tail / tail[0]).log().sum()


@torch.no_grad()
def loop(model: nn.Module, method: SpectralMethod, names: set[str]) -> dict[str, float]:
    alphas = {}
    for weight in layer_weights(model):
        if weight.name not in names:
            continue
        positions = len(weight.matrices)
        windows = slice_windows(
            weight.matrices, method.windows(weight.matrices.shape[-2], weight.matrices.shape[-1], weight.kind)
        )
        blocks = [
            torch.cat([torch.linalg.svdvals(windows[p, w]).square() for p in range(positions)])
            for w in range(windows.shape[1])
        ]
        few = positions * min(windows.shape[-2:]) < 10  # pooled by both: the comparison is of speed, not of rules
        if method.pools_blocks(weight.kind, positions) or few:
            blocks = [torch.cat(blocks)]
        alphas[weight.name] = torch.stack([hill(block) for block in blocks]).mean().item()
    return alphas


def add_spikes(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in layer_weights(model):
            matrices = weight.matrices  # a view of the parameters
            rows, columns = matrices.shape[-2:]
            left = torch.randn(len(matrices), rows, 4, generator=generator) * torch.tensor([16.0, 8.0, 4.0, 2.0])
            right = torch.randn(len(matrices), 4, columns, generator=generator)
            matrices.add_((left @ right).to(matrices.dtype) * matrices.abs().mean() / math.sqrt(max(rows, columns)))


def timed(function: Callable[[], object]) -> tuple[float, object]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


PARTS = {
    "eigenvalues, PyTorch": (("~", "<built-in method torch._C._linalg.linalg_eigvalsh>"),),
    "tridiagonal forms, SciPy": (("_lapack.py", "reduce"),),
    "their eigenvalues, SciPy or Numba": (("_lapack.py", "_of_tridiagonals"),),
    "Gram matrices": (("spectrum.py", "_upper_gram"), ("_lapack.py", "multiply")),
    "copies": (
        ("~", "<built-in method torch.cat>"),
        ("~", "<method 'contiguous' of 'torch._C.TensorBase' objects>"),
        ("~", "<method 'copy_' of 'torch._C.TensorBase' objects>"),
    ),
    "checks": (("~", "<built-in method torch._C._linalg.linalg_vector_norm>"), ("spectrum.py", "_errors_of_norms")),
    "fits": (("_engine/measure.py", "measure"),),
}
"""Part of an analysis: (end of a path, function) that it is spent in, with all that these call; none calls another."""


def profiled(function: Callable[[], object]) -> str:
    """Where the time of one thread goes, in per cent."""
    profile = cProfile.Profile()
    profile.runcall(function)
    stats = pstats.Stats(profile)
    seconds = dict.fromkeys(PARTS, 0.0)
    for (path, _, name), (_, _, _, cumulative, _) in stats.stats.items():
        for part, functions in PARTS.items():
            seconds[part] += cumulative * any(path.endswith(end) and name == each for end, each in functions)
    seconds["all else"] = stats.total_tt - sum(seconds.values())
    return ", ".join(f"{part} {100 * each / stats.total_tt:.0f} %" for part, each in seconds.items())


def peak_memory(device: str) -> str:
    """The most that was allocated on a GPU since the last call; nothing for a CPU."""
    if not device.startswith("cuda"):
        return ""
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return f"  peak {peak:.2f} GiB"


def by_one_worker_and_by_all(size: int, pairs: int) -> str:
    """Seconds for one window, in turns."""
    model = nn.Linear(size, size, bias=False)
    seconds: dict[int, list[float]] = {1: [], torch.get_num_threads(): []}
    for _ in range(pairs):
        for workers, each in seconds.items():
            each.append(timed(lambda workers=workers: analyze(model, WholeMatrix(), workers=workers))[0])
    one, many = seconds.values()
    ratios = sorted(slow / quick for slow, quick in zip(one, many, strict=True))
    return (
        f"one window of {size} x {size}  one worker {statistics.median(one):.2f}  all {statistics.median(many):.2f}  "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS)[:-1])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--spikes", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--frozen", action="store_true")
    parser.add_argument("--one", type=int, metavar="SIZE")
    args = parser.parse_args()
    print(f"{args.pairs} pairs, {torch.get_num_threads()} threads, {args.device}; seconds are medians")
    if args.one is not None:
        print(by_one_worker_and_by_all(args.one, args.pairs))
        return
    for name in args.models:
        torch.manual_seed(0)
        model = MODELS[name]()
        if args.spikes:
            add_spikes(model)
        model.to(args.device)
        method = METHODS.get(name, FARMS())
        report = analyze(model, method)
        names = {row.name for row in report if row.status == "ok"}
        loop(model, method, names)
        pairs = []
        for _ in range(args.pairs):
            slow, alphas = timed(lambda model=model, names=names, method=method: loop(model, method, names))
            quick, report = timed(lambda model=model, method=method: analyze(model, method))
            pairs.append((slow, quick))
        worst = max(abs(alphas[layer] - report[layer].alpha) for layer in names)
        ratios = sorted(slow / quick for slow, quick in pairs)
        print(
            f"{name:11s} {len(names):3d} layers  loop {statistics.median(s for s, _ in pairs):7.3f}  "
            f"analyze {statistics.median(q for _, q in pairs):7.3f}  "
            f"ratio {statistics.median(ratios):5.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})  "
            f"largest difference of alphas {worst:.1e}" + peak_memory(args.device)
        )
        if args.profile:
            print(f"  {profiled(lambda model=model, method=method: analyze(model, method, workers=1))}")
        if args.frozen:
            known = KnownLayers()
            *rest, _ = (parameter for parameter in model.parameters() if parameter.ndim >= 2)
            for parameter in rest:
                parameter.requires_grad_(False)
            analyze(model, method, known=known)
            again = [
                timed(lambda model=model, method=method, known=known: analyze(model, method, known=known))[0]
                for _ in range(5)
            ]
            print(f"  all but the last weight frozen: {statistics.median(again):.3f}")


if __name__ == "__main__":
    main()
