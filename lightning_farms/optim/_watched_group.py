"""Groups that record whether anything was written into them, and which of their values are read."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any


def _writing(method: Callable[..., Any]) -> Any:  # noqa: ANN401
    @wraps(method)
    def noted(self: "StandIn", *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        self.written = True
        return method(self, *args, **kwargs)

    return noted


class StandIn(dict[str, Any]):
    """A group that stands in for one of the user's; it behaves like a plain dict."""

    __slots__ = ("read", "written")

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()
        self.written = False  # set by its own methods; calls like ``dict.update(group, ...)`` are not seen

    __setitem__ = _writing(dict.__setitem__)
    __delitem__ = _writing(dict.__delitem__)
    __ior__ = _writing(dict.__ior__)
    update = _writing(dict.update)
    setdefault = _writing(dict.setdefault)
    pop = _writing(dict.pop)
    popitem = _writing(dict.popitem)
    clear = _writing(dict.clear)

    def watch(self, watched: bool) -> None:
        """Start or stop recording what is read."""
        self.__class__ = _Watched if watched else StandIn

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return dict, (dict(self),)  # copies and pickles are plain


class _Watched(StandIn):
    __slots__ = ()

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        self.read.add(name)
        return dict.__getitem__(self, name)

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        self.read.add(name)
        return dict.get(self, name, default)

    def setdefault(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        self.read.add(name)
        return StandIn.setdefault(self, name, default)

    def pop(self, name: str, *default: Any) -> Any:  # noqa: ANN401
        self.read.add(name)
        return StandIn.pop(self, name, *default)

    def __iter__(self) -> Iterator[str]:  # `dict(group)` and `f(**group)` call it too, since it is not dict's own
        return dict.__iter__(self)

    def items(self) -> Any:  # noqa: ANN401
        self.read.update(dict.keys(self))
        return dict.items(self)

    def values(self) -> Any:  # noqa: ANN401
        self.read.update(dict.keys(self))
        return dict.values(self)

    def copy(self) -> dict[str, Any]:
        self.read.update(dict.keys(self))
        return dict(dict.items(self))
