"""`lightning-farms convert IN OUT`: convert a DPOT checkpoint to another format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning_farms.cli._parser import OptionParser
from lightning_farms.cli._shell import failing_on, say
from lightning_farms.cli._target import check_new_file
from lightning_farms.common.quantities import size_text
from lightning_farms.models.dpot.config import Activation
from lightning_farms.models.dpot.weights.converting import convert_checkpoint
from lightning_farms.models.dpot.weights.hub import find_checkpoint
from lightning_farms.models.dpot.weights.released import RELEASED_SIZES, settings_beyond_shapes

_USER_MISTAKES = (ValueError, TypeError, OSError, ImportError)
_SUFFIXES = (".safetensors", ".pth")
_DESCRIPTION = """Write the DPOT in a checkpoint as safetensors, or in the released format, which the original program
reads. Only its weights and settings are written, with their precision, not the state of an optimizer. Nothing in the
file is run: it is read with weights_only. Exit status: 0 done; 1 the file cannot be converted; 2 wrong arguments; 130
interrupted."""


@dataclass(frozen=True)
class ConvertOptions:
    """The options of `lightning-farms convert`."""

    source: str
    target: Path
    overwrite: bool
    modes: int | None
    act: Activation | None
    cache_dir: str | None
    revision: str | None
    local_files_only: bool


def run(args: list[str]) -> None:
    """Run `lightning-farms convert`."""
    options = _parse(args)
    with failing_on(*_USER_MISTAKES):
        _convert(options)


def _parse(args: list[str]) -> ConvertOptions:
    parser = OptionParser(prog="lightning-farms convert", description=_DESCRIPTION, usage="%(prog)s IN OUT [options]")
    names = ", ".join(size.name for size in RELEASED_SIZES)
    parser.add_argument(
        "source",
        metavar="IN",
        type=str,
        help=f"checkpoint to convert (released .pth, state dict, Lightning .ckpt, .safetensors), or a released size "
        f"({names}), which is downloaded from the Hugging Face Hub once",
    )
    parser.add_argument(
        "target",
        metavar="OUT",
        type=str,
        help="file to write; its ending tells the format: .safetensors, or .pth (released format)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--modes", type=int, default=None, help="number of Fourier modes of the network, if IN does not tell it"
    )
    parser.add_argument(
        "--act", type=Activation, default=None, help="activation of the network, if IN does not tell it"
    )
    parser.add_argument("--cache_dir", type=str, default=None, metavar="DIR", help="folder to keep downloaded files in")
    parser.add_argument(
        "--revision", type=str, default=None, help="branch, tag or commit to download a released size from"
    )
    parser.add_argument(
        "--local_files_only", action="store_true", help="use a released size only if it was downloaded before"
    )
    given = parser.parse_args(args).as_dict()
    target = Path(given.pop("target"))
    if target.suffix not in _SUFFIXES:
        parser.error(f"Expected OUT to end in {' or '.join(_SUFFIXES)}, but got {str(target)!r}.")
    return ConvertOptions(target=target, **given)


def _convert(options: ConvertOptions) -> None:
    check_new_file(options.target, overwrite=options.overwrite)
    file = find_checkpoint(
        options.source,
        cache_dir=options.cache_dir,
        revision=options.revision,
        local_files_only=options.local_files_only,
    )
    known = settings_beyond_shapes(options.source)
    modes = known.get("modes") if options.modes is None else options.modes
    act = known.get("act") if options.act is None else options.act
    converted = convert_checkpoint(file, options.target, modes=modes, act=act)
    config = converted.config
    say(
        f"Written to {options.target}: DPOT of {converted.parameters:,} parameters in {converted.tensors} tensors, "
        f"{size_text(options.target.stat().st_size)}; modes={config['modes']}, act={config['act']}"
    )
