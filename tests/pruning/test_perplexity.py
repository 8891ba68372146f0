"""Perplexity against slow loops over full logits and against transformers' own losses."""

import json
import math
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
import transformers

from lightning_farms.pruning import load_causal_lm, perplexity
from lightning_farms.pruning._losses import next_token_losses
from tests.pruning.reference_models import SPECS, reference_model
from tests.pruning.tiny_text import WORDS, save_tiny, tiny_llama, tiny_text, word_tokenizer

SMALL = {"vocab_size": 63, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def ids():
    return torch.tensor(word_tokenizer()(tiny_text(205))["input_ids"])


def loss_of(model, ids, token, context):
    """Loss of one token after the `context` ids before it, in float64, by a pass of its own."""
    with torch.no_grad():
        logits = model(ids[token - context : token].unsqueeze(0)).logits[0, -1].double()
    return (logits.logsumexp(0) - logits[ids[token]]).item()


def losses_by_transformers(model, windows):
    with torch.no_grad():
        return [model(window.unsqueeze(0), labels=window.unsqueeze(0)).loss.item() for window in windows]


def test_disjoint_windows(model, ids):
    """The first token of each is not scored; the last window is shorter."""
    found = perplexity(model, ids, window=16)
    by_token = [loss_of(model, ids, token, token % 16) for token in range(205) if token % 16]
    assert (found.tokens, found.windows, found.words) == (192, 13, 0)
    assert found.mean_loss == pytest.approx(mean(by_token), rel=1e-6)
    assert found.token == pytest.approx(math.exp(mean(by_token)), rel=1e-6)
    assert math.isnan(found.word)
    expected = losses_by_transformers(model, ids.split(16))
    torch.testing.assert_close(found.window_losses, torch.tensor(expected).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("window", "stride"), [(16, 5), (16, 15), (32, 1), (32, 8)])
def test_sliding_windows_score_every_token_but_the_first_once(model, ids, window, stride):
    """Token by token: each sees what lies before it in the first window that it is in."""
    ids = ids[:70]
    found = perplexity(model, ids, window=window, stride=stride)
    by_token = []
    for token in range(1, 70):
        begin = math.ceil(max(0, token + 1 - window) / stride) * stride
        by_token.append(loss_of(model, ids, token, token - begin))
    assert found.tokens == 69
    assert found.mean_loss == pytest.approx(mean(by_token), rel=1e-6)


def test_the_guide_of_transformers(model, ids):
    """The loop of "Perplexity of fixed-length models" in its documentation."""
    total, count, previous = 0.0, 0, 0
    for begin in range(0, len(ids), 12):
        end = min(begin + 32, len(ids))
        target = ids[begin:end].clone().unsqueeze(0)
        target[:, : -(end - previous)] = -100
        with torch.no_grad():
            loss = model(ids[begin:end].unsqueeze(0), labels=target).loss.item()
        scored = (target != -100).sum().item() - int((target[0, 0] != -100).item())
        total, count, previous = total + loss * scored, count + scored, end
        if end == len(ids):
            break
    found = perplexity(model, ids, window=32, stride=12)
    assert found.tokens == count == 204
    assert found.mean_loss == pytest.approx(total / count, rel=1e-6)


def test_the_papers_setting(model, ids):
    """As its program computes it: windows of the model's length, the rest dropped, mean over windows."""
    found = perplexity(model, ids, setting="paper")
    windows = ids[: 205 // 32 * 32].view(-1, 32)
    sums = [loss * 32 for loss in losses_by_transformers(model, windows)]
    assert (found.windows, found.tokens) == (6, 6 * 31)
    assert found.token == pytest.approx(math.exp(sum(sums) / (6 * 32)), rel=1e-6)
    assert found.standard_error == pytest.approx(stdev(sums) / 32 / math.sqrt(6), rel=1e-4)
    assert perplexity(model, ids, setting="paper", window=50 - 25).windows == 8


@pytest.mark.parametrize("name", SPECS)
def test_figures_of_the_authors_program(name):
    figures = json.loads(Path(__file__).with_name("reference_pruning.json").read_text())
    model, _, test, _ = reference_model(name)
    expected = figures[name]["dense"]["perplexity"]
    assert perplexity(model, test).token == pytest.approx(expected, rel=1e-6)
    assert perplexity(model, test.flatten(), window=48, setting="paper").token == pytest.approx(expected, rel=1e-6)


def test_windows_as_rows(model, ids):
    rows = ids[:120].view(8, 15)
    found = perplexity(model, rows, batch_size=3)
    assert (found.windows, found.tokens) == (8, 112)
    assert found.mean_loss == pytest.approx(mean(losses_by_transformers(model, rows)), rel=1e-6)


def test_standard_error_of_windows_of_unequal_size(model, ids):
    """Near the spread of the mean over bootstrap samples of windows."""
    torch.manual_seed(0)
    found = perplexity(model, ids, window=10)
    counts = torch.tensor([9.0] * 20 + [4.0]).double()
    picks = torch.randint(0, 21, (20_000, 21))
    means = (found.window_losses * counts)[picks].sum(1) / counts[picks].sum(1)
    assert found.standard_error == pytest.approx(means.std().item(), rel=0.06)
    assert math.isnan(perplexity(model, ids, window=32, max_windows=1).standard_error)


@pytest.mark.parametrize("batch_size", [2, 5, 100])
def test_batches_change_nothing(model, ids, batch_size):
    told = []
    one = perplexity(model, ids, window=16, stride=6)
    many = perplexity(
        model, ids, window=16, stride=6, batch_size=batch_size, progress=lambda done, total: told.append((done, total))
    )
    torch.testing.assert_close(many.window_losses, one.window_losses, rtol=1e-5, atol=1e-6)
    assert told[-1] == (one.windows, one.windows)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_only_the_first_windows(model, ids):
    found, whole = perplexity(model, ids, window=16, max_windows=3), perplexity(model, ids[:48], window=16)
    assert found[:7] == pytest.approx(whole[:7], nan_ok=True)


# ---- texts -----------------------------------------------------------------------------------------------------------


def test_texts_are_joined_and_words_counted(model, ids, tmp_path):
    """A beginning that the tokenizer puts before a text is seen, but is no part of a word."""
    texts = [tiny_text(90), tiny_text(47, seed=1)]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    tokenizer = word_tokenizer(beginning=True)
    found = perplexity(model, sorted(tmp_path.glob("*.txt")), tokenizer, window=20)
    by_ids = perplexity(model, torch.tensor(tokenizer("\n\n".join(texts))["input_ids"]), window=20)
    assert found.token == by_ids.token
    assert (found.words, found.tokens) == (137, 138 - 7)
    assert found.word == pytest.approx(found.token)


def test_perplexity_of_words_does_not_hang_on_the_tokenizer(tmp_path):
    """Two tokenizers and models that give every word the same probability: one splits each word in two."""

    class Halves:
        def __call__(self, text, **options):
            return {"input_ids": [id for word in text.split() for id in (0, 3 + WORDS.index(word))]}

    model = tiny_llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    (tmp_path / "a.txt").write_text(tiny_text(64))
    whole = perplexity(model, tmp_path / "a.txt", word_tokenizer())
    halves = perplexity(model, tmp_path / "a.txt", Halves())
    assert (whole.token, halves.token) == pytest.approx((63, 63))
    assert (whole.word, halves.word) == pytest.approx((63, 63**2))


def test_json_lines_are_texts(model, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "w1 w2 w3 w4"}\n{"text": "w5 w6 w7 w8"}\n')
    found = perplexity(model, tmp_path / "a.jsonl", word_tokenizer(), window=8)
    assert found.mean_loss == pytest.approx(losses_by_transformers(model, [torch.arange(4, 12)])[0], rel=1e-6)


# ---- models ----------------------------------------------------------------------------------------------------------

FAMILIES = {
    "Gemma2": {"head_dim": 8, "num_key_value_heads": 1, "intermediate_size": 24, "final_logit_softcapping": 0.5},
    "Cohere": {"num_key_value_heads": 1, "intermediate_size": 24, "logit_scale": 3.0},
    "OPT": {"ffn_dim": 24, "word_embed_proj_dim": 8, "max_position_embeddings": 64, "dropout": 0.5},
    "GPT2": {"resid_pdrop": 0.5},
    "GPTNeoX": {"intermediate_size": 24},
    "Bloom": {},
    "Falcon": {},
    "Mamba": {},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_runs_on_a_part_at_a_time(ids, family):
    """The same losses, and never more logits than said; caps and scales behind the head included."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL, **FAMILIES[family])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    blocks_ran, seen = [], []
    next(module for name, module in model.named_modules() if name.endswith(".1")).register_forward_hook(
        lambda *_: blocks_ran.append(1)
    )
    model.get_output_embeddings().register_forward_hook(lambda module, given, out: seen.append(out.numel()))
    rows = ids[:120].view(4, 30)
    parts = next_token_losses(model, rows, first=10, most_logits=63 * 4 * 3 + 5)
    assert (len(blocks_ran), max(seen)) == (1, 63 * 4 * 3)
    with torch.no_grad():
        logits = model(rows).logits.double()
    expected = torch.nn.functional.cross_entropy(logits[:, 9:-1].transpose(1, 2), rows[:, 10:], reduction="none")
    torch.testing.assert_close(parts.double(), expected, rtol=1e-5, atol=1e-5)
    assert "forward" not in vars(model.get_decoder())


@pytest.mark.parametrize("family", ["Llama", "GraniteMoe"])
def test_no_keys_and_values_are_kept(ids, family):
    """Also of a model that takes no `use_cache`; its configuration is as before."""
    config = getattr(transformers, f"{family}Config")(**SMALL, intermediate_size=24, num_key_value_heads=2)
    model, kept = transformers.AutoModelForCausalLM.from_config(config).eval(), []
    model.register_forward_hook(lambda module, given, out: kept.append({"cache", "past_key_values"} & set(out.keys())))
    next_token_losses(model, ids[:30].unsqueeze(0))
    assert kept == [set()]
    assert model.config.use_cache is True


def test_losses_are_exact_with_many_words():
    """Sums of 60,000 exponentials, against float64."""
    model = tiny_llama(vocabulary=60_000, initializer_range=1.0)
    ids = torch.randint(0, 60_000, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids).logits.double()
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    assert ((next_token_losses(model, ids) - expected).mean() / expected.mean()).abs() < 3e-6


def test_a_model_in_training_is_measured_without_dropout_and_trained_on(ids):
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL, resid_pdrop=0.5)).eval()
    expected = perplexity(model, ids, window=32).token
    model.train()
    assert perplexity(model, ids, window=32).token == expected
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_losses_of_bf16_models_are_float32(ids):
    model = tiny_llama().to(torch.bfloat16)
    found = perplexity(model, ids, window=32)
    with torch.no_grad():
        logits = model(ids[:32].unsqueeze(0)).logits[0, :-1].float()
    expected = torch.nn.functional.cross_entropy(logits, ids[1:32])
    assert found.window_losses[0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_model_with_blocks_on_disk(tmp_path, ids):
    model = save_tiny(tmp_path)
    offloaded, _ = load_causal_lm(tmp_path, offload_folder=tmp_path / "spare")
    expected = perplexity(model, ids, window=32)
    assert perplexity(offloaded, ids, window=32).token == pytest.approx(expected.token, rel=1e-6)


def test_broken_models_have_no_perplexity(ids):
    model = tiny_llama()
    torch.nn.init.constant_(model.model.norm.weight, math.nan)
    assert math.isnan(perplexity(model, ids, window=32).token)
    torch.nn.init.constant_(model.model.norm.weight, 1e5)
    assert perplexity(model, ids, window=32).token == math.inf


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 33}, "`window` to be at most the model's 32 positions, but got 33"),
        ({"window": 1}, "`window` to be an integer of at least 2, but got 1"),
        ({"window": 8, "stride": 9}, "`stride` to be at most the window of 8 tokens, but got 9"),
        ({"stride": 0}, "`stride` to be an integer of at least 1, but got 0"),
        ({"setting": "paper", "stride": 8}, "`stride` to be left out, as windows are disjoint in the paper's setting"),
        ({"setting": "papers"}, "`setting` to be 'paper' or None, but got 'papers'"),
        ({"batch_size": 0}, "`batch_size` to be an integer of at least 1, but got 0"),
        ({"max_windows": 0}, "`max_windows` to be an integer of at least 1, but got 0"),
    ],
)
def test_bad_arguments(model, ids, options, message):
    with pytest.raises(ValueError, match=message):
        perplexity(model, ids, **options)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (torch.arange(31), {}, "at least one window of 32 tokens, but it has 31. Give more text, or lower"),
        (torch.arange(31), {"setting": "paper"}, "at least one window of 32 tokens, but it has 31"),
        (torch.arange(40) + 30, {}, r"to be in \[0, 63\), as the model has them, but they are in \[30, 69\]"),
        (torch.rand(50), {}, r"token ids of shape \(tokens,\) or \(N, T\), but got \(50,\) of torch.float32"),
        (torch.zeros(2, 9).int(), {"window": 8}, "as `text` is windows of 9 tokens, but got 8 and None"),
        (torch.zeros(2, 33).int(), {}, "at most the model's 32 positions, but got 33"),
        ("a.txt", {}, "`tokenizer` to be the model's, as `text` names files, but got None"),
    ],
)
def test_bad_texts(model, text, options, message):
    with pytest.raises(ValueError, match=message):
        perplexity(model, text, **options)


def test_a_text_that_is_too_short(model, tmp_path):
    (tmp_path / "a.txt").write_text(tiny_text(20))
    with pytest.raises(ValueError, match="one window of 32 tokens, but it has 20"):
        perplexity(model, tmp_path / "a.txt", word_tokenizer())
    assert perplexity(model, tmp_path / "a.txt", word_tokenizer(), window=20).tokens == 19
