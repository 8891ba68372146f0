"""Which model and data the subcommands train: the neural operator's, or those named by their classes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import yaml
from jsonargparse import Namespace

from lightning_farms.data import CFDDataModule, ImageDataModule, SimulationConfig


def classes_are_named(args: list[str] | None) -> bool:
    """Whether a command line, or a configuration file that it gives, names the class of the model or of the data.

    Args:
        args: The subcommand and its arguments; those of the process when left out.

    Returns:
        True for ``--model CLASS``, ``--data CLASS``, and a ``class_path`` under ``model`` or ``data`` in a file.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--model")
    parser.add_argument("--data")
    try:
        options, _ = parser.parse_known_args(sys.argv[1:] if args is None else args)
    except argparse.ArgumentError:
        return False  # an option without its value: the parser of all options says so
    return bool(options.model or options.data) or any(_names_classes(Path(path)) for path in options.config)


def network_sizes(data: type, settings: Namespace) -> dict[str, int]:
    """Arguments of a network that the data decide.

    Args:
        data: Class of the data module.
        settings: Its arguments.

    Returns:
        {argument: value}; empty for data that are not of this package.
    """
    arguments = settings.as_dict()
    if issubclass(data, CFDDataModule):
        flow = data(**{**arguments, "simulation": SimulationConfig(**arguments["simulation"])})
        return {"img_size": flow.img_size, "in_timesteps": flow.in_timesteps, "out_timesteps": flow.out_timesteps}
    if issubclass(data, ImageDataModule):
        return {"num_classes": data(**arguments).num_classes}
    return {}


def class_of(path: str) -> type:
    """The class with an import path.

    Args:
        path: As in ``class_path``, resolved.

    Returns:
        The class.
    """
    module, _, name = path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def _names_classes(path: Path) -> bool:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False  # the parser of all options says what is wrong
    parts = [config.get(name) for name in ("model", "data")] if isinstance(config, Mapping) else []
    return any(isinstance(part, str) or (isinstance(part, Mapping) and "class_path" in part) for part in parts)
