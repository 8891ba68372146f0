"""The progress bar of `lightning-farms analyze`: it goes by cost, and is for somebody who looks at a terminal."""

import io
import re
import sys
from itertools import accumulate

import pytest
import torch

from lightning_farms.analysis import FARMS, WholeMatrix, analyze_weights, checkpoint_weights
from lightning_farms.analysis.cost import analysis_cost
from lightning_farms.cli import main
from lightning_farms.cli.analyze._progress import by_cost
from lightning_farms.common.progress import seconds_left

SIZES = [(400, 400), (32, 32), (40, 32), (48, 32), (32, 56), (400, 800)]


def mixed():
    """Layers of which few take nearly all of the time, and one that is skipped."""
    torch.manual_seed(0)
    tensors = {f"{i}.weight": torch.randn(shape) for i, shape in enumerate(SIZES)}
    return {"00.weight": torch.randn(3, 2), **tensors}


def multiplications(rows, columns, windows):
    """Of square windows: Gram matrix and eigenvalues."""
    return windows * (5 * min(rows, columns) ** 3 + 1e6)


def test_its_advances_are_proportional_to_the_cost():
    tensors = mixed()
    costs = [analysis_cost(weight, FARMS()) for weight in checkpoint_weights(tensors, values=False)]
    windows = [1, 1, 2, 2, 2, 2]
    expected = [0, *(multiplications(*shape, number) for shape, number in zip(SIZES, windows, strict=True))]
    assert costs == pytest.approx(expected, rel=1e-6)
    advances, layers = [], []
    told = by_cost(costs, advances.append)

    def progress(count):
        layers.append(count)
        told(count)

    report = analyze_weights(checkpoint_weights(tensors), progress=progress, workspace=2**20)
    assert sum(layers) == len(report) == len(costs)
    assert len(layers) > 1, "signs on the way"
    done = [0, *accumulate(expected)]
    assert list(accumulate(advances)) == pytest.approx([done[number] for number in accumulate(layers)], rel=1e-6)
    assert sum(advances) == sum(costs)


def test_cost_of_whole_matrices_and_of_complex_ones():
    [long] = checkpoint_weights({"a.weight": torch.empty(60, 200, device="meta")}, values=False)
    assert analysis_cost(long, WholeMatrix()) == 60**2 * (200 + 4 * 60) + 10**6
    assert analysis_cost(long._replace(matrices=long.matrices.cfloat()), WholeMatrix()) == (
        4 * 60**2 * (200 + 4 * 60) + 10**6
    )
    assert analysis_cost(long._replace(reason="a table"), WholeMatrix()) == 0


def test_what_is_left_is_counted_down_between_two_signs():
    clock = [0.0, 10.0, 15.0, 25.0, 100.0]  # a quarter was done after ten seconds
    left = [seconds_left(0 if now == 0 else 25, 100, at=min(now, 10.0), now=now) for now in clock]
    assert left == [None, 30.0, 25.0, 15.0, 0.0]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_it_is_shown_on_a_terminal_alone_and_never_in_the_result(tmp_path, monkeypatch, capsys, terminal):
    torch.save(mixed(), tmp_path / "mixed.pt")
    stderr = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm-256color")
    main(["analyze", str(tmp_path / "mixed.pt"), "--format", "csv"])
    shown = re.findall(r"Analysing mixed.pt.*?(\d+)%", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", stderr.getvalue()))
    assert (shown[-1:] == ["100"]) if terminal else not shown
    out = capsys.readouterr().out
    assert out.startswith("name,")
    assert "%" not in out
