"""The options of `lightning-farms prune`, and their checks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from lightning_farms.analysis.method import FARMS, Compat, Fit
from lightning_farms.cli._shell import with_options
from lightning_farms.common.devices import chosen_device
from lightning_farms.functional.pruning_masks import Counts
from lightning_farms.pruning.allocation import ALLOCATIONS, Allocation, FARMSAllocation, Granularity
from lightning_farms.pruning.allocation.base import DensityAllocation, LinearAllocation
from lightning_farms.pruning.allocation.from_file import FileAllocation
from lightning_farms.pruning.allocation.spectral import WholeMatrixAllocation
from lightning_farms.pruning.block_pass import Method

_DESCRIPTION = """Set weights of a decoder's blocks to zero: how many of each layer follows from its spectrum (FARMS),
or from another allocation; which of them, from magnitudes, Wanda or SparseGPT. OUT is a folder like MODEL, and there
whole or not at all; an interrupted run goes on at its next block when it is started again. The ratios go to stdout, all
else to stderr. Exit status: 0 done; 1 the model cannot be pruned; 2 wrong arguments; 130 interrupted."""
_NAMES = tuple(name for name in ALLOCATIONS if name != FileAllocation.label)
_SPECTRAL = ("window", "steps", "fit", "compat")
_ONLY_OF = {  # options that only these allocations use
    FARMSAllocation: _SPECTRAL,
    WholeMatrixAllocation: ("fit", "compat"),
    LinearAllocation: ("epsilon",),
    DensityAllocation: ("epsilon",),
}
CALLED = {
    "model": "MODEL",
    "folder": "MODEL",
    "text": "--calibration",
    "path": "--allocation",
    "pattern_m": "--pattern",
    "spread": "--epsilon",
}
"""The names on the command line of package arguments that are not options of the same name."""
_PATTERN = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class PruneOptions:
    """The options of `lightning-farms prune`, parsed and checked."""

    model: str
    out: Path | None
    sparsity: float
    pattern_m: int | None
    method: Method
    allocation: Allocation
    calibration: str | None
    sequences: int
    length: int | None
    seed: int
    counts: Counts
    column_block: int
    damping: float
    device: torch.device
    dtype: str
    offload_folder: str | None
    hidden_folder: str | None
    report: Path | None
    figure: Path | None
    recipe: Path | None
    dry_run: bool

    @property
    def needs_calibration(self) -> bool:
        """Whether a calibration text has to be given."""
        return self.allocation.needs_calibration or (self.method != "magnitude" and not self.dry_run)


def parse_options(args: list[str]) -> PruneOptions:
    """Parse and check the arguments."""
    parser = _parser()
    given = parser.parse_args(args)
    try:
        return _options(given.as_dict())
    except (ValueError, TypeError) as error:
        parser.error(with_options(str(error), **CALLED))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="lightning-farms prune", description=_DESCRIPTION, usage="%(prog)s MODEL --sparsity S --out OUT [options]"
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=str,
        help="folder of a Hugging Face model, or a .gguf file; nothing is downloaded",
    )
    _add_amounts(parser.add_argument_group("how much of each layer"))
    _add_choice(parser.add_argument_group("which weights"))
    _add_output(parser.add_argument_group("output"))
    _add_resources(parser.add_argument_group("resources"))
    return parser


def _add_amounts(group: Any) -> None:  # noqa: ANN401
    group.add_argument("--sparsity", type=float, default=None, help="share of the blocks' weights to remove, in [0, 1)")
    group.add_argument(
        "--pattern", type=str, default=None, metavar="N:M", help="N zeros in every M inputs on average, e.g. 2:4"
    )
    group.add_argument(
        "--allocation",
        type=str,
        default="farms",
        help=f"where the ratios come from: {', '.join(_NAMES)}, or a file of ratios (.json, .csv)",
    )
    group.add_argument("--epsilon", type=float, default=None, help="scores in [1 - e, 1 + e]; of owl, dlp: lambda")
    group.add_argument(
        "--granularity",
        type=Granularity | None,
        default=None,
        help="one ratio a block, or one a layer; by default block, of a file layer",
    )
    group.add_argument("--floor", type=float, default=0.0, help="least ratio of a layer")
    group.add_argument("--cap", type=float, default=1.0, help="greatest ratio of a layer")
    group.add_argument("--reverse", action="store_true", help="turn the scores round: a control")
    group.add_argument("--window", type=int, default=None, help="of farms: rows of a window; by default 96")
    group.add_argument("--steps", type=int, default=None, help="of farms: windows per dimension; by default tiles")
    group.add_argument("--fit", type=Fit | None, default=None, help="of farms and whole: where the tail starts; hill")
    group.add_argument(
        "--compat", type=Compat, default=None, help="of farms and whole: numbers of the authors' program"
    )


def _add_choice(group: Any) -> None:  # noqa: ANN401
    group.add_argument("--method", type=Method, default="wanda", help="how the weights that go are chosen")
    group.add_argument("--calibration", type=str, default=None, metavar="FILE", help="text for wanda and sparsegpt")
    group.add_argument("--sequences", type=int, default=128, help="of calibration")
    group.add_argument("--length", type=int, default=None, help="of each, in tokens; by default 2048, or what fits")
    group.add_argument("--seed", type=int, default=0, help="where in the text they start")
    group.add_argument("--counts", type=Counts, default="exact", help="exact, or the authors' numbers of zeros")
    group.add_argument("--column_block", type=int, default=128, help="of sparsegpt: columns pruned at a time")
    group.add_argument("--damping", type=float, default=0.01, help="of sparsegpt: share of the mean diagonal")


def _add_output(group: Any) -> None:  # noqa: ANN401
    group.add_argument("--out", type=str, default=None, metavar="OUT", help="folder to write")
    group.add_argument("--dry-run", "--dry_run", action="store_true", help="print the ratios, and prune nothing")
    group.add_argument("--report", type=str, default=None, metavar="FILE", help="result by layer: .csv or .json")
    group.add_argument("--figure", type=str, default=None, metavar="FILE", help="picture of the ratios: .png, .pdf")
    group.add_argument(
        "--recipe", type=str, default=None, metavar="FILE", help="the ratios as a recipe of llm-compressor (.yaml)"
    )


def _add_resources(group: Any) -> None:  # noqa: ANN401
    group.add_argument(
        "--device",
        type=str,
        default="auto",
        help="where the blocks run, one at a time, such as cuda:1; auto (default): CUDA if there is any",
    )
    group.add_argument("--dtype", type=str, default="auto", help="of the weights; by default as stored")
    group.add_argument(
        "--offload_folder", type=str, default=None, metavar="DIR", help="leave the blocks on disk but for one"
    )
    group.add_argument(
        "--hidden_folder", type=str, default=None, metavar="DIR", help="keep the hidden states there, not in memory"
    )


def _options(given: dict[str, Any]) -> PruneOptions:
    pattern = given.pop("pattern")
    if pattern is not None:
        given["sparsity"], given["pattern_m"] = _pattern(pattern, given["sparsity"])
    else:
        given["pattern_m"] = None
    if given["sparsity"] is None:
        raise ValueError("Expected --sparsity, or --pattern, but got neither.")
    if not 0 <= given["sparsity"] < 1:
        raise ValueError(f"Expected --sparsity to be in [0, 1), but got {given['sparsity']}.")
    if given["out"] is None and not given["dry_run"]:
        raise ValueError("Expected --out, the folder to write, or --dry-run, but got neither.")
    given["device"] = chosen_device(given["device"])
    for name in ("out", "report", "figure", "recipe"):
        given[name] = None if given[name] is None else Path(given[name])
    if given["report"] is not None and given["report"].suffix not in (".csv", ".json"):
        raise ValueError(f"Expected --report to end in .csv or .json, but got {str(given['report'])!r}.")
    if given["recipe"] is not None and given["method"] == "magnitude":
        raise ValueError("Expected --method to be wanda or sparsegpt with --recipe, but got magnitude.")
    if given["figure"] is not None and given["figure"].suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"Expected --figure to end in .png, .pdf or .svg, but got {str(given['figure'])!r}.")
    taken = ("allocation", "epsilon", "granularity", "floor", "cap", "reverse", "window", "steps", "fit", "compat")
    allocation = _allocation({name: given.pop(name) for name in taken})
    options = PruneOptions(allocation=allocation, **given)
    if options.needs_calibration and options.calibration is None:
        what = f"--method {options.method}" if not options.allocation.needs_calibration else f"{allocation.label}"
        raise ValueError(f"Expected --calibration, a text file, for {what}, but got none.")
    return options


def _pattern(pattern: str, sparsity: float | None) -> tuple[float, int]:
    found = _PATTERN.fullmatch(pattern)
    if found is None or not int(found[1]) < int(found[2]):
        raise ValueError(f"Expected --pattern to be N:M with 0 <= N < M, but got {pattern!r}.")
    zeros, length = int(found[1]), int(found[2])
    if sparsity is not None and sparsity != zeros / length:
        raise ValueError(f"Expected --sparsity to be that of --pattern {pattern}, or left out, but got {sparsity}.")
    return zeros / length, length


def _allocation(given: dict[str, Any]) -> Allocation:
    name = given["allocation"]
    options = {key: given[key] for key in ("floor", "cap", "reverse", "granularity") if given[key] is not None}
    of_kind: Sequence[str] = ()
    asked = {key: given[key] for key in ("epsilon", *_SPECTRAL) if given[key] is not None}
    kind = ALLOCATIONS.get(name, FileAllocation)
    if kind is FileAllocation:
        if Path(name).suffix not in (".json", ".csv"):
            raise ValueError(f"Expected --allocation to be {', '.join(_NAMES)} or a .json or .csv, but got {name!r}.")
        options["path"] = name
    else:
        of_kind = [option for owner, taken in _ONLY_OF.items() if issubclass(kind, owner) for option in taken]
    if useless := [option for option in asked if option not in of_kind]:
        raise ValueError(f"Expected --{useless[0]} to be left out with --allocation {name}, which has no use for it.")
    if "epsilon" in asked:
        options["epsilon" if issubclass(kind, LinearAllocation) else "spread"] = asked.pop("epsilon")
    if kind is FARMSAllocation and asked:
        return FARMSAllocation(FARMS(**{"window": FARMSAllocation().method.window, **asked}), **options)
    return kind(**options, **asked)
