"""A run's configuration: a file that is given, looked at before it is read, and what is saved beside the results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from lightning_farms.common.atomic import write_text


class WholeConfig(SaveConfigCallback):
    """SaveConfigCallback that writes whole files or none: a full disk does not cost an earlier run's file."""

    _folder: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder in every process, since that communicates between them, and save in the first."""
        self._folder = trainer.log_dir
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the content that Lightning would write."""
        if self._folder is not None:
            write_text(Path(self._folder) / self.config_filename, self.parser.dump(self.config, skip_none=False))


def what_is_wrong_with(path: Path) -> str:
    """Return a message if a file is no text, or has a key twice, of which YAML takes the last; else an empty text."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        return (
            f"Expected {path} to be a configuration in UTF-8, but its byte {error.start} is of another encoding, or it "
            "is no text. Save it as UTF-8."
        )
    except OSError:
        return ""  # the parser tells of it
    try:
        twice = next(_twice(yaml.compose(text, yaml.SafeLoader), ""), None)
    except yaml.YAMLError:
        return ""  # the parser tells of it
    if twice is None:
        return ""
    key, first, second = twice
    return (
        f"Expected each key of {path} to be there once, but `{key}` is in line {first} and again in line {second}. "
        "The first would be without effect: join them, or remove one."
    )


def _twice(node: yaml.Node | None, path: str) -> Iterator[tuple[str, int, int]]:
    """Yield keys that a mapping has twice, with the lines of both."""
    if isinstance(node, yaml.SequenceNode):
        for index, each in enumerate(node.value):
            yield from _twice(each, f"{path}[{index}]")
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = f"{path}.{key.value}".lstrip("."), key.start_mark.line + 1
        if name in lines and key.tag != "tag:yaml.org,2002:merge":
            yield name, lines[name], line
        lines[name] = line
        yield from _twice(value, name)
