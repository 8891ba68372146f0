"""The benchmark of a checkpoint of LLaMA-7B's shapes, at a sixty-fourth of its width: so that it does not rot."""

import argparse

from lightning_farms.analysis import checkpoint_weights
from tests.benchmarks import bench_checkpoint as bench


def test_small(tmp_path):
    args = argparse.Namespace(width=64, inside=172, blocks=2, window=32, threads=1)
    matrices = bench.shapes(args.width, args.inside, args.blocks)
    path = tmp_path / "model.safetensors"
    bench.write(path, matrices)
    weights = list(checkpoint_weights(path, values=False))
    assert {f"{weight.name}.weight": weight.shape for weight in weights} == matrices
    run = bench.analyse(path, ["--window", "32", "--format", "csv"], args.threads)
    assert len(run.out.splitlines()) == 1 + len(weights)
    assert run.bar[-1].percent == 100
    assert run.cpu > 0
    assert run.anonymous < run.resident
    assert run.anonymous < 2**30
    start = run._replace(seconds=0.5 * run.seconds, cpu=0.5 * run.cpu)
    text = "\n".join(bench.lines(run, start, args))
    assert "for 32 blocks and the head, 3664 windows for the 104 here" in text


def test_what_the_bar_said():
    shown = "\x1b[2KAnalysing a ━━━  20% 0:00:40 0:02:41 left\r" * 2 + "━━━  77% 1:00:00 0:15:00 left"
    assert bench.signs(shown) == [(20, 40, 161), (77, 3600, 900)]
    bar = [*bench.signs(shown), bench.Sign(100, 4500, 0)]
    assert [sign.percent for sign in bench.at_percents(bar)] == [20, 77, 77, 100, 100]


def test_the_shapes_are_those_of_llama_7b():
    matrices = bench.shapes(blocks=32)
    assert sum(rows * columns for rows, columns in matrices.values()) == 6_476_005_376, "without norms and tables"
    assert bench.windows(matrices, 2048) == 32 * (4 * 4 + 3 * 12)
