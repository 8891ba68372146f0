"""The options of `lightning-farms analyze`, and their checks."""

from __future__ import annotations

from argparse import BooleanOptionalAction
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from lightning_farms.analysis.apart import Part
from lightning_farms.analysis.diagnostics import Diagnostics
from lightning_farms.analysis.method import FARMS, Blocks, Compat, Fit, SpectralMethod, WholeMatrix
from lightning_farms.analysis.outliers import RULE
from lightning_farms.analysis.selection import KINDS, Selection
from lightning_farms.cli._parser import OptionParser
from lightning_farms.common.devices import chosen_device
from lightning_farms.functional.eigensolvers import Where

Format = Literal["table", "csv", "json"]

_DESCRIPTION = f"""Measure how heavy-tailed the spectrum of every weight matrix in a checkpoint is (alpha, by FARMS or
on whole matrices). No model class is needed, and nothing in the file is run. The result goes to stdout (or --out),
everything else to stderr. A + or - marks a layer whose alpha is {RULE} The last lines
name layers that stand out beyond doubt, if there are any. Exit status: 0 done; 1 the file, or every layer in it, cannot
be analysed; 2 wrong arguments; 130 interrupted."""


@dataclass(frozen=True)
class AnalyzeOptions:
    """The options of `lightning-farms analyze`, parsed and checked."""

    file: Path
    key: str | None
    check: bool
    dequantize: bool
    base: Path | None
    compare: Path | None
    method: SpectralMethod
    selection: Selection
    apart: tuple[Part, ...]
    diagnostics: Diagnostics
    format: Format
    out: Path | None
    plots: Path | None
    workspace: int
    workers: int | None
    device: torch.device
    where: Where


def parse_options(args: list[str]) -> AnalyzeOptions:
    """Parse and check the arguments."""
    return _parser().checked(args, _options)


def _parser() -> OptionParser:
    parser = OptionParser(prog="lightning-farms analyze", description=_DESCRIPTION, usage="%(prog)s FILE [options]")
    parser.add_argument(
        "file",
        metavar="FILE",
        type=str,
        help="Lightning .ckpt, state dict (.pt, .pth, .bin), .safetensors, .gguf, .onnx, .keras, .h5, index of shards, "
        "or a folder (a model, a pipeline, FSDP's, DeepSpeed's)",
    )
    _add_reading(parser.add_argument_group("how to read the file"))
    _add_method(parser.add_argument_group("how to analyse"))
    _add_selection(parser.add_argument_group("which weights"))
    _add_diagnostics(parser.add_argument_group("error bars and baselines"))
    _add_second_files(parser.add_argument_group("a second checkpoint"))
    _add_output(parser.add_argument_group("output"))
    _add_resources(parser.add_argument_group("resources"))
    return parser


def _add_reading(group: Any) -> None:  # noqa: ANN401
    group.add_argument(
        "--key",
        type=str,
        default=None,
        metavar="NAME",
        help="name of the state dict to analyse where FILE holds several, such as ema or model.net",
    )
    group.add_argument(
        "--dequantize",
        action="store_true",
        help="unpack and analyse quantised weights: GGUF, ONNX, MXFP4, NVFP4, GPTQ, AWQ, compressed-tensors, MLX, HQQ, "
        "bitsandbytes, fp8 or integers with scales",
    )
    group.add_argument(
        "--no_crc",
        action="store_true",
        help="do not check the CRC-32 of each tensor in FILE (faster, for huge files that are trusted)",
    )


def _add_method(group: Any) -> None:  # noqa: ANN401
    group.add_argument(
        "--method",
        type=Literal["farms", "whole"],
        default="farms",
        help="farms: windows of one aspect ratio; whole: each matrix as a whole",
    )
    group.add_argument("--aspect_ratio", type=float, default=1.0, help="columns of a window divided by its rows")
    group.add_argument("--window", type=int, default=None, help="rows of a window; by default as many as fit")
    group.add_argument(
        "--steps", type=int, default=None, help="windows along each dimension; by default as many as cover the matrix"
    )
    group.add_argument(
        "--fit",
        type=Fit,
        default="hill",
        help="where the tail starts: at the median eigenvalue (hill, or hill_paper for the paper's form of the "
        "formula), where a power law fits best (ks), or near the histogram's peak (peak, or peak_corrected for a "
        "corrected bound)",
    )
    group.add_argument(
        "--blocks",
        type=Blocks,
        default="averaged",
        help="of a convolution: fit each window and average (averaged), or fit all their eigenvalues at once (pooled)",
    )
    group.add_argument(
        "--compat",
        type=Compat,
        default=None,
        help="compute the numbers of the authors' program; --method farms then needs --window and --steps",
    )


def _add_selection(group: Any) -> None:  # noqa: ANN401
    group.add_argument(
        "--include",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="names of the layers to analyse, such as blocks.0 or '*.mlp.*'; by default all",
    )
    group.add_argument("--exclude", nargs="+", default=[], metavar="PATTERN", help="names of layers to leave out")
    group.add_argument(
        "--apart",
        nargs="+",
        type=Part,
        default=[],
        metavar="PART",
        help="analyse parts of fused weights one by one: experts (each expert), qkv (queries, keys and values, whose "
        "arrangement the config.json beside FILE tells)",
    )
    group.add_argument(
        "--kinds", nargs="+", default=[], metavar="KIND", help=f"kinds of layers to analyse, out of {', '.join(KINDS)}"
    )
    group.add_argument("--min_size", type=int, default=1, help="leave out matrices with a smaller dimension below this")
    group.add_argument(
        "--max_size", type=int, default=None, help="leave out matrices with a smaller dimension above this"
    )
    group.add_argument("--embeddings", action="store_true", help="analyse embedding tables too")
    group.add_argument(
        "--low_rank_products",
        action=BooleanOptionalAction,
        default=True,
        help="analyse the product of each LoRA pair, which is the update; with --no-low_rank_products, each factor "
        "as a matrix of its own",
    )
    group.add_argument(
        "--layout",
        nargs="+",
        default=[],
        metavar="PATTERN=LAYOUT",
        help="what a weight's dimensions mean where the guess is wrong, such as 'experts.*=batch' or 'conv.*=oikk': "
        "one letter each (o outputs, i inputs, k kernel, b batch, c real and imaginary part), or batch, or embedding",
    )


def _add_diagnostics(group: Any) -> None:  # noqa: ANN401
    group.add_argument(
        "--bootstrap", type=int, default=0, metavar="N", help="bootstrap samples for the interval of alpha"
    )
    group.add_argument("--level", type=float, default=0.95, help="probability of that interval")
    group.add_argument(
        "--p_value", type=int, default=0, metavar="N", help="synthetic spectra for the p-value of the fit"
    )
    group.add_argument(
        "--baseline",
        action="store_true",
        help="fit the Marchenko-Pastur law, and compare with alpha of the same weight with its entries shuffled",
    )
    group.add_argument(
        "--without_outliers",
        action="store_true",
        help="fit also without the eigenvalues that stand out (beyond the Tracy-Widom edge), and say how far "
        "alpha moves",
    )
    group.add_argument(
        "--distributions",
        action="store_true",
        help="compare the power law with a lognormal, an exponential and a truncated power law by likelihood ratios",
    )
    group.add_argument("--seed", type=int, default=0, help="seed of all random draws")


def _add_second_files(group: Any) -> None:  # noqa: ANN401
    group.add_argument(
        "--compare", type=str, default=None, metavar="OTHER", help="list alpha in FILE and in OTHER, and the difference"
    )
    group.add_argument(
        "--base", type=str, default=None, metavar="BASE", help="analyse FILE minus BASE: the change by fine-tuning"
    )


def _add_output(group: Any) -> None:  # noqa: ANN401
    group.add_argument(
        "--format",
        type=Format,
        default=None,
        help="format of the result; by default by the ending of --out (.csv, .json), or else a table",
    )
    group.add_argument("--out", type=str, default=None, metavar="PATH", help="file to write the result to")
    group.add_argument(
        "--plots",
        type=str,
        default=None,
        metavar="DIR",
        help="folder to write figures to (.png): spectra, alpha over depth, scans of xmin",
    )


def _add_resources(group: Any) -> None:  # noqa: ANN401
    group.add_argument("--workspace", type=float, default=1.0, metavar="GIB", help="memory for windows, in GiB")
    group.add_argument("--workers", type=int, default=None, metavar="N", help="number of threads; by default PyTorch's")
    group.add_argument("--device", type=str, default="cpu", help="device to compute on, such as cuda:1, or auto")
    group.add_argument(
        "--where",
        type=Where,
        default="auto",
        help="with --device cuda: decompose Gram matrices on the device, on the host, or on the faster one (auto)",
    )


def _options(given: dict[str, Any]) -> AnalyzeOptions:
    if given["base"] is not None and given["compare"] is not None:
        raise ValueError("Expected --base or --compare, but got both. Leave one out.")
    if not given["workspace"] > 0:
        raise ValueError(f"Expected --workspace to be positive, but got {given['workspace']}.")
    if given["workers"] is not None and given["workers"] < 1:
        raise ValueError(f"Expected --workers to be at least 1, but got {given['workers']}.")
    names = ("include", "exclude", "kinds", "min_size", "max_size", "embeddings", "low_rank_products", "layout")
    return AnalyzeOptions(
        file=Path(given["file"]),
        key=given["key"],
        check=not given["no_crc"],
        dequantize=given["dequantize"],
        base=_path(given["base"]),
        compare=_path(given["compare"]),
        method=_method(given),
        selection=Selection(**{name: given[name] for name in names}),
        apart=tuple(given["apart"]),
        diagnostics=Diagnostics(
            given["bootstrap"],
            given["p_value"],
            marchenko_pastur=given["baseline"] or given["plots"] is not None,
            twin=given["baseline"],
            outliers=given["without_outliers"],
            distributions=given["distributions"],
            level=given["level"],
            seed=given["seed"],
        ),
        format=given["format"] or _format_of(given["out"]),
        out=_path(given["out"]),
        plots=_path(given["plots"]),
        workspace=max(1, int(given["workspace"] * 2**30)),
        workers=given["workers"],
        device=chosen_device(given["device"]),
        where=given["where"],
    )


def _method(given: dict[str, Any]) -> SpectralMethod:
    windows = {name: given[name] for name in ("aspect_ratio", "window", "steps", "blocks")}
    if given["method"] == "farms":
        return FARMS(**windows, fit=given["fit"], compat=given["compat"])
    defaults = {"aspect_ratio": 1.0, "window": None, "steps": None, "blocks": "averaged"}
    superfluous = [f"--{name}" for name, value in windows.items() if value != defaults[name]]
    if superfluous:
        raise ValueError(f"Expected {', '.join(superfluous)} to be left out with --method whole, which has no windows.")
    return WholeMatrix(fit=given["fit"], compat=given["compat"])


def _format_of(out: str | None) -> Format:
    ending = Path(out).suffix.removeprefix(".") if out else ""
    return next((name for name in get_args(Format) if name == ending), "table")


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
