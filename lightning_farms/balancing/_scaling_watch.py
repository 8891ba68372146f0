"""Watching of scalings in training: whether a fault was found, and whether weights move without their steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from weakref import ReferenceType as Reference
from weakref import ref

from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_farms.common.parameters import local
from lightning_farms.optim.scaling import LayerwiseScaling

_PARAMETERS, _ENTRIES = 4, 64
_NEVER_STEPPED = (
    "the weights move, but not by the optimizer's own `step` (it was replaced, or other methods of the optimizer "
    "update them). Have the step of the optimizer's class called, or use SpectralMonitor or analyze(...)"
)


class ScalingWatch:
    """Watches scalings: whether their first steps revealed a fault, and whether weights change without their steps."""

    def __init__(self, scalings: Sequence[LayerwiseScaling], *, fingerprints: bool = True) -> None:
        self._scalings = list(scalings)
        self._told: set[LayerwiseScaling] = set()
        self._waiting = {}
        if fingerprints:
            self._waiting = {each: _Fingerprint(_of_this_one(each, self._scalings)) for each in self._scalings}

    def look(self, *, moves: int) -> None:
        """Disable scalings that have seen no step although their weights have changed in at least `moves` looks."""
        for scaling, fingerprint in list(self._waiting.items()):
            if scaling.steps or scaling.fault is not None:
                del self._waiting[scaling]
            elif fingerprint.moves() >= moves:
                scaling.disable(_NEVER_STEPPED)

    def news(self) -> list[LayerwiseScaling]:
        """Scalings with a fault that was not returned before."""
        news = [scaling for scaling in self._scalings if scaling.fault is not None and scaling not in self._told]
        self._told.update(news)
        return news


def _of_this_one(scaling: LayerwiseScaling, scalings: Sequence[LayerwiseScaling]) -> list[Tensor]:
    """Parameters in the optimizer's order, without those of other optimizers, whose steps could have changed them."""
    trained, others = scaling.trained_parameters(), [each for each in scalings if each is not scaling]
    shared = set().union(*(each.trained_parameters() for each in others))
    ordered = (parameter for group in scaling.optimizer.param_groups for parameter in group["params"])
    return [parameter for parameter in ordered if parameter in trained and parameter not in shared]


class _Fingerprint:
    """A few entries of a few parameters, and which gradients these had, as they were at the last look."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        whole = [p for p in parameters if not (is_lazy(p) or p.is_meta) and p.numel()]
        self._parameters = whole[:: max(1, len(whole) // _PARAMETERS)][:_PARAMETERS]
        self._entries, self._gradients = self._now(), self._gradients_now()
        self._moves, self._excused = 0, False

    def moves(self) -> int:
        """Look at the entries, and return in how many looks they had changed while no gradient was being accumulated.

        If the gradient is the same tensor as before, the update is still to come; until then a module may have moved
        its weights itself, as an embedding with ``max_norm`` does. The first change without any gradient is not counted
        either: the user has loaded or initialised the weights.
        """
        before, self._entries = self._entries, self._now()
        gradients, self._gradients = self._gradients, self._gradients_now()
        accumulating = any(map(_is_same, gradients, self._gradients))
        moved = not all(map(_are_equal, before, self._entries))
        loaded = moved and not self._excused and not any([*gradients, *self._gradients])
        self._excused |= loaded
        self._moves += moved and not (accumulating or loaded)
        return self._moves

    def _gradients_now(self) -> list[Reference[Tensor] | None]:
        return [None if p.grad is None else ref(p.grad) for p in self._parameters]

    def _now(self) -> list[Tensor]:
        return [_some_of(p) for p in self._parameters]


def _is_same(before: Reference[Tensor] | None, now: Reference[Tensor] | None) -> bool:
    return before is not None and now is not None and before() is now()


def _are_equal(before: Tensor, now: Tensor) -> bool:
    """Whether entries are the same; those of a diverged training, NaN, are not the same by themselves."""
    return bool(((before == now) | ((before != before) & (now != now))).all())


def _some_of(parameter: Tensor) -> Tensor:
    flat = local(parameter).flatten()
    return flat[:: max(1, len(flat) // _ENTRIES)][:_ENTRIES].clone()
