"""Reader of pickles as mere data: no name in them is looked up, and nothing that they ask for is called."""

from __future__ import annotations

import io
import pickletools
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

MOST_BYTES = 2**27
"""Longest pickle that is read; that of a checkpoint holds names and shapes, while its numbers are stored separately."""

MOST_OPCODES = 3 * 2**20
"""Largest number of steps in a pickle: each makes 64 bytes or so, and a tensor takes about 30 steps."""


class PickleError(ValueError):
    """Raised for a pickle that is damaged, too large, or of unknown kind."""


class Name(NamedTuple):
    """Name of a function or class in a pickle, which is not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def shown(value: object) -> str:
    """Describe a value in a few words; the full text of nested containers could be endless."""
    known = isinstance(value, (str, Name)) or (isinstance(value, int) and abs(value) < _LARGE)
    return str(value)[:_SHOWN] if known else f"a {type(value).__name__}"


def plain_key(key: object) -> object:
    """Convert a key to a safe dictionary key: a plain value stays, a tuple becomes a text, all else a stand-in.

    Nested tuples can take forever to hash, and large integers can all have the same hash.
    """
    if isinstance(key, tuple) and not isinstance(key, Name):
        return f"({', '.join(map(shown, key))})" if len(key) <= _LONGEST_TUPLE else StandIn("a key that is no text")
    plain = key is None or isinstance(key, (str, bytes, bool, float, Name, StandIn))
    plain = plain or (isinstance(key, int) and abs(key) < _LARGE)
    return key if plain else StandIn("a key that is no text")


class StandIn:
    """Stands for an object of any class, with the name and the arguments, state and entries from the pickle."""

    __slots__ = ("arguments", "entries", "name", "state")

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.arguments = arguments
        self.state: object = None
        self.entries: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<{self.name}, not read>"


Build = Callable[[Name, tuple[Any, ...]], object]
"""Makes the result of a call that a pickle asks for; a StandIn for everything unknown."""

_LARGE = 2**60  # integers below have distinct hashes
_SHOWN = 80  # characters
_LONGEST_TUPLE = 16
_TEXT_OF_A_STEP = 64  # bytes
_STEPS_OF_A_SET = 3  # a set takes 216 bytes
_MARK = object()
_VALUES = frozenset(
    [
        "FLOAT",
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "BINFLOAT",
    ]
)
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(source: bytes | BinaryIO, build: Build, persistent: Callable[[object], object]) -> object:
    """Read one pickle, up to its end.

    Args:
        source: the pickle, or a file at whose position it starts.
        build: makes an object from a name and arguments; it alone decides what exists.
        persistent: returns the object for an identifier that the writer put in its place.

    Raises:
        PickleError: the pickle is damaged or too large.
    """
    stream = _Bounded(io.BytesIO(source) if isinstance(source, bytes) else source)
    machine = _Machine(build, persistent)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(cast("BinaryIO", stream))):
            if count > MOST_OPCODES:
                raise PickleError(f"its pickle has more than {MOST_OPCODES} steps")
            machine.step(opcode.name, argument)
        return machine.stack[-1]
    except PickleError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise PickleError(f"its pickle cannot be read ({type(error).__name__})") from error


class _Bounded:
    """A file from which no more bytes are read than the longest pickle has."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = MOST_BYTES

    def read(self, size: int = -1) -> bytes:
        return self._counted(self._file.read(self._left + 1 if size < 0 else min(size, self._left + 1)))

    def readline(self) -> bytes:
        return self._counted(self._file.readline(self._left + 1))

    def tell(self) -> int:
        return self._file.tell()

    def _counted(self, content: bytes) -> bytes:
        self._left -= len(content)
        if self._left < 0:
            raise PickleError(f"its pickle is longer than {MOST_BYTES} bytes")
        return content


class _Machine:
    """Executes the steps of a pickle, with its stack and memo."""

    def __init__(self, build: Build, persistent: Callable[[object], object]) -> None:
        self.stack: list[Any] = []
        self._steps = 0
        self._memo: dict[int, Any] = {}
        self._build = build
        self._persistent = persistent

    def step(self, name: str, argument: Any) -> None:  # noqa: ANN401
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            self.stack[-_TUPLES[name] :] = [tuple(self.stack[-_TUPLES[name] :])]
        else:
            _STEPS[name](self, argument)

    def charge(self, steps: int) -> None:
        """Count copied entries, each of which costs one step."""
        self._steps += steps
        if self._steps > MOST_OPCODES:
            raise PickleError(f"its pickle copies more than {MOST_OPCODES} entries")

    def charge_for(self, values: Sequence[Any]) -> None:
        self.charge(len(values))
        for value in values:
            if isinstance(value, (list, tuple, dict, set, frozenset)):
                self.charge(len(value))
            elif isinstance(value, (str, bytes, bytearray)):
                self.charge(len(value) // _TEXT_OF_A_STEP)

    def until_mark(self) -> list[Any]:
        start = len(self.stack) - 1
        while self.stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise PickleError("its pickle has no mark where one is needed")
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def pop(self) -> Any:  # noqa: ANN401
        return self.stack.pop()

    def get(self, key: Any) -> None:  # noqa: ANN401
        self.stack.append(self._memo[int(key)])

    def put(self, key: Any) -> None:  # noqa: ANN401
        self._memo[int(key)] = self.stack[-1]

    def memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def make(self, called: object, arguments: Sequence[Any]) -> None:
        self.charge_for(arguments)
        made = self._build(called, tuple(arguments)) if isinstance(called, Name) else StandIn(shown(called))
        self.stack.append(made)

    def named(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Name(shown(module), shown(name)))

    def stack_named(self, _: object) -> None:
        name, module = self.pop(), self.pop()
        self.stack.append(Name(shown(module), shown(name)))

    def reduce(self, _: object) -> None:
        arguments = self.pop()
        self.make(self.pop(), arguments)

    def with_keywords(self, _: object) -> None:
        self.pop()
        self.reduce(None)

    def instance(self, argument: str) -> None:
        items = self.until_mark()
        self.named(argument)
        self.make(self.pop(), items)

    def from_items(self, _: object) -> None:
        called, *arguments = self.until_mark()
        self.make(called, arguments)

    def state(self, _: object) -> None:
        state = self.pop()
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].state = state
        elif isinstance(self.stack[-1], Namespace) and isinstance(state, dict):
            self.charge(len(state))
            vars(self.stack[-1]).update((str(name), value) for name, value in state.items())

    def empty_set(self, _: object) -> None:
        self.charge(_STEPS_OF_A_SET)
        self.stack.append(set())

    def append(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def add(self, _: object) -> None:
        items = self.until_mark()
        if isinstance(self.stack[-1], set):
            self.stack[-1].update(map(plain_key, items))

    def set_items(self, items: list[Any]) -> None:
        holder = self.stack[-1]
        entries = holder.entries if isinstance(holder, StandIn) else holder
        if isinstance(entries, dict):
            entries.update(zip(map(plain_key, items[::2]), items[1::2], strict=True))

    def set_item(self, _: object) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def dictionary(self, _: object) -> None:
        items = self.until_mark()
        self.stack.append(dict(zip(map(plain_key, items[::2]), items[1::2], strict=True)))

    def extension(self, code: object) -> None:
        self.stack.append(Name("copyreg", f"extension {code}"))

    def persist(self, identifier: object) -> None:
        self.stack.append(self._persistent(identifier))


_STEPS: dict[str, Callable[[_Machine, Any], object]] = {
    "EMPTY_SET": _Machine.empty_set,
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.until_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.until_mark())),
    "LIST": lambda machine, _: machine.stack.append(machine.until_mark()),
    "FROZENSET": lambda machine, _: machine.stack.append(frozenset(map(plain_key, machine.until_mark()))),
    "DICT": _Machine.dictionary,
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.until_mark()),
    "ADDITEMS": _Machine.add,
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.until_mark()),
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.stack_named,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.with_keywords,
    "INST": _Machine.instance,
    "OBJ": _Machine.from_items,
    "BUILD": _Machine.state,
    "EXT1": _Machine.extension,
    "EXT2": _Machine.extension,
    "EXT4": _Machine.extension,
    "PERSID": _Machine.persist,
    "BINPERSID": lambda machine, _: machine.persist(machine.pop()),
}
