"""The classes of model and data that the subcommands train: the neural operator's, or others given by name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Container, Mapping
from importlib import import_module
from pathlib import Path

import yaml
from jsonargparse import Namespace

from lightning_farms.data.cfd_data_module import CFDDataModule
from lightning_farms.data.image_data_module import ImageDataModule
from lightning_farms.data.simulation.flows import SimulationConfig

_NAMES = ("model", "data")


def classes_are_named(args: list[str] | None) -> bool:
    """Whether a command line, or a configuration file that it gives, names the class of the model or of the data."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    for name in _NAMES:
        parser.add_argument(f"--{name}", f"--{name}.class_path", f"--{name}.help", dest=name)
    try:
        options, _ = parser.parse_known_args(sys.argv[1:] if args is None else args)
    except argparse.ArgumentError:
        return False  # an option without its value, which the full parser reports
    parts = [getattr(options, name) for name in _NAMES]
    configs = [config for config in map(_read, options.config) if isinstance(config, Mapping)]
    parts += [config.get(name) for config in configs for name in _NAMES]
    return any(map(_names_a_class, parts))


def network_sizes(data: type, settings: Namespace, wanted: Container[str]) -> dict[str, int | tuple[int, int]]:
    """Return the network's arguments that follow from the data; `img_size` only if it is wanted."""
    arguments = settings.as_dict()
    if issubclass(data, CFDDataModule):
        flow = data(**{**arguments, "simulation": SimulationConfig(**arguments["simulation"])})
        sizes: dict[str, int | tuple[int, int]] = {
            "in_timesteps": flow.in_timesteps,
            "out_timesteps": flow.out_timesteps,
            "in_channels": flow.n_channels,
            "out_channels": flow.n_channels,
        }
        if "img_size" in wanted:
            sizes["img_size"] = flow.img_size
        return sizes
    if issubclass(data, ImageDataModule):
        return {"num_classes": data(**arguments).num_classes}
    return {}


def class_of(path: str) -> type:
    """Import a class by its path."""
    module, _, name = path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def _names_a_class(part: object) -> bool:
    """Whether a value given for the model or the data names a class, directly or in a file that it names."""
    if isinstance(part, str) and Path(part).is_file():
        part = _read(part)
    return isinstance(part, str) or (isinstance(part, Mapping) and "class_path" in part)


def _read(path: str) -> object:
    """Return a YAML file's content; None if it cannot be read, which the full parser reports."""
    try:
        content: object = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return content
