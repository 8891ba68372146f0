"""`lightning-farms evaluate DIR --tasks NAME,...`: score a language model on lm-evaluation-harness tasks."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from lightning_farms.cli._language_model import USER_MISTAKES, ModelOptions, add_model_options, write_json
from lightning_farms.cli._parser import OptionParser
from lightning_farms.cli._shell import failing_on
from lightning_farms.pruning import TaskScore, task_scores

_DESCRIPTION = """Score a language model on tasks of lm-evaluation-harness that are decided by log-likelihoods, such as
the paper's: winogrande,arc_easy,arc_challenge,boolq,hellaswag,openbookqa,rte. The model is read from DIR, where no code
is run; the harness gets the data of its own tasks from the Hugging Face Hub. A task of your own data is a YAML file in
a folder that --include_path names, and needs no network; a path to data in it counts from where the command is run.
The scores go to stdout, everything else to stderr. Exit status: 0 done; 1 a task cannot be run; 2 wrong arguments; 130
interrupted."""


@dataclass(frozen=True)
class EvaluateOptions(ModelOptions):
    """The options of `lightning-farms evaluate`."""

    tasks: str
    include_path: str | None
    shots: int | None
    limit: int | None


def run(args: list[str]) -> None:
    """Run `lightning-farms evaluate`."""
    options = _parse(args)
    with failing_on(*USER_MISTAKES, folder="DIR"):
        scores = _evaluate(options)
        sys.stdout.write(_table(scores))
        if options.json is not None:
            write_json({"scores": [score._asdict() for score in scores]}, options.json)


def _parse(args: list[str]) -> EvaluateOptions:
    parser = OptionParser(
        prog="lightning-farms evaluate", description=_DESCRIPTION, usage="%(prog)s DIR --tasks NAME,... [options]"
    )
    add_model_options(parser)
    parser.add_argument(
        "--tasks",
        type=str,
        required=True,
        metavar="NAME,...",
        help="tasks or groups of the harness, separated by commas; a * in a name stands for any text",
    )
    parser.add_argument(
        "--include_path",
        type=str,
        default=None,
        metavar="FOLDER",
        help="folder of further task files, which come before the harness's own; functions that they name are run",
    )
    parser.add_argument(
        "--shots",
        type=int,
        default=None,
        metavar="N",
        help="number of examples before each question; by default as the task says",
    )
    parser.add_argument(
        "--limit", type=int, default=None, metavar="N", help="ask only the first N questions of each task"
    )
    return EvaluateOptions(**parser.parse_args(args).as_dict())


def _evaluate(options: EvaluateOptions) -> list[TaskScore]:
    model, tokenizer = options.load()
    return task_scores(
        model,
        tokenizer,
        [name.strip() for name in options.tasks.split(",") if name.strip()],
        include_path=options.include_path,
        shots=options.shots,
        limit=options.limit,
        batch_size=options.batch_size,
    )


def _table(scores: list[TaskScore]) -> str:
    width = max(len(score.task) for score in scores)
    metrics = max(len(score.metric) for score in scores)
    return "".join(
        f"{score.task:<{width}}  {score.metric:<{metrics}}  {score.value:.4f}{_spread(score)}"
        + (f"  ({score.samples:,} questions)\n" if score.samples else "\n")
        for score in scores
    )


def _spread(score: TaskScore) -> str:
    return "" if math.isnan(score.standard_error) else f" ± {score.standard_error:.4f}"
