"""Messages on parts of fused weights that were asked for, but are not taken apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_farms.analysis.apart import Part, weights_apart
from lightning_farms.analysis.weights.layer_weight import LayerWeight
from lightning_farms.cli._shell import say
from lightning_farms.common.quantities import counted
from lightning_farms.common.texts import listed

_NONE = {
    "qkv": "holds fused queries, keys and values under a known name, such as c_attn, qkv_proj or query_key_value; "
    "projections that are weights of their own have a row each anyway",
    "experts": "holds several experts; experts that are weights of their own have a row each anyway",
}


def say_not_apart(outlines: Iterable[LayerWeight], apart: Sequence[Part], config: Mapping[str, Any], name: str) -> None:
    """Tell which of the parts are in no weight of a file, and which fused weights stay whole, and why.

    Args:
        outlines: the weights to analyse, without values.
        apart: the parts that were asked for.
        config: the model's configuration.
        name: of the file.
    """
    weights = list(outlines)
    for part in apart:
        taken = [(weight, list(weights_apart([weight], [part], config))) for weight in weights]
        whole = [weight.name for weight, parts in taken if parts[0].remark != weight.remark and len(parts) == 1]
        if whole:
            why = (
                "the configuration does not tell how their rows are arranged; see the remarks in the result"
                if config
                else "there is no configuration that tells how their rows are arranged; put the model's config.json "
                "beside the file"
            )
            number = counted(len(whole), "fused weight")
            say(f"--apart {part} leaves {number} of {name} whole ({listed(whole, 3)}): {why}.")
        elif all(len(parts) == 1 for _, parts in taken):
            say(f"--apart {part} changes nothing, as no weight analysed in {name} {_NONE[part]}.")
