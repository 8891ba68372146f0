"""The parser of the subcommands' options, whose messages are in the words of the package's other messages."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from jsonargparse import ArgumentParser

from lightning_farms.cli._shell import with_options

T = TypeVar("T")

_WRONG_TYPE = re.compile(r'Parser key "(\w+)"(?: element \d+)?:\s+Expected a (.+)\. Got value: (.*)', re.DOTALL)
_MISSING = "the following arguments are required: "
_TYPE = re.compile(r"(?:\ba )?<class '(\w+)'>")
_CHOICE = re.compile(r"(?:\ba )?typing\.Literal\[(.*?)\]")
_WORDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
}


class OptionParser(ArgumentParser):
    """A parser that names options as they are given on the command line, and types in words."""

    def checked(self, args: list[str], options: Callable[[dict[str, Any]], T], **positional: str) -> T:
        """Parse arguments and make options of them; what is wrong with their values ends with exit status 2 too.

        `positional` has the command line's names of arguments that are not options there, see `with_options`.
        """
        given = self.parse_args(args).as_dict()
        try:
            return options(given)
        except (ValueError, TypeError) as error:
            self.error(with_options(str(error), **positional))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with exit status 2 and the message."""
        if found := _WRONG_TYPE.fullmatch(message):
            message = f"Expected {self._called(found[1])} to be {types_in_words(found[2])}, but got {found[3]!r}."
        elif message.startswith(_MISSING):
            missing = message.removeprefix(_MISSING).split(", ")
            message = f"Expected {' and '.join(map(self._called, missing))} to be given."
        super().error(message, ex)

    def _called(self, name: str) -> str:
        """Return an argument's name as in the usage: an option, or a positional argument's metavar."""
        action = next(action for action in self._actions if action.dest == name)
        return action.option_strings[0] if action.option_strings else str(action.metavar)


def types_in_words(message: str) -> str:
    """Put words in place of the names of Python's types in a parser's message.

    Example:
        >>> types_in_words("Expected a <class 'int'>. Got value: x")
        'Expected an integer. Got value: x'
    """
    return _CHOICE.sub(r"one of \1", _TYPE.sub(lambda found: _WORDS.get(found[1], found[0]), message))
