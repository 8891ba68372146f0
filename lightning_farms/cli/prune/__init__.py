"""The subcommand `lightning-farms prune`: its options and its work."""

from lightning_farms.cli.prune.command import run

__all__ = ["run"]
