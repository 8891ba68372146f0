"""Products of the factors of low-rank updates, for modules as well as files."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_farms.analysis.weights._matrices import stack

RESCALED = (
    "DoRA rescales the weight, so that its update is no product of two factors; merge it, and compare with the base"
)

_FACTORS = (
    ("LoHa", re.compile(r"(^|\.)hada_[wt]\d(_[ab])?(\.|$)")),
    ("LoKr", re.compile(r"(^|\.)lokr_[wt]\d(_[ab])?(\.|$)")),
    ("VeRA", re.compile(r"(^|\.)(vera_[AB]|vera_lambda_[bd])(\.|$)")),
    ("an orthogonal update", re.compile(r"(^|\.)(oft_[rRs]|boft_[RPs]|hra_u|oft_blocks|oft_diag)(\.|$)")),
    ("GLoRA", re.compile(r"(^|\.)lora_(unet|te\d?|transformer)_[^.]*\.[ab][12m]\d?\.weight$")),
    ("AdaLoRA", re.compile(r"(^|\.)lora_E(\.|$)")),
    ("DoRA", re.compile(r"(^|\.)(lora_magnitude_vector|dora_scale)(\.|$)")),
    ("trained tokens", re.compile(r"(^|\.)trainable_tokens_(delta|original|index)(\.|$)")),
    ("LoCon", re.compile(r"(^|\.)lora_mid(\.|$)")),
)

_LORA = re.compile(r"(^|[._])lora[._]((embedding_)?([ABab]|down|up)|[a-z0-9_]+_adapter\.linear_(in|out))(\.|$)")
_ADAPTERS = re.compile(
    r"(^|\.)(?P<family>adamss|beft|c3a|deft|delora|fourierft|frod|glora|gralora|hira|lily|miss|bone|osf|peanut|poly_lora"
    r"|poly_router|psoft|pvera|randlora|road|shira|supertuning|tinylora|unilora|vblora|waveft)_[^.]+(\.|$)"
)


def factor_reason(name: str) -> str:
    """Return why a tensor of this name is no weight but an update's factor; empty for weights and LoRA's A or B."""
    kind = next((kind for kind, pattern in _FACTORS if pattern.search(name)), "")
    other = None if kind else _ADAPTERS.search(name)
    kind = kind or (f"an adapter ({other['family']})" if other else "")
    return f"it is a factor of {kind}, not a weight; merge the update, and compare with the base" if kind else ""


def factor_remark(name: str) -> str:
    """Return the remark for LoRA's A or B if these are analysed themselves; empty if the name is that of neither."""
    alone = "it is a factor of a low-rank update; analyse the product, which acts, with `low_rank_products`"
    return alone if _LORA.search(name) else ""


def lone_factor(name: str, kind: str) -> str:
    """Return why LoRA's A or B without the other is skipped if products are analysed; empty for other names."""
    alone = "it is one factor of a low-rank update, and the other one is not beside it"
    return alone if kind != "low-rank product" and _LORA.search(name) else ""


def with_core(down: Tensor, core: Tensor) -> Tensor:
    """Multiply LoCon's core (r, r, *kernel) with A (r, inputs, 1, ...), which gives (r, inputs, *kernel)."""
    return torch.einsum("rs...,si->ri...", core.to(down.dtype), down.flatten(1))


def low_rank_matrices(
    down: Tensor, up: Tensor, *, diagonal: Tensor | None = None, sizes: Sequence[int] = ()
) -> tuple[Tensor, int]:
    r"""Return the matrices :math:`B \, \mathrm{diag}(E) \, A` of an update, and an upper bound on their rank.

    A is (r, inputs, *kernel), B is (outputs, r, ...), and AdaLoRA's E has r entries, which are zero for pruned
    directions. A may have several times r rows (a fused projection): then the rows of B are cut into as many parts,
    each with its own rows of A. Parts of different sizes (grouped queries) are filled up with rows of zeros, which
    only adds eigenvalues that are zero.

    Args:
        down: A, or its transpose.
        up: B, or its transpose.
        diagonal: E.
        sizes: numbers of rows of the parts, if they are known.

    Raises:
        ValueError: the factors do not fit together.
    """
    dtype = torch.promote_types(down.dtype, torch.float32)
    down, up = _not_transposed(down.to(dtype), up.to(dtype))
    rank = up.shape[1]
    if diagonal is not None:
        down = down * diagonal.to(down).reshape(-1, *[1] * (down.ndim - 1))
    if not rank or len(down) % rank:
        raise ValueError(f"the factors' shapes, {tuple(down.shape)} and {tuple(up.shape)}, do not fit each other")
    groups = len(down) // rank
    parts = (
        list(sizes) if len(sizes) == groups and sum(sizes) == len(up) else fused_sizes(len(up), groups, down.shape[1])
    )
    if min(parts) < max(parts) and min(parts) < rank:
        raise ValueError(f"a part of {min(parts)} rows is smaller than the rank, {rank}")
    left = torch.zeros(groups, max(parts), rank, dtype=up.dtype, device=up.device)
    for part, rows in zip(left, up.flatten(1).split(parts), strict=True):
        part[: len(rows)] = rows
    right = down.flatten(2) if down.ndim > 2 else down.unsqueeze(2)
    right = right.unflatten(0, (-1, rank)).permute(0, 3, 1, 2)
    with torch.autocast("cpu" if left.is_meta else left.device.type, enabled=False):
        return stack(left.unsqueeze(1) @ right), rank if diagonal is None else _kept(diagonal, rank)


def expert_matrices(down: Tensor, up: Tensor, experts: int) -> tuple[Tensor, int]:
    """The updates of experts in one parameter, and their rank: peft's A is (experts r, inputs), B (outputs, r experts).

    Raises:
        ValueError: the factors are not of so many experts.
    """
    if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1] or len(down) % experts:
        raise ValueError(
            f"the factors' shapes, {tuple(down.shape)} and {tuple(up.shape)}, are not those of {experts} experts"
        )
    dtype = torch.promote_types(down.dtype, torch.float32)
    right = down.to(dtype).unflatten(0, (experts, -1))
    left = up.to(dtype).unflatten(1, (-1, experts)).movedim(-1, 0)
    with torch.autocast("cpu" if left.is_meta else left.device.type, enabled=False):
        return left @ right, len(down) // experts


def fused_sizes(rows: int, groups: int, inputs: int) -> list[int]:
    """Return the numbers of rows of each of ``groups`` projections in one weight with ``rows`` rows.

    The parts are equal, unless there are three and not all of them can have one row per input: then the queries have
    one row per input, and keys and values share the rest, if their size divides that of the queries.
    """
    shared, rest = divmod(rows - inputs, 2)
    if groups == 3 and not rest and 0 < shared < inputs and inputs % shared == 0:
        return [inputs, shared, shared]
    if rows % groups:
        raise ValueError(f"{rows} rows cannot be cut into {groups} equal parts")
    return [rows // groups] * groups


def _kept(diagonal: Tensor, rank: int) -> int:
    return rank if diagonal.is_meta else int((diagonal != 0).sum())


def _not_transposed(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return A as (r, inputs) and B as (outputs, r), as some programs store the transpose of both."""
    fits = up.shape[1] and len(down) % up.shape[1] == 0
    return (down.T, up.T) if not fits and down.ndim == up.ndim == 2 and down.shape[1] == len(up) else (down, up)
