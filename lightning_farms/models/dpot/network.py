"""DPOT: a Fourier-attention neural operator that predicts the next frames of a field."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_farms.common.image_size import ImageSize, plain_size, sides
from lightning_farms.models.dpot._afno import build_activation
from lightning_farms.models.dpot._head import paint
from lightning_farms.models.dpot._layers import DPOTBlock, PatchEmbedding, TimeAggregation
from lightning_farms.models.dpot._stem import COORDINATES, embed
from lightning_farms.models.dpot.config import Activation, DPOTConfig, TimeAggregationKind, check_config, patches
from lightning_farms.models.dpot.weights._building import build_from_checkpoint
from lightning_farms.models.dpot.weights.hub import find_checkpoint
from lightning_farms.models.dpot.weights.released import settings_beyond_shapes
from lightning_farms.models.dpot.weights.report import Component, LoadReport


class DPOTOutput(NamedTuple):
    """The output of DPOT.

    Attributes:
        prediction: the next frames, shape (batch, x, y, out_timesteps, out_channels).
        logits: a score for each data set that the trajectory may come from, shape (batch, n_cls).
    """

    prediction: Tensor
    logits: Tensor


class DPOT(nn.Module):
    """Neural operator that predicts a field's next frames from its last ones; the defaults are DPOT-Tiny's.

    Every frame, with its coordinates x, y, t in [0, 1] as further channels, is cut into patches and embedded; the
    frames are multiplied by one matrix each and summed over time; `depth` AFNO blocks mix the patches; a transposed
    convolution turns them into frames again. A class head on the mean feature predicts the trajectory's data set.
    Tensor names and shapes are those of the released networks.

    Args:
        img_size: side of the square field in pixels, a multiple of `patch_size`; or both sides, along x and y.
        patch_size: side of a patch in pixels.
        in_channels: physical channels of a given frame.
        out_channels: physical channels of a predicted frame.
        in_timesteps: number of given frames.
        out_timesteps: number of frames predicted at once.
        embed_dim: features of a patch, a multiple of 8 (group normalisation) and of `n_blocks`.
        depth: number of blocks.
        n_blocks: channel groups that the Fourier layers mix separately.
        modes: rows and columns of frequencies that the Fourier layers keep; all of them if this exceeds their number.
        mlp_ratio: hidden features of a block's MLP divided by `embed_dim`, greater than 0.
        out_layer_dim: channels of the output layers.
        n_cls: number of data sets that the class head tells apart.
        normalize: whether each sample is first standardised per channel; its mean and standard deviation then
            modulate the features, and the output is scaled back by them. Needs `out_channels` equal to `in_channels`.
        time_agg: how frames are summed: "exp_mlp" multiplies by a cosine in time, "mlp" does not.
        act: the activation of all layers.

    Raises:
        TypeError: if an argument is not of its type.
        ValueError: if an argument is out of range, or sizes do not fit each other.

    Example:
        >>> model = DPOT(img_size=16, patch_size=4, in_timesteps=5, embed_dim=16, depth=1, n_blocks=2)
        >>> prediction, logits = model(torch.zeros(2, 16, 16, 5, 4))
        >>> prediction.shape, logits.shape
        (torch.Size([2, 16, 16, 1, 4]), torch.Size([2, 12]))
        >>> sum(parameter.numel() for parameter in DPOT().parameters())
        7534643

    Reference:
        Hao et al., DPOT: Auto-Regressive Denoising Operator Transformer for Large-Scale PDE Pre-Training,
        ICML 2024 (arXiv 2403.03542), section 3.
    """

    load_report: LoadReport | None = None
    """The report of what was loaded, if the network was built from a checkpoint."""

    def __init__(
        self,
        *,
        img_size: ImageSize = 128,
        patch_size: int = 8,
        in_channels: int = 4,
        out_channels: int = 4,
        in_timesteps: int = 10,
        out_timesteps: int = 1,
        embed_dim: int = 512,
        depth: int = 4,
        n_blocks: int = 4,
        modes: int = 32,
        mlp_ratio: float = 1.0,
        out_layer_dim: int = 32,
        n_cls: int = 12,
        normalize: bool = False,
        time_agg: TimeAggregationKind = "exp_mlp",
        act: Activation = "gelu",
    ) -> None:
        super().__init__()
        self._config = DPOTConfig(
            img_size=plain_size(img_size),
            patch_size=patch_size,
            in_channels=in_channels,
            out_channels=out_channels,
            in_timesteps=in_timesteps,
            out_timesteps=out_timesteps,
            embed_dim=embed_dim,
            depth=depth,
            n_blocks=n_blocks,
            modes=modes,
            mlp_ratio=mlp_ratio,
            out_layer_dim=out_layer_dim,
            n_cls=n_cls,
            normalize=normalize,
            time_agg=time_agg,
            act=act,
        )
        check_config(self._config)
        self.img_size, self.in_channels, self.in_timesteps = self._config["img_size"], in_channels, in_timesteps
        self.out_channels, self.out_timesteps = out_channels, out_timesteps
        self._build(**self._config)

    def _build(self, **config: Unpack[DPOTConfig]) -> None:
        """Create parameters and layers, in the order of the released state dict."""
        patch_size, embed_dim, act = config["patch_size"], config["embed_dim"], config["act"]
        self.pos_embed = nn.Parameter(torch.empty(1, embed_dim, *patches(config)))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.patch_embed = PatchEmbedding(
            config["in_channels"] + COORDINATES,
            hidden_channels=config["out_channels"] * patch_size + COORDINATES,
            embed_dim=embed_dim,
            patch_size=patch_size,
            act=act,
        )
        # the small term makes up for rounding: 56 * (61 / 56) must give 61, but int() alone gives 60
        hidden_dim = int(embed_dim * config["mlp_ratio"] + 1e-6)
        self.blocks = nn.ModuleList(
            DPOTBlock(embed_dim, n_blocks=config["n_blocks"], modes=config["modes"], hidden_dim=hidden_dim, act=act)
            for _ in range(config["depth"])
        )
        if config["normalize"]:
            self.scale_feats_mu = nn.Linear(2 * config["in_channels"], embed_dim)
            self.scale_feats_sigma = nn.Linear(2 * config["in_channels"], embed_dim)
        self.cls_head = nn.Sequential(
            nn.Linear(embed_dim, embed_dim),
            build_activation(act),
            nn.Linear(embed_dim, embed_dim),
            build_activation(act),
            nn.Linear(embed_dim, config["n_cls"]),
        )
        self.time_agg_layer = TimeAggregation(config["in_timesteps"], embed_dim, kind=config["time_agg"])
        width = config["out_layer_dim"]
        self.out_layer = nn.Sequential(
            nn.ConvTranspose2d(embed_dim, width, kernel_size=patch_size, stride=patch_size),
            build_activation(act),
            nn.Conv2d(width, width, kernel_size=1),
            build_activation(act),
            nn.Conv2d(width, config["out_channels"] * config["out_timesteps"], kernel_size=1),
        )

    def spectral_weights(self) -> Iterator[tuple[str, Tensor, tuple[Tensor, ...]]]:
        """Yield the position embedding as a matrix (embed_dim, positions); submodules hold the other weights."""
        yield "pos_embed", self.pos_embed[0].flatten(1), (self.pos_embed,)

    @property
    def config(self) -> DPOTConfig:
        """The keyword arguments that the network was built with, as a new dictionary, for DPOT(**model.config)."""
        return self._config.copy()

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], **overrides: Unpack[DPOTConfig]) -> DPOT:
        """Build the network that a checkpoint holds, and load all its weights unchanged.

        Sizes follow from the tensors' shapes; `modes` and `act`, which do not show there, come from the saved
        settings; keywords override both. The file is read without running code from it (weights_only). The
        random number generators are not touched.

        Args:
            path: file in the released format ({'model', 'args', ...}, names with or without 'module.'), a plain
                state dict, a Lightning checkpoint ('state_dict', any prefix such as 'network.'), or safetensors.
            overrides: keyword arguments of DPOT that replace what the file says.

        Returns:
            The network on the default device, in training mode.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file cannot be read safely, holds no DPOT, or its tensors have other shapes than
                the keywords ask for; the message names the first of them with both shapes.

        Warns:
            UserWarning: if neither file nor keywords say `modes` and `act`, so that the defaults are used.
        """
        return build_from_checkpoint(cls, path, overrides)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        components: Sequence[Component] | None = None,
        cache_dir: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **overrides: Unpack[DPOTConfig],
    ) -> DPOT:
        """Build a released network or that of a checkpoint file, optionally in other sizes, and load its weights.

        For another image size or other numbers of channels, frames or classes, the weights are adapted
        (:func:`lightning_farms.models.dpot.weights.adapting.adapt_tensors` has the rules);
        ``print(model.load_report)`` shows what was done.

        Args:
            path: "tiny", "small", "medium", "large" or "huge" (or "Ti", "S", "M", "L", "H"), which is downloaded from
                the Hugging Face Hub once; or a file, as for :meth:`from_checkpoint`.
            components: parts to load; the others get initial values. All by default.
            cache_dir: folder for downloaded files; huggingface_hub's own by default.
            revision: branch, tag or commit of the repository on the Hub; its newest state by default.
            local_files_only: do not download.
            overrides: keyword arguments of DPOT that replace what the file says.

        Returns:
            The network on the default device, in training mode.

        Raises:
            FileNotFoundError: if there is no such file, neither here nor on the Hub.
            ValueError: if the file cannot be read safely, holds no DPOT, or cannot be adapted to the keywords.
            ImportError: if the package huggingface_hub is needed and not installed.
            PermissionError: if the Hub refuses access.
            ConnectionError: if the Hub cannot be reached.

        Warns:
            UserWarning: if weights that were to be loaded keep their initial values, or `modes` and `act` are
                not known.
        """
        file = find_checkpoint(path, cache_dir=cache_dir, revision=revision, local_files_only=local_files_only)
        settings = settings_beyond_shapes(path) | overrides
        return build_from_checkpoint(cls, file, settings, components=components, adapt=True)

    def forward(self, x: Tensor) -> DPOTOutput:
        """Predict the next frames.

        Args:
            x: given frames, shape (batch, X, Y, in_timesteps, in_channels), with X and Y as in `img_size`.

        Returns:
            Prediction, shape (batch, X, Y, out_timesteps, out_channels), and class logits, shape (batch, n_cls).

        Raises:
            TypeError: if the input is not a floating-point tensor.
            ValueError: if the input has another shape.
        """
        self._check_input(x)
        if not self._config["normalize"]:
            features, logits = self._encode(x)
            return DPOTOutput(self._decode(features), logits)
        std, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True)
        std = std + 1e-6
        features, logits = self._encode((x - mean) / std, torch.cat((mean, std), dim=-1).flatten(1))
        return DPOTOutput(self._decode(features) * std + mean, logits)

    def _encode(self, x: Tensor, statistics: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map frames to the last block's features (batch, rows, columns, embed_dim) and the class logits."""
        features = embed(x, self.patch_embed, self.pos_embed, self.time_agg_layer)
        if statistics is not None:
            scale = self.scale_feats_sigma(statistics)[:, None, None]
            features = scale * features + self.scale_feats_mu(statistics)[:, None, None]
        features = features.movedim(-1, 1)
        for block in self.blocks:
            features = block(features)
        features = features.movedim(1, -1)
        return features, self.cls_head(features.mean(dim=(1, 2)))

    def _decode(self, features: Tensor) -> Tensor:
        """Map features to frames (batch, x, y, out_timesteps, out_channels)."""
        fields: Tensor = paint(features, self.out_layer).unflatten(-1, (self.out_timesteps, self.out_channels))
        return fields

    def _check_input(self, x: Tensor) -> None:
        if not torch.is_floating_point(x):
            raise TypeError(f"Expected argument `x` to be a floating-point tensor, but got dtype {x.dtype}.")
        expected = (*sides(self.img_size), self.in_timesteps, self.in_channels)
        if x.ndim != 5 or x.shape[1:] != expected:
            raise ValueError(
                "Expected argument `x` to have shape (batch, img_size, img_size, in_timesteps, in_channels) = "
                f"(batch, {', '.join(map(str, expected))}), but got {tuple(x.shape)}. "
                "Give the model the data's sizes, or select frames and channels."
            )
