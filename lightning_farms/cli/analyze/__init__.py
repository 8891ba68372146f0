"""The subcommand `lightning-farms analyze`."""

from lightning_farms.cli.analyze.command import run

__all__ = ["run"]
