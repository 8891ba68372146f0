"""What the dimensions of a weight mean if its class is not PyTorch's: one table of rules by class, name and shape."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from lightning_farms.analysis._layout_text import BATCH

_SMALL_KERNEL = 7
_MOST_POSITIONS = 7**3
_LONGEST_KERNEL = 31
_FEWEST_CHANNELS = 8
_MOST_COLOURS = 4
_SAY_IT = "if that is wrong, give the right one with `layout` (--layout), as in PATTERN="

_NORM = re.compile(r"(?i)(?!.*(linear|conv|weight|spectral|embed)).*norm(_?\d+)?d?(gated)?")


class KnownLayout(NamedTuple):
    """A layout, with a remark if it is a guess, or the reason why there is none."""

    layout: str
    remark: str = ""
    reason: str = ""


class _Stored(NamedTuple):
    """What is known about a weight: the names of its module's classes, its module's name, its own name, and shapes."""

    classes: Sequence[str]
    module: str
    name: str
    shape: tuple[int, ...]
    bias: tuple[int, ...] | None = None
    outputs: int = 0
    complex: bool = False


class _Rule(NamedTuple):
    """A rule: patterns for a class, a module's name and the weight's name, one of which must match, and the layout."""

    layout: Callable[[_Stored], KnownLayout | None]
    classes: str = ""
    module: str = ""
    name: str = ""

    def knows(self, weight: _Stored) -> bool:
        """Whether the rule applies to a weight."""
        if not (self.classes or self.module or self.name):
            return True
        if self.classes and any(re.fullmatch(self.classes, each) for each in weight.classes):
            return True
        by_module = self.module and re.fullmatch(self.module, weight.module)
        return bool(by_module or (self.name and re.fullmatch(self.name, weight.name)))


def _sparse(weight: _Stored) -> KnownLayout | None:
    """Sparse convolutions: (O, *kernel, I), or (*kernel, I, O) if the module's number of outputs says so."""
    kernel = "k" * (len(weight.shape) - 2)
    if not kernel:
        return None
    first = weight.outputs == weight.shape[-1] != weight.shape[0]
    return KnownLayout(f"{kernel}io" if first else f"o{kernel}i")


def _of_class(weight: _Stored) -> KnownLayout | None:
    """Classes like ``...Conv2d``: (O, I, *kernel), if the weight has that many dimensions."""
    named = (re.fullmatch(r".*Conv([123])d.*", each) for each in weight.classes)
    dimensions = next((int(match[1]) for match in named if match), 0)
    return KnownLayout("oi" + "k" * dimensions) if len(weight.shape) == dimensions + 2 else None


def _experts(weight: _Stored) -> KnownLayout | None:
    """Experts: a batch of matrices."""
    one_each = weight.bias is None or weight.bias[:-1] == weight.shape[:1]
    return KnownLayout(BATCH) if len(weight.shape) == 3 and one_each and min(weight.shape[1:]) > 1 else None


def _bias_each(weight: _Stored) -> KnownLayout | None:
    """One bias per matrix: a batch of matrices."""
    batch = len(weight.shape) == 3 and weight.bias is not None and len(weight.bias) == 2
    return KnownLayout(BATCH) if batch and weight.bias and weight.bias[0] == weight.shape[0] else None


def _between(weight: _Stored) -> KnownLayout | None:
    """Equal dimensions before a different last one: (O, k, ..., k, I), if (O, I, k, ..., k) is less likely."""
    middle = set(weight.shape[1:-1])
    known = weight.bias is None or weight.bias == weight.shape[:1]
    if len(weight.shape) < 4 or len(middle) != 1 or not known or not 2 <= max(middle) <= _LONGEST_KERNEL:
        return None
    size, last = max(middle), weight.shape[-1]
    features = size <= _SMALL_KERNEL and last >= _FEWEST_CHANNELS
    colours = last <= _MOST_COLOURS <= size != last
    if not (features or colours):
        return None
    return _guess(_kernel(weight, "o{}i"), _kernel(weight, "oi{}"))


def _long_last(weight: _Stored) -> KnownLayout | None:
    """Three dimensions: a batch, unless short enough for a kernel; with one bias per output, kernels may be long."""
    first, middle, last = weight.shape if len(weight.shape) == 3 else (0, 0, 0)
    one_bias = weight.bias is not None and weight.bias == (first,)
    if not (weight.bias is None or one_bias) or min(middle, last) < 2 or last <= _SMALL_KERNEL:
        return None
    convolves = one_bias or last <= _LONGEST_KERNEL or re.fullmatch(r"(.*[._])?conv(1d)?_?\d*", weight.module)
    return _guess("oik", BATCH) if convolves else _guess(BATCH, "oik")


def _bias_of_all(weight: _Stored) -> KnownLayout | None:
    """A bias for the last dimension: (..., inputs, outputs), or a transposed convolution with a kernel as long as O."""
    if not has_shared_bias(weight.shape, weight.bias) or min(weight.shape[1:]) < 2:
        return None
    if weight.shape[1] != weight.shape[-1] or weight.shape[-1] > _LONGEST_KERNEL:
        return _guess(BATCH, _kernel(weight, "oi{}"))
    return _guess(_kernel(weight, "io{}"), BATCH) if weight.shape[-1] > _SMALL_KERNEL else None


def has_shared_bias(shape: Sequence[int], bias: Sequence[int] | None) -> bool:
    """Whether a weight of three or more dimensions has a bias that fits only its last dimension."""
    return len(shape) > 2 and bias is not None and tuple(bias) == tuple(shape[-1:]) != tuple(shape[:1])


def odd_kernel(shape: Sequence[int]) -> str:
    """Return the remark on a large kernel that is not square, as it may be two dimensions of matrices; else empty."""
    kernel = shape[2:]
    odd = len(kernel) == 2 and min(kernel) > _SMALL_KERNEL and kernel[0] != kernel[1]
    return _guess("oikk", BATCH).remark if odd else ""


def _guess(layout: str, other: str) -> KnownLayout:
    return KnownLayout(layout, f"its layout is guessed by its shape as {layout}; {_SAY_IT}{other}")


def _pairs(weight: _Stored) -> KnownLayout | None:
    """A last dimension of 2: real and imaginary parts of FNO's (I, O, *modes, 2), or else of no known meaning."""
    dimensions = len(weight.shape)
    if weight.complex or dimensions < 3 or weight.shape[-1] != 2 or max(weight.shape[:-1]) <= 2:
        return None
    name = weight.module.rpartition(".")[2] if weight.name.isdecimal() else weight.name  # in a list of parameters
    if re.fullmatch(r"(fourier_)?weights?_?\d*", name) and dimensions >= 4 and name != "weight":
        layout = "io" + "b" * (dimensions - 3) + "c"
        return KnownLayout(layout, f"its layout is guessed by its name and shape as {layout}; {_SAY_IT}batch")
    example = "b" * (dimensions - 3) + "oic" if dimensions > 3 else "oic"
    reason = (
        "its last dimension is 2, perhaps of real and imaginary parts, and no matrix is known in it; give its layout "
        f"with `layout` (--layout), as in PATTERN={example}"
    )
    return KnownLayout("", reason=reason)


def _modes(weight: _Stored) -> KnownLayout | None:
    """Complex weights: FNO's layout, as for weights in a file."""
    layout = modes_layout(weight.name, weight.shape) if weight.complex else ""
    remark = f"its layout is guessed by its name and type as {layout}; {_SAY_IT}batch"
    return KnownLayout(layout, remark) if layout else None


def modes_layout(name: str, shape: Sequence[int]) -> str:
    """Return the layout of complex weights, FNO's (I, O, *modes) with one matrix per mode; empty for other weights."""
    return "io" + "b" * (len(shape) - 2) if len(shape) > 2 and "weight" in name else ""


def _long_pairs(weight: _Stored) -> KnownLayout | None:
    """Pairs in a weight that is called `weight`: no kernel is (16, 2)."""
    return _pairs(weight) if len(weight.shape) > 3 and weight.shape[-2] > _SMALL_KERNEL else None


def _called_kernel(weight: _Stored) -> KnownLayout | None:
    """Parameters called `kernel` (Flax, MinkowskiEngine, torchsparse): positions come first, (*kernel, I, O)."""
    positions, channels = weight.shape[:-2], weight.shape[-2:]
    if weight.complex or not positions or math.prod(positions) > _MOST_POSITIONS or min(channels) < 2:
        return None
    layout = "k" * len(positions) + "io"
    return KnownLayout(layout, f"its layout is guessed by its name as {layout}; {_SAY_IT}batch")


def _kernel_last(weight: _Stored) -> KnownLayout | None:
    """Parameters of any name: small dimensions after two of channels are a kernel."""
    kernel = weight.shape[2:]
    if weight.complex or not kernel or max(kernel) > _SMALL_KERNEL or min(kernel) < 2 or len(weight.shape) > 5:
        return None
    if min(weight.shape[:2]) < _FEWEST_CHANNELS or len(set(kernel)) > 1:
        return None
    layout = _kernel(weight, "oi{}")
    usual = weight.name == "weight"
    remark = "" if usual else f"its layout is guessed by its shape as {layout}; {_SAY_IT}batch"
    return KnownLayout(layout, remark)


def _kernels(weight: _Stored) -> KnownLayout | None:
    """(b, O, I, k, k): as many kernels in one parameter (StyleGAN 2's has one, dynamic convolutions several)."""
    if weight.complex or len(weight.shape) != 5:
        return None
    number, *channels, height, width = weight.shape
    if height != width or height > _SMALL_KERNEL or min(channels) < (2 if number == 1 else _FEWEST_CHANNELS):
        return None
    return _guess("boikk", "oikkk") if channels[1] > _SMALL_KERNEL else None


def _long_first(weight: _Stored) -> KnownLayout | None:
    """(inputs, heads, size of each) has its longest dimension first, as XLNet's; a batch seldom."""
    dimensions = len(weight.shape) == 3 and min(weight.shape) > 1 and weight.shape[0] > max(weight.shape[1:])
    return _guess(BATCH, "ibo") if dimensions and not weight.complex else None


def _one_place(weight: _Stored) -> KnownLayout | None:
    """A kernel's last dimensions are 1."""
    return KnownLayout(layout) if (layout := _of_ones(weight.shape)) else None


def _of_ones(shape: Sequence[int]) -> str:
    """The layout of a kernel whose last dimensions are 1: (O, I, 1), (O, I, 1, 1), (b, O, I, 1, 1); empty of others."""
    places = next((place for place, size in enumerate(reversed(shape)) if size != 1), len(shape))
    before = shape[: len(shape) - places]
    known = places and len(before) in (2, 3) and min(before[-2:]) > 1
    return "b" * (len(before) - 2) + "oi" + "k" * places if known else ""


def holds_matrices(shape: Sequence[int]) -> bool:
    """Whether a parameter of this shape is more than numbers or vectors."""
    return len(shape) > 1 and (min(shape[-2:]) > 1 or bool(_of_ones(shape)))


def _kernel(weight: _Stored, text: str) -> str:
    return text.format("k" * (len(weight.shape) - 2))


_EXPERTS = r"(.*[._])?(experts?|exps|parallel_experts|moe|switch_mlp)([._].*)?"

_CLASSES = (
    _Rule(_sparse, classes=r"(SubM|Sparse)\w*Conv\w*"),
    _Rule(_of_class, classes=r"(?!.*Transpose)\w*Conv[123]d\w*"),
)
_WEIGHTS = (  # for tensors called `weight`
    _Rule(_experts, module=_EXPERTS),
    _Rule(_bias_each),
    _Rule(_bias_of_all),
    _Rule(_long_pairs),
    _Rule(_between),
    _Rule(_long_last),
    _Rule(_kernels),
)
_PARAMETERS = (  # for tensors of any other name
    _Rule(_experts, module=_EXPERTS, name=_EXPERTS),
    _Rule(_called_kernel, name=r"kernel"),
    _Rule(_pairs),
    _Rule(_modes),
    _Rule(_kernel_last),
    _Rule(_kernels),
    _Rule(_one_place),
    _Rule(_long_first),
)


def _first(rules: Sequence[_Rule], weight: _Stored) -> KnownLayout | None:
    found = (rule.layout(weight) for rule in rules if rule.knows(weight))
    return next((known for known in found if known is not None), None)


def class_layout(module: nn.Module, weight: Tensor) -> str:
    """Return the layout, with groups, of a convolution known by its class's name; empty for other classes."""
    if weight.ndim < 3:
        return ""
    classes = [cls.__name__ for cls in type(module).__mro__ if cls.__module__ != "torch.nn.modules.module"]
    outputs = getattr(module, "out_channels", 0)
    known = _first(_CLASSES, _Stored(classes, "", "weight", tuple(weight.shape), outputs=outputs))
    if known is None:
        return ""
    groups = getattr(module, "groups", 1)
    grouped = known.layout.startswith("oik") and groups != 1
    if grouped and (not isinstance(groups, int) or weight.shape[0] % groups):
        return ""
    return f"{known.layout}/{groups}" if grouped else known.layout


def is_position_grid(name: str, shape: Sequence[int]) -> bool:
    """Whether a parameter is a position grid (1, channels, n, n) (DPOT, PiT, SAM 2), not (1, places, ..., channels)."""
    grid = len(shape) == 4 and shape[0] == 1 and shape[2] == shape[3]
    return grid and re.fullmatch(r"pos_embed(_win(dow)?)?", name) is not None


def is_norms_factor(owner: str, name: str) -> bool:
    """Whether a parameter is a factor of a norm, by the name of its module or class, and so no matrix in any shape.

    Cohere's norms of queries and keys have a factor for each feature of each head.
    """
    factor = name in ("weight", "scale", "gamma", "gain", "g", "beta", "shift")
    return factor and _NORM.fullmatch(owner) is not None


def weight_layout(module: str, weight: Tensor, bias: Tensor | None) -> KnownLayout | None:
    """Return the layout of a tensor that a module of unknown class calls ``weight``; None for PyTorch's layout."""
    shape = None if bias is None else tuple(bias.shape)
    return _first(_WEIGHTS, _Stored((), module, "weight", tuple(weight.shape), shape, complex=weight.is_complex()))


def parameter_layout(module: str, name: str, parameter: Tensor) -> KnownLayout | None:
    """Return the layout of any other parameter of two or more dimensions; None for a batch over its last two."""
    return _first(_PARAMETERS, _Stored((), module, name, tuple(parameter.shape), complex=parameter.is_complex()))
