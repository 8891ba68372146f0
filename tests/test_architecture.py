"""The house: which room imports which, no circle of files, nothing private across rooms, short ways; read with ast.

Also: heavy packages are imported where they are used, nothing happens at import, no print, no long file.
"""

import ast
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGE = "lightning_farms"
ROOT = Path(find_spec(PACKAGE).origin).parent

# room -> the rooms it may import; the top level (__init__, __main__) may import all of them
ARROWS = {
    "common": set(),
    "functional": set(),
    "metrics": set(),
    "optim": set(),
    "plotting": {"functional"},
    "analysis": {"functional", "common"},
    "balancing": {"analysis", "optim", "functional", "common"},
    "pruning": {"functional", "analysis", "optim", "common"},
    "integrations": {"analysis", "balancing", "common"},
    "loggers": {"analysis", "plotting", "common"},
    "callbacks": {"functional", "analysis", "optim", "balancing", "pruning", "loggers", "plotting", "common"},
    "models": {"common"},
    "data": {"common"},
    "cli": {"functional", "analysis", "pruning", "callbacks", "metrics", "models", "data", "plotting", "common"},
}
# what a single file may import besides
FILE_ARROWS = {
    "analysis/report.py": {"plotting"},  # report.plot()
    "analysis/layer_spectrum.py": {"plotting"},  # report["fc"].plot_xmin_scan()
    "models/operator_module.py": {"metrics"},
    "models/_trivial_errors.py": {"metrics"},
    "callbacks/prediction_writer.py": {"data"},  # writes what the data module reads
    "callbacks/rollout_monitor.py": {"metrics"},
    "callbacks/_rollouts/record.py": {"metrics"},
}
# room -> what it may import from outside, besides the standard library; rooms that are not named: anything
OUTSIDE = {
    "functional": {"torch", "cupy", "scipy", "threadpoolctl"},
    "analysis": {"torch", "pandas", "safetensors", "matplotlib", "bitsandbytes"},
    "optim": {"torch"},
    "balancing": {"torch"},
    "pruning": {"torch", "safetensors", "transformers", "yaml", "accelerate"},
    "plotting": {"torch", "numpy", "matplotlib", "mpl_toolkits"},
    "metrics": {"torch", "torchmetrics"},
}
LAZY = {
    "accelerate",
    "bitsandbytes",
    "cupy",
    "gguf",
    "huggingface_hub",
    "lm_eval",
    "matplotlib",
    "mpl_toolkits",
    "numba",
    "onnx",
    "pandas",
    "pooch",
    "requests",
    "safetensors",
    "scipy",
    "sklearn",
    "tensorboard",
    "threadpoolctl",
    "transformers",
    "wandb",
}
OWN = {  # whoever imports the file has the packages
    "integrations/transformers.py": {"transformers"},
    "functional/_tridiagonal.py": {"numba", "numpy"},
}
MOST_LINES = 500
DEEPEST = 14  # files that import each other in a row, from the command to the last of them


def imported(node, package):
    """Full names of the modules that a statement or a call of import_module imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parent = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*parent, *([node.module] if node.module else [])])
        # `from lightning_farms import models` imports a room, `from lightning_farms import FARMS` the whole package
        private = [f"{base}.{alias.name}" for alias in node.names if alias.name.startswith("_")]
        return [f"{base}.{alias.name}" for alias in node.names] if base == PACKAGE else [base, *private]
    if isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return []


def called(node):
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


def is_guard(node):
    """Whether a statement is `if TYPE_CHECKING:` or `if __name__ == "__main__":`."""
    if not isinstance(node, ast.If):
        return False
    names = {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(node.test)}
    return bool(names & {"TYPE_CHECKING", "__name__"})


def run_at_import(node):
    """Nodes that are executed when the module is imported: not the bodies of functions, nor what is guarded."""
    for child in ast.iter_child_nodes(node):
        if is_guard(child):
            continue
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from run_at_import(child)


def import_violation(name, path):
    room = path.parts[0] if len(path.parts) > 1 else None
    top, _, rest = name.partition(".")
    if room is None:
        return None
    if top == PACKAGE:
        target = rest.partition(".")[0]
        allowed = ARROWS.get(room, set()) | FILE_ARROWS.get(path.as_posix(), set())
        if target != room and any(part.startswith("_") for part in rest.split(".")):
            return f"{name} is private to its room"
        return None if target == room or target in allowed else f"{room} must not import {name}"
    if top in sys.stdlib_module_names or top in OUTSIDE.get(room, {top}) | OWN.get(path.as_posix(), set()):
        return None
    return f"{room} must not import {name}"


def is_lazy(name, path):
    if name.split(".")[0] in OWN.get(path.as_posix(), ()):
        return False
    return name.split(".")[0] in LAZY or name.startswith("torch.utils.tensorboard")


def violations(source, path):
    """What is wrong with a module's source; ``path`` is relative to the package."""
    tree = ast.parse(source)
    package = ".".join([PACKAGE, *path.parts[:-1]])
    found = []
    if len(path.parts) > 1 and path.parts[0] not in ARROWS:
        found.append(f"unknown room {path.parts[0]}")
    for node in ast.walk(tree):
        found += [wrong for name in imported(node, package) if (wrong := import_violation(name, path))]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append(f"print() in line {node.lineno}")
    for node in run_at_import(tree):
        names = imported(node, package)
        found += [f"{name} must be imported where it is used" for name in names if is_lazy(name, path)]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            found.append(f"a call at import in line {node.lineno}")
    if source.count("\n") > MOST_LINES:
        found.append(f"{source.count(chr(10))} lines, more than {MOST_LINES}")
    return found


# ---- the files as a graph --------------------------------------------------------------------------------------------


def module_name(path):
    """Dotted name of a file, ``path`` relative to the package; a package's is that of its folder."""
    parts = [PACKAGE, *path.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def executed(node):
    """All nodes, functions' bodies too, but for what stands under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield child
            yield from executed(child)


def import_graph(sources):
    """{file: files that it imports, anywhere in it}, of {path: source}; submodules are files of their own."""
    names = {module_name(path): path for path in sources}
    graph = {}
    for path, source in sources.items():
        found = set()
        for node in executed(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                found.update(name if name in names else node.module for name in full)
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
        graph[path] = {names[name] for name in found if name in names} - {path}
    return graph


def longest_way(graph):
    """The longest row of files of which each imports the next; of a circle, one round."""
    known = {}

    def way_from(path, on_the_way):
        if path in on_the_way:
            return [path]
        if path not in known:
            known[path] = max(([path, *way_from(n, on_the_way | {path})] for n in graph[path]), key=len, default=[path])
        return known[path]

    return max((way_from(path, frozenset()) for path in graph), key=len)


def circles(graph):
    """Sets of files that reach each other, by Tarjan's algorithm."""
    index, low, stack, found = {}, {}, [], []

    def visit(path):
        index[path] = low[path] = len(index)
        stack.append(path)
        for other in graph[path]:
            if other not in index:
                visit(other)
            if other in stack:
                low[path] = min(low[path], low[other])
        if low[path] == index[path]:
            members = [stack.pop()]
            while members[-1] != path:
                members.append(stack.pop())
            if len(members) > 1:
                found.append(sorted(map(str, members)))

    for path in graph:
        if path not in index:
            visit(path)
    return found


def test_no_files_import_each_other_in_a_circle():
    assert circles(import_graph(SOURCES)) == []


def test_the_longest_way_through_the_house_is_short():
    way = longest_way(import_graph(SOURCES))
    assert len(way) <= DEEPEST, " > ".join(map(str, way))


def graph_of(**sources):
    return import_graph({Path(name.replace("__", "/") + ".py"): source for name, source in sources.items()})


def test_the_graph_sees_imports_in_functions_but_not_those_for_type_checkers():
    graph = graph_of(
        a="def f():\n    from lightning_farms.room import b",
        room__b="if TYPE_CHECKING:\n    from lightning_farms.a import f",
        c="import lightning_farms.a\nimport os",
    )
    a, b, c = Path("a.py"), Path("room/b.py"), Path("c.py")
    assert graph == {a: {b}, b: set(), c: {a}}
    assert longest_way(graph) == [c, a, b]
    assert circles(graph) == []


def test_a_circle_is_found_wherever_it_is():
    graph = graph_of(
        a="from lightning_farms.b import x",
        b="from lightning_farms.c import x",
        c="def f():\n    from lightning_farms.b import x",
        d="from lightning_farms.a import x",
    )
    assert circles(graph) == [["b.py", "c.py"]]
    assert len(longest_way(graph)) == 5


MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
SOURCES = {path: (ROOT / path).read_text(encoding="utf-8") for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_module_keeps_the_rules(path):
    assert violations(SOURCES[path], path) == []


def test_the_rooms_are_there():
    assert {path.parts[0] for path in MODULES if len(path.parts) > 1} >= {"functional", "analysis", "optim", "models"}


WRONG = [
    (
        "functional/a.py",
        "from lightning_farms.analysis import analyze",
        "functional must not import lightning_farms.analysis",
    ),
    ("functional/a.py", "from lightning_farms import analyze", "functional must not import lightning_farms.analyze"),
    (
        "functional/a.py",
        "from ..analysis.engine import analyze",
        "functional must not import lightning_farms.analysis.engine",
    ),
    ("functional/a.py", "from .. import analysis", "functional must not import lightning_farms.analysis"),
    ("functional/a.py", "def f():\n    import lightning", "functional must not import lightning"),
    ("functional/a.py", "import numpy as np", "functional must not import numpy"),
    ("analysis/a.py", "import lightning_farms.callbacks", "analysis must not import lightning_farms.callbacks"),
    ("analysis/a.py", "from lightning.pytorch import Trainer", "analysis must not import lightning.pytorch"),
    ("optim/a.py", "from lightning_farms.functional import esd", "optim must not import lightning_farms.functional"),
    ("plotting/a.py", "from lightning_farms import callbacks", "plotting must not import lightning_farms.callbacks"),
    ("callbacks/a.py", "from lightning_farms.models import DPOT", "callbacks must not import lightning_farms.models"),
    ("models/a.py", "from lightning_farms.metrics import f", "models must not import lightning_farms.metrics"),
    ("models/a.py", "from lightning_farms.data import f", "models must not import lightning_farms.data"),
    ("data/a.py", "importlib.import_module('lightning_farms.models')", "data must not import lightning_farms.models"),
    ("metrics/a.py", "from lightning_farms.analysis import f", "metrics must not import lightning_farms.analysis"),
    ("plotting/a.py", "import matplotlib.pyplot", "matplotlib.pyplot must be imported where it is used"),
    ("callbacks/a.py", "try:\n    import pandas\nexcept ImportError: pass", "pandas must be imported where it is used"),
    (
        "callbacks/a.py",
        "from torch.utils.tensorboard import SummaryWriter",
        "torch.utils.tensorboard must be imported where it is used",
    ),
    ("models/a.py", "class A:\n    import safetensors", "safetensors must be imported where it is used"),
    ("cli/a.py", "from tensorboard.backend import x", "tensorboard.backend must be imported where it is used"),
    ("cli/a.py", "def f():\n    print(1)", "print() in line 2"),
    ("data/a.py", "import logging\nlogging.basicConfig()", "a call at import in line 2"),
    ("extra/a.py", "", "unknown room extra"),
    (
        "callbacks/a.py",
        "from lightning_farms.analysis._engine.plan import Plan",
        "lightning_farms.analysis._engine.plan is private to its room",
    ),
    (
        "cli/a.py",
        "from lightning_farms.data.download import _checksum",
        "lightning_farms.data.download._checksum is private to its room",
    ),
    ("cli/a.py", "\n" * 501, "501 lines, more than 500"),
]
RIGHT = [
    ("analysis/a.py", "from lightning_farms.analysis._engine.plan import Plan, _helper"),
    ("functional/a.py", "import math\nimport torch\nfrom . import b\nfrom lightning_farms.functional.c import d"),
    ("analysis/a.py", "from lightning_farms.functional import esd\ndef f():\n    import pandas"),
    ("analysis/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas"),
    ("callbacks/a.py", "from lightning_farms import analysis\nfrom lightning.pytorch.loggers import TensorBoardLogger"),
    ("models/operator_module.py", "from lightning_farms.metrics import RelativeL2Error"),
    ("plotting/a.py", "def f():\n    from matplotlib.figure import Figure"),
    ("cli/a.py", "from lightning_farms.data import CFDDataModule\nif __name__ == '__main__':\n    main()"),
]


@pytest.mark.parametrize(("path", "source", "message"), WRONG)
def test_checker_finds_what_is_wrong(path, source, message):
    assert message in violations(source, Path(path))


@pytest.mark.parametrize(("path", "source"), RIGHT)
def test_checker_passes_what_is_right(path, source):
    assert violations(source, Path(path)) == []
