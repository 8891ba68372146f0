"""`lightning-farms evaluate` as a shell user meets it."""

import json

import pytest

from lightning_farms.cli import main
from lightning_farms.pruning import task_scores
from tests.pruning.tiny_tasks import write_task
from tests.pruning.tiny_text import save_tiny, word_tokenizer

pytestmark = pytest.mark.slow  # lm-evaluation-harness is of the extra `slow`


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model in the current folder, and task files beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIGHTNING_FARMS_TRACEBACK", raising=False)
    write_task(tmp_path / "tasks")
    write_task(tmp_path / "tasks", "tiny_writing", output_type="generate_until", doc_to_target="{{question}}")
    return save_tiny(tmp_path / "model")


def fails(capsys, *args):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *args])
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return ended.value.code, " ".join(err.split())


def test_scores_are_printed_and_written(model, tmp_path, capsys):
    options = ["--include_path", "tasks", "--limit", "20", "--shots", "0", "--batch_size", "4"]
    main(["evaluate", "model", "--tasks", "tiny_choice", *options, "--json", "out.json"])
    scores = task_scores(model, word_tokenizer(), ["tiny_choice"], include_path="tasks", limit=20)
    assert capsys.readouterr().out.splitlines() == [
        f"tiny_choice  {score.metric:<8}  {score.value:.4f} ± {score.standard_error:.4f}  (20 questions)"
        for score in scores
    ]
    assert json.loads((tmp_path / "out.json").read_text()) == {"scores": [score._asdict() for score in scores]}


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["model"], 2, "tasks"),
        (["none", "--tasks", "tiny_choice"], 1, "Expected DIR to be an existing folder of a Hugging Face model"),
        (["model", "--tasks", ","], 1, "Expected --tasks to name at least one task, but got none."),
        (["model", "--tasks", "tiny_choice", "--include_path", "none"], 1, "Expected --include_path to be a folder"),
        (["model", "--tasks", "tiny_writing", "--include_path", "tasks"], 1, "'tiny_writing' is not (generate_until)."),
        (["model", "--tasks", "tiny_choice", "--limit", "x"], 2, "limit"),
        (["model", "--tasks", "tiny_choice", "--limit", "0"], 1, "Expected --limit to be an integer of at least 1"),
    ],
)
def test_mistakes(model, capsys, args, code, message):
    ended, err = fails(capsys, *args)
    assert (ended, message in err) == (code, True), err


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--help"])
    assert ended.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(text in out for text in ("DIR --tasks NAME,... [options]", "--include_path", "winogrande,arc_easy"))
