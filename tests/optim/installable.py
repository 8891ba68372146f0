"""The optimizer classes that can be installed, and how each is made for a small model."""

import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator

import torch
from torch import nn

PACKAGES = (
    "torch.optim",
    "transformers.optimization",
    "timm.optim",
    "pytorch_optimizer",
    "torch_optimizer",
    "prodigyopt",
    "dadaptation",
    "schedulefree",
    "bitsandbytes.optim",
    "heavyball",
)
LR = 0.01
NO_OPTIMIZERS = ("SOAPBase", "PSGDBase", "LayerWiseDummyOptimizer")  # bases of others, and one that updates nothing


def load(package):
    """Import a package of optimizers; of timm its subpackage alone (timm itself wants torchvision)."""
    if package == "timm.optim" and "timm" not in sys.modules:
        spec = importlib.util.find_spec("timm")
        if spec is None:
            raise ModuleNotFoundError("No module named 'timm'")
        stub = types.ModuleType("timm")
        stub.__path__ = list(spec.submodule_search_locations)
        sys.modules["timm"] = stub
        models = types.ModuleType("timm.models")  # of which the factory, not the optimizers, uses one function
        models.group_parameters = models.group_with_matcher = None
        sys.modules["timm.models"] = models
    module = importlib.import_module(package)
    if package == "heavyball":
        module.utils.compile_mode = None
    return module


def classes(package) -> Iterator[tuple[str, type]]:
    """All public classes of a package that are optimizers, or step one; each once."""
    seen = set()
    for name, kind in vars(load(package)).items():
        if not inspect.isclass(kind) or kind in seen or kind is torch.optim.Optimizer or name.startswith("_"):
            continue
        if kind.__name__ in NO_OPTIMIZERS:
            continue
        if issubclass(kind, torch.optim.Optimizer) or {"step", "zero_grad"} <= set(dir(kind)):
            seen.add(kind)
            yield name, kind


def model():
    """Three square layers with biases and one without a name of its own, in an order in which layers lie together."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))


def matrices():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(4)))


def _wrapping(kind, groups, net):
    return kind(torch.optim.SGD(groups, lr=LR, momentum=0.9))


def _gsam(kind, groups, net):
    package = load("pytorch_optimizer")
    inner = torch.optim.SGD(groups, lr=LR)
    rates = package.ProportionScheduler(package.CosineScheduler(inner, 10, LR), LR, 0.0, 0.1, 0.05)
    optimizer = kind(groups, inner, net, rates)
    step = type(optimizer).step
    optimizer.step = lambda closure: step(optimizer, lambda: (None, closure()))  # it wants outputs beside the loss
    return optimizer


def _sam(kind, groups, net):
    return kind(groups, torch.optim.SGD, lr=LR)


SPECIAL = {
    ("pytorch_optimizer", "WSAM"): lambda kind, groups, net: kind(net, groups, torch.optim.SGD, lr=LR),
    ("pytorch_optimizer", "GSAM"): lambda kind, groups, net: _gsam(kind, groups, net),
    ("pytorch_optimizer", "AdaShift"): lambda kind, groups, net: kind(groups, lr=LR, keep_num=2),
    ("pytorch_optimizer", "BSAM"): lambda kind, groups, net: kind(groups, num_data=16, lr=LR),
    ("pytorch_optimizer", "LOMO"): lambda kind, groups, net: kind(net, lr=LR),
    ("pytorch_optimizer", "AdaLOMO"): lambda kind, groups, net: kind(net, lr=LR),
    ("pytorch_optimizer", "AdamMini"): lambda kind, groups, net: kind(net, lr=LR),
    ("pytorch_optimizer", "Ranger21"): lambda kind, groups, net: kind(groups, num_iterations=100, lr=LR),
    ("pytorch_optimizer", "CPUOffloadOptimizer"): lambda kind, groups, net: kind(groups, torch.optim.SGD, lr=LR),
    ("transformers.optimization", "Adafactor"): lambda kind, groups, net: kind(
        groups, lr=LR, relative_step=False, scale_parameter=False
    ),
    ("heavyball", "SAMWrapper"): lambda kind, groups, net: kind(groups, load("heavyball").AdamW(groups, lr=LR)),
    ("heavyball", "PSGDLRA"): lambda kind, groups, net: kind(list(net.parameters()), lr=LR),
    ("heavyball", "SplitOpt"): lambda kind, groups, net: kind(
        [{"params": list(part.parameters()), "optimizer": load("heavyball").AdamW, "lr": LR} for part in net]
    ),
}
WRAPPERS = (
    "Lookahead",
    "OrthoGrad",
    "TRAC",
    "PCGrad",
    "SafeFP16Optimizer",
    "ScheduleFreeWrapper",
    "Magma",
    "ScheduleFreeWrapperReference",
)
HALVES = ("SAM", "FriendlySAM", "LookSAM")


def makers(package, name):
    """Ways of making an optimizer of this class, to be tried one after the other."""
    if (package, name) in SPECIAL:
        yield SPECIAL[package, name]
    elif name in WRAPPERS:
        yield _wrapping
    elif name in HALVES and package == "pytorch_optimizer":
        yield _sam
    else:
        yield lambda kind, groups, net: kind(groups, lr=LR)
        yield lambda kind, groups, net: kind(groups, lr=LR, momentum=0.9)
        yield lambda kind, groups, net: kind([{**group, "use_muon": True} for group in groups], lr=LR)
        yield lambda kind, groups, net: kind(groups)
