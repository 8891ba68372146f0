"""The tensors that a module holds, with the values that its next forward pass uses."""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


class HeldWeight(NamedTuple):
    """A tensor that a module uses: its value, and the parameters that hold it."""

    value: Tensor
    parameters: tuple[Tensor, ...] = ()


def held_weights(module: nn.Module) -> dict[str, HeldWeight]:
    """Return the tensors that a module itself holds, by name, as they take effect: normalised, pruned, parametrised.

    Covers ``torch.nn.utils.parametrizations`` and whatever else is registered as a parametrisation, and the hooks
    that ``weight_norm``, ``spectral_norm`` and pruning of ``torch.nn.utils`` run before the forward pass.
    """
    computed = {**_parametrised(module), **_by_hooks(module)}
    used = {id(parameter) for held in computed.values() for parameter in held.parameters}
    plain = {
        name: HeldWeight(parameter, (parameter,))
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) not in used
    }
    return {**computed, **plain}


def own_parameters(module: nn.Module) -> tuple[Tensor, ...]:
    """Return the parameters that a module itself holds, including the originals of parametrised ones."""
    own = list(module.parameters(recurse=False))
    if parametrize.is_parametrized(module):
        own.extend(module.parametrizations.parameters())  # type: ignore[union-attr]
    return tuple(own)


def is_parametrisation(name: str) -> bool:
    """Whether a module's name is that of a part of a parametrisation, whose weights its owner gives."""
    return "parametrizations" in name.split(".")


def _parametrised(module: nn.Module) -> dict[str, HeldWeight]:
    if not parametrize.is_parametrized(module):
        return {}
    originals = module.parametrizations.items()  # type: ignore[union-attr, operator]
    return {name: HeldWeight(getattr(module, name), tuple(parts.parameters())) for name, parts in originals}


def _by_hooks(module: nn.Module) -> dict[str, HeldWeight]:
    """Return weights that hooks compute before the forward pass; until then the attribute is that of the last pass."""
    found: dict[str, HeldWeight] = {}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            parts = (getattr(module, f"{hook.name}_g"), getattr(module, f"{hook.name}_v"))
            found[hook.name] = HeldWeight(cast(Tensor, hook.compute_weight(module)), parts)
        elif isinstance(hook, SpectralNorm):
            value = hook.compute_weight(module, do_power_iteration=False)
            found[hook.name] = HeldWeight(value, (getattr(module, f"{hook.name}_orig"),))
        elif isinstance(hook, BasePruningMethod):
            name = hook._tensor_name
            found[name] = HeldWeight(cast(Tensor, hook.apply_mask(module)), (getattr(module, f"{name}_orig"),))
    return found
