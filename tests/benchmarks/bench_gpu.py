"""Everything that is to be known of a GPU, in one command: python -m tests.benchmarks.bench_gpu --json FILE.

Sections, each with a budget of seconds after which it stops where it is; one that fails says so in the table, and the
next one begins. Without a GPU, ``--small`` runs the same code on the CPU in seconds, so that it does not rot.

- tests: every test marked ``gpu``, in a process of its own
- ways: milliseconds of each way of :mod:`lightning_farms.functional.eigensolvers`, by type, size and batch
- analysis: an epoch's analysis against one ``svdvals`` a window on the same device, and against the CPU's cores; peak
  memory; how often PyTorch makes the host wait for the device
- epoch: share of an epoch's time, ResNet-18 on images of CIFAR's shape, DPOT-Tiny on 128 x 128
- dpot: a training step of DPOT-Tiny against the plain formulation
- flows: simulated flows a second
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_farms.analysis import FARMS, SpectralMethod, analyze
from lightning_farms.analysis.weights import layer_weights
from lightning_farms.data.simulation import SimulationConfig, simulate_cfd
from lightning_farms.functional import CheckedSpectrum, checked_esd
from lightning_farms.functional.eigensolvers import Way
from lightning_farms.models import resnet18, resnet34, vgg16, vgg19
from tests.benchmarks.bench_analysis import MODELS, loop
from tests.benchmarks.bench_dpot import training_step

TYPES = {"float32": torch.float32, "float64": torch.float64, "complex64": torch.complex64}
SIZES = (16, 32, 33, 64, 128, 256, 512, 1024, 2048, 4096)
MOST_SECONDS = 3.0  # of repetitions; what a size is expected to take longer, by the size before it, is left out


class Row(NamedTuple):
    """A line of the table."""

    section: str
    what: str
    result: str


class Run:
    """The options, and what has been found."""

    def __init__(self, device: str, small: bool) -> None:
        self.device, self.small = torch.device(device), small
        self.rows: list[Row] = []
        self.numbers: dict[str, Any] = {}
        self.ends = 0.0

    def found(self, section: str, what: str, result: str, **numbers: object) -> None:
        self.rows.append(Row(section, what, result))
        self.numbers.setdefault(section, []).append({"what": what, **numbers})
        print(f"{section}: {what}: {result}", file=sys.stderr, flush=True)

    @property
    def over(self) -> bool:
        """Whether the section's time is up."""
        return time.perf_counter() > self.ends

    def seconds(self, function: Callable[[], object], repetitions: int = 3) -> float:
        """Median of some repetitions after a first one, fewer where they are long."""
        times = []
        for _ in range(repetitions + 1):
            synchronise(self.device)
            start = time.perf_counter()
            function()
            synchronise(self.device)
            times.append(time.perf_counter() - start)
            if sum(times) > MOST_SECONDS:
                break
        return statistics.median(times[1:] or times)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---- sections ------------------------------------------------------------------------------------------------------


def tests(run: Run) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-rs", "-p", "no:cacheprovider"]
    chosen = ["tests/functional/test_eigensolvers_gpu.py"] if run.small else ["tests"]
    left = max(1.0, run.ends - time.perf_counter())
    ended = subprocess.run([*command, *chosen], capture_output=True, text=True, timeout=left, check=False)
    last = ended.stdout.strip().splitlines()[-1:] or [ended.stderr[-200:]]
    failed = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    run.found(
        "tests", f"pytest -m gpu, exit status {ended.returncode}", "; ".join([*last, *failed]), output=ended.stdout
    )


def ways(run: Run) -> None:
    for name, dtype in TYPES.items():
        lasted: dict[Way, float] = {}
        for size in SIZES[:2] if run.small else SIZES:
            batch = 3 if run.small else batch_that_fills(size)
            matrices = torch.randn(batch, size, size, dtype=dtype, device=run.device)
            for way in (Way.TORCH, Way.CUPY, Way.HOST):
                if run.over:
                    return
                if 8 * lasted.get(way, 0.0) > 2 * MOST_SECONDS:
                    continue
                what = f"{name} {batch} x {size} x {size}, {way}"
                try:
                    found: list[CheckedSpectrum] = []
                    lasted[way] = run.seconds(lambda w=way, m=matrices, f=found: f.append(spectra(m, w)), 1)
                    bad = int(((found[-1].sum_error > 0) | (found[-1].squares_error > 0)).sum())
                except Exception as error:
                    lasted[way] = float("inf")
                    run.found("ways", what, f"{type(error).__name__}: {error}"[:80])
                else:
                    text = f"{1e3 * lasted[way]:.2f} ms" + (f", {bad} wrong" if bad else "")
                    run.found("ways", what, text, seconds=lasted[way], wrong=bad)


def batch_that_fills(size: int) -> int:
    """256 MiB of float32 matrices, 512 at most."""
    return max(2, min(512, 2**26 // size**2))


def spectra(matrices: Tensor, way: Way) -> CheckedSpectrum:
    return checked_esd(matrices, quick=True, where=way)


def networks(run: Run) -> dict[str, tuple[Callable[[], nn.Module], SpectralMethod]]:
    if run.small:
        return {"two layers": (lambda: nn.Sequential(nn.Conv2d(8, 16, 3), nn.Linear(40, 20)), FARMS())}
    classifiers = {"ResNet-18": resnet18, "ResNet-34": resnet34, "VGG-16": vgg16, "VGG-19": vgg19}
    found = {name: (partial(make, num_classes=100), FARMS()) for name, make in classifiers.items()}
    found |= {name: (MODELS[name], FARMS()) for name in ("DPOT-Tiny", "DPOT-Small")}
    block = MODELS["LLaMA-block"]
    return found | {
        "LLaMA-7B block, tiles": (block, FARMS(window=2048)),
        "LLaMA-7B block, 2000/10": (block, FARMS(window=2000, steps=10)),
    }


def analysis(run: Run) -> None:
    for name, (make, method) in networks(run).items():
        if run.over:
            run.found("analysis", name, "no time left")
            continue
        torch.manual_seed(0)
        model = make().to(run.device)
        try:
            _analysis_of(run, name, model, method)
        except Exception as error:
            run.found("analysis", name, f"{type(error).__name__}: {error}"[:120])
        del model


def _analysis_of(run: Run, name: str, model: nn.Module, method: SpectralMethod) -> None:
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    report = analyze(model, method)
    ours = time.perf_counter() - start  # the first one warms up
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if run.device.type == "cuda" else 0.0
    by_way = ", ".join(sorted({row.way or "cpu" for row in report if row.status == "ok"}))
    heavy = name.endswith("2000/10")  # minutes one by one, and on the CPU
    if ours < MOST_SECONDS:
        ours = run.seconds(partial(analyze, model, method))
    numbers: dict[str, Any] = {"seconds": ours, "ways": by_way, "peak_mib": peak}
    texts = [f"{ours:.3f} s ({by_way}), peak {peak:.0f} MiB"]
    for where in ("device", "host"):
        if not run.over and not heavy:
            numbers[where] = run.seconds(partial(analyze, model, method, where=where), 1)
            texts.append(f"{where} {numbers[where]:.3f}")
    if not run.over and not heavy:
        names = {row.name for row in report if row.status == "ok"}
        alphas: dict[str, float] = {}
        numbers["loop"] = run.seconds(lambda: alphas.update(loop(model, method, names)), 1)
        numbers["difference"] = max(abs(alphas[layer] - report[layer].alpha) for layer in names)
        texts.append(
            f"loop {numbers['loop']:.3f}: {numbers['loop'] / ours:.1f} times, alphas {numbers['difference']:.0e}"
        )
    if heavy:
        numbers["loop"] = loop_by_one_window(run, model, method)
        texts.append(f"loop {numbers['loop']:.1f} by one of its windows: {numbers['loop'] / ours:.1f} times")
    if not run.over and not heavy:
        numbers["waits"] = waits(run, partial(analyze, model, method, workers=1))
        texts.append(f"{numbers['waits']} waits of the host for {len(report)} layers")
    on_cpu = model.to("cpu")
    for cores in dict.fromkeys((2, torch.get_num_threads())):
        if not run.over and not heavy:
            numbers[f"{cores}_cores"] = run.seconds(partial(analyze, on_cpu, method, workers=cores), 1)
            texts.append(f"CPU, {cores} cores {numbers[f'{cores}_cores']:.3f}")
    run.found("analysis", name, "; ".join(texts), **numbers)


def loop_by_one_window(run: Run, model: nn.Module, method: SpectralMethod) -> float:
    """Seconds of the authors' loop, from the time of one of its windows."""
    weights = list(layer_weights(model))
    grids = [method.windows(*weight.matrices.shape[-2:], weight.kind) for weight in weights]
    one = weights[0].matrices[0, : grids[0].height, : grids[0].width].detach()
    number = sum(grid.number * len(weight.matrices) for grid, weight in zip(grids, weights, strict=True))
    return number * run.seconds(partial(torch.linalg.svdvals, one), 1)


def waits(run: Run, function: Callable[[], object]) -> int:
    """How often PyTorch makes the host wait for the device."""
    if run.device.type != "cuda":
        return 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(each.message) for each in caught)


def epoch(run: Run) -> None:
    """By the median step, times those of an epoch: 391 of 128 images; 500 of 4 flows."""
    if run.small:
        network, images, what = nn.Sequential(nn.Flatten(), nn.Linear(192, 20)), torch.randn(2, 3, 8, 8), "one layer"
    else:
        network, images, what = resnet18(num_classes=100), torch.randn(128, 3, 32, 32), "ResNet-18, batch 128"
    network, images = network.to(run.device), images.to(run.device)
    target = torch.zeros(len(images), dtype=torch.long, device=run.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), target).backward()
        optimizer.step()

    _share(run, f"{what}, 391 steps", network, step, 391)
    if run.small:
        return
    options = argparse.Namespace(size="tiny", batch=4, device=run.device.type, precision="32", compile=False)
    network = MODELS["DPOT-Tiny"]().to(run.device)
    _share(run, "DPOT-Tiny, 128 x 128, batch 4, 500 steps", network, training_step("ours", options), 500)


def _share(run: Run, what: str, network: nn.Module, step: Callable[[], object], steps: int) -> None:
    one = run.seconds(step, 1 if run.small else 10)
    spectra = run.seconds(partial(analyze, network))
    share = spectra / (steps * one + spectra)
    run.found("epoch", what, f"{100 * share:.2f} % (step {1e3 * one:.1f} ms, analysis {spectra:.3f} s)", share=share)


def dpot(run: Run) -> None:
    batch, repetitions = (1, 1) if run.small else (32, 10)
    for precision, compiled in [("32", False), ("bf16-mixed", False), ("32", True), ("bf16-mixed", True)]:
        what = f"Tiny, 128 x 128, batch {batch}, {precision}{', compiled' if compiled else ''}"
        if run.over or (run.small and (compiled or precision != "32")):
            run.found("dpot", what, "left out")
            continue
        options = {"size": "tiny", "batch": batch, "device": run.device.type}
        args = argparse.Namespace(**options, precision=precision, compile=compiled)
        try:
            plain, ours = (run.seconds(training_step(variant, args), repetitions) for variant in ("plain", "ours"))
        except Exception as error:
            run.found("dpot", what, f"{type(error).__name__}: {error}"[:120])
        else:
            text = f"plain {1e3 * plain:.1f} ms, ours {1e3 * ours:.1f} ms: {plain / ours:.2f} times"
            run.found("dpot", what, text, plain=plain, ours=ours)


def flows(run: Run) -> None:
    number, side = (1, 16) if run.small else (16, 128)
    options = SimulationConfig(trajectories=number, resolution=side)
    seconds = run.seconds(partial(simulate_cfd, options, device=run.device.type), 1)
    run.found(
        "flows", f"{number} of {side} x {side}", f"{number / seconds:.2f} flows/s", flows_a_second=number / seconds
    )


SECTIONS: dict[str, tuple[Callable[[Run], None], float]] = {  # and seconds
    "tests": (tests, 110),
    "ways": (ways, 80),
    "analysis": (analysis, 130),
    "epoch": (epoch, 25),
    "dpot": (dpot, 60),
    "flows": (flows, 25),
}


# ---- all of it -----------------------------------------------------------------------------------------------------


def machine(device: torch.device) -> dict[str, object]:
    """The card, its driver, and what runs on it."""
    card, driver = "none", "none"
    if device.type == "cuda":
        card = torch.cuda.get_device_name(device)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            asked = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
            driver = asked.stdout.strip().splitlines()[0]
        except Exception as error:
            driver = f"unknown ({type(error).__name__})"
    return {
        "card": card,
        "driver": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }


def all_sections(run: Run, names: list[str]) -> Iterator[tuple[str, float]]:
    """Run them; yields how long each took."""
    for name in names:
        section, budget = SECTIONS[name]
        start = time.perf_counter()
        run.ends = start + budget
        try:
            section(run)
        except Exception as error:
            run.found(name, "failed", f"{type(error).__name__}: {error}"[:200])
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
        yield name, time.perf_counter() - start


def printed(run: Run, title: str) -> Table:
    table = Table("section", "what", "result", title=title)
    for row in run.rows:
        table.add_row(*map(escape, row))
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="file for the numbers")
    parser.add_argument("--small", action="store_true", help="on the CPU, in seconds")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    args = parser.parse_args(arguments)
    if not args.small and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device here; --small runs on the CPU.")
    warnings.simplefilter("ignore")
    run = Run("cpu" if args.small else "cuda", args.small)
    found = machine(run.device)
    found["seconds"] = dict(all_sections(run, args.sections))
    if args.json is not None:
        args.json.write_text(json.dumps({**found, "results": run.numbers}, indent=1) + "\n", encoding="utf-8")
    Console(width=160).print(printed(run, f"{found['card']}, driver {found['driver']}, torch {found['torch']}"))


if __name__ == "__main__":
    main()
