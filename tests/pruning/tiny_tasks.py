"""Task files of local data for lm-evaluation-harness."""

import json
import random

import yaml

from tests.pruning.tiny_text import tiny_text


def questions(count=24):
    """Questions with three answers of one to three words, of which one counts as right."""
    draw = random.Random(0)
    return [
        {
            "question": tiny_text(6, seed=number),
            "choices": [tiny_text(draw.randint(1, 3), seed=100 * answer + number) for answer in (1, 2, 3)],
            "label": draw.randint(0, 2),
        }
        for number in range(count)
    ]


def write_task(folder, name="tiny_choice", **changes):
    """A folder with a task of those questions; what is written into the YAML beside them."""
    folder.mkdir(exist_ok=True)
    data = folder / "questions.jsonl"
    data.write_text("".join(f"{json.dumps(question)}\n" for question in questions()))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**task, **changes}))
    return folder
