"""Adapting pretrained DPOT tensors to another image size, or to other numbers of channels, frames or classes.

Every rule keeps as much of the pretrained function as the new sizes allow, and draws no random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_farms.common.texts import joined
from lightning_farms.models.dpot.config import DPOTConfig, patches

_STEM, _STEM_BIAS, _STEM_NEXT = "patch_embed.proj.0.weight", "patch_embed.proj.0.bias", "patch_embed.proj.2.weight"
_TIME, _GAMMA = "time_agg_layer.w", "time_agg_layer.gamma"
_LEAST_COSINE = 0.1  # cosines of smaller magnitude are raised to it before weights are divided by them


class Adapted(NamedTuple):
    """Tensors that were made to fit a network."""

    tensors: dict[str, Tensor]  # all of them, also those that needed no change
    changes: dict[str, str]  # what was done to each changed tensor, by name
    left_out: dict[str, str]  # why a tensor of the file or the network has no counterpart, by name


class _Change(NamedTuple):
    tensors: dict[str, Tensor]
    note: str


def adapt_tensors(tensors: Mapping[str, Tensor], saved: DPOTConfig, wanted: DPOTConfig) -> Adapted:
    """Make a DPOT's tensors fit a DPOT of other sizes.

    - Another image size: the position embedding is resized bicubically (corners not aligned).
    - Given frames: the newest frames act as before. Matrices and time coordinates are shifted so that the newest frame
      keeps its own. Additional frames have no weight at first; if there are fewer frames, the oldest also acts for the
      missing ones. The cosines of the time aggregation are divided out, magnitudes below 0.1 counting as 0.1.
    - Given channels, matched by position: new ones have no weight at first; missing ones act as if filled with ones,
      as the original program fills them.
    - Predicted channels, matched by position: new ones are zero at first. The stem's hidden width depends on their
      number: new hidden units are copies that have no weight in the next layer; of too many, the strongest are kept.
    - Predicted frames: the first ones are kept; additional ones repeat the last.
    - Another number of classes: the last layer of the class head has no counterpart.
    - Normalisation in only one of the two: its layers have no counterpart.

    Tensors that depend on other sizes are not adapted.
    """
    left_out = _without_counterpart(saved, wanted)
    kept = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    changes: dict[str, str] = {}
    for rule in (_positions, _given_frames, _time_coordinate, _given_channels, _statistics, _hidden_units, _predicted):
        change = rule(kept, saved, wanted)
        kept |= change.tensors
        for name in change.tensors:
            changes[name] = joined(changes.get(name, ""), change.note)
    return Adapted(kept, changes, left_out)


def _without_counterpart(saved: DPOTConfig, wanted: DPOTConfig) -> dict[str, str]:
    left_out = {}
    if saved["n_cls"] != wanted["n_cls"]:
        why = f"{saved['n_cls']} classes in the file, {wanted['n_cls']} in the model"
        left_out = dict.fromkeys(("cls_head.4.weight", "cls_head.4.bias"), why)
    if saved["normalize"] != wanted["normalize"]:
        why = f"normalize={saved['normalize']} in the file, {wanted['normalize']} in the model"
        names = (f"scale_feats_{name}" for name in ("mu.weight", "mu.bias", "sigma.weight", "sigma.bias"))
        left_out |= dict.fromkeys(names, why)
    return left_out


def _positions(tensors: Mapping[str, Tensor], saved: DPOTConfig, wanted: DPOTConfig) -> _Change:
    old, new = patches(saved), patches(wanted)
    if old == new or "pos_embed" not in tensors:
        return _Change({}, "")
    positions = tensors["pos_embed"].float()
    resized = F.interpolate(positions, size=new, mode="bicubic", align_corners=False)
    return _Change({"pos_embed": resized}, f"{_by(old)} patches resized bicubically to {_by(new)}")


def _by(sizes: tuple[int, int]) -> str:
    return f"{sizes[0]} x {sizes[1]}"


def _given_frames(tensors: Mapping[str, Tensor], saved: DPOTConfig, wanted: DPOTConfig) -> _Change:
    old, new = saved["in_timesteps"], wanted["in_timesteps"]
    if old == new or _TIME not in tensors:
        return _Change({}, "")
    weight, gamma = tensors[_TIME].float(), tensors.get(_GAMMA)
    kernel = weight * _cosines(old, gamma)
    if new < old:
        kernel = torch.cat((kernel[: old - new + 1].sum(0, keepdim=True), kernel[old - new + 1 :]))
        how = "the oldest acts for the missing ones too"
    else:
        kernel = torch.cat((kernel.new_zeros(new - old, *kernel.shape[1:]), kernel))
        how = "the further, older ones have no weight yet"
    cosines = _cosines(new, gamma)
    bounded = torch.where(cosines < 0, -1.0, 1.0) * cosines.abs().clamp(min=_LEAST_COSINE)
    return _Change({_TIME: kernel / bounded}, f"{old} -> {new} given frames: the newest keep their matrices, {how}")


def _cosines(frames: int, gamma: Tensor | None) -> Tensor:
    """The factors of the time aggregation's matrices, shape (frames, embed_dim, 1); ones without gamma."""
    if gamma is None:
        return torch.ones(frames, 1, 1)
    return torch.cos(torch.linspace(0, 1, frames)[:, None] * gamma.float()).unsqueeze(-1)


def _time_coordinate(tensors: Mapping[str, Tensor], saved: DPOTConfig, wanted: DPOTConfig) -> _Change:
    """Give the newest frames their old time coordinates, slope * new time + offset, by changing the first layer."""
    old, new = saved["in_timesteps"], wanted["in_timesteps"]
    if old == new or not {_STEM, _STEM_BIAS} <= tensors.keys():
        return _Change({}, "")
    slope, offset = ((new - 1) / (old - 1), 1 - (new - 1) / (old - 1)) if old > 1 else (0.0, 0.0)
    weight, bias = tensors[_STEM].float(), tensors[_STEM_BIAS].float()
    time = weight[:, -1:]
    changed = {
        _STEM: torch.cat((weight[:, :-1], slope * time), dim=1),
        _STEM_BIAS: bias + offset * time.sum(dim=(1, 2, 3)),
    }
    return _Change(changed, f"{old} -> {new} given frames: the newest keep their time coordinates")


def _given_channels(tensors: Mapping[str, Tensor], saved: DPOTConfig, wanted: DPOTConfig) -> _Change:
    old, new = saved["in_channels"], wanted["in_channels"]
    if old == new or not {_STEM, _STEM_BIAS} <= tensors.keys():
        return _Change({}, "")
    weight, bias = tensors[_STEM].float(), tensors[_STEM_BIAS].float()
    data, coordinates = weight[:, :old], weight[:, old:]
    changed = {_STEM: torch.cat((_resize(data, 1, new), coordinates), dim=1)}
    if new < old and not saved["normalize"]:  # a normalised constant channel is zero
        changed[_STEM_BIAS] = bias + data[:, new:].sum(dim=(1, 2, 3))
    return _Change(changed, _channels_note(old, new))


def _channels_note(old: int, new: int) -> str:
    how = "the missing ones act as if they were all one" if new < old else "the new ones have no weight yet"
    return f"{old} -> {new} given channels, matched by position: {how}"


def _statistics(tensors: Mapping[str, Tensor], saved: DPOTConfig, wanted: DPOTConfig) -> _Change:
    """Adapt the layers whose inputs are all channels' means, then all standard deviations (zero if constant)."""
    old, new = saved["in_channels"], wanted["in_channels"]
    if old == new:
        return _Change({}, "")
    changed = {}
    for layer in ("scale_feats_mu", "scale_feats_sigma"):
        if not {f"{layer}.weight", f"{layer}.bias"} <= tensors.keys():
            continue
        weight, bias = tensors[f"{layer}.weight"].float().unflatten(1, (2, old)), tensors[f"{layer}.bias"].float()
        changed[f"{layer}.weight"] = _resize(weight, 2, new).flatten(1)
        if new < old:
            changed[f"{layer}.bias"] = bias + weight[:, 0, new:].sum(dim=1)
    return _Change(changed, _channels_note(old, new))


def _hidden_units(tensors: Mapping[str, Tensor], saved: DPOTConfig, wanted: DPOTConfig) -> _Change:
    old, new = (config["out_channels"] * config["patch_size"] + 3 for config in (saved, wanted))
    if saved["out_channels"] == wanted["out_channels"] or not {_STEM, _STEM_BIAS, _STEM_NEXT} <= tensors.keys():
        return _Change({}, "")
    weight, bias, following = (tensors[name].float() for name in (_STEM, _STEM_BIAS, _STEM_NEXT))
    if new > old:
        units = torch.arange(new) % old
        following = _resize(following, 1, new)
        note = f"{old} -> {new} hidden units: copies of the first, without weight in what follows yet"
    else:
        given = torch.cat((weight.flatten(1), bias[:, None]), dim=1)
        strength = given.norm(dim=1) * following.flatten(2).norm(dim=(0, 2))
        units = strength.topk(new).indices.sort().values
        following = following[:, units]
        note = f"{old} -> {new} hidden units: the strongest are kept"
    return _Change({_STEM: weight[units], _STEM_BIAS: bias[units], _STEM_NEXT: following}, note)


def _predicted(tensors: Mapping[str, Tensor], saved: DPOTConfig, wanted: DPOTConfig) -> _Change:
    """Adapt the head's last layer, whose rows are the channels of each frame in turn."""
    old, new = ((config["out_timesteps"], config["out_channels"]) for config in (saved, wanted))
    if old == new:
        return _Change({}, "")
    frames = torch.arange(new[0]).clamp(max=old[0] - 1)
    changed = {
        name: _resize(tensors[name].float().unflatten(0, old)[frames], 1, new[1]).flatten(0, 1)
        for name in ("out_layer.4.weight", "out_layer.4.bias")
        if name in tensors
    }
    return _Change(changed, "; ".join(_predicted_notes(old, new)))


def _predicted_notes(old: tuple[int, int], new: tuple[int, int]) -> list[str]:
    notes = []
    if old[0] != new[0]:
        how = "the first of them" if new[0] < old[0] else "the further ones repeat the last"
        notes.append(f"{old[0]} -> {new[0]} predicted frames: {how}")
    if old[1] != new[1]:
        how = "the first of them" if new[1] < old[1] else "the new ones are zero at first"
        notes.append(f"{old[1]} -> {new[1]} predicted channels: {how}")
    return notes


def _resize(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Cut a dimension down to a size, or fill it up with zeros."""
    kept = tensor.narrow(dim, 0, min(size, tensor.shape[dim]))
    missing = list(kept.shape)
    missing[dim] = size - kept.shape[dim]
    return torch.cat((kept, tensor.new_zeros(missing)), dim=dim)
