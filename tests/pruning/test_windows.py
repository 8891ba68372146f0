"""The study of windows and fits, on a tiny model."""

import pytest
import torch
from pruning import windows

from tests.pruning.reference_models import reference_model
from tests.pruning.tiny_text import byte_tokenizer, tiny_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    reference_model("llama_a").model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    (folder / "text").mkdir()
    for seed, part in enumerate(("calibration", "heldout")):
        (folder / "text" / f"{part}.txt").write_text(tiny_text(500, seed), encoding="utf-8")
    return folder


def test_a_line_a_setting(folder, capsys):
    texts = {"texts": (folder / "text",), "sparsities": (0.6,), "sequences": 2, "tests": 2, "length": 48}
    windows.main(folder / "model", windows=(8,), window=48, steps=3, few=True, **texts)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["setting", "seconds", "decompositions", "to Hill", "to peak", "rounded", "text 0.6"]
    assert {len(line) for line in lines} == {7}
    rows = {line[0]: line[1:] for line in lines[2:]}
    assert list(rows) == [
        *("uniform", "ramp over depth", "authors' windows, hill", "authors' windows, peak", "whole matrix, hill"),
        *("8, tiles, hill", "largest, tiles, hill", "whole matrix, peak"),
    ]
    assert rows["authors' windows, hill"][2] == rows["authors' windows, peak"][3] == "1.000, 0.000"
    # 64 x 64, 32 x 64 twice, 64 x 64, 176 x 64 twice, 64 x 176 in three blocks
    assert rows["8, tiles, hill"][1] == str(3 * (64 + 2 * 32 + 64 + 3 * 176))
    assert all(float(row[-1]) > 1 for row in rows.values())
    assert len({row[-1] for row in rows.values()}) > 4


def test_a_rounded_weight_is_what_bfloat16_holds(folder):
    weight = windows.prunable_weights(reference_model("llama_a").model)[3]
    rounded = windows.Rounded(weight)
    assert (rounded.name, rounded.block, rounded.size) == (weight.name, weight.block, weight.size)
    assert torch.equal(rounded.matrices, weight.matrices.bfloat16().float())
    assert not torch.equal(rounded.matrices, weight.matrices)
