"""`lightning-farms simulate OUT`: simulate flows into a file of PDEBench's format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_farms.cli._parser import OptionParser
from lightning_farms.cli._shell import failing_on, say
from lightning_farms.cli._target import check_new_file
from lightning_farms.common.arguments import check_at_least
from lightning_farms.common.devices import chosen_device
from lightning_farms.common.progress import progress_is_shown
from lightning_farms.common.quantities import counted, size_text
from lightning_farms.data.fields.writer import simulate_to_file
from lightning_farms.data.simulation.flows import SimulationConfig

_USER_MISTAKES = (ValueError, OSError, RuntimeError)
_DESCRIPTION = """Simulate random 2D compressible flows on the periodic unit square, with the initial states and the
physics of PDEBench's 2D CFD sets, and write them as PDEBench's files are laid out. OUT appears only once it is
complete. Where it was written goes to stderr. Exit status: 0 done; 1 it cannot be written or simulated; 2 wrong
arguments; 130 interrupted."""


@dataclass(frozen=True)
class SimulateOptions:
    """The options of `lightning-farms simulate`.

    Attributes:
        target: file to write.
        config: settings of the simulated set.
        batch_size: number of trajectories simulated at once.
        device: where to compute.
        overwrite: whether an existing file may be replaced.
    """

    target: Path
    config: SimulationConfig
    batch_size: int | None
    device: torch.device
    overwrite: bool


def run(args: list[str]) -> None:
    """Run `lightning-farms simulate`."""
    options = _parse(args)
    with failing_on(*_USER_MISTAKES):
        _simulate(options)


def _parse(args: list[str]) -> SimulateOptions:
    parser = OptionParser(prog="lightning-farms simulate", description=_DESCRIPTION, usage="%(prog)s OUT [options]")
    parser.add_argument("target", metavar="OUT", type=str, help="HDF5 file to write")
    parser.add_class_arguments(SimulationConfig, as_group=False)
    parser.add_argument(
        "--batch_size",
        type=int,
        default=None,
        metavar="N",
        help="trajectories that are simulated at once; by default as many as suit the device",
    )
    parser.add_argument(
        "--device", type=str, default="auto", help="device to compute on, such as cuda:1; auto: CUDA if there is any"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    return parser.checked(args, _options)


def _options(given: dict[str, Any]) -> SimulateOptions:
    rest = {name: given.pop(name) for name in ("batch_size", "device", "overwrite")}
    target = Path(given.pop("target"))
    rest["device"] = chosen_device(rest["device"])
    check_at_least(1, batch_size=1 if rest["batch_size"] is None else rest["batch_size"])
    return SimulateOptions(target=target, config=SimulationConfig(**given), **rest)


def _simulate(options: SimulateOptions) -> None:
    target, config = options.target, options.config
    check_new_file(target, overwrite=options.overwrite)
    simulate_to_file(target, config, batch_size=options.batch_size, device=options.device, progress=progress_is_shown())
    say(
        f"Written to {target}: {counted(config.trajectories, 'trajectory', 'trajectories')} of {config.frames} frames "
        f"of {config.resolution} x {config.resolution} cells, {size_text(target.stat().st_size)}"
    )
