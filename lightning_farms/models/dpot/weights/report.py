"""A report of what became of a checkpoint's tensors when it was loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lightning_farms.common.quantities import counted

Component = Literal["patch_embed", "pos_embed", "blocks", "time_agg", "scale_feats", "cls_head", "out"]
"""Parts of a DPOT that can be loaded by themselves; scale_feats only exists with `normalize`."""

_COMPONENT_OF = {
    "time_agg_layer": "time_agg",
    "out_layer": "out",
    "scale_feats_mu": "scale_feats",
    "scale_feats_sigma": "scale_feats",
}
NOT_ASKED_FOR = "not among the components asked for"


@dataclass(frozen=True)
class LoadReport:
    """A report of what became of a checkpoint's tensors; `str()` gives it in a few lines.

    Attributes:
        source: the file.
        loaded: names of the tensors that were loaded unchanged.
        adapted: what was done to tensors of other sizes, by name.
        skipped: why tensors of the network were left at their initial values, by name.
        unused: why tensors of the file were not used, by name.

    Example:
        >>> adapted = {"pos_embed": "16 x 16 patches resized bicubically to 8 x 8"}
        >>> print(LoadReport("model_Ti.pth", ("blocks.0.norm1.weight", "blocks.0.norm1.bias"), adapted, {}, {}))
        model_Ti.pth: 2 tensors loaded, 1 adapted, 0 left at their initial values
          loaded: blocks
          adapted: pos_embed (16 x 16 patches resized bicubically to 8 x 8)
    """

    source: str
    loaded: tuple[str, ...]
    adapted: Mapping[str, str]
    skipped: Mapping[str, str]
    unused: Mapping[str, str]

    def __str__(self) -> str:
        """Return the counts, then a line for every outcome and reason."""
        counts = f"{counted(len(self.loaded), 'tensor')} loaded, {len(self.adapted)} adapted, {len(self.skipped)} left"
        lines = [f"{self.source}: {counts} at their initial values"]
        if self.loaded:
            incomplete = {component_of(name) for name in (*self.adapted, *self.skipped)}
            components = dict.fromkeys(map(component_of, self.loaded))
            named = (f"the rest of {name}" if name in incomplete else name for name in components)
            lines.append(f"  loaded: {', '.join(named)}")
        only_there = {name: why for name, why in self.unused.items() if name not in self.skipped}
        for title, outcome in (
            ("adapted", self.adapted),
            ("initial values", self.skipped),
            ("in the file only", only_there),
        ):
            lines += [f"  {title}: {names} ({why})" for why, names in _by_reason(outcome).items()]
        return "\n".join(lines)


def left_without_being_asked(report: LoadReport) -> dict[str, str]:
    """Why tensors of the network keep their initial values although their component was to be loaded, by name."""
    return {name: why for name, why in report.skipped.items() if why != NOT_ASKED_FOR}


def component_of(name: str) -> str:
    """Return the component that a tensor of a DPOT belongs to."""
    first = name.split(".")[0]
    return _COMPONENT_OF.get(first, first)


def _by_reason(outcome: Mapping[str, str]) -> dict[str, str]:
    """The names that share each reason; component names instead, if the reason is that nobody asked for them."""
    names: dict[str, dict[str, None]] = {}
    for name, why in outcome.items():
        names.setdefault(why, {})[component_of(name) if why == NOT_ASKED_FOR else name] = None
    return {why: ", ".join(found) for why, found in names.items()}
