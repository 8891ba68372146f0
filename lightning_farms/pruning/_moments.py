"""Second moments of the inputs of a block's weights, gathered while the block runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from lightning_farms.pruning.prunable import PrunableWeight

_PRODUCTS = (torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__)
_Key: TypeAlias = tuple[str, int]
_Value: TypeAlias = Any


@dataclass
class InputMoments:
    """Moments of a matrix's inputs x: sums over tokens of x^2 (C,), float64, and of x x^T (C, C), float32 or None."""

    tokens: int
    squares: Tensor
    products: Tensor | None
    calls: int = 0
    _latest: Tensor | None = field(default=None, repr=False)

    @property
    def mean_square(self) -> Tensor:
        """Mean of x^2, (C,), float64; zero without tokens."""
        return self.squares / max(self.tokens, 1)

    def add(self, inputs: Tensor) -> None:
        """Add inputs (..., C) to the sums."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        self.tokens += rows.shape[0]
        self.squares += rows.square().sum(0, dtype=torch.float64)
        if self.products is not None:
            self.products.addmm_(rows.mT, rows)
        self.calls += 1
        self._latest = inputs

    def copy(self) -> InputMoments:
        """An independent copy."""
        products = None if self.products is None else self.products.clone()
        return InputMoments(self.tokens, self.squares.clone(), products, self.calls)


class WatchInputs(TorchFunctionMode):
    """Mode in which every product with one of the weights adds the other factor to that weight's moments.

    Weights with the very same input (queries, keys and values; gate and up) share one `InputMoments`. It sees `linear`,
    `addmm` and matrix products, whoever calls them, including those with single experts of a fused parameter. In a
    product with all experts at once (Llama 4), rows of zeros are tokens that were not routed to an expert.
    """

    def __init__(self, weights: Sequence[PrunableWeight], *, products: bool) -> None:
        super().__init__()
        self._products = products
        self._places: dict[int, tuple[_Key, int]] = {}
        self._moments: dict[_Key, InputMoments] = {}
        self._followed: dict[_Key, int] = {}  # for a weight that shares moments: how many of the calls were its own too
        for weight in weights:
            for index, matrix in enumerate(weight.matrices):
                self._places[matrix.data_ptr()] = ((weight.name, index), matrix.shape[1])

    def of(self, weight: PrunableWeight) -> list[InputMoments]:
        """The moments of each of a weight's matrices, with zero tokens if it had no inputs."""
        keys = [(weight.name, index) for index in range(weight.matrices.shape[0])]
        for key in keys:
            if key in self._moments:
                self._check_in_step(key)
        return [self._moments.get(key) or self._empty(weight.matrices.shape[2], weight.matrices.device) for key in keys]

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: _Value = None
    ) -> _Value:
        """Record the factors of a product, then compute it."""
        if func is linear:
            self._see(args[1] if len(args) > 1 else kwargs["weight"], args[0] if args else kwargs["input"])
        elif func is torch.addmm:
            self._see(args[2], args[1])
        elif func in _PRODUCTS:
            self._see(args[1], args[0])
            self._see(args[0], args[1], turned=True)
        return func(*args, **(kwargs or {}))

    def _see(self, weight: object, inputs: object, *, turned: bool = False) -> None:
        if not isinstance(weight, Tensor) or not isinstance(inputs, Tensor) or inputs.ndim == 0:
            return
        if weight.ndim == 3 and weight.shape[0] > 1 and weight.data_ptr() in self._places:
            if inputs.ndim == 3 and len(inputs) == len(weight):
                for matrix, rows in zip(weight, inputs.mT if turned else inputs, strict=True):
                    self._see(matrix, rows[rows.any(-1)])
            return
        place = self._places.get(weight.data_ptr())
        if place is None or weight.numel() == 0:
            return
        key, columns = place
        seen = inputs.mT if turned and inputs.ndim > 1 else inputs
        if seen.shape[-1] == columns:
            self._add(key, seen)

    def _add(self, key: _Key, inputs: Tensor) -> None:
        if key not in self._moments:
            first = (each for each in self._moments.values() if each.calls == 1 and each._latest is inputs)
            leader = next(first, None)
            if leader is not None:
                self._moments[key], self._followed[key] = leader, 1
                return
            self._moments[key] = self._empty(inputs.shape[-1], inputs.device)
        moments = self._moments[key]
        if key not in self._followed:
            moments.add(inputs)
        elif moments._latest is inputs and moments.calls == self._followed[key] + 1:
            self._followed[key] += 1
        else:
            self._check_in_step(key)
            del self._followed[key]  # from now on it has inputs of its own
            self._moments[key] = moments.copy()
            self._moments[key].add(inputs)

    def _check_in_step(self, key: _Key) -> None:
        if self._moments[key].calls != self._followed.get(key, self._moments[key].calls):
            raise ValueError(f"{key[0]} had the same inputs as another layer at first, and other ones later.")

    def _empty(self, columns: int, device: torch.device) -> InputMoments:
        squares = torch.zeros(columns, dtype=torch.float64, device=device)
        return InputMoments(0, squares, torch.zeros(columns, columns, device=device) if self._products else None)
