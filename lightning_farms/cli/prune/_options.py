"""The options of `lightning-farms prune`, and their checks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_farms.analysis.method import FARMS, Compat, Fit
from lightning_farms.cli._parser import OptionParser
from lightning_farms.common.devices import chosen_device
from lightning_farms.functional.pruning_masks import Counts
from lightning_farms.pruning.allocation import ALLOCATIONS, Allocation, FARMSAllocation, Granularity
from lightning_farms.pruning.allocation.base import DensityAllocation, LinearAllocation
from lightning_farms.pruning.allocation.from_file import FileAllocation
from lightning_farms.pruning.allocation.spectral import WholeMatrixAllocation
from lightning_farms.pruning.block_pass import Method

_DESCRIPTION = """Set weights of a decoder's blocks to zero. How many of each layer follows from its spectrum (FARMS)
or from another allocation, and which of them from magnitudes, Wanda or SparseGPT. OUT becomes a folder like MODEL, and
appears only when it is complete; an interrupted run goes on at its next block when it is started again. The ratios go
to stdout, everything else to stderr. Exit status: 0 done; 1 the model cannot be pruned; 2 wrong arguments; 130
interrupted."""
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
    return _parser().checked(args, _options, **CALLED)


def _parser() -> OptionParser:
    parser = OptionParser(
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
        "--pattern",
        type=str,
        default=None,
        metavar="N:M",
        help="N zeros in every M inputs on average over the layers, such as 2:4, in place of --sparsity",
    )
    group.add_argument(
        "--allocation",
        type=str,
        default="farms",
        help=f"where the ratios come from: {', '.join(_NAMES)}, or a file of ratios (.json, .csv)",
    )
    group.add_argument(
        "--epsilon", type=float, default=None, help="range of the scores, [1 - e, 1 + e]; for owl and dlp their lambda"
    )
    group.add_argument(
        "--granularity",
        type=Granularity,
        default=None,
        help="whether each block or each layer has a ratio of its own; by default block, with a file of ratios layer",
    )
    group.add_argument("--floor", type=float, default=0.0, help="smallest ratio that a layer may have")
    group.add_argument("--cap", type=float, default=1.0, help="largest ratio that a layer may have")
    group.add_argument(
        "--reverse", action="store_true", help="reverse the order of the scores, as a control experiment"
    )
    group.add_argument("--window", type=int, default=None, help="for farms: rows of a window; by default 96")
    group.add_argument(
        "--steps", type=int, default=None, help="for farms: windows along each dimension; by default tiles"
    )
    group.add_argument(
        "--fit", type=Fit, default=None, help="for farms and whole: where the tail starts; by default hill"
    )
    group.add_argument(
        "--compat", type=Compat, default=None, help="for farms and whole: compute the numbers of the authors' program"
    )


def _add_choice(group: Any) -> None:  # noqa: ANN401
    group.add_argument(
        "--method", type=Method, default="wanda", help="how the weights to remove are chosen within a layer"
    )
    group.add_argument(
        "--calibration",
        type=str,
        default=None,
        metavar="FILE",
        help="text file, for the methods and allocations that look at the layers' inputs (wanda, sparsegpt, owl, dlp)",
    )
    group.add_argument("--sequences", type=int, default=128, help="number of calibration sequences")
    group.add_argument(
        "--length",
        type=int,
        default=None,
        help="tokens in each sequence; by default 2048, or as many as the model can see",
    )
    group.add_argument("--seed", type=int, default=0, help="seed that draws where in the text the sequences start")
    group.add_argument(
        "--counts",
        type=Counts,
        default="exact",
        help="number of zeros in a layer: exact, or as the authors' program rounds it",
    )
    group.add_argument("--column_block", type=int, default=128, help="for sparsegpt: columns that are pruned at a time")
    group.add_argument(
        "--damping",
        type=float,
        default=0.01,
        help="for sparsegpt: share of the mean diagonal that is added to the Hessian",
    )


def _add_output(group: Any) -> None:  # noqa: ANN401
    group.add_argument("--out", type=str, default=None, metavar="OUT", help="folder to write the pruned model to")
    group.add_argument("--dry-run", "--dry_run", action="store_true", help="print the ratios, and prune nothing")
    group.add_argument(
        "--report", type=str, default=None, metavar="FILE", help="file for the result of each layer, .csv or .json"
    )
    group.add_argument(
        "--figure", type=str, default=None, metavar="FILE", help="file for a picture of the ratios, .png, .pdf or .svg"
    )
    group.add_argument(
        "--recipe",
        type=str,
        default=None,
        metavar="FILE",
        help="file for the ratios as a recipe of llm-compressor (.yaml)",
    )


def _add_resources(group: Any) -> None:  # noqa: ANN401
    group.add_argument(
        "--device",
        type=str,
        default="auto",
        help="device that blocks run on, one at a time, such as cuda:1; auto: CUDA if there is any",
    )
    group.add_argument(
        "--dtype",
        type=str,
        default="auto",
        help="type of the weights in memory, such as bfloat16; auto: as they are stored",
    )
    group.add_argument(
        "--offload_folder",
        type=str,
        default=None,
        metavar="DIR",
        help="folder for the blocks, which stay on disk but for one at a time (safetensors stay in MODEL)",
    )
    group.add_argument(
        "--hidden_folder",
        type=str,
        default=None,
        metavar="DIR",
        help="keep the hidden states in this folder, not in memory",
    )


def _options(given: dict[str, Any]) -> PruneOptions:
    pattern = given.pop("pattern")
    if pattern is not None:
        given["sparsity"], given["pattern_m"] = _pattern(pattern, given["sparsity"])
    else:
        given["pattern_m"] = None
    if given["sparsity"] is None:
        raise ValueError("Expected --sparsity or --pattern, but got neither.")
    if not 0 <= given["sparsity"] < 1:
        raise ValueError(f"Expected --sparsity to be in [0, 1), but got {given['sparsity']}.")
    if given["out"] is None and not given["dry_run"]:
        raise ValueError("Expected --out (the folder to write) or --dry-run, but got neither.")
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
        by_allocation = allocation.needs_calibration
        what = f"--allocation {allocation.label}" if by_allocation else f"--method {options.method}"
        raise ValueError(f"Expected --calibration to be given (a text file) for {what}, but got none.")
    return options


def _pattern(pattern: str, sparsity: float | None) -> tuple[float, int]:
    found = _PATTERN.fullmatch(pattern)
    if found is None or not int(found[1]) < int(found[2]):
        raise ValueError(f"Expected --pattern to be N:M, two integers with 0 <= N < M, but got {pattern!r}.")
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
            raise ValueError(
                f"Expected --allocation to be one of {', '.join(_NAMES)}, or a .json or .csv file, but got {name!r}."
            )
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
