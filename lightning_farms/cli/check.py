"""`lightning-farms check FILE...`: report what files of flows hold, and which faults would spoil a training."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_farms.cli._parser import OptionParser
from lightning_farms.cli._shell import failing_on, message_of, with_options
from lightning_farms.common.progress import progress_bars, progress_is_shown
from lightning_farms.common.quantities import counted
from lightning_farms.common.texts import printable
from lightning_farms.data.fields.file_check import FileFault, check_file
from lightning_farms.data.fields.paths import file_paths
from lightning_farms.data.fields.trajectory_files import FlowFile, are_trajectories, common_folder, open_flows

_SHOWN = 20
_USER_MISTAKES = (ValueError, OSError)
_DESCRIPTION = """Look through HDF5 files of 2D trajectories: sizes, frames and time steps; NaN and infinities, values
beyond float32 and those that mark missing ones, densities and pressures that are not above 0, constant channels, frames
and trajectories that repeat others, coordinates that cannot be right, and trajectories that HDF5 makes up because they
were never written or lie in a missing file. The report goes to stdout. Leave flows out of a training with --data.skip.
Exit status: 0 nothing is wrong; 1 something is, or a file cannot be read; 2 wrong arguments; 130 interrupted."""


def run(args: list[str]) -> None:
    """Run `lightning-farms check`."""
    parser = OptionParser(prog="lightning-farms check", description=_DESCRIPTION, usage="%(prog)s FILE... [options]")
    parser.add_argument(
        "files", metavar="FILE", type=str, nargs="+", help="HDF5 files, or folders of them; ~ and globs are expanded"
    )
    parser.add_argument(
        "--fields",
        type=dict[str, str] | None,
        default=None,
        help="{channel: dataset} for files whose datasets have other names than in PDEBench's 2D compressible flow",
    )
    parser.add_argument(
        "--axes",
        type=str,
        default="btxy",
        help="order of the axes of the datasets in --fields (b trajectory, t frame, x, y, c component); without a b, "
        "each file is one trajectory",
    )
    given = parser.parse_args(args)
    layout = {"fields": given.fields, "axes": given.axes}
    with failing_on(*_USER_MISTAKES):
        paths = file_paths(given.files)
        assert isinstance(paths, list)
        together = len(paths) > 1 and are_trajectories(given.fields, given.axes)
    known: dict[tuple[int, ...], str] = {}
    sets = [paths] if together else [[path] for path in paths]
    if not all([_is_right(each, layout, known, several=len(sets) > 1) for each in sets]):
        raise SystemExit(1)


def _is_right(paths: list[Path], layout: dict[str, Any], known: dict[tuple[int, ...], str], *, several: bool) -> bool:
    """Report on a file, or a set of files with one trajectory each, and return whether nothing is wrong."""
    name = common_folder(paths) if len(paths) > 1 else paths[0]
    try:
        (file,) = open_flows(paths, **layout)
        contents = _contents(file)
        with progress_bars(unit="steps", show=progress_is_shown()) as start_bar:
            found = list(check_file(file, start_bar("Checking", file.shape.trajectories, 0), known=known))
        file.close()
    except _USER_MISTAKES as error:
        _say(name, [f"cannot be read: {with_options(message_of(error))}"])
        return False
    lines = _report(found, str(name) if several else None) if found or not file.remarks else []
    _say(name, [contents, *file.remarks, *lines])
    return not found and not file.remarks


def _say(name: Path, lines: Iterable[str]) -> None:
    said = "\n  ".join(map(printable, [str(name), *lines]))
    sys.stdout.write(f"{said}\n")


def _contents(file: FlowFile) -> str:
    trajectories, frames, x, y = file.shape
    numbers = f"{counted(trajectories, 'trajectory', 'trajectories')}, {counted(frames, 'frame')}"
    text = f"{numbers}, {x} x {y} cells, channels {', '.join(file.channels)}"
    if file.t is not None and len(file.t) >= frames > 1:
        steps = file.t[:frames].diff()
        low, high = float(steps.min()), float(steps.max())
        text += f", time step {low:.4g}" if high - low <= 1e-3 * abs(high) else f", time steps {low:.4g} to {high:.4g}"
    if file.given_frames is not None:
        text += f"; predictions: a network's from frame {file.given_frames} on"
    return text


def _report(found: Sequence[FileFault], name: str | None) -> list[str]:
    if not found:
        return ["nothing is wrong"]
    lines = [
        f"trajectory {fault.trajectory}"
        + (f", channel {fault.channel}" if fault.channel else "")
        + (f", frame {fault.frame}" if fault.frame is not None else "")
        + f": {fault.what}"
        for fault in found[:_SHOWN]
    ]
    if len(found) > _SHOWN:
        lines.append(f"... and {len(found) - _SHOWN} more")
    flows = sorted({fault.trajectory for fault in found})
    skip = flows if name is None else f"{{{name}: {flows}}}"
    return [
        *lines,
        f"{counted(len(flows), 'trajectory', 'trajectories')} with faults; leave out with --data.skip '{skip}'",
    ]
