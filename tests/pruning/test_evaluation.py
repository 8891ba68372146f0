"""Scores of lm-evaluation-harness on tasks of local data, against log-likelihoods counted here."""

import math
import sys

import pytest
import torch

from lightning_farms.pruning import task_scores
from tests.pruning.tiny_tasks import questions, write_task
from tests.pruning.tiny_text import tiny_llama, word_tokenizer

pytestmark = pytest.mark.slow  # lm-evaluation-harness is of the extra `slow`


@pytest.fixture(scope="module")
def model():
    return tiny_llama(max_position_embeddings=64, initializer_range=0.5)  # what stands before a word matters


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """What is not in a cache is not there, at once."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def log_likelihood(model, question, answer):
    """Of the answer's words after the question's, each by a pass of its own."""
    tokenizer = word_tokenizer()
    ids, asked = tokenizer(f"{question} {answer}")["input_ids"], len(tokenizer(question)["input_ids"])
    with torch.no_grad():
        logits = [model(torch.tensor([ids[:place]])).logits[0, -1].double() for place in range(asked, len(ids))]
    return sum(row.log_softmax(0)[token].item() for row, token in zip(logits, ids[asked:], strict=True))


def right_answers(model, asked, *, by_length):
    right = 0
    for question in asked:
        scores = [
            log_likelihood(model, question["question"], choice) / (len(choice) if by_length else 1)
            for choice in question["choices"]
        ]
        right += scores.index(max(scores)) == question["label"]
    return right / len(asked)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_choices_against_log_likelihoods_counted_here(model, tmp_path, batch_size):
    folder = write_task(tmp_path / "tasks")
    random_state = torch.get_rng_state()
    plain, by_length = task_scores(model, word_tokenizer(), ["tiny_choice"], include_path=folder, batch_size=batch_size)
    assert (plain.task, plain.metric, plain.samples) == ("tiny_choice", "acc", 24)
    assert (by_length.task, by_length.metric) == ("tiny_choice", "acc_norm")
    assert plain.value == pytest.approx(right_answers(model, questions(), by_length=False))
    assert by_length.value == pytest.approx(right_answers(model, questions(), by_length=True))
    assert plain.value != by_length.value
    assert plain.standard_error == pytest.approx(math.sqrt(plain.value * (1 - plain.value) / 23))
    assert torch.equal(torch.get_rng_state(), random_state)


def test_no_keys_and_values_are_kept(model, tmp_path):
    kept = set()
    hook = model.register_forward_hook(lambda module, given, out: kept.update(out.keys()))
    task_scores(model, word_tokenizer(), ["tiny_choice"], include_path=write_task(tmp_path / "tasks"), limit=1)
    hook.remove()
    assert kept == {"logits"}
    assert model.config.use_cache is True


def test_only_the_first_questions(model, tmp_path):
    folder = write_task(tmp_path / "tasks")
    scores = task_scores(model, word_tokenizer(), ["tiny_*"], include_path=folder, limit=5)
    assert [score.samples for score in scores] == [5, 5]
    assert scores[0].value == pytest.approx(right_answers(model, questions()[:5], by_length=False))


def test_an_example_before_each_question(model, tmp_path):
    example = {"question": "w5 w6 w7", "choices": ["w9", "w8 w15"], "label": 1}
    folder = write_task(tmp_path / "tasks", fewshot_config={"sampler": "first_n", "samples": [example]})
    with_example, without = (
        task_scores(model, word_tokenizer(), ["tiny_choice"], include_path=folder, shots=shots)[1].value
        for shots in (1, 0)
    )
    shown = [{**asked, "question": f"w5 w6 w7 w8 w15 {asked['question']}"} for asked in questions()]
    assert with_example == pytest.approx(right_answers(model, shown, by_length=True))
    assert with_example != without


def test_a_text_is_scored_by_words(model, tmp_path):
    folder = write_task(
        tmp_path / "tasks",
        "tiny_text",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{question}}",
        metric_list=[{"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
    )
    (score,) = task_scores(model, word_tokenizer(), ["tiny_text"], include_path=folder)
    total = sum(log_likelihood(model, "<s>", question["question"]) for question in questions())
    assert score.metric == "word_perplexity"
    assert score.value == pytest.approx(math.exp(-total / (24 * 6)), rel=1e-5)


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ([], {}, "`tasks` to name at least one task, but got none"),
        (["tiny_choice"], {"limit": 0}, "`limit` to be an integer of at least 1, but got 0"),
        (["tiny_choice"], {"shots": -1}, "`shots` to be an integer of at least 0, but got -1"),
        (["tiny_choice"], {"batch_size": 0}, "`batch_size` to be an integer of at least 1, but got 0"),
        (["tiny_choice"], {"include_path": "nowhere"}, "`include_path` to be a folder, but got 'nowhere'"),
    ],
)
def test_bad_arguments(model, tmp_path, tasks, options, message):
    with pytest.raises(ValueError, match=message):
        task_scores(model, word_tokenizer(), tasks, **{"include_path": write_task(tmp_path / "tasks"), **options})


@pytest.mark.slow  # the harness looks through its 14,000 tasks
def test_tasks_that_are_not_there(model, tmp_path):
    folder = write_task(tmp_path / "tasks")
    with pytest.raises(ValueError, match=r"but got 'tiny_choise'\. There is 'tiny_choice'"):
        task_scores(model, word_tokenizer(), ["tiny_choise"], include_path=folder)
    with pytest.raises(ValueError, match=r"for piqa it cannot .* take it from the Hugging Face Hub; without a network"):
        task_scores(model, word_tokenizer(), ["piqa"])


def test_data_that_is_not_there(model, tmp_path):
    folder = write_task(tmp_path / "tasks")
    (folder / "questions.jsonl").unlink()
    with pytest.raises(ValueError, match=r"for tiny_choice it cannot .*FileNotFoundError"):
        task_scores(model, word_tokenizer(), ["tiny_choice"], include_path=folder)


def test_tasks_of_writing(model, tmp_path):
    folder = write_task(tmp_path / "tasks", "tiny_writing", output_type="generate_until", doc_to_target="{{question}}")
    with pytest.raises(ValueError, match=r"'tiny_writing' is not \(generate_until\)"):
        task_scores(model, word_tokenizer(), ["tiny_writing"], include_path=folder)


def test_the_package_is_not_installed(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    with pytest.raises(ImportError, match=r'needs the package lm_eval: pip install "lightning-farms\[eval\]"'):
        task_scores(model, word_tokenizer(), ["piqa"])
