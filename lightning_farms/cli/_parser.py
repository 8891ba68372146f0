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
_RULES = {"<class 'int'>": "an integer", "<class 'float'>": "a number"}


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
            rule = _RULES.get(found[2]) or re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", found[2])
            message = f"Expected {self._called(found[1])} to be {rule}, but got {found[3]!r}."
        elif message.startswith(_MISSING):
            missing = message.removeprefix(_MISSING).split(", ")
            message = f"Expected {' and '.join(map(self._called, missing))} to be given."
        super().error(message, ex)

    def _called(self, name: str) -> str:
        """Return an argument's name as in the usage: an option, or a positional argument's metavar."""
        action = next(action for action in self._actions if action.dest == name)
        return action.option_strings[0] if action.option_strings else str(action.metavar)
