"""Hold the simulator against a PDEBench file: python tests/benchmarks/compare_simulation.py FILE [--frames 6].

First the statistics of as many simulated flows at the file's settings, beside the file's own: means over trajectories,
with the standard deviation over trajectories in brackets, at five times. Two sets of random draws differ; the tolerance
is four standard errors of the difference, by which one of 15000 figures of equal sets lies outside. Then our solver
started from the file's own first frames: relative L2 distance to the file's frames, channel by channel, for both forms
of the stress.
"""

import argparse
import sys
from pathlib import Path

import h5py
import torch
from torch import Tensor

from lightning_farms.data import FlowStatistics, SimulationConfig, integrate, simulate_cfd
from lightning_farms.data.fields import flow_statistics
from lightning_farms.data.simulation.flows import frame_times

FIELDS = ("density", "pressure", "Vx", "Vy")
TOLERANCE = 4.0  # standard errors


def read(path: Path, count: int | None) -> tuple[Tensor, dict[str, float]]:
    with h5py.File(path) as file:
        fields = torch.stack([torch.from_numpy(file[name][:count]) for name in FIELDS])
        return fields, {name: float(file.attrs[name]) for name in ("M", "eta", "zeta")}


def simulate(config: SimulationConfig) -> FlowStatistics:
    at_once = max(1, 2**15 // config.resolution**2)
    parts = []
    for start in range(0, config.trajectories, at_once):
        flow = simulate_cfd(config, indices=range(start, min(start + at_once, config.trajectories)))
        parts.append(flow_statistics(flow.density, flow.pressure, flow.vx, flow.vy))
        sys.stderr.write(f"\rsimulated {start + len(flow.density)} of {config.trajectories}")
    sys.stderr.write("\n")
    return FlowStatistics(*(torch.cat(figures) for figures in zip(*parts, strict=True)))


def compare_statistics(theirs: FlowStatistics, ours: FlowStatistics) -> bool:
    agrees = True
    frames = theirs.density_mean.shape[1]
    shown = [round(share * (frames - 1)) for share in (0, 0.25, 0.5, 0.75, 1)]
    print(f"{'':16} " + " ".join(f"{'t = ' + format(frame / (frames - 1), '.2f'):>24}" for frame in shown))
    for name, a, b in zip(FlowStatistics._fields, theirs, ours, strict=True):
        for label, figures in (("file", a), ("ours", b)):
            cells = " ".join(f"{figures[:, t].mean():>12.4g} ({figures[:, t].std():9.3g})" for t in shown)
            print(f"{name + ' ' + label:20} {cells}")
        error = torch.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
        distance = ((a.mean(0) - b.mean(0)).abs() / error.clamp(min=1e-12)).amax().item()
        agrees &= distance <= TOLERANCE
        verdict = "within" if distance <= TOLERANCE else "OUTSIDE"
        print(f"  farthest at any frame: {distance:.1f} standard errors, {verdict} {TOLERANCE:g}")
    return agrees


def compare_frames(fields: Tensor, frames: int, settings: dict[str, float]) -> None:
    order = [0, 2, 3, 1]  # density, vx, vy, pressure
    theirs = fields[order, :, :frames]
    times = frame_times(fields.shape[2])[:frames]
    print(f"\nrelative L2 distance from the file's frames, mean over {fields.shape[1]} trajectories, from its frame 0")
    print(f"{'stress':10} {'frame':>5} {'density':>10} {'Vx':>10} {'Vy':>10} {'pressure':>10}")
    for stress in ("unmixed", "full"):
        ours = integrate(theirs[:, :, 0], times, eta=settings["eta"], zeta=settings["zeta"], stress=stress)
        distance = (ours - theirs).square().sum((3, 4)).sqrt() / theirs.square().sum((3, 4)).sqrt()
        for frame in range(1, frames):
            print(f"{stress:10} {frame:5d} " + " ".join(f"{value:10.5f}" for value in distance[:, :, frame].mean(1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--trajectories", type=int, default=None, help="how many of the file; all by default")
    parser.add_argument("--frames", type=int, default=6, help="how far to follow the file's own first frames")
    parser.add_argument("--starts", type=int, default=4, help="how many of the file's first frames to follow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames_only", action="store_true", help="leave the statistics out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    fields, settings = read(given.file, given.trajectories)
    print(f"{given.file.name}: {tuple(fields.shape[1:])}, {settings}")
    agrees = True
    if not given.frames_only:
        theirs = flow_statistics(*fields)
        config = SimulationConfig(
            trajectories=fields.shape[1],
            resolution=fields.shape[3],
            frames=fields.shape[2],
            mach=settings["M"],
            eta=settings["eta"],
            zeta=settings["zeta"],
            seed=given.seed,
        )
        agrees = compare_statistics(theirs, simulate(config))
    compare_frames(fields[:, : given.starts], min(given.frames, fields.shape[2]), settings)
    sys.exit(0 if agrees else 1)


if __name__ == "__main__":
    main()
