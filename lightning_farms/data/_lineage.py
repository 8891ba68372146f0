"""Which flows a checkpoint was trained on and chosen by, and which of these are evaluated now."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_farms.common.quantities import counted
from lightning_farms.common.texts import listed

_EVALUATED = {"fit": ("val",), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
_NONE = torch.zeros(1, dtype=torch.int64)
_VERBS = {"val": "validate with", "test": "test on", "predict": "predict"}


class Flows(NamedTuple):
    """Some trajectories of a file, or of a set of files."""

    path: Path
    numbers: Sequence[int]
    identity: str  # distinguishes the file from others


def recorded(flows: Sequence[Flows], earlier: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Return flows as plain values for a checkpoint, merged with those recorded earlier."""
    found: dict[str, dict[str, Any]] = {
        entry["identity"]: {**entry, "flows": list(entry["flows"])} for entry in earlier
    }
    for path, numbers, identity in flows:
        entry = found.setdefault(identity, {"file": path.name, "identity": identity, "flows": []})
        entry["flows"] = runs(sorted({*expanded(entry["flows"]), *numbers}))
    return [entry for entry in found.values() if entry["flows"]]


def shared(flows: Sequence[Flows], entries: Sequence[Mapping[str, Any]]) -> list[Flows]:
    """Return those of the flows that are recorded in the entries."""
    known = {entry["identity"]: set(expanded(entry["flows"])) for entry in entries}
    if not known:
        return []
    found = []
    for path, numbers, identity in flows:
        both = sorted(known.get(identity, set()).intersection(numbers))
        if both:
            found.append(Flows(path, both, identity))
    return found


def replaced(flows: Sequence[Flows], entries: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Return the files whose names are recorded, but whose identities are not."""
    known = {entry["identity"] for entry in entries}
    names = {entry["file"] for entry in entries}
    return [path for path, _, identity in flows if path.name in names and identity not in known]


def runs(numbers: Sequence[int]) -> list[list[int]]:
    """Return ascending numbers as [first, last] of each run of consecutive ones.

    Example:
        >>> runs([0, 1, 2, 5])
        [[0, 2], [5, 5]]
    """
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def expanded(pairs: Sequence[Sequence[int]]) -> list[int]:
    """Return all numbers of runs given as [first, last]."""
    return [number for first, last in pairs for number in range(first, last + 1)]


def count(flows: Sequence[Flows]) -> int:
    """Return the number of flows."""
    return sum(len(part.numbers) for part in flows)


def told(flows: Sequence[Flows]) -> str:
    """Describe flows in words.

    Example:
        >>> told([Flows(Path("a.hdf5"), [0, 1, 2, 5], "")])
        '0-2, 5 of a.hdf5'
    """
    parts = (
        (", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs(sorted(part.numbers))), part.path)
        for part in flows
    )
    return "; ".join(f"{numbers} of {path}" for numbers, path in parts)


def check_order(begun: Mapping[str, Any], order: Mapping[str, Any]) -> None:
    """Warn if a training resumes within an epoch whose items now come in another order, or in other batches."""
    now = {name: value for name, value in order.items() if begun.get(name, value) != value}
    if now:
        rank_zero_warn(
            f"The checkpoint was saved within an epoch, with {', '.join(f'{name} {begun[name]}' for name in now)}, and "
            f"the training goes on with {', '.join(f'{name} {value}' for name, value in now.items())}. In the rest of "
            "this epoch, some items therefore come twice or not at all; later epochs are complete. Give the former "
            "settings, or go on from a checkpoint of an epoch's end."
        )


class Lineage:
    """The flows of this run by purpose, and those recorded in the checkpoint that it loads."""

    def __init__(self) -> None:
        self._stage = ""
        self._used: dict[str, list[Flows]] = {}
        self._earlier: dict[str, list[dict[str, Any]]] = {"trained": [], "validated": []}
        self.order: dict[str, Any] = {}  # what an epoch's batches depend on
        self.identities: dict[str, list[Tensor]] = {"trained": [], "validated": []}  # of values; 0: not read yet

    def begin(self, stage: str) -> None:
        """Begin a run of a stage; a fit forgets all earlier flows."""
        self._stage = stage
        if stage == "fit":
            self._used, self._earlier = {}, {"trained": [], "validated": []}
            self.identities = {"trained": [], "validated": []}
        elif stage == "test":  # without a checkpoint, nobody knows whether they chose the network
            self.identities["validated"] = []

    def use(self, purpose: str, flows: list[Flows]) -> None:
        """Record the flows of a purpose."""
        self._used[purpose] = flows

    def flows(self, purpose: str) -> list[Flows]:
        """Return the recorded flows of a purpose."""
        return self._used.get(purpose, [])

    def state(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a checkpoint keeps: plain values, and tensors of identities."""
        fitted = "train" in self._used
        return {
            "trained": recorded(self._used.get("train", []), self._earlier["trained"]),
            "validated": recorded(self._used.get("val", []) if fitted else [], self._earlier["validated"]),
            "settings": dict(settings),
            "order": self.order,
            "identities": _joined(self.identities["trained"]),
            "validated_identities": _joined(self.identities["validated"]),
        }

    def load(self, checkpoint: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Compare a checkpoint's flows with those that are evaluated now, and say what they have in common."""
        state = checkpoint.get("lineage")
        if state is None:
            return
        _tell_simulated(state, settings)
        if self._stage == "fit":
            self._resume(checkpoint, state, settings)
        else:
            for known in self.identities.values():
                known.clear()
        self.identities["trained"].append(state.get("identities", _NONE))
        self.identities["validated"].append(state.get("validated_identities", _NONE))
        for purpose in _EVALUATED.get(self._stage, ()):
            self._tell_trained(purpose, state, settings)
            if purpose == "test":
                self._tell_validated(state)

    def _resume(self, checkpoint: Mapping[str, Any], state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Take over the flows of the training that goes on; warn if its order of items or its files are others."""
        if checkpoint.get("batches", 0):
            begun = {"seed": state["settings"].get("seed"), **state.get("order", {})}
            check_order(begun, {"seed": settings.get("seed"), **self.order})
        self._earlier = {name: list(state[name]) for name in ("trained", "validated")}
        changed = replaced(self.flows("train"), state["trained"])
        if changed:
            rank_zero_warn(
                f"The training goes on with other flows: {', '.join(map(str, changed))} is not the file of that "
                "name that the checkpoint was trained on. If it was changed since, flows may have passed from one "
                "part of the split to another."
            )

    def _tell_trained(self, purpose: str, state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Warn if flows that are evaluated now were trained on."""
        flows = self.flows(purpose)
        both = shared(flows, state["trained"])
        if both:
            self.identities["trained"].clear()  # otherwise they would be reported twice
            differing = [name for name, value in settings.items() if state["settings"].get(name) != value]
            remedy = f" These settings are not those of its training: {', '.join(differing)}." if differing else ""
            rank_zero_warn(
                f"The checkpoint was trained on {count(both)} of the {counted(count(flows), 'flow')} to "
                f"{_VERBS[purpose]}: {told(both)}. Their errors say nothing about new flows: keep the split of the "
                f"training, or give other files.{remedy}"
            )

    def _tell_validated(self, state: Mapping[str, Any]) -> None:
        """Say how many of the test flows helped to choose the checkpoint."""
        flows = self.flows("test")
        chosen = shared(flows, state["validated"])
        by, advice = "none of the test flows, as far as the files tell", ""
        if chosen:
            self.identities["validated"].clear()
            by = f"{count(chosen)} of the {count(flows)} test flows"
            advice = (
                "; the error may be too low where the best of several checkpoints was taken: hold flows out with "
                "`val_fraction` or `val_path`"
            )
        rank_zero_info(f"The training was validated with {by}{advice}.")


def _tell_simulated(state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Warn of simulated flows where those of a file were trained on, which may have been forgotten."""
    if settings.get("simulated") and not state["settings"].get("simulated", True):
        names = listed([entry["file"] for entry in state["trained"]], shown=2)
        rank_zero_warn(
            f"The checkpoint was trained on {names}, but these flows are simulated, since no file is named. Give "
            "`path` (`--data.path`) to go on with the data of its training."
        )


def _joined(identities: Sequence[Tensor]) -> Tensor:
    joined: Tensor = torch.cat([_NONE, *identities]).unique()
    return joined
