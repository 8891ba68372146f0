"""Evaluation of language models on tasks for which they were not trained, by lm-evaluation-harness."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from lightning_farms.common.arguments import check_integers
from lightning_farms.common.extras import import_extra
from lightning_farms.pruning._forward import without_cache
from lightning_farms.pruning.text import Tokenizer

_BY_LIKELIHOOD = ("loglikelihood", "loglikelihood_rolling", "multiple_choice")
_SEED = 1234  # the harness's own seed for drawing examples
_Harness: TypeAlias = Any  # lm_eval has no types: its TaskManager, its tasks
_Model: TypeAlias = Any  # transformers.PreTrainedModel


class TaskScore(NamedTuple):
    """One metric of one task."""

    task: str
    metric: str
    """Name of the metric, such as `acc`, or `acc_norm`, which chooses by log-likelihood per byte of an answer."""
    value: float
    standard_error: float
    """Standard error of the value; NaN if the harness has none."""
    samples: int
    """Number of questions asked; 0 for a group of tasks, for which the harness does not say."""


def task_scores(
    model: _Model,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    include_path: str | os.PathLike[str] | None = None,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 1,
) -> list[TaskScore]:
    """Score a language model on tasks of lm-evaluation-harness that are decided by log-likelihoods.

    The published tables use `["winogrande", "arc_easy", "arc_challenge", "boolq", "hellaswag", "openbookqa", "rte"]`,
    with no examples in the question. The harness gets the data of its own tasks from the Hugging Face Hub; a task with
    local data is a YAML file in `include_path`, and needs no network.

    Args:
        model: a causal language model of transformers, on any device; it is not moved.
        tokenizer: the model's tokenizer, of transformers.
        tasks: names of tasks or groups, or patterns such as `"mmlu_*"`.
        include_path: a folder of further task files, which are searched first. Functions that they name are run.
        shots: number of examples before each question; None: as the task specifies, mostly 0.
        limit: ask only this many first questions of each task; None: all.
        batch_size: number of questions at a time.

    Returns:
        The metrics of all tasks, followed by those of groups.

    Raises:
        ValueError: if a task does not exist, requires generated text, or its data cannot be obtained.
        ImportError: if lm-evaluation-harness is not installed: extra `eval`.

    Example:
        >>> model, tokenizer = load_causal_lm("SmolLM2-135M")  # doctest: +SKIP
        >>> task_scores(model, tokenizer, ["piqa"], limit=100)  # doctest: +SKIP

    Reference:
        Hu et al., Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias (2025), Table 2.
    """
    check_integers(1, limit=1 if limit is None else limit, batch_size=batch_size)
    check_integers(0, shots=0 if shots is None else shots)
    harness = import_extra("lm_eval.evaluator", extra="eval", what="Evaluating on tasks")
    huggingface = import_extra("lm_eval.models.huggingface", extra="eval", what="Evaluating on tasks")
    with _quiet():
        found = _loaded(list(tasks), include_path)
        for task in found["tasks"].values():
            _check_and_set(task, shots)
        wrapped = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        with without_cache(model):
            results = harness.evaluate(lm=wrapped, task_dict=found, limit=limit, log_samples=False)
    return [*_scores(results["results"], results["n-samples"])]


@contextmanager
def _quiet() -> Iterator[None]:
    """Limit the harness's log to errors temporarily."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _loaded(tasks: list[str], include_path: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Load the tasks with their data, in the harness's form."""
    manager = _manager(tasks, include_path)
    names = [name for task in tasks for name in manager.match_tasks([task])]
    try:
        loaded: dict[str, Any] = manager.load(list(dict.fromkeys(names)))
    except Exception as error:  # from datasets, the network, or a task file
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"Expected argument `tasks` to name tasks whose data can be had, but for {', '.join(tasks)} it cannot "
            f"({type(error).__name__}: {reason}). The harness's own tasks take it from the Hugging Face Hub; without a "
            "network, give task files of local data by argument `include_path`."
        ) from error
    return loaded


def _manager(tasks: list[str], include_path: str | os.PathLike[str] | None) -> _Harness:
    """An index of tasks, of the folder alone if it has them all, because the harness has 14,000 of its own."""
    module = import_extra("lm_eval.tasks", extra="eval", what="Evaluating on tasks")
    if not tasks:
        raise ValueError("Expected argument `tasks` to name at least one task, but got none.")
    if include_path is not None:
        if not Path(include_path).is_dir():
            raise ValueError(f"Expected argument `include_path` to be a folder, but got {os.fspath(include_path)!r}.")
        own = module.TaskManager(include_path=os.fspath(include_path), include_defaults=False)
        if all(own.match_tasks([task]) for task in tasks):
            return own
    manager = module.TaskManager(include_path=None if include_path is None else os.fspath(include_path))
    for task in tasks:
        if not manager.match_tasks([task]):
            near = ", ".join(repr(name) for name in get_close_matches(task, manager.all_tasks, n=3))
            raise ValueError(
                f"Expected argument `tasks` to name tasks of lm-evaluation-harness, but got {task!r}."
                + (f" There is {near}." if near else "")
            )
    return manager


def _check_and_set(task: _Harness, shots: int | None) -> None:
    kind = task.get_config("output_type")
    if kind not in _BY_LIKELIHOOD:
        raise ValueError(
            f"Expected argument `tasks` to name tasks that are decided by log-likelihoods, but {task.task_name!r} is "
            f"not ({kind})."
        )
    if shots is not None or task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=_SEED)


def _scores(results: Mapping[str, Mapping[str, Any]], counts: Mapping[str, Mapping[str, int]]) -> Iterator[TaskScore]:
    """Collect the metrics, which the harness calls `acc,none` and `acc_stderr,none`, by the filter of answers."""
    for task, found in results.items():
        for name, value in found.items():
            metric, comma, filtered = name.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = found.get(f"{metric}_stderr,{filtered}")
            yield TaskScore(
                task,
                metric if filtered == "none" else f"{metric} ({filtered})",
                float(value),
                float(error) if isinstance(error, int | float) else math.nan,
                int(counts.get(task, {}).get("effective", 0)),
            )
