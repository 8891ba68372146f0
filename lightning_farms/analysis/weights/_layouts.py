"""What the dimensions of a weight mean where its class is not PyTorch's: one table, by class, by name, by shape."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from lightning_farms.analysis._layout import BATCH

_SMALL_KERNEL = 7
_MOST_POSITIONS = 7**3
_LONGEST_KERNEL = 31
_FEWEST_CHANNELS = 8
_MOST_COLOURS = 4
_SAY_IT = "say it with layout (--layout), as in"


class KnownLayout(NamedTuple):
    """A layout, and what to say where it is a guess, or why there is none."""

    layout: str
    remark: str = ""
    reason: str = ""


class _Stored(NamedTuple):
    """What is known of a weight: names of its module's classes, its module's and its own name, shapes."""

    classes: Sequence[str]
    module: str
    name: str
    shape: tuple[int, ...]
    bias: tuple[int, ...] | None = None
    outputs: int = 0
    complex: bool = False


class _Rule(NamedTuple):
    """A rule: patterns of a class, a module's name or the weight's name, one of which must match, and what follows."""

    layout: Callable[[_Stored], KnownLayout | None]
    classes: str = ""
    module: str = ""
    name: str = ""

    def knows(self, weight: _Stored) -> bool:
        """Whether the rule is about a weight."""
        if not (self.classes or self.module or self.name):
            return True
        if self.classes and any(re.fullmatch(self.classes, each) for each in weight.classes):
            return True
        by_module = self.module and re.fullmatch(self.module, weight.module)
        return bool(by_module or (self.name and re.fullmatch(self.name, weight.name)))


def _sparse(weight: _Stored) -> KnownLayout | None:
    """(O, *kernel, I), or (*kernel, I, O) where the module says how many outputs there are."""
    kernel = "k" * (len(weight.shape) - 2)
    if not kernel:
        return None
    first = weight.outputs == weight.shape[-1] != weight.shape[0]
    return KnownLayout(f"{kernel}io" if first else f"o{kernel}i")


def _of_class(weight: _Stored) -> KnownLayout | None:
    """``...Conv2d``: (O, I, *kernel), if it has that many dimensions."""
    named = (re.fullmatch(r".*Conv([123])d.*", each) for each in weight.classes)
    dimensions = next((int(match[1]) for match in named if match), 0)
    return KnownLayout("oi" + "k" * dimensions) if len(weight.shape) == dimensions + 2 else None


def _experts(weight: _Stored) -> KnownLayout | None:
    """Experts are a batch of matrices."""
    one_each = weight.bias is None or weight.bias[:-1] == weight.shape[:1]
    return KnownLayout(BATCH) if len(weight.shape) == 3 and one_each and min(weight.shape[1:]) > 1 else None


def _bias_each(weight: _Stored) -> KnownLayout | None:
    """A bias for each matrix tells a batch."""
    batch = len(weight.shape) == 3 and weight.bias is not None and len(weight.bias) == 2
    return KnownLayout(BATCH) if batch and weight.bias and weight.bias[0] == weight.shape[0] else None


def _between(weight: _Stored) -> KnownLayout | None:
    """(O, k, ..., k, I): equal dimensions before another last one, where (O, I, k, ..., k) is less likely."""
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
    """Three dimensions: kernels are short; one with a bias for each output may be long (or bilinear)."""
    first, middle, last = weight.shape if len(weight.shape) == 3 else (0, 0, 0)
    one_bias = weight.bias is not None and weight.bias == (first,)
    if not (weight.bias is None or one_bias) or min(middle, last) < 2 or last <= _SMALL_KERNEL:
        return None
    convolves = one_bias or last <= _LONGEST_KERNEL or re.fullmatch(r"(.*[._])?conv(1d)?_?\d*", weight.module)
    return _guess("oik", BATCH) if convolves else _guess(BATCH, "oik")


def _bias_of_all(weight: _Stored) -> KnownLayout | None:
    """(..., inputs, outputs), or a transposed convolution's (I, O, ..., k) with as long a kernel."""
    if not has_shared_bias(weight.shape, weight.bias) or min(weight.shape[1:]) < 2:
        return None
    if weight.shape[1] != weight.shape[-1] or weight.shape[-1] > _LONGEST_KERNEL:
        return _guess(BATCH, _kernel(weight, "oi{}"))
    return _guess(_kernel(weight, "io{}"), BATCH) if weight.shape[-1] > _SMALL_KERNEL else None


def has_shared_bias(shape: Sequence[int], bias: Sequence[int] | None) -> bool:
    """Whether a weight of three or more dimensions has a bias for its last one alone."""
    return len(shape) > 2 and bias is not None and tuple(bias) == tuple(shape[-1:]) != tuple(shape[:1])


def odd_kernel(shape: Sequence[int]) -> str:
    """What to say of a kernel of many places that is not square: it may be two dimensions of matrices."""
    kernel = shape[2:]
    odd = len(kernel) == 2 and min(kernel) > _SMALL_KERNEL and kernel[0] != kernel[1]
    return _guess("oikk", BATCH).remark if odd else ""


def _guess(layout: str, other: str) -> KnownLayout:
    return KnownLayout(layout, f"its layout is a guess by its shape: {layout}, not {other}; {_SAY_IT} {other}")


def _pairs(weight: _Stored) -> KnownLayout | None:
    """A last dimension of 2: real and imaginary parts, of FNO's (I, O, *modes, 2) or else of no known meaning."""
    dimensions = len(weight.shape)
    if weight.complex or dimensions < 3 or weight.shape[-1] != 2 or max(weight.shape[:-1]) <= 2:
        return None
    name = weight.module.rpartition(".")[2] if weight.name.isdecimal() else weight.name  # of a list of parameters
    if re.fullmatch(r"(fourier_)?weights?_?\d*", name) and dimensions >= 4 and name != "weight":
        layout = "io" + "b" * (dimensions - 3) + "c"
        return KnownLayout(layout, f"its layout is a guess by its name and shape: {layout}; {_SAY_IT} batch")
    example = "b" * (dimensions - 3) + "oic" if dimensions > 3 else "oic"
    reason = f"its last dimension is 2 (real and imaginary parts?): no matrix is known in it; {_SAY_IT} {example}"
    return KnownLayout("", reason=reason)


def _modes(weight: _Stored) -> KnownLayout | None:
    """Complex weights, as in a file."""
    layout = modes_layout(weight.name, weight.shape) if weight.complex else ""
    remark = f"its layout is a guess by its name and type: {layout}; {_SAY_IT} batch"
    return KnownLayout(layout, remark) if layout else None


def modes_layout(name: str, shape: Sequence[int]) -> str:
    """Of complex weights of three dimensions or more: FNO's (I, O, *modes), a matrix for each mode; empty of others."""
    return "io" + "b" * (len(shape) - 2) if len(shape) > 2 and "weight" in name else ""


def _long_pairs(weight: _Stored) -> KnownLayout | None:
    """Of what is called `weight`: no kernel is (16, 2)."""
    return _pairs(weight) if len(weight.shape) > 3 and weight.shape[-2] > _SMALL_KERNEL else None


def _called_kernel(weight: _Stored) -> KnownLayout | None:
    """What is called `kernel` (Flax, MinkowskiEngine, torchsparse) has its positions first: (*kernel, I, O)."""
    positions, channels = weight.shape[:-2], weight.shape[-2:]
    if weight.complex or not positions or math.prod(positions) > _MOST_POSITIONS or min(channels) < 2:
        return None
    layout = "k" * len(positions) + "io"
    return KnownLayout(layout, f"its layout is a guess by its name: {layout}, not batch; {_SAY_IT} batch")


def _kernel_last(weight: _Stored) -> KnownLayout | None:
    """Any name: small dimensions behind two of channels are a kernel."""
    kernel = weight.shape[2:]
    if weight.complex or not kernel or max(kernel) > _SMALL_KERNEL or min(kernel) < 2 or len(weight.shape) > 5:
        return None
    if min(weight.shape[:2]) < _FEWEST_CHANNELS or len(set(kernel)) > 1:
        return None
    layout = _kernel(weight, "oi{}")
    usual = weight.name == "weight"
    remark = "" if usual else f"its layout is a guess by its shape: {layout}, not batch; {_SAY_IT} batch"
    return KnownLayout(layout, remark)


def _kernel(weight: _Stored, text: str) -> str:
    return text.format("k" * (len(weight.shape) - 2))


_EXPERTS = r"(.*[._])?(experts?|exps|parallel_experts|moe|switch_mlp)([._].*)?"

_CLASSES = (
    _Rule(_sparse, classes=r"(SubM|Sparse)\w*Conv\w*"),
    _Rule(_of_class, classes=r"(?!.*Transpose)\w*Conv[123]d\w*"),
)
_WEIGHTS = (  # of what is called `weight`
    _Rule(_experts, module=_EXPERTS),
    _Rule(_bias_each),
    _Rule(_bias_of_all),
    _Rule(_long_pairs),
    _Rule(_between),
    _Rule(_long_last),
)
_PARAMETERS = (  # of any other name
    _Rule(_experts, module=_EXPERTS, name=_EXPERTS),
    _Rule(_called_kernel, name=r"kernel"),
    _Rule(_pairs),
    _Rule(_modes),
    _Rule(_kernel_last),
)


def _first(rules: Sequence[_Rule], weight: _Stored) -> KnownLayout | None:
    found = (rule.layout(weight) for rule in rules if rule.knows(weight))
    return next((known for known in found if known is not None), None)


def class_layout(module: nn.Module, weight: Tensor) -> str:
    """The layout of a convolution that is known by its class's name, with its groups; empty of another class."""
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
    """Whether a parameter is that of DPOT, PiT, SAM 2, (1, channels, n, n); others have (1, places, ..., channels)."""
    return name == "pos_embed" and len(shape) == 4 and shape[0] == 1 and shape[2] == shape[3]


def weight_layout(module: str, weight: Tensor, bias: Tensor | None) -> KnownLayout | None:
    """The layout of what a module of unknown class calls ``weight``; None for that of PyTorch's modules."""
    shape = None if bias is None else tuple(bias.shape)
    return _first(_WEIGHTS, _Stored((), module, "weight", tuple(weight.shape), shape, complex=weight.is_complex()))


def parameter_layout(module: str, name: str, parameter: Tensor) -> KnownLayout | None:
    """The layout of any other parameter of two or more dimensions; None for a batch of its last two."""
    return _first(_PARAMETERS, _Stored((), module, name, tuple(parameter.shape), complex=parameter.is_complex()))
