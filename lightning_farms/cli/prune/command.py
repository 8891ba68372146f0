"""`lightning-farms prune MODEL --out OUT`: prune a language model's weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_farms.cli._console import plain_console
from lightning_farms.cli._language_model import USER_MISTAKES
from lightning_farms.cli._shell import failing_on, package_version
from lightning_farms.cli._target import check_file, check_folder
from lightning_farms.cli.prune._options import CALLED, PruneOptions, parse_options
from lightning_farms.cli.prune._tables import print_ratios, print_result
from lightning_farms.common.atomic import complete_or_nothing, write_text
from lightning_farms.common.progress import progress_bar
from lightning_farms.plotting import sparsity_figure
from lightning_farms.pruning.allocation import allocate
from lightning_farms.pruning.allocation.from_file import FileAllocation
from lightning_farms.pruning.block_pass import prune
from lightning_farms.pruning.loading import CausalLM, load_causal_lm
from lightning_farms.pruning.perplexity import default_window, positions_of
from lightning_farms.pruning.prunable import decoder_blocks
from lightning_farms.pruning.pruned_folder import PrunedFolder
from lightning_farms.pruning.ratios import LayerRatios
from lightning_farms.pruning.recipe import llm_compressor_recipe
from lightning_farms.pruning.text import Calibration, vocabulary_size


def run(args: list[str]) -> None:
    """Run `lightning-farms prune`.

    Args:
        args: the arguments that follow `prune` on the command line.

    Raises:
        SystemExit: with status 1 if the model cannot be pruned, 2 for wrong arguments.
    """
    options = parse_options(args)
    with failing_on(*USER_MISTAKES, **CALLED):
        _prune(options)


def _prune(options: PruneOptions) -> None:
    """Prune a model, after checks of all files so that their faults are found before the long work."""
    if options.out is not None and options.out.exists() and not options.dry_run:
        raise FileExistsError(f"Expected OUT to be a new folder, but {str(options.out)!r} exists.")
    if options.calibration is not None and not (text := Path(options.calibration)).is_file():
        what = "a folder" if text.is_dir() else "a pipe: write it to a file" if text.exists() else "not there"
        raise FileNotFoundError(f"Expected --calibration to be a text file, but {str(text)!r} is {what}.")
    _check_places(options)
    lm = load_causal_lm(
        options.model,
        device="cpu",
        dtype=options.dtype,
        offload_folder=options.offload_folder,
        tokenizer_required=options.needs_calibration,
    )
    ids = _calibration(options, lm)
    store = None
    if options.out is not None and not options.dry_run:
        store = PrunedFolder(options.out, lm.model, _settings(options, ids))
    ratios = _ratios(options, lm.model, ids, store)
    print_ratios(ratios, plain_console())
    _write(options, ratios, store)
    if store is None:
        if options.report is not None:
            write_text(options.report, ratios.to_csv() if options.report.suffix == ".csv" else ratios.to_json())
        return
    with progress_bar("Pruning", len(decoder_blocks(lm.model))) as advance:
        report = prune(
            lm.model,
            ratios,
            options.method,
            None if options.method == "magnitude" else ids,
            counts=options.counts,
            column_block=options.column_block,
            damping=options.damping,
            device=options.device,
            hidden_folder=options.hidden_folder,
            store=store,
            progress=advance,
        )
    store.finish(report, lm.tokenizer)
    print_result(report, options.out, plain_console(stderr=True))
    if options.report is not None:
        report.save(options.report)


def _check_places(options: PruneOptions) -> None:
    out = None if options.dry_run else options.out
    if out is not None:
        check_folder(out.parent, "the folder of OUT")
    allocation = options.allocation
    read = [options.calibration, allocation.path if isinstance(allocation, FileAllocation) else None]
    for called in ("report", "figure", "recipe"):
        path: Path | None = getattr(options, called)
        if path is not None and not _is_in(path, out):
            check_file(path, f"--{called}", [Path(each) for each in read if each is not None])


def _calibration(options: PruneOptions, lm: CausalLM) -> Tensor | None:
    if options.calibration is None or not options.needs_calibration:
        return None
    length = default_window(lm.model) if options.length is None else options.length
    positions = positions_of(lm.model)
    if positions is not None and length > positions:
        raise ValueError(f"Expected --length to be at most the model's {positions} positions, but got {length}.")
    calibration = Calibration(options.calibration, sequences=options.sequences, length=length, seed=options.seed)
    return calibration.token_ids(lm.tokenizer, vocabulary_size(lm.model))


def _ratios(options: PruneOptions, model: Any, ids: Tensor | None, store: PrunedFolder | None) -> LayerRatios:  # noqa: ANN401
    """Return the ratios of the run that is resumed, or else new ones from the dense model."""
    kept = None if store is None else store.partial / "ratios.json"
    if kept is not None and kept.exists():
        return LayerRatios.from_json(kept.read_text(encoding="utf-8"))
    ratios = allocate(
        model, options.sparsity, options.allocation, calibration=ids, pattern_m=options.pattern_m, device=options.device
    )
    if kept is not None:
        write_text(kept, ratios.to_json())
    return ratios


def _settings(options: PruneOptions, ids: Tensor | None) -> dict[str, Any]:
    """Return everything that the pruned weights depend on, to recognise the same run."""
    source, allocation = Path(options.model), options.allocation
    files = sorted(source.glob("*")) if source.is_dir() else [source]
    weights = [file for file in files if file.suffix in (".safetensors", ".bin", ".gguf")]
    return {
        "version": package_version(),
        "model": str(source.resolve()),
        "weights": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in weights],
        "dtype": options.dtype,
        "sparsity": options.sparsity,
        "pattern_m": options.pattern_m,
        "allocation": repr(allocation),
        "ratios": _digest(Path(allocation.path).read_bytes()) if isinstance(allocation, FileAllocation) else None,
        "method": options.method,
        "calibration": None if ids is None else _digest(ids.numpy().tobytes()),
        "counts": options.counts,
        "column_block": options.column_block,
        "damping": options.damping,
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(options: PruneOptions, ratios: LayerRatios, store: PrunedFolder | None) -> None:
    if options.figure is not None:
        figure = sparsity_figure({ratios.allocation: ratios.by_block()})
        with complete_or_nothing(_for_now(options.figure, options.out, store)) as draft:
            figure.savefig(draft, format=options.figure.suffix[1:])
    if options.recipe is not None and options.method != "magnitude":
        recipe = llm_compressor_recipe(ratios, options.method, damping=options.damping)
        write_text(_for_now(options.recipe, options.out, store), recipe)


def _for_now(path: Path, out: Path | None, store: PrunedFolder | None) -> Path:
    """Return where to write a file for now; one inside OUT gets there when the whole folder does."""
    if out is None or store is None or not _is_in(path, out):
        return path
    return store.partial / path.absolute().relative_to(out.absolute())


def _is_in(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.absolute().is_relative_to(folder.absolute())
