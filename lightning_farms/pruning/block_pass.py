"""Pruning of a decoder block by block, each calibrated on the outputs of the pruned blocks before it."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from lightning_farms.common.quantities import counted
from lightning_farms.functional.pruning_masks import Amount, Counts, NofM, magnitude_mask, wanda_mask
from lightning_farms.functional.sparsegpt import sparsegpt
from lightning_farms.pruning._memory import block_on_device, device_of, peak_memory
from lightning_farms.pruning._moments import InputMoments, WatchInputs
from lightning_farms.pruning._stream import HiddenStream
from lightning_farms.pruning.prunable import PrunableWeight, decoder_blocks, prunable_weights
from lightning_farms.pruning.ratios import LayerRatios
from lightning_farms.pruning.report import PrunedBlock, PrunedLayer, PruningReport

Method = Literal["magnitude", "wanda", "sparsegpt"]
MIN_TOKENS = 32
"""Least number of tokens for an expert's inputs to be used; with fewer, it is pruned by magnitude."""


class BlockStore(Protocol):
    """Storage for finished blocks, so that an interrupted pass can be resumed."""

    def load(self, name: str, block: nn.Module) -> PrunedBlock | None:
        """Put a finished block's tensors into the model; return None if it is not finished."""

    def save(self, name: str, block: nn.Module, done: PrunedBlock) -> None:
        """Store a finished block."""


@torch.no_grad()
def prune(
    model: nn.Module,
    ratios: LayerRatios,
    method: Method = "wanda",
    calibration: Tensor | None = None,
    *,
    counts: Counts = "exact",
    column_block: int = 128,
    damping: float = 0.01,
    min_tokens: int = MIN_TOKENS,
    device: torch.device | str | None = None,
    hidden_folder: str | Path | None = None,
    store: BlockStore | None = None,
    progress: Callable[[int], object] | None = None,
) -> PruningReport:
    r"""Set weights of a decoder's blocks to zero, in place.

    It proceeds block by block: the moments of the inputs of a block's weights are gathered while the block runs on the
    calibration sequences, its weights are pruned, and it runs again; the next block is calibrated on these outputs.
    Memory holds one block on the device, the moments of its inputs (once for weights that share an input) and the
    hidden states of all sequences. Embeddings, head, norms and the routers of experts are not touched.

    Args:
        model: a decoder of transformers, or one that is called as ``model(input_ids=..., use_cache=False)``.
        ratios: how much of each weight to prune, see :func:`lightning_farms.pruning.allocate`.
        method: ``"magnitude"``, ``"wanda"`` (:math:`|W_{ij}| \sqrt{\mathrm{mean}\, x_j^2}` within an output row) or
            ``"sparsegpt"`` (which also changes the weights that stay).
        calibration: token ids (N, T); may be None for ``"magnitude"``.
        counts: ``"official"`` for the authors' numbers of zeros, which are off by one or floored per row.
        column_block: number of columns that SparseGPT prunes at a time.
        damping: amount that SparseGPT adds to the Hessian's diagonal, as a share of its mean.
        min_tokens: an expert that sees fewer tokens is pruned by magnitude, and the report says so.
        device: where the blocks run; None: where the model is.
        hidden_folder: a folder for keeping the hidden states on disk; None: they stay in memory.
        store: storage for finished blocks, with which a pass resumes where an earlier one was interrupted.
        progress: called with the number of blocks that were finished since the last call.

    Returns:
        A report by layer and by block.

    Raises:
        ValueError: an argument is out of range, a weight has no ratio or is not finite, activations are not finite (the
            layer is named), or the model's blocks cannot be run one by one.

    Example:
        >>> report = prune(model, allocate(model, 0.6), "wanda", ids)  # doctest: +SKIP
        >>> report.reached  # doctest: +SKIP
        0.6

    Reference:
        Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024; Frantar and Alistarh,
        SparseGPT, ICML 2023; Hu et al., ICML 2025, Section 4.2.
    """
    _check(method, calibration)
    start = time.perf_counter()
    blocks = decoder_blocks(model)
    by_block: dict[str, list[PrunableWeight]] = defaultdict(list)
    for weight in prunable_weights(model, blocks):
        by_block[weight.block].append(weight)
        if weight.matrices.device.type != "meta":  # weights on disk are checked when they are read
            _check_weight(weight)
    _check_covered(ratios, [weight.name for weights in by_block.values() for weight in weights])
    where = torch.device(device) if device is not None else device_of(model)
    one = _OneBlock(ratios, method, counts, column_block, damping, min_tokens)
    folder = None if hidden_folder is None else Path(hidden_folder)
    stream = None if calibration is None else HiddenStream(model, blocks, calibration, where, folder)
    done: list[PrunedBlock] = []
    with closing(stream) if stream is not None else nullcontext():
        for name, block in blocks.items():
            done.append(_prune_block(one, name, block, by_block[name], where, store, stream))
            if progress is not None:
                progress(1)
    return PruningReport(tuple(done), method, ratios, time.perf_counter() - start, peak_memory(where))


def _check(method: str, calibration: Tensor | None) -> None:
    if method not in get_args(Method):
        raise ValueError(f"Expected argument `method` to be one of {get_args(Method)}, but got {method!r}.")
    if calibration is None and method != "magnitude":
        raise ValueError(f"Expected argument `calibration` to be token ids for method {method!r}, but got None.")
    if calibration is not None and (
        calibration.ndim != 2 or calibration.numel() == 0 or calibration.is_floating_point()
    ):
        raise ValueError(
            f"Expected argument `calibration` to be token ids (N, T), but got {calibration.dtype} of shape "
            f"{tuple(calibration.shape)}."
        )


def _check_covered(ratios: LayerRatios, names: Sequence[str]) -> None:
    known = {layer.name for layer in ratios}
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(
            f"Expected argument `ratios` to have a ratio for every weight, but {len(missing)} have none: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. Take those of `allocate` on this model."
        )


def _prune_block(
    one: _OneBlock,
    name: str,
    block: nn.Module,
    weights: Sequence[PrunableWeight],
    device: torch.device,
    store: BlockStore | None,
    stream: HiddenStream | None,
) -> PrunedBlock:
    """Prune a block, or load it from the store, and pass the hidden states through it."""
    with block_on_device(block, device, drop=store is not None):
        finished = store.load(name, block) if store is not None else None
        if finished is not None:
            if stream is not None:
                stream.advance(name, block)
            return finished
        start = time.perf_counter()
        error = math.nan
        if stream is None:
            layers = one.prune(weights, None)
        else:
            watch = WatchInputs(weights, products=one.needs_products)
            dense = stream.watch(name, block, watch)
            layers = one.prune(weights, {weight.name: watch.of(weight) for weight in weights})
            error = stream.advance(name, block, dense)
        done = PrunedBlock(name, layers, error, time.perf_counter() - start)
        if store is not None:
            store.save(name, block, done)
    return done


class _OneBlock:
    """Prunes the weights of one block."""

    def __init__(
        self, ratios: LayerRatios, method: Method, counts: Counts, column_block: int, damping: float, min_tokens: int
    ) -> None:
        self._ratios = ratios
        self._method = method
        self._counts = counts
        self._column_block = column_block
        self._damping = damping
        self._min_tokens = min_tokens

    @property
    def needs_products(self) -> bool:
        """Whether the full matrices of second moments are needed."""
        return self._method == "sparsegpt"

    def prune(
        self, weights: Sequence[PrunableWeight], moments: Mapping[str, list[InputMoments]] | None
    ) -> tuple[PrunedLayer, ...]:
        """Prune the weights in place."""
        return tuple(self._prune_layer(weight, None if moments is None else moments[weight.name]) for weight in weights)

    def _prune_layer(self, weight: PrunableWeight, moments: list[InputMoments] | None) -> PrunedLayer:
        matrices = weight.matrices
        _check_weight(weight)
        amounts = self._shares(weight.name, matrices)
        errors, notes, precisions, fewest = [], self._zeros_before(weight), {""}, None
        for index, (matrix, amount) in enumerate(zip(matrices, amounts, strict=True)):
            own = None if moments is None else moments[index]
            if own is not None:
                fewest = own.tokens if fewest is None else min(fewest, own.tokens)
                _check_finite(weight.name, own)
            before = matrix.to(torch.float32, copy=True) if own is not None else None
            note, precision = self._prune_matrix(matrix, amount, own)
            precisions.add(precision)
            if note:
                notes.append(f"expert {index}: {note}" if len(matrices) > 1 else note)
            if own is not None and before is not None and own.tokens:
                errors.append(_relative_error(before, matrix.float(), own))
        return PrunedLayer(
            name=weight.name,
            block=weight.block,
            size=matrices.numel(),
            asked=self._ratios[weight.name].ratio,
            zeros=int((matrices == 0).sum()),
            tokens=fewest,
            error=math.sqrt(sum(error**2 for error in errors) / len(errors)) if errors else math.nan,
            notes=tuple(notes),
            precision=max(precisions),  # the last of "", "float32" and "float64"
        )

    def _zeros_before(self, weight: PrunableWeight) -> list[str]:
        """A note if a layer had more zeros than asked for, as in a model that was pruned before."""
        before, asked = int((weight.matrices == 0).sum()), self._ratios[weight.name].zeros
        return [f"{before} weights were zero before, more than the {asked} asked for"] if before > asked else []

    def _shares(self, name: str, matrices: Tensor) -> list[Amount]:
        """Amounts to prune of each matrix: equal shares, in whole weights that add up."""
        count, amount = matrices.shape[0], self._ratios.amount(name)
        if isinstance(amount, NofM):
            return [amount] * count
        if self._counts == "official":
            return [self._ratios[name].ratio] * count
        return [amount * (index + 1) // count - amount * index // count for index in range(count)]

    def _prune_matrix(self, matrix: Tensor, amount: Amount, moments: InputMoments | None) -> tuple[str, str]:
        """Prune one matrix in place; return a note about it and the precision of SparseGPT's factorisation."""
        few = moments is not None and moments.tokens < self._min_tokens
        if self._method == "magnitude" or moments is None or few:
            matrix.masked_fill_(~magnitude_mask(matrix, amount, counts=self._counts), 0)
            if self._method == "magnitude" or moments is None:
                return "", ""
            return f"chosen by magnitude, as only {counted(moments.tokens, 'calibration token')} reached it", ""
        if self._method == "wanda":
            mask = wanda_mask(matrix, moments.mean_square.to(matrix.device), amount, counts=self._counts)
            matrix.masked_fill_(~mask, 0)
            return "", ""
        assert moments.products is not None
        found = sparsegpt(
            matrix,
            moments.products / moments.tokens,
            amount,
            column_block=self._column_block,
            damping=self._damping,
            counts=self._counts,
        )
        matrix.copy_(found.weight)
        more = f"damping raised to {found.damping:g}" if found.damping > self._damping else ""
        return more, str(found.dtype).removeprefix("torch.")


def _check_weight(weight: PrunableWeight) -> None:
    if not weight.matrices.isfinite().all():
        raise ValueError(f"Expected the weights of {weight.name} to be finite, but some are not.")


def _check_finite(name: str, moments: InputMoments) -> None:
    if not moments.squares.isfinite().all():
        raise ValueError(
            f"Expected the activations that go into {name} to be finite, but some are not: the model overflows on the "
            "calibration text (in half precision, try bfloat16 or float32)."
        )


def _relative_error(before: Tensor, after: Tensor, moments: InputMoments) -> float:
    r"""Error :math:`\|\Delta W X\| / \|W X\|`, from the squares of single inputs alone if products are not known."""

    def norm(weight: Tensor) -> float:
        if moments.products is not None:
            return float(((weight @ moments.products) * weight).sum(dtype=torch.float64).clamp_min(0))
        return float((weight.double().square() @ moments.squares.to(weight.device)).sum())

    dense = norm(before)
    return math.sqrt(norm(after - before) / dense) if dense else 0.0
