"""Finds quantised weights by the tensors that are stored beside them, by their type, and by the config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch


class QuantisedFormat(NamedTuple):
    """A format: names of the packed numbers, and of the tensors that must be, or may be, beside them.

    The names are those within a module; ``{}`` stands for the weight's own name, such as ``gate_up_proj``.
    """

    name: str
    packed: str
    needed: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


_OF_COMPRESSED = ("{}_scale", "{}_zero_point", "{}_global_scale", "{}_shape", "{}_g_idx")
_FORMATS = (
    QuantisedFormat("MXFP4", "{}_blocks", ("{}_scales",)),
    QuantisedFormat("MXFP4", "{}.blocks", ("{}.scales",)),
    QuantisedFormat("bitsandbytes, 4 bits", "{}", ("{}.absmax", "{}.quant_map")),
    QuantisedFormat("bitsandbytes, 8 bits", "{}", ("SCB",), ("{}_format",)),
    QuantisedFormat("quanto", "{}._data", ("{}._scale",), ("{}._shift",)),
    QuantisedFormat("quanto, fewer than 8 bits", "{}._data._data", ("{}._scale",), ("{}._shift",)),
    QuantisedFormat("HQQ", "W_q", (), ("scale", "zero", "meta")),
    QuantisedFormat("EXL3", "trellis", (), ("suh", "svh", "su", "sv")),
    QuantisedFormat("EXL2", "q_weight", ("q_scale",), ("q_scale_max", "q_groups", "q_invperm", "q_perm")),
    QuantisedFormat("AQLM", "codes", ("codebooks",), ("scales",)),
    QuantisedFormat("QuIP#", "Qidxs", (), ("SU", "SV", "Wscale", "codebook_id", "grid", "fuse_scales")),
    QuantisedFormat("VPTQ", "indices", ("centroids",), ("res_centroids", "weight_scale", "weight_bias", "perm")),
    QuantisedFormat("Marlin", "B", ("s",), ("workspace",)),
    QuantisedFormat("Marlin, 2:4 sparse", "B_24", ("s",), ("B_meta", "workspace")),
    QuantisedFormat("GPTQ or AWQ", "qweight", (), ("qzeros", "zeros", "scales", "g_idx", "lookup_table")),
    QuantisedFormat("SpQR", "dense_weights", (), ("row_offsets", "col_vals")),
    QuantisedFormat("compressed-tensors, 2:4 sparse", "{}_compressed", ("{}_bitmask",), ("{}_shape", "{}_row_offsets")),
    QuantisedFormat("compressed-tensors", "{}_packed", (), _OF_COMPRESSED),
    QuantisedFormat("torchao", "_{}_qdata", (), ("_{}_scale", "_{}_zero_point", "_{}_scale_and_zero")),
    QuantisedFormat("torchao", "{}:__qdata", (), ("{}:__scale", "{}:__zero_point")),
    QuantisedFormat("NVFP4", "{}", ("{}_scale_2",), ("{}_scale", "input_scale")),
    QuantisedFormat("NVFP4", "{}", ("{}_weight_scale_2",), ("{}_weight_scale", "{}_input_scale")),
    QuantisedFormat("fp8 with scales", "{}", ("{}_scale_inv",), ("input_scale",)),
    QuantisedFormat("integers or fp8 with scales", "{}", ("{}_scale",), ("input_scale", "{}_zero_point", "{}_offset")),
    QuantisedFormat("integers or fp8 with scales", "{}", ("{}_weight_scale",), ("{}_input_scale",)),
    QuantisedFormat("MLX", "weight", ("scales", "biases")),
    QuantisedFormat("integers with scales", "{}", ("{}_scales",), ("{}_zeros", "{}_zero_points")),
    QuantisedFormat("integers with scales", "weight", ("scales",), ("zeros", "zero_points")),
    QuantisedFormat("integers with scales", "weight", ("scale",), ("zero", "zero_point")),
)
FORMAT_NAMES = frozenset(known.name for known in _FORMATS)
_COMPANION = re.compile(
    r"(.*[._:])?(scales?|scale_weight|scale_inv|zeros?|zero_points?|qzeros|absmax|nested_absmax|quant_map|nested_quant_map|codebooks?"
    r"|centroids|SCB|g_idx|suh|svh|s|q_(invperm|perm|groups|group_map)|B_meta|workspace|format)"
)


_INDICES = ("Qidxs", "codes", "dense_weights", "indices")  # these may be stored with 64 bits
_SOLE = {"weight", *(known.packed for known in _FORMATS if "{}" not in known.packed)}
_ADAPTER = re.compile(r"lora_|hada_|lokr_|bias$")


class Quantised(NamedTuple):
    """The packed tensors of a checkpoint, with their formats, and the tensors that only serve to unpack them."""

    formats: Mapping[str, str]
    companions: frozenset[str]


def find_quantised(types: Mapping[str, torch.dtype], config: Mapping[str, Any]) -> Quantised:
    """Find quantised weights among the names and types of a checkpoint's tensors.

    Args:
        types: type of each tensor by its name.
        config: content of a ``config.json`` beside the file. If it has ``quantization_config`` (or ``quant_method``),
            every matrix of integers is taken for a packed one, and tensors named like scales for its companions.
    """
    formats: dict[str, str] = {}
    companions: set[str] = set()
    modules: dict[str, set[str]] = {}
    for name in types:
        parts = name.split(".")
        for depth in (1, 2, 3):  # `weight._data` and `weight.quant_state.x` are names of two and three parts
            modules.setdefault(".".join(parts[:-depth]), set()).add(".".join(parts[-depth:]))
    for name, dtype in types.items():
        leaf = name.rpartition(".")[2]
        packed = is_packed(dtype) or leaf in _INDICES or leaf.endswith("_compressed")
        if packed and not _COMPANION.fullmatch(leaf):
            found = next(_formats_of(name, modules), None)
            if found is not None:
                formats[name] = found[0]
                companions |= found[1]
    method = _method(config)
    companions |= _unnamed(types, method, formats) if method else _of_no_known_format(types, formats)
    companions |= _beside_sole(types, formats)
    return Quantised(formats, frozenset(companions - formats.keys()))


def _beside_sole(types: Mapping[str, torch.dtype], formats: Mapping[str, str]) -> set[str]:
    """Return what a module holds besides its one packed weight (tables, factors), except adapters."""
    modules = {name.rpartition(".")[0] for name in formats if name.rpartition(".")[2] in _SOLE}
    beside = (name for name in types if name.rpartition(".")[0] in modules and name not in formats)
    return {name for name in beside if not _ADAPTER.match(name.rpartition(".")[2])}


def is_packed(dtype: torch.dtype) -> bool:
    """Whether a type is one of packed numbers: integers, or floating point numbers of one byte."""
    if dtype in (torch.bool, torch.complex32, torch.int64):  # 64 bits are indices
        return False
    return dtype.itemsize == 1 or not (dtype.is_floating_point or dtype.is_complex)


def _formats_of(name: str, modules: Mapping[str, set[str]]) -> Iterator[tuple[str, set[str]]]:
    for depth in (1, 2, 3):
        parts = name.split(".")
        module, leaf = ".".join(parts[:-depth]), ".".join(parts[-depth:])
        if len(parts) < depth:
            continue
        leaves = modules.get(module, set())
        for known in _FORMATS:
            own = _own_name(known.packed, leaf)
            needed = {text.format(own) for text in known.needed}
            if own is not None and needed <= leaves and (needed or known.packed != "{}"):
                more = {text.format(own) for text in known.others} & leaves
                nested = {other for other in leaves if other.startswith(f"{own}.") and own and other != leaf}
                start = f"{module}." if module else ""
                yield known.name, {f"{start}{other}" for other in needed | more | nested}


def _own_name(pattern: str, leaf: str) -> str | None:
    """Return what `{}` stands for in a name; empty if the pattern has no `{}`, None if the name does not match."""
    start, braces, end = pattern.partition("{}")
    if not braces:
        return "" if leaf == pattern else None
    fits = leaf.startswith(start) and leaf.endswith(end) and len(leaf) > len(start + end)
    return leaf.removeprefix(start).removesuffix(end) if fits else None


def _method(config: Mapping[str, Any]) -> str:
    settings = config.get("quantization_config", config.get("compression_config", config))
    method = settings.get("quant_method", "") if isinstance(settings, Mapping) else ""
    return str(method) or ("a quantised format" if "quantization_config" in config else "")


def _of_no_known_format(types: Mapping[str, torch.dtype], formats: dict[str, str]) -> set[str]:
    """Return companions in modules whose packed weights have no known format: tensors named like scales."""
    packed = {name for name, dtype in types.items() if is_packed(dtype) and "weight" in name.rpartition(".")[2]}
    modules = {name.rpartition(".")[0] for name in packed if name not in formats}
    named = {name for name in types if _COMPANION.fullmatch(name.rpartition(".")[2])}
    return {name for name in named if name.rpartition(".")[0] in modules and not is_packed(types[name])}


def _unnamed(types: Mapping[str, torch.dtype], method: str, formats: dict[str, str]) -> set[str]:
    """Add matrices of integers in modules with tensors named like scales to the formats; return those tensors."""
    companions = {name for name in types if _COMPANION.fullmatch(name.rpartition(".")[2])}
    modules = {name.rpartition(".")[0] for name in companions}
    for name, dtype in types.items():
        if is_packed(dtype) and name not in formats and name not in companions and name.rpartition(".")[0] in modules:
            formats[name] = method
    return companions
