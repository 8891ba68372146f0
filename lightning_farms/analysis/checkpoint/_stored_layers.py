"""Rules that tell from the name and shape of a stored tensor which weight matrices it holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_farms.analysis._layout_text import laid_out, usual_layout
from lightning_farms.analysis.checkpoint._effective import StoredTensor
from lightning_farms.analysis.weights._foreign import SEPARABLE
from lightning_farms.analysis.weights._layouts import (
    KnownLayout,
    holds_matrices,
    is_norms_factor,
    is_position_grid,
    modes_layout,
    odd_kernel,
    parameter_layout,
    weight_layout,
)
from lightning_farms.analysis.weights._matrices import (
    GRU_GATES,
    LSTM_GATES,
    PROJECTIONS,
    complex_matrices,
    convolution_matrices,
    stack,
    transposed_convolution_matrices,
)
from lightning_farms.analysis.weights._products import factor_reason
from lightning_farms.analysis.weights.layer_weight import NO_MATRICES, LayerWeight

_EMBEDDING = re.compile(
    r"(?!(.*_)?patch|to_)"  # patches are projected
    r"((.*_)?(wte|wpe)|shared|token_embd|position_embd|(.*_)?bias|embed_in"
    r"|(.*_)?embed_(\w+_)?(tokens|positions|timesteps?)(_\w+)?"
    r"|(.*_)?(embeds?|embeddings?|emb|codebook|positions)(_(layers?|tables?|\d+))?)"
)
_NUMBER = re.compile(r"(?<=[^.])(\.\d+)+$")
_OF_PEFT = re.compile(r"(\.(base_layer|original_module|modules_to_save\.[^.]+|token_adapter))+$")
_RECURRENT = re.compile(r"weight_(?P<side>ih|hh|hr)(?P<layer>(_l\d+(_reverse)?)?)")
_BIAS = re.compile(r"(.*_)?bias")
_NO_WEIGHT = re.compile(
    r"running_(mean|var|std)|num_batches_tracked|(.*_)?mask(ed_bias)?|(.*_)?bias|relative_coords_table|weight_(scale(_inv)?|integer)"
    r"|scales|pe|pos_table|pos_idx_to_embed"
    # rotary and sinusoidal tables
    r"|(.*_)?(inv_freq|freqs?(_cis)?|freqs_(cos|sin)|cos|sin|(cos|sin)_(cached?|table)|rotary_table|sinusoid.*|angles)"
    # signal processing: filter banks, windows, bases of Fourier transforms, resampling kernels
    r"|fb|(mel_)?(filters|filter_?banks?|basis|fbanks?)|mel_fb|window|(stft_)?kernel_(sin|cos)|wsin|wcos|dct_mat"
    r"|(forward|inverse|fourier)_basis|(resample|blur|fir)_(kernel|filter)"
    # queues and running averages of contrastive learning and vector quantisation
    r"|queue(_.*)?|memory_bank|embed_(avg|sum)|ema_(w|weight|embed|dw|cluster_size)|cluster_size|(.*_)?(moving|running)_avg"
    r"|embedding_avg|codebook_avg|(.*_)?ema"
    # other running statistics, and what is kept between steps
    r"|running_.*|(.*_)?cov_sum|(.*_)?covar_cache|confmat|confusion_matrix|(.*_)?([kv]|kv|key|value)_cache|cache_[kv]"
    r"|(.*_)?(buffer|cached?)|alibi|tril|triu|adj(acency)?(_matrix)?|laplacian|A_hat|dft_(real|imag)|idft_(real|imag)|filt"
    r"|fp8_meta|obs|observations|next_obs(ervations)?|actions|rewards"
    # optimizers
    r"|(max_)?exp_avgs?(_sq)?|momentum_buffer|square_avg|grad_avg|acc_delta"
    # grids, anchors, statistics of the data, counters
    r"|(.*_)?(grid|coords|anchors?|anchor_points|mesh)|(pixel|data|image|feats?)_(mean|std)|mean|std|stats|priors?"
    r"|(.*_)?tokens_per_expert|(hessian|fisher|cov|covariance)(_.*)?|relative_position_(index|buckets)|attention_bias_idxs|_float_tensor|dummy.*"
)
_OF_CODEBOOKS = {"embed_avg", "embed_sum", "cluster_size", "ema_cluster_size", "_ema_cluster_size"}
_CALLED_WEIGHT = re.compile(
    r"(?i).*(weight|kernel|proj|embed|token|quer|expert|gate|pos|bias|lora|fc|lin|conv|mlp|attn|param|factor|\d).*"
    r"|([wuvpqk]|up|down|w_?(in|out)|wq|wk|wv|wo)(_.*)?"
)
NOT_KNOWN = "the file does not tell whether it is a parameter or a buffer"
_FLATTENED = re.compile(r"_?flat_param(_\d+)?")
_OF_FSDP = "it holds many weights in one vector, as FSDP does; save the state dict with StateDictType.FULL_STATE_DICT"
_REMEDY = "unpack it by `dequantize` (--dequantize) if its format allows, or analyse the original checkpoint"
NOT_UNPACKED = (
    "this format is not unpacked here; analyse the original checkpoint, or what its own program dequantises it to"
)
_PRODUCT = re.compile(r"lora\d*(_embedding)?(\.[^.]+)*")
_LOOKS_LIKE_WEIGHT = re.compile(r"(.*_)?q?weight(_packed|_ih.*|_hh.*)?")


class StoredLeaf(NamedTuple):
    """A tensor that a module holds itself."""

    module: str
    name: str
    stored: StoredTensor
    siblings: Mapping[str, StoredTensor]

    @property
    def layer(self) -> str:
        """Name of the layer: the module's name for its ``weight``, otherwise with the tensor's name."""
        parts = (self.module,) if self.name == "weight" else (self.module, self.name)
        return ".".join(part for part in parts if part) or "weight"

    def sibling(self, name: str) -> Tensor | None:
        """Return another tensor of the module; None if it has none of that name."""
        return self.siblings[name].read() if name in self.siblings else None


def leaf_layers(leaf: StoredLeaf) -> list[LayerWeight]:
    """Return the weight matrices of a stored tensor, by the first rule that applies to it, or to what it stands for."""
    module, _, name = leaf.stored.stands_for.rpartition(".")
    return _layers(leaf._replace(module=module, name=name) if name else leaf)


def _layers(leaf: StoredLeaf) -> list[LayerWeight]:
    tensor = leaf.stored.read()
    if tensor.ndim < 2 and not _FLATTENED.fullmatch(leaf.name):
        return []
    if 0 in tensor.shape:
        return [skipped_layer(leaf.layer, "parameter", tensor.shape, "the weight is empty")._replace(unreadable=True)]
    if leaf.stored.quantised or is_fp8(tensor.dtype):
        return [_quantised(leaf, tensor)]
    if not _is_number(tensor.dtype):
        return [_quantised(leaf, tensor)] if _LOOKS_LIKE_WEIGHT.fullmatch(leaf.name) else []
    if _FLATTENED.fullmatch(leaf.name):
        return [skipped_layer(leaf.layer, "parameter", tensor.shape, _OF_FSDP)]
    reason = factor_reason(f"{leaf.module}.{leaf.name}")
    if reason:
        return [skipped_layer(leaf.layer, "parameter", tensor.shape, reason)]
    if leaf.stored.reason:
        return [skipped_layer(leaf.layer, "parameter", tensor.shape, leaf.stored.reason)]
    if leaf.stored.layout and not _PRODUCT.fullmatch(leaf.name):
        return [_laid_out(leaf, tensor, KnownLayout(leaf.stored.layout))]
    found = (rule(leaf, tensor) for rule in _RULES)
    return next((layers for layers in found if layers is not None), [])


def skipped_layer(name: str, kind: str, shape: Sequence[int], reason: str) -> LayerWeight:
    """Return a layer without values that gives the reason why it is not analysed."""
    return LayerWeight(name, kind, tuple(shape), NO_MATRICES, (), reason)


def _is_number(dtype: torch.dtype) -> bool:
    return (dtype.is_floating_point or dtype.is_complex) and dtype.itemsize >= 2


def is_fp8(dtype: torch.dtype) -> bool:
    """Whether a type is a floating point number of one byte, which is useful only with its scales."""
    return dtype.is_floating_point and dtype.itemsize == 1


def _quantised(leaf: StoredLeaf, tensor: Tensor) -> LayerWeight:
    known = f"{tensor.dtype}; {leaf.stored.quantised}" if leaf.stored.quantised else f"{tensor.dtype}"
    reason = f"the weight is quantised ({known}); {leaf.stored.reason or _REMEDY}"
    return skipped_layer(leaf.layer, "linear", tensor.shape, reason)


def _no_weight(leaf: StoredLeaf, tensor: Tensor) -> list[LayerWeight] | None:
    """Return no layer for biases, buffers, and the factors of a normalisation over several dimensions."""
    bias = leaf.sibling("bias") if leaf.name == "weight" else None
    of_norm = is_norms_factor(leaf.module.rpartition(".")[2], leaf.name)
    normalisation = of_norm or (bias is not None and bias.shape == tensor.shape)
    averaged = leaf.name in ("embed", "codebook", "weight") and bool(_OF_CODEBOOKS & leaf.siblings.keys())
    pattern = _BIAS if leaf.stored.parameter else _NO_WEIGHT
    return [] if normalisation or averaged or pattern.fullmatch(leaf.name) else None


def _attention(leaf: StoredLeaf, tensor: Tensor) -> list[LayerWeight] | None:
    """Return the projections of ``nn.MultiheadAttention``, which are stored separately or stacked by rows."""
    if tensor.ndim == 2 and leaf.name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        return _rows_apart(leaf, tensor, "attention", ("",))
    if leaf.name != "in_proj_weight" or tensor.ndim != 2 or tensor.shape[0] % 3:
        return None
    return _rows_apart(leaf, tensor, "attention", PROJECTIONS)


def _recurrent(leaf: StoredLeaf, tensor: Tensor) -> list[LayerWeight] | None:
    """Return the gates of recurrent layers, which are stacked by rows: as many as weight_hh has squares."""
    match = _RECURRENT.fullmatch(leaf.name)
    hidden = leaf.sibling(f"weight_hh{match['layer']}") if match else None
    if match is None or hidden is None or tensor.ndim != 2:
        return None
    if match["side"] == "hr":
        return _rows_apart(leaf, tensor, "recurrent", ("",))
    projected = f"weight_hr{match['layer']}" in leaf.siblings  # only LSTM has projections
    gates = _GATES.get(4 if projected else hidden.shape[0] // hidden.shape[1], ())
    return _rows_apart(leaf, tensor, "recurrent", gates) if gates and tensor.shape[0] % len(gates) == 0 else None


_GATES = {1: ("",), 3: GRU_GATES, 4: LSTM_GATES}


def _rows_apart(leaf: StoredLeaf, tensor: Tensor, kind: str, parts: tuple[str, ...]) -> list[LayerWeight]:
    matrices = zip(parts, tensor.chunk(len(parts)), strict=True)
    return [_layer(f"{leaf.layer}.{part}".rstrip("."), kind, matrix.shape, matrix) for part, matrix in matrices]


def _layer(name: str, kind: str, shape: Sequence[int], matrices: Tensor, layout: str = "") -> LayerWeight:
    layout = layout or usual_layout(kind, len(shape))
    return LayerWeight(name, kind, tuple(shape), stack(matrices), (), layout=layout)


def _laid_out(leaf: StoredLeaf, tensor: Tensor, known: KnownLayout) -> LayerWeight:
    """Return a layer by a known layout, or by a guess, which the row then mentions."""
    if known.reason:
        return skipped_layer(leaf.layer, "parameter", tensor.shape, known.reason)
    try:
        kind, matrices = laid_out(tensor, known.layout)
    except ValueError as error:  # the layout does not fit
        return skipped_layer(leaf.layer, "parameter", tensor.shape, str(error))
    return _layer(leaf.layer, kind, tensor.shape, matrices, known.layout)._replace(remark=known.remark)


def _complex_pair(leaf: StoredLeaf, tensor: Tensor) -> list[LayerWeight] | None:
    """Return AFNO's complex layers w1, b1 and w2, b2, stored as (2, blocks, in, out) and (2, blocks, out)."""
    bias = leaf.sibling(leaf.name.replace("w", "b"))
    if leaf.name not in ("w1", "w2", "b1", "b2") or bias is None or len(tensor) != 2:
        return None
    if leaf.name.startswith("b"):
        weight = leaf.sibling(leaf.name.replace("b", "w"))
        return [] if weight is not None and weight.ndim == tensor.ndim + 1 else None
    if tensor.ndim != 4 or bias.shape != (*tensor.shape[:2], tensor.shape[3]):
        return None
    return [_layer(leaf.layer, "parameter", tensor.shape, complex_matrices(tensor), "cbio")]


def _spectral_convolution(leaf: StoredLeaf, tensor: Tensor) -> list[LayerWeight] | None:
    """Return FNO's complex weights as matrices (inputs, outputs), like those of its classes in a model.

    A separable layer, which has no matrix, is known by a bias of as many dimensions as its weight. So is a layer on the
    sphere; if the weight's first two dimensions are equal, the two cannot be told apart, and the row says so.
    """
    layout = modes_layout(leaf.name, tensor.shape) if tensor.is_complex() else ""
    if not layout:
        return None
    bias = leaf.sibling("bias")
    separable = bias is not None and tuple(bias.shape) == (tensor.shape[0], *[1] * (tensor.ndim - 1))
    if separable and tensor.shape[0] != tensor.shape[1]:
        return [skipped_layer(leaf.layer, "parameter", tensor.shape, SEPARABLE)]
    layer = _layer(leaf.layer, "parameter", tensor.shape, tensor.movedim((0, 1), (-2, -1)), layout)
    return [layer._replace(remark="the file does not tell whether the layer is separable") if separable else layer]


def _low_rank_product(leaf: StoredLeaf, tensor: Tensor) -> list[LayerWeight] | None:
    if not _PRODUCT.fullmatch(leaf.name):
        return None
    layer = _layer(leaf.layer, "low-rank product", tensor.shape, tensor)
    return [layer if leaf.stored.rank is None else layer._replace(rank=leaf.stored.rank())]


def _embedding(leaf: StoredLeaf, tensor: Tensor) -> list[LayerWeight] | None:
    if leaf.name != "weight" or tensor.ndim != 2 or "bias" in leaf.siblings or not is_embedding(leaf.module):
        return None
    return [_layer(leaf.layer, "embedding", tensor.shape, tensor)]


def is_embedding(module: str) -> bool:
    """Whether a module's name is one that tables of embeddings have."""
    plain = _NUMBER.sub("", _OF_PEFT.sub("", module))
    return _EMBEDDING.fullmatch(plain.rpartition(".")[2]) is not None


def _weight(leaf: StoredLeaf, tensor: Tensor) -> list[LayerWeight] | None:
    """Return linear and convolution weights; the length of the bias tells which dimension is the output."""
    if leaf.name != "weight" or tensor.ndim > 5:
        return None
    bias = leaf.sibling("bias")
    known = weight_layout(leaf.module, tensor, bias)
    if known is not None:
        return [_laid_out(leaf, tensor, known)]
    outputs = tensor.shape[0] if bias is None or bias.ndim != 1 else len(bias)
    if tensor.ndim == 2:
        transposed = outputs == tensor.shape[1] != tensor.shape[0]  # transformers' Conv1D
        matrix, layout = (tensor.mT, "io") if transposed else (tensor, "oi")
        return [_layer(leaf.layer, "linear", tensor.shape, matrix, layout)]
    groups, rest = divmod(outputs, tensor.shape[1])
    if outputs == tensor.shape[0] or rest or not groups or tensor.shape[0] % groups:
        layer = _layer(leaf.layer, "convolution", tensor.shape, convolution_matrices(tensor, 1))
        return [layer if bias is not None else layer._replace(remark=odd_kernel(tensor.shape))]
    matrices = transposed_convolution_matrices(tensor, groups)
    layout = usual_layout("transposed convolution", tensor.ndim) + (f"/{groups}" if groups > 1 else "")
    return [_layer(leaf.layer, "transposed convolution", tensor.shape, matrices, layout)]


def _position_embedding(leaf: StoredLeaf, tensor: Tensor) -> list[LayerWeight] | None:
    """Return a position embedding with a vector for each place of a grid."""
    if not is_position_grid(leaf.name, tensor.shape):
        return None
    return [_layer(leaf.layer, "parameter", tensor.shape, tensor.flatten(2))._replace(layout="")]


def _parameter(leaf: StoredLeaf, tensor: Tensor) -> list[LayerWeight] | None:
    """Return any other tensor by the table of layouts, or as a batch of matrices over its last two dimensions."""
    if not holds_matrices(tensor.shape):
        return None
    known = parameter_layout(leaf.module, leaf.name, tensor) if tensor.ndim > 2 else None
    layer = _layer(leaf.layer, "parameter", tensor.shape, tensor) if known is None else _laid_out(leaf, tensor, known)
    named = leaf.stored.parameter or _CALLED_WEIGHT.fullmatch(leaf.name)
    return [layer if named or layer.reason or layer.remark else layer._replace(remark=NOT_KNOWN)]


_RULES: tuple[Callable[[StoredLeaf, Tensor], list[LayerWeight] | None], ...] = (
    _low_rank_product,
    _no_weight,
    _attention,
    _recurrent,
    _complex_pair,
    _spectral_convolution,
    _embedding,
    _weight,
    _position_embedding,
    _parameter,
)
