"""What becomes of layer-wise rates in each installable optimizer: python -m tests.optim.optimizer_table [PACKAGE ...].

Each class updates a small model by `LayerwiseScaling` and, for comparison, by one group a layer whose rate (or weight
decay) is set by hand before each step. Parameters, state and the values that the group shows are compared bit for bit.
Printed is, for each package, the part of lightning_farms/optim/README.md that is about it.
"""

import argparse
import contextlib
import copy
import random
import re
import sys
import warnings
from importlib import metadata

import numpy as np
import torch

from lightning_farms.optim import LayerwiseScaling
from tests.optim.installable import LR, PACKAGES, classes, makers, matrices, model

DECAY = 0.05
FIRST = {"0": 2.0, "1": 0.5}
COURSES = {  # multipliers by step
    "same partition": [FIRST] * 3 + [{"0": 1.5, "1": 0.25}] * 3,
    "merged": [FIRST] * 3 + [{"0": 1.5, "1": 1.5}] * 3,
    "divided later": [{}] * 2 + [FIRST] * 2 + [{"0": 1.5, "1": 0.25, "2": 3.0}] * 2,
    "parts that lie apart": [{"0": 2.0, "2": 2.0}] * 3 + [{"1": 0.5}] * 3,
}


class NotTried(Exception):
    """An optimizer that does not run here by itself."""


def layer_of(net):
    return {p: name[0] for name, p in net.named_parameters() if name[0] != "3"}


def grouped(net):
    return [{"params": list(layer.parameters())} for layer in net]


def one_group(net):
    return [{"params": list(net.parameters())}]


def own_values(optimizer):
    """Give each group its own of the values that all have from the defaults."""
    for group in optimizer.param_groups:
        for name, value in group.items():
            if name != "params" and isinstance(value, (torch.Tensor, list, dict)):
                group[name] = copy.deepcopy(value)


class Run:
    """A model and its optimizer, stepped in one of the ways in which optimizers want to be."""

    def __init__(self, kind, make, way, net, groups):
        self.net, self.way = net, way
        self.optimizer = make(kind, groups(net), net)
        with contextlib.suppress(AttributeError):
            self.optimizer.train()

    def loss(self, number):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(number))
        return self.net(x).square().mean()

    def closure(self, number, create_graph=False):
        def closure():
            with torch.enable_grad():
                self.optimizer.zero_grad()
                loss = self.loss(number)
                loss.backward(create_graph=create_graph)
            return loss

        return closure

    def step(self, number):
        torch.manual_seed(number)
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002 (what optimizers draw from)
        if self.way == "closure":
            self.optimizer.step(self.closure(number))
        elif self.way == "prepared closure":
            self.closure(number)()
            self.optimizer.step(self.closure(number))
        else:
            self.closure(number, create_graph=self.way == "graph")()
            if self.way == "sparse":
                for parameter in self.net.parameters():
                    parameter.grad = parameter.grad.to_sparse()
            self.optimizer.step()


WAYS = ("closure", "gradients", "graph", "prepared closure", "sparse")


def regroup(run):
    """Give each layer a group of its own with a copy of the values that the one group has by now."""
    (whole,) = run.optimizer.param_groups
    values = {name: value for name, value in whole.items() if name != "params"}
    run.optimizer.param_groups[:] = [{**copy.deepcopy(values), **group} for group in grouped(run.net)]


def by_hand(run, key, base, multipliers):
    names = {parameter: name[0] for name, parameter in run.net.named_parameters()}
    for group in run.optimizer.param_groups:
        name = names[group["params"][0]]
        group[key] = base * multipliers.get(name, 1.0)


def comparable(value):
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dtype, value.shape, value.detach().flatten().tolist())
    if isinstance(value, dict):
        return {str(type(key)) if isinstance(key, torch.Tensor) else key: comparable(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [comparable(entry) for entry in value]
    return repr(value) if not callable(value) and not hasattr(value, "__dict__") else None


def outcome(run, key):
    """Parameters, state by parameter and the values that the first group shows, for comparison."""
    state = run.optimizer.state
    values = {name: v for name, v in run.optimizer.param_groups[0].items() if name not in ("params", key)}
    return {
        "parameters": [comparable(p) for p in run.net.parameters()],
        "state": [comparable(dict(state[p])) if p in state else None for p in run.net.parameters()],
        "shown values": comparable(values),
    }


def runnable(kind, package, name):
    """The way of making and stepping that works without us, with one group and with four."""
    reasons = []
    for make in makers(package, name):
        for net in (model, matrices):
            for way in WAYS:
                try:
                    for groups in [one_group]:
                        run = Run(kind, make, way, net(), groups)
                        before = [p.detach().clone() for p in run.net.parameters()]
                        for number in range(7):
                            run.step(number)
                    if all(map(torch.equal, before, run.net.parameters())):
                        raise RuntimeError("does not update the parameters")
                    if not all(p.isfinite().all() for p in run.net.parameters()):
                        raise RuntimeError("diverges")
                except Exception as error:
                    reasons.append(f"{type(error).__name__}: {error}".splitlines()[0])
                else:
                    return make, net, way
    raise NotTried(max(set(reasons), key=reasons.count))


def base(key, number):
    """The value at rest, which a scheduler lowers."""
    return {"lr": LR, "weight_decay": DECAY}[key] * (1 - number / 20)


def compare(kind, make, net, way, course, key):
    """Return what differs after the course, or why the optimizer was refused or found out."""
    ours = Run(kind, make, way, net(), one_group)
    try:
        scaling = LayerwiseScaling(ours.optimizer, layer_of(ours.net), key=key)
    except (TypeError, ValueError) as error:
        return "refused", str(error)
    try:
        hand = Run(kind, make, way, net(), grouped if course[0] else one_group)
        own_values(hand.optimizer)
    except Exception as error:
        return "not tried", f"with a group for each layer: {type(error).__name__}: {error}".splitlines()[0]
    with scaling:
        for number, multipliers in enumerate(course):
            scaling.multipliers = multipliers
            for group in ours.optimizer.param_groups:
                group[key] = base(key, number)
            if multipliers and len(hand.optimizer.param_groups) == 1:
                regroup(hand)
            by_hand(hand, key, base(key, number), multipliers)
            ours.step(number)
            hand.step(number)
            if scaling.fault:
                return "found out", scaling.fault
        if not scaling.proved or scaling.steps < len(course):
            return "not proved", f"{scaling.steps} steps went through the hooks"
    mine, theirs = outcome(ours, key), outcome(hand, key)
    differing = [what for what in mine if mine[what] != theirs[what]]
    if not differing:
        return "equal", ""
    close = all(map(torch.allclose, ours.net.parameters(), hand.net.parameters()))
    return "close" if close else "different", ", ".join(differing)


def row(package, name, kind, key="lr"):
    """Return the verdict on one class, and its reason."""
    try:
        make, net, way = runnable(kind, package, name)
    except NotTried as error:
        return refused_anyway(kind, package, name, key) or ("not tried", str(error))
    for title, course in COURSES.items():
        verdict, reason = compare(kind, make, net, way, course, key)
        if verdict != "equal":
            return verdict, reason if verdict in ("refused", "found out", "not tried") else f"{title}: {reason}"
    return "equal", ""


def refused_anyway(kind, package, name, key):
    """Try what is not run here: it may be refused at the start."""
    for make in makers(package, name):
        net = model()
        try:
            optimizer = make(kind, one_group(net), net)
        except Exception:
            continue
        try:
            LayerwiseScaling(optimizer, layer_of(net), key=key)
        except (TypeError, ValueError) as error:
            return "refused", str(error)
    return None


def shortened(reason):
    """Leave out what stands in the line already, and what has no place in a table."""
    reason = re.sub(r"^Expected argument `optimizer` .*?, but got \w+(, which|, whose| with groups| \()", r"\1", reason)
    reason = reason.replace("whose group 0 has none, but", "its groups have no 'lr', only")
    reason = re.sub(r"^(, | )?(which |\(|with groups that mix layers, and it )?", "", reason)
    return reason.replace("|", "/").rstrip(".")


def section(package):
    """Return what the card says of a package, as lines of Markdown."""
    rows = [(name, *row(package, name, kind)) for name, kind in classes(package)]
    equal = [name for name, verdict, _ in rows if verdict == "equal"]
    decays = {name: row(package, name, kind, "weight_decay") for name, kind in classes(package) if name in equal}
    lines = [f"**{package.partition('.')[0]} {metadata.version(package.partition('.')[0]).partition('+')[0]}**", ""]
    if equal:
        lines += [f"Equal ({len(equal)}): {', '.join(f'`{name}`' for name in sorted(equal))}.", ""]
        lines += [weight_decay(decays), ""]
    others = [
        f"| `{name}` | {verdict} | {shortened(reason)} |"
        for name, verdict, reason in sorted(rows)
        if verdict != "equal"
    ]
    return [*lines, "| class | verdict | why |", "|---|---|---|", *others, ""] if others else lines


def weight_decay(decays):
    """Return the sentence on weight decay in the classes that are equal in rates."""
    without = sorted(name for name, (_, reason) in decays.items() if "have a number as 'weight_decay'" in reason)
    differing = {n: found for n, found in decays.items() if n not in without and found[0] != "equal"}
    if differing:
        return f"Weight decay differs: {differing}."
    having = f"in the {len(decays) - len(without)} that have one" if without else "in all"
    return f"Weight decay by the layer: equal {having}."


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", nargs="*", default=PACKAGES)
    for package in parser.parse_args().packages:
        with contextlib.redirect_stdout(sys.stderr):  # what optimizers print
            lines = section(package)
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main()
