"""The subcommands `lightning-farms fit`, `validate`, `test` and `predict`."""

from lightning_farms.cli.train.command import train

__all__ = ["train"]
