"""The released sizes of DPOT, by name."""

from __future__ import annotations

from typing import NamedTuple

from lightning_farms.models.dpot.config import DPOTConfig

REPOSITORY = "hzk17/DPOT"
"""The repository of the released checkpoints on the Hugging Face Hub."""


class ReleasedSize(NamedTuple):
    """One of the released networks.

    Attributes:
        name: its name in this package.
        file: its checkpoint in the repository; three times as large as the weights, as it holds Adam's state too.
        config: keyword arguments for DPOT. The number of modes and the activation are those of the loading example in
            the original's README: its training program used 32 modes whatever its options said.
        parameters: number of the network's parameters.
    """

    name: str
    file: str
    config: DPOTConfig
    parameters: int


def released_size(name: str) -> ReleasedSize:
    """Look up a released size of DPOT.

    Args:
        name: "tiny", "small", "medium", "large" or "huge", or "Ti", "S", "M", "L", "H" as in the files' names; upper
            or lower case.

    Returns:
        The released size.

    Raises:
        ValueError: if there is no size of that name.

    Example:
        >>> released_size("Ti").file, released_size("tiny").parameters
        ('model_Ti.pth', 7534643)

    Reference:
        Hao et al., DPOT, ICML 2024, table 7 and the README of its program; the sizes of the files.
    """
    size = find_released(name)
    if size is None:
        raise ValueError(f"Expected argument `name` to be a released size ({RELEASED_NAMES}), but got {name!r}.")
    return size


def find_released(name: object) -> ReleasedSize | None:
    """Look up a released size, or return None if there is none of that name."""
    asked = name.lower() if isinstance(name, str) else None
    return next((size for size in RELEASED_SIZES if asked in (size.name, _letters(size.file))), None)


def settings_beyond_shapes(name: object) -> DPOTConfig:
    """Return those settings of a released network that its tensors' shapes do not show; none for a file."""
    size = find_released(name)
    return {} if size is None else {"modes": size.config["modes"], "act": size.config["act"]}


def _letters(file: str) -> str:
    return file.removeprefix("model_").removesuffix(".pth").lower()


def _config(embed_dim: int, depth: int, n_blocks: int, mlp_ratio: int, out_layer_dim: int) -> DPOTConfig:
    return {
        "img_size": 128,
        "patch_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "in_timesteps": 10,
        "out_timesteps": 1,
        "embed_dim": embed_dim,
        "depth": depth,
        "n_blocks": n_blocks,
        "modes": 32,
        "mlp_ratio": mlp_ratio,
        "out_layer_dim": out_layer_dim,
        "n_cls": 12,
        "normalize": False,
        "time_agg": "exp_mlp",
        "act": "gelu",
    }


RELEASED_SIZES = (
    ReleasedSize("tiny", "model_Ti.pth", _config(512, 4, 4, 1, 32), 7_534_643),
    ReleasedSize("small", "model_S.pth", _config(1024, 6, 8, 1, 32), 30_801_459),
    ReleasedSize("medium", "model_M.pth", _config(1024, 12, 8, 4, 32), 122_125_875),
    ReleasedSize("large", "model_L.pth", _config(1536, 24, 16, 4, 128), 509_018_739),
    ReleasedSize("huge", "model_H.pth", _config(2048, 27, 8, 4, 128), 1_031_082_099),
)
"""The released sizes, from the smallest to the largest."""

RELEASED_NAMES = ", ".join(repr(size.name) for size in RELEASED_SIZES)
"""The names of the released sizes, for messages."""
