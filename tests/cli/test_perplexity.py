"""`lightning-farms perplexity` as a shell user meets it."""

import json
import math

import pytest
import torch

from lightning_farms.cli import main
from lightning_farms.pruning import perplexity
from tests.pruning.tiny_text import save_tiny, tiny_llama, tiny_text, word_tokenizer


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model and a text in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIGHTNING_FARMS_TRACEBACK", raising=False)
    (tmp_path / "test.txt").write_text(tiny_text(150))
    (tmp_path / "more.txt").write_text(tiny_text(40, seed=1))
    return save_tiny(tmp_path / "model")


def ids_of(text):
    return torch.tensor(word_tokenizer()(text)["input_ids"])


def fails(capsys, *args):
    with pytest.raises(SystemExit) as ended:
        main(["perplexity", *args])
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return ended.value.code, err


def test_the_result_is_printed_and_written(model, capsys):
    main(["perplexity", "model", "--text", "test.txt", "more.txt", "--setting", "paper", "--json", "new/out.json"])
    out = capsys.readouterr().out
    expected = perplexity(model, ids_of(f"{tiny_text(150)} {tiny_text(40, seed=1)}"), setting="paper")
    error = expected.token * expected.standard_error
    assert out.splitlines() == [
        f"perplexity      {expected.token:.6g} ± {error:.2g}  (155 tokens in 5 windows)",
        f"word perplexity {expected.token:.6g}  (190 words in the text)",
    ]
    with open("new/out.json", encoding="utf-8") as file:
        written = json.load(file)
    assert written.pop("window_losses") == pytest.approx(expected.window_losses.tolist())
    expected_values = expected._asdict()
    del expected_values["window_losses"]
    assert written == pytest.approx(expected_values | {"word": expected.token, "words": 190})


def test_windows_are_as_asked(model, capsys):
    options = ["--window", "20", "--stride", "8", "--max_windows", "6", "--batch_size", "3", "--device", "cpu"]
    main(["perplexity", "model", "--text", "test.txt", *options, "--dtype", "float64", "--json", "out.json"])
    expected = perplexity(model.double(), ids_of(tiny_text(150)), window=20, stride=8, max_windows=6)
    with open("out.json", encoding="utf-8") as file:
        assert json.load(file)["mean_loss"] == pytest.approx(expected.mean_loss, rel=1e-9)


def test_blocks_may_stay_on_disk(model, capsys):
    main(["perplexity", "model", "--text", "test.txt"])
    main(["perplexity", "model", "--text", "test.txt", "--offload_folder", "spare"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == lines[2:]


def test_what_is_not_finite_is_null_in_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = tiny_llama()
    torch.nn.init.constant_(model.model.norm.weight, 1e6)
    model.save_pretrained("model")
    word_tokenizer().save_pretrained("model")
    (tmp_path / "test.txt").write_text(tiny_text(32))
    main(["perplexity", "model", "--text", "test.txt", "--json", "out.json"])
    assert capsys.readouterr().out.startswith("perplexity      inf  (31 tokens in 1 windows)\n")
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["token"], written["standard_error"]) == (None, None)
    assert math.isfinite(written["mean_loss"])


@pytest.mark.parametrize(("value", "said"), [(math.nan, True), (1e6, False)])
def test_losses_that_are_no_numbers_are_said_to_be(value, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 4] = value
    model.save_pretrained("model")
    word_tokenizer().save_pretrained("model")
    (tmp_path / "test.txt").write_text(tiny_text(150))
    main(["perplexity", "model", "--text", "test.txt"])
    out, err = capsys.readouterr()
    assert out.startswith("perplexity      nan ") == said
    assert ("Note: the losses of 5 of 5 windows are not finite" in err) == said


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["model"], 2, "text"),
        (["none", "--text", "test.txt"], 1, "error: Expected DIR to be an existing folder of a Hugging Face model"),
        (["model", "--text", "none.txt"], 1, "error: Expected --text to be an existing file, but 'none.txt' is not"),
        (["model", "--text", "test.txt", "--window", "64"], 1, "Expected --window to be at most the model's 32 pos"),
        (["model", "--text", "test.txt", "--window", "x"], 2, "window"),
        (["model", "--text", "test.txt", "--setting", "papers"], 2, "setting"),
        (["model", "--text", "test.txt", "--setting", "paper", "--stride", "4"], 1, "Expected --stride to be left out"),
        (["model", "--text", "test.txt", "--device", "tpv"], 1, "Expected --device to be one that PyTorch"),
        (["model", "--text", "test.txt", "--device", "cuda:99"], 1, "Expected --device to be one that PyTorch finds"),
        (["model", "--text", "test.txt", "--dtype", "int8"], 1, "Expected --dtype to be 'auto' or a floating-point"),
        (["model", "--text", "test.txt", "--batch_size", "0"], 1, "Expected --batch_size to be an integer of at l"),
    ],
)  # fmt: skip
def test_mistakes(model, capsys, args, code, message):
    ended, err = fails(capsys, *args)
    assert (ended, message in " ".join(err.split())) == (code, True), err


def test_a_result_that_cannot_be_written_is_printed(model, capsys, monkeypatch):
    def refuse(path, _):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("lightning_farms.cli._language_model.write_text", refuse)
    with pytest.raises(SystemExit) as ended:
        main(["perplexity", "model", "--text", "test.txt", "--json", "out.json"])
    assert ended.value.code == 1
    assert capsys.readouterr().out.startswith("perplexity ")


def test_a_text_that_is_too_short(model, tmp_path, capsys):
    (tmp_path / "short.txt").write_text("w1 w2")
    code, err = fails(capsys, "model", "--text", "short.txt")
    assert code == 1
    assert "Expected --text to hold at least one window of 32 tokens, but it has 2." in err
    assert "lower --window" in err


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["perplexity", "--help"])
    assert ended.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(
        text in out for text in ("DIR --text FILE [FILE ...] [options]", "--setting", "disjoint windows of 2048")
    )
