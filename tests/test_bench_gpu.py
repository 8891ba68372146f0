"""The one command for a GPU runs, in its small form on the CPU."""

import json

import pytest
import torch

from tests.benchmarks import bench_gpu


def test_small(tmp_path, capsys):
    bench_gpu.main(["--small", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    results = found["results"]
    assert found["card"] == "none"
    assert found["torch"] == torch.__version__
    assert list(found["seconds"]) == list(results) == list(bench_gpu.SECTIONS)
    failed = [row for section in results.values() for row in section if row["what"] == "failed"]
    assert failed == []
    by_what = {row["what"]: row for row in results["ways"]}
    assert by_what["float64 3 x 32 x 32, host"]["wrong"] == 0
    (network,) = results["analysis"]
    assert network["difference"] < 1e-4
    assert 0 < results["epoch"][0]["share"] < 1
    assert results["dpot"][0]["ours"] > 0
    assert results["flows"][0]["flows_a_second"] > 0
    out = capsys.readouterr().out
    assert "float64 3 x 32 x 32, host" in out


def test_it_goes_on_after_a_failure(monkeypatch, tmp_path):
    def failing(run):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(bench_gpu, "SECTIONS", {"first": (failing, 1), "flows": bench_gpu.SECTIONS["flows"]})
    bench_gpu.main(["--small", "--json", str(tmp_path / "found.json"), "--sections", "first", "flows"])
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    assert results["first"] == [{"what": "failed"}]
    assert results["flows"][0]["flows_a_second"] > 0


def test_the_whole_needs_a_device(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        bench_gpu.main([])
    assert "--small runs on the CPU" in capsys.readouterr().err


def test_the_budgets_leave_the_command_below_eight_minutes():
    assert sum(seconds for _, seconds in bench_gpu.SECTIONS.values()) <= 440
