"""The entry point, which calls a subcommand. A subcommand's own modules are imported only when it runs."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from lightning_farms.cli._shell import package_version, writing_to_stdout

_DESCRIPTION = """Spectral analysis of every weight matrix of a network (FARMS): of a checkpoint, or during training,
with learning rates per layer that follow from it."""
_INTERRUPTED = 130  # 128 plus the number of the signal, as in shells
_SUBCOMMANDS = {
    "analyze": "Analyse the weights in a checkpoint file; no model class is needed.",
    "fit": "Train a neural operator on 2D compressible flow, or a model of another class.",
    "validate": "Evaluate a trained model on the validation part of the data.",
    "test": "Evaluate a trained model on the test part of the data.",
    "predict": "Predict the flows of the data with a trained model (an operator is rolled out).",
    "download": "Download an official PDEBench file of 2D compressible flow.",
    "check": "Look through files of flows for faults that would spoil a training.",
    "simulate": "Simulate random 2D compressible flows into a file of PDEBench's format.",
    "convert": "Convert a DPOT checkpoint to safetensors, or to the released format.",
    "prune": "Prune a language model, each layer or block by a ratio of its own.",
    "perplexity": "Measure how well a language model predicts a text.",
    "evaluate": "Score a language model on tasks of lm-evaluation-harness.",
}
# each is a module with a function `run`; the others are LightningCLI's
_OWN = ("analyze", "download", "check", "simulate", "convert", "prune", "perplexity", "evaluate")


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Errors caused by the user's input end with one message and exit status 1 (2 for unknown or malformed arguments, 130
    when interrupted, 1 in Lightning's own loops, 141 if the reader of stdout is gone). Set the environment variable
    LIGHTNING_FARMS_TRACEBACK to 1 to see where an error was raised.

    Args:
        args: Arguments; by default those of the process.

    Raises:
        SystemExit: With a status other than 0 after an error.
    """
    if sys.stdout is None:  # else the next file that is opened takes its place and gets what is printed
        sys.stderr.write(
            "lightning-farms: error: Expected stdout to be open, but it is closed. To discard the output, use "
            ">/dev/null.\n"
        )
        raise SystemExit(1)
    arguments = sys.argv[1:] if args is None else args
    if not arguments or arguments[0] in ("-h", "--help", "--version") or not arguments[0].startswith("-"):
        _parser().parse_args(arguments[:1])
    try:
        with writing_to_stdout():
            if arguments[0] in _OWN:
                import_module(f"lightning_farms.cli.{arguments[0]}").run(arguments[1:])
            else:
                import_module("lightning_farms.cli.train").train(args)
    except KeyboardInterrupt:
        sys.stderr.write("\nlightning-farms: interrupted\n")
        eval("0")  # else `python -m` ends as if it was uncaught, if a string was being executed (as imports do)
        raise SystemExit(_INTERRUPTED) from None


def _parser() -> argparse.ArgumentParser:
    """Build a parser that only knows the subcommands' names."""
    parser = argparse.ArgumentParser(
        prog="lightning-farms",
        description=_DESCRIPTION,
        epilog="`lightning-farms SUBCOMMAND --help` explains a subcommand's options.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {package_version()}")
    subcommands = parser.add_subparsers(required=True, metavar="SUBCOMMAND", title="subcommands")
    for name, help_text in _SUBCOMMANDS.items():
        subcommands.add_parser(name, help=help_text, add_help=False)
    return parser
