"""Calibration: windows of texts on disk and of token ids."""

import json

import pytest
import torch

from lightning_farms.pruning import Calibration
from tests.pruning.tiny_text import WORDS, byte_tokenizer, tiny_text, word_tokenizer


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def starts_in(ids, windows):
    """Where each window stands in the ids, which must hold it."""
    length = windows.shape[1]
    runs = ids.unfold(0, length, 1)
    return [int((runs == window).all(1).nonzero()[0]) for window in windows]


def test_windows_of_a_text_are_runs_of_its_tokens(tmp_path):
    text = tiny_text(300)
    ids = torch.tensor([3 + WORDS.index(word) for word in text.split()])
    windows = Calibration(write(tmp_path / "a.txt", text), sequences=40, length=20).token_ids(word_tokenizer(), 63)
    assert (windows.shape, windows.dtype) == ((40, 20), torch.int64)
    starts = starts_in(ids, windows)
    assert min(starts) < 60
    assert max(starts) > 220


def test_no_beginning_is_put_into_windows(tmp_path):
    file = write(tmp_path / "a.txt", tiny_text(30))
    windows = Calibration(file, sequences=9, length=30).token_ids(word_tokenizer(beginning=True))
    assert (windows != 1).all()


def test_the_seed_decides(tmp_path):
    file = write(tmp_path / "a.txt", tiny_text(500))
    first, again, other = (
        Calibration(str(file), sequences=8, length=16, seed=seed).token_ids(word_tokenizer()) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_ids_are_drawn_as_text_is(tmp_path):
    text = tiny_text(500)
    options = {"sequences": 5, "length": 30, "seed": 2}
    ids = torch.tensor(word_tokenizer()(text)["input_ids"])
    windows = Calibration(ids, **options).token_ids()
    assert starts_in(torch.arange(500), Calibration(torch.arange(500), **options).token_ids()) == starts_in(
        ids, windows
    )
    assert all(torch.equal(w, ids[s : s + 30]) for s, w in zip(starts_in(ids, windows), windows, strict=True))


def test_every_start_of_ids_is_drawn_alike():
    windows = Calibration(torch.arange(12), sequences=9000, length=4).token_ids()
    counts = windows[:, 0].bincount(minlength=12).double()
    assert counts[9:].sum() == 0
    assert ((counts[:9] - 1000).abs() < 150).all()  # five standard deviations


def test_windows_of_ids_stay_as_they_are():
    ids = torch.randint(0, 50, (3, 7), dtype=torch.int32)
    torch.testing.assert_close(Calibration(ids, sequences=99, length=99).token_ids(vocabulary=50), ids.long())


def test_documents_are_drawn_alike_and_short_ones_left_out(tmp_path):
    lengths = [4, 40, 10, 400, 3]
    lines = [json.dumps({"text": tiny_text(n, seed=n), "url": "x"}) for n in lengths]
    file = write(tmp_path / "c4.jsonl", "\n".join([*lines, "", ""]))
    windows = Calibration(file, sequences=300, length=10).token_ids(word_tokenizer())
    texts = [" ".join(WORDS[i - 3] for i in window) for window in windows.tolist()]
    found = [sum(text in tiny_text(n, seed=n) for text in texts) for n in lengths]
    assert found[0] == found[4] == 0
    assert all(70 <= count <= 130 for count in (found[1], found[2], found[3]))


def test_several_files_are_documents(tmp_path):
    files = [write(tmp_path / f"{n}.txt", tiny_text(n, seed=n)) for n in (5, 30, 31)]
    windows = Calibration(files, sequences=20, length=30).token_ids(word_tokenizer())
    texts = {" ".join(WORDS[i - 3] for i in window) for window in windows.tolist()}
    whole = tiny_text(31, seed=31).split()
    assert texts == {tiny_text(30, seed=30), " ".join(whole[:30]), " ".join(whole[1:])}


def test_of_a_large_text_only_what_is_drawn_is_tokenised(tmp_path):
    """Windows are tokens of the whole text, from the beginning of a word on, from everywhere in it."""
    text = "".join(f"Wört{number} 語り\n" for number in range(250_000))
    file = write(tmp_path / "large.txt", text)
    asked = []

    def tokenizer(text, **options):
        asked.append(len(text))
        return byte_tokenizer()(text, **options)

    windows = Calibration(file, sequences=30, length=64).token_ids(tokenizer)
    assert sum(asked) < 50_000
    whole, tok = text.encode(), byte_tokenizer()
    places = []
    for window in windows.tolist():
        found = tok.backend_tokenizer.decoder.decode(tok.convert_ids_to_tokens(window)).rstrip("\ufffd").encode()
        places.append(whole.index(found))
        assert whole[places[-1] - 1 : places[-1]] in (b" ", b"\n")
    assert min(places) < len(whole) / 5
    assert max(places) > len(whole) * 4 / 5


def test_a_large_text_of_few_tokens(tmp_path):
    """Places behind which there is nothing are drawn again, and in the end the text is read as a whole."""
    file = write(tmp_path / "a.txt", "\n" * 5_000_000 + tiny_text(40))
    windows = Calibration(file, sequences=4, length=30).token_ids(word_tokenizer())
    assert starts_in(torch.tensor(word_tokenizer()(tiny_text(40))["input_ids"]), windows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            tiny_text(19),
            "of at least one window of 20 tokens, but the longest has 19. Give more text in one file, ",
        ),
        ("", "but the longest has 0"),
    ],
)
def test_text_that_is_too_short(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        Calibration(write(tmp_path / "a.txt", content), length=20).token_ids(word_tokenizer())


def test_documents_that_are_all_too_short(tmp_path):
    lines = "\n".join(json.dumps({"text": tiny_text(n)}) for n in (5, 17, 9))
    with pytest.raises(ValueError, match="but the longest has 17"):
        Calibration(write(tmp_path / "a.jsonl", lines), length=20).token_ids(word_tokenizer())
    with pytest.raises(ValueError, match="of 20 tokens, but the longest has 19"):
        Calibration(torch.arange(19), length=20).token_ids()


def test_texts_of_other_systems_are_the_same(tmp_path):
    """Read as Python's text files are: marks of byte order and ends of lines count in no token."""
    text = tiny_text(60).replace(" ", "\n")
    for content in (text, "\ufeff" + text, text.replace("\n", "\r\n")):
        (tmp_path / "a.txt").write_bytes(content.encode())
        whole = Calibration(tmp_path / "a.txt", sequences=1, length=len(text)).token_ids(byte_tokenizer())
        assert whole.tolist() == [byte_tokenizer()(text, add_special_tokens=False, verbose=False)["input_ids"]]


def test_utf_16_is_no_utf_8_though_it_may_look_so(tmp_path):
    (tmp_path / "a.txt").write_bytes(tiny_text(60).encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"to be UTF-8, but '.*a.txt' is not, at byte 1 \(a zero byte\)"):
        Calibration(tmp_path / "a.txt", length=4).token_ids(word_tokenizer())


def test_files_that_are_no_text(tmp_path):
    tokenizer = word_tokenizer()
    (tmp_path / "latin.txt").write_bytes("über".encode("latin-1") * 30)
    with pytest.raises(ValueError, match=r"to be UTF-8, but '.*latin.txt' is not, at byte 0"):
        Calibration(tmp_path / "latin.txt", length=4).token_ids(tokenizer)
    (tmp_path / "c.parquet").write_bytes(b"PAR1\x15\x04\xff\xff" * 99)
    with pytest.raises(ValueError, match=r"at byte 6 .*write the texts of a table \(.parquet\) to a .jsonl file"):
        Calibration(tmp_path / "c.parquet", sequences=1, length=4).token_ids(word_tokenizer())
    with pytest.raises(FileNotFoundError, match=r"existing file, but '.*none.txt' is not there"):
        Calibration(tmp_path / "none.txt").token_ids(tokenizer)
    with pytest.raises(FileNotFoundError, match=r"is a folder"):
        Calibration(tmp_path).token_ids(tokenizer)
    with pytest.raises(ValueError, match="at least one file, but got none"):
        Calibration([]).token_ids(tokenizer)
    with pytest.raises(ValueError, match="field `text` in each line"):
        Calibration(write(tmp_path / "a.jsonl", '{"body": "x"}\n'), length=2).token_ids(tokenizer)
    with pytest.raises(ValueError, match="to be a string, but got int"):
        Calibration(write(tmp_path / "b.jsonl", '{"text": 3}\n'), length=2).token_ids(tokenizer)
    with pytest.raises(ValueError, match="not packed"):
        Calibration(write(tmp_path / "c.json.gz", "")).token_ids(tokenizer)
    with pytest.raises(ValueError, match="`tokenizer` to be the model's, as `text` names files"):
        Calibration(tmp_path / "latin.txt").token_ids()


def test_a_tokenizer_that_does_not_fit(tmp_path):
    file = write(tmp_path / "a.txt", tiny_text(100))
    with pytest.raises(ValueError, match=r"in \[0, 40\), as the model has them, but they are in \[\d+, 62\]"):
        Calibration(file, sequences=50, length=60).token_ids(word_tokenizer(), vocabulary=40)
    with pytest.raises(ValueError, match=r"but they are in \[-1, 2\]"):
        Calibration(torch.tensor([[2, -1]])).token_ids()


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("a.txt", {"sequences": 0}, ValueError, "`sequences` to be an integer of at least 1, but got 0"),
        ("a.txt", {"length": 1}, ValueError, "`length` to be an integer of at least 2, but got 1"),
        ("a.txt", {"length": 2.5}, TypeError, "`length` to be an integer, but got 2.5"),
        ("a.txt", {"seed": -1}, ValueError, "`seed` to be an integer of at least 0, but got -1"),
        (torch.rand(9), {}, ValueError, r"token ids of shape \(tokens,\) or \(N, T\), but got \(9,\) of torch.float32"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), {}, ValueError, r"but got \(1, 2, 3\)"),
        (torch.zeros(0, 9, dtype=torch.int64), {}, ValueError, r"at least 2 token ids, but its shape is \(0, 9\)"),
    ],
)
def test_bad_arguments(text, options, error, message):
    with pytest.raises(error, match=message):
        Calibration(text, **options)
