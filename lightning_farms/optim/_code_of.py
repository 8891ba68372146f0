"""Names that the methods of an object's class mention, found in byte code and source."""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from types import CodeType

from torch.optim import Optimizer

_SET_UP = ("__init__", "__getstate__", "__setstate__", "__repr__", "__str__", "get_lr", "set_lr", "add_param_group")


def methods_code(instance: object) -> dict[str, CodeType]:
    """Return the code of all methods except those for set-up and state, and except torch's own `Optimizer`."""
    found: dict[str, CodeType] = {}
    for kind in type(instance).__mro__:
        if kind in (Optimizer, object):
            continue
        for name, member in vars(kind).items():
            if name not in _SET_UP and "state_dict" not in name and not isinstance(member, property):
                code = getattr(inspect.unwrap(getattr(member, "__func__", member)), "__code__", None)
                if isinstance(code, CodeType):
                    found.setdefault(name, code)
    return found


def mentions(code: CodeType, name: str) -> bool:
    """Whether the code, or a function defined in it, uses an attribute or global of this name."""
    return any(name in part.co_names for part in _with_inner(code))


def holds_text(code: CodeType, text: str) -> bool:
    """Whether the code, or a function defined in it, holds this string as a constant."""
    return any(isinstance(c, str) and c == text for part in _with_inner(code) for c in part.co_consts)


def read_of_first_group(code: CodeType) -> set[str]:
    """Name the values that the code reads from ``param_groups[0]``, directly or through a variable."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, SyntaxError):
        return set()  # its source is not available
    reader = _FirstGroup()
    reader.visit(tree)
    return reader.names


class _FirstGroup(ast.NodeVisitor):
    """Tracks, in the order of the source, which variables hold the first group."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._variables: set[str] = set()

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        self._bind(node.targets, _is_first_group(node.value))

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self._bind([node.target], False)
        for statement in [*node.body, *node.orelse]:
            self.visit(statement)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        mine = _is_first_group(node.value) or (isinstance(node.value, ast.Name) and node.value.id in self._variables)
        if mine and isinstance(node.slice, ast.Constant) and isinstance(node.ctx, ast.Load):
            self.names.add(str(node.slice.value))
        self.generic_visit(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp | ast.ListComp) -> None:
        before = set(self._variables)
        self._bind([part.target for part in node.generators], False)
        self.generic_visit(node)
        self._variables = before

    visit_ListComp = visit_GeneratorExp

    def _bind(self, targets: Sequence[ast.expr], first: bool) -> None:
        parts = (part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))
        names = {part.id for part in parts if isinstance(part.ctx, ast.Store)}
        self._variables = self._variables | names if first else self._variables - names


def _is_first_group(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "param_groups"
        and isinstance(node.slice, ast.Constant)
        and node.slice.value == 0
    )


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)
