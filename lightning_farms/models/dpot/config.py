"""The settings of a DPOT, and the checks of them."""

from __future__ import annotations

import math
from typing import Literal, TypedDict

from lightning_farms.common.arguments import check_integers
from lightning_farms.common.image_size import ImageSize, sides

Activation = Literal["gelu", "silu", "relu", "tanh"]
TimeAggregationKind = Literal["exp_mlp", "mlp"]

NORM_GROUPS = 8
NOT_IN_SHAPES = ("modes", "act")  # settings that the tensors of a checkpoint do not reveal


class DPOTConfig(TypedDict, total=False):
    """The keyword arguments of DPOT; see there for their meaning."""

    img_size: ImageSize
    patch_size: int
    in_channels: int
    out_channels: int
    in_timesteps: int
    out_timesteps: int
    embed_dim: int
    depth: int
    n_blocks: int
    modes: int
    mlp_ratio: float
    out_layer_dim: int
    n_cls: int
    normalize: bool
    time_agg: TimeAggregationKind
    act: Activation


def patches(config: DPOTConfig) -> tuple[int, int]:
    """The numbers of patches along x and y."""
    along_x, along_y = sides(config["img_size"])
    return along_x // config["patch_size"], along_y // config["patch_size"]


def check_config(config: DPOTConfig) -> None:
    """Refuse settings that are out of range or do not fit each other."""
    check_integers(1, **{f"img_size[{axis}]": side for axis, side in enumerate(sides(config["img_size"]))})
    no_integers = ("img_size", "mlp_ratio", "normalize", "time_agg", "act")
    check_integers(1, **{name: value for name, value in config.items() if name not in no_integers})
    ratio = config["mlp_ratio"]
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
        raise TypeError(f"Expected argument `mlp_ratio` to be a number, but got {ratio!r}.")
    if not 1 <= ratio * config["embed_dim"] < math.inf:
        raise ValueError(f"Expected argument `mlp_ratio` to be at least 1 / embed_dim, but got {ratio}.")
    if not isinstance(config["normalize"], bool):
        raise TypeError(f"Expected argument `normalize` to be True or False, but got {config['normalize']!r}.")
    if config["time_agg"] not in ("exp_mlp", "mlp"):
        raise ValueError(f"Expected argument `time_agg` to be 'exp_mlp' or 'mlp', but got {config['time_agg']!r}.")
    _check_sizes(config)


def _check_sizes(config: DPOTConfig) -> None:
    embed_dim = config["embed_dim"]
    if any(side % config["patch_size"] for side in sides(config["img_size"])):
        raise ValueError(
            f"Expected argument `img_size` to be a multiple of `patch_size`, but got {config['img_size']} and "
            f"{config['patch_size']}."
        )
    for name, divisor in (("the 8 groups of group normalisation", NORM_GROUPS), ("`n_blocks`", config["n_blocks"])):
        if embed_dim % divisor:
            raise ValueError(
                f"Expected argument `embed_dim` to be a multiple of {name}, but got {embed_dim} and {divisor}."
            )
    if config["normalize"] and config["in_channels"] != config["out_channels"]:
        raise ValueError(
            "Expected argument `out_channels` to equal `in_channels` with normalize=True (the output is "
            f"de-normalised by the input's statistics), but got {config['out_channels']} and {config['in_channels']}."
        )
