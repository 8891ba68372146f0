"""`lightning-farms download`: fetch PDEBench's official files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from lightning_farms.cli._console import plain_console
from lightning_farms.cli._parser import OptionParser
from lightning_farms.cli._shell import failing_on
from lightning_farms.cli._target import check_folder
from lightning_farms.data.download.catalogue import OFFICIAL_FILES
from lightning_farms.data.download.pdebench import download_pdebench

_USER_MISTAKES = (ValueError, OSError, ImportError)
_WIDE = 200  # columns of a table that is not printed on a terminal
_DESCRIPTION = """Download an official PDEBench file of 2D compressible flow (55 or 88 GB), and check it. An interrupted
download continues when the command is run again. The file's path goes to stdout, everything else to stderr. Exit
status: 0 done; 1 it cannot be downloaded; 2 wrong arguments; 130 interrupted."""


def run(args: list[str]) -> None:
    """Run `lightning-farms download`."""
    parser = _parser()
    given = parser.parse_args(args)
    if given.list:
        _print_list()
    elif given.name is None:
        parser.error("Expected the NAME of a file, or --list to see them all.")
    else:
        _download(given)


def _parser() -> OptionParser:
    parser = OptionParser(prog="lightning-farms download", description=_DESCRIPTION, usage="%(prog)s NAME [options]")
    parser.add_argument(
        "name",
        metavar="NAME",
        type=str,
        nargs="?",
        help="name of the file, such as 2d_cfd_M0.1_eta0.01; --list shows all names",
    )
    parser.add_argument("--list", action="store_true", help="print the files' names, resolutions and sizes")
    parser.add_argument(
        "--dir", type=str, default=".", metavar="DIR", help="folder to download to; by default the current one"
    )
    parser.add_argument(
        "--url", type=str, default=None, help="address of the file at a mirror; by default that of PDEBench's archive"
    )
    return parser


def _download(given: Any) -> None:  # noqa: ANN401
    try:
        with failing_on(*_USER_MISTAKES, name="NAME"):
            check_folder(Path(given.dir), "--dir")
            path = download_pdebench(given.name, Path(given.dir), url=given.url)
    except KeyboardInterrupt:
        sys.stderr.write("\nRun the same command again to continue.")
        raise
    sys.stdout.write(f"{path}\n")


def _print_list() -> None:
    table = Table("name", "file", box=None, pad_edge=False)
    for title in ("resolution", "trajectories", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("MD5", overflow="fold")
    for found in OFFICIAL_FILES:
        table.add_row(
            found.name,
            found.file,
            f"{found.resolution} x {found.resolution}",
            f"{found.trajectories:,}",
            f"{found.size / 1e9:.0f} GB",
            found.md5,
        )
    plain_console(width=None if sys.stdout.isatty() else _WIDE).print(table)
