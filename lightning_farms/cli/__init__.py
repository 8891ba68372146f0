"""The command line: `lightning-farms {analyze,fit,validate,test,predict}`, also as `python -m lightning_farms`."""

from lightning_farms.cli.main import main

__all__ = ["main"]
