"""`lightning-farms prune`: its options, and what it does."""

from lightning_farms.cli.prune.command import run

__all__ = ["run"]
