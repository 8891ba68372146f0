"""Hidden states as they pass through a decoder's blocks, kept in memory or on disk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from lightning_farms.common.room import check_room
from lightning_farms.pruning._calls import BlockCall, decoder_calls, experts_one_by_one
from lightning_farms.pruning._moments import WatchInputs

_COMPARED = 8  # number of sequences whose outputs are kept to measure a block's error


class HiddenStream:
    """The hidden states of N calibration sequences that go into the next block.

    They are kept on the CPU: in memory, or with `on_disk` in a file in that folder that is mapped into memory and has
    no name, so that nothing of it outlives the process.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[str, nn.Module],
        ids: Tensor,
        device: torch.device,
        on_disk: Path | None = None,
    ) -> None:
        self._until_closed = ExitStack()
        self._until_closed.enter_context(_not_compiled())
        self._until_closed.enter_context(experts_one_by_one(model))
        found = decoder_calls(model, blocks, ids, device)
        self._calls: dict[str, list[BlockCall]] = found.calls
        self._device = device
        first = found.hidden[0]
        shape = (len(found.hidden), *first.shape)
        if on_disk is None:
            self._hidden = torch.empty(shape, dtype=first.dtype, device="cpu")
        else:
            on_disk.mkdir(parents=True, exist_ok=True)
            size = math.prod(shape)
            check_room(on_disk / "hidden", size * first.element_size(), "the hidden states", "choose another folder")
            with TemporaryDirectory(dir=on_disk, prefix="hidden-") as folder:  # the file lives on while it is mapped
                self._hidden = torch.from_file(f"{folder}/hidden", True, size, dtype=first.dtype).view(shape)
        for place, hidden in zip(self._hidden, found.hidden, strict=True):
            place.copy_(hidden)

    def watch(self, name: str, block: nn.Module, watch: WatchInputs | None) -> list[Tensor]:
        """Run a block on every sequence under `watch`, keeping the hidden states; return outputs of the first few."""
        outputs = []
        for index, output in enumerate(self._outputs(name, block, watch)):
            if index < _COMPARED:
                outputs.append(output)
        return outputs

    def advance(
        self, name: str, block: nn.Module, dense: list[Tensor] | None = None, watch: WatchInputs | None = None
    ) -> float:
        """Replace the hidden states by a block's outputs, and return their relative distance to the dense outputs."""
        difference = norm = 0.0
        for index, output in enumerate(self._outputs(name, block, watch)):
            if dense is not None and index < len(dense):
                reference = dense[index].float()
                difference += float((output.float() - reference).square().sum(dtype=torch.float64))
                norm += float(reference.square().sum(dtype=torch.float64))
            self._hidden[index].copy_(output)
        del self._calls[name]  # masks and positions of blocks that are done
        return math.sqrt(difference / norm) if norm else math.nan

    def _outputs(self, name: str, block: nn.Module, watch: WatchInputs | None) -> Iterator[Tensor]:
        for index, call in enumerate(self._calls[name]):
            hidden = self._hidden[index].to(self._device)
            with watch if watch is not None else nullcontext():
                output = call.run(block, hidden)
            yield output

    def close(self) -> None:
        """Remove the hidden states, also from disk, and restore the model's settings."""
        del self._hidden
        self._until_closed.close()


def _not_compiled() -> AbstractContextManager[object]:
    """Run compiled modules as they are without torch.compile, which cannot trace the hooks of a pass."""
    set_stance = getattr(torch.compiler, "set_stance", None)  # since PyTorch 2.6
    return nullcontext() if set_stance is None else set_stance("force_eager")
