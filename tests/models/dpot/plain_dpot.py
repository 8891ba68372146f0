"""DPOT as its definition reads, without short cuts: what the fast network is tested and timed against.

It works on the parameters of a DPOT by their names. Coordinates are concatenated to every frame, every frame is
embedded to full width, time is summed by one einsum, and a Fourier layer is eight real einsums into buffers of zeros.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_farms.models import DPOT

_ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu, "tanh": torch.tanh}


def plain_forward(model: DPOT, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the prediction and the class logits of a DPOT for frames (batch, x, y, time, channels)."""
    config, p = model.config, dict(model.named_parameters())
    if config["normalize"]:
        std, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True)
        std = std + 1e-6
        x = (x - mean) / std
    act = _ACTIVATIONS[config["act"]]
    batch, _, _, frames, _ = x.shape
    features = torch.cat((x, _coordinates(x)), dim=-1).permute(0, 3, 4, 1, 2).flatten(0, 1).contiguous()
    features = act(_convolution(features, p, "patch_embed.proj.0", stride=config["patch_size"]))
    features = _convolution(features, p, "patch_embed.proj.2") + p["pos_embed"]
    features = _sum_over_time(features.unflatten(0, (batch, frames)).permute(0, 3, 4, 1, 2), p)
    if config["normalize"]:
        statistics = torch.cat((mean, std), dim=-1).flatten(1)
        scale, shift = (_linear(statistics, p, f"scale_feats_{name}")[:, None, None] for name in ("sigma", "mu"))
        features = scale * features + shift
    features = features.permute(0, 3, 1, 2)
    for index in range(config["depth"]):
        features = _block(features, p, f"blocks.{index}.", config["modes"], act)
    hidden = act(_linear(features.mean((2, 3)), p, "cls_head.0"))
    logits = _linear(act(_linear(hidden, p, "cls_head.2")), p, "cls_head.4")
    weight, bias = p["out_layer.0.weight"], p["out_layer.0.bias"]
    fields = act(F.conv_transpose2d(features, weight, bias, stride=config["patch_size"]))
    fields = _convolution(act(_convolution(fields, p, "out_layer.2")), p, "out_layer.4").permute(0, 2, 3, 1)
    fields = fields.unflatten(-1, (config["out_timesteps"], config["out_channels"])).contiguous()
    return (fields * std + mean, logits) if config["normalize"] else (fields, logits)


def _coordinates(x: Tensor) -> Tensor:
    axes = (torch.linspace(0, 1, size, dtype=x.dtype, device=x.device) for size in x.shape[1:4])
    grids = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return grids.expand(len(x), *grids.shape)


def _linear(x: Tensor, p: Mapping[str, Tensor], name: str) -> Tensor:
    return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def _convolution(x: Tensor, p: Mapping[str, Tensor], name: str, stride: int = 1) -> Tensor:
    return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride=stride)


def _sum_over_time(features: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    """Sum (batch, rows, columns, time, features) over time with one matrix for each frame."""
    gamma = p.get("time_agg_layer.gamma")
    if gamma is not None:
        with torch.autocast(features.device.type, enabled=False):
            times = torch.linspace(0, 1, features.shape[3], dtype=gamma.dtype, device=gamma.device)
            waves = torch.cos(times[:, None] * gamma)
        features = features * waves
    return torch.einsum("tij,...ti->...j", p["time_agg_layer.w"], features)


def _block(x: Tensor, p: Mapping[str, Tensor], prefix: str, modes: int, act) -> Tensor:
    hidden = F.group_norm(x, 8, p[f"{prefix}norm1.weight"], p[f"{prefix}norm1.bias"])
    with torch.autocast(x.device.type, enabled=False):
        hidden = _filter(hidden.to(torch.promote_types(hidden.dtype, torch.float32)), p, f"{prefix}filter.", modes, act)
    hidden = F.group_norm(hidden, 8, p[f"{prefix}norm2.weight"], p[f"{prefix}norm2.bias"])
    return _convolution(act(_convolution(hidden, p, f"{prefix}mlp.0")), p, f"{prefix}mlp.2") + x


def _filter(x: Tensor, p: Mapping[str, Tensor], prefix: str, modes: int, act) -> Tensor:
    w1, b1, w2, b2 = (p[prefix + name] for name in ("w1", "b1", "w2", "b2"))
    field = x.permute(0, 2, 3, 1)
    spectrum = torch.fft.rfft2(field, dim=(1, 2), norm="ortho").unflatten(-1, w1.shape[1:3])
    kept = (slice(None), slice(modes), slice(modes))
    real, imaginary = _complex_product(spectrum.real, spectrum.imag, w1, b1, kept)
    hidden_real, hidden_imaginary = torch.zeros_like(real), torch.zeros_like(imaginary)
    hidden_real[kept], hidden_imaginary[kept] = act(real[kept]), act(imaginary[kept])
    mixed = torch.complex(*_complex_product(hidden_real, hidden_imaginary, w2, b2, kept)).flatten(-2)
    result = torch.fft.irfft2(mixed, s=field.shape[1:3], dim=(1, 2), norm="ortho") + field
    return result.permute(0, 3, 1, 2)


def _complex_product(real: Tensor, imaginary: Tensor, weight: Tensor, bias: Tensor, kept: tuple) -> list[Tensor]:
    """Multiply the kept coefficients by a complex weight with four real einsums, into buffers of zeros."""

    def product(part: Tensor, matrix: Tensor) -> Tensor:
        return torch.einsum("...bi,bio->...bo", part[kept], matrix)

    shape = (*real.shape[:-1], weight.shape[-1])
    result = [real.new_zeros(shape), real.new_zeros(shape)]
    result[0][kept] = product(real, weight[0]) - product(imaginary, weight[1]) + bias[0]
    result[1][kept] = product(imaginary, weight[0]) + product(real, weight[1]) + bias[1]
    return result
