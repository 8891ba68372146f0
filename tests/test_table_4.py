"""The runner of the paper's Table 4: its settings, its file, resuming, the table and the plot."""

import csv
import statistics
from importlib import import_module

import pytest
import torch

from lightning_farms import FARMS, WholeMatrix
from lightning_farms.data import SimulationConfig, simulate_to_file

pytestmark = pytest.mark.filterwarnings("ignore:TBSigmoid has no logger")


@pytest.fixture(scope="module")
def table_4():
    return import_module("table_4")


class Fake:
    """Stands in for a training: an error made of the settings; some seeds fail."""

    def __init__(self, table_4, failing=()):
        self.table_4, self.failing, self.runs, self.jobs = table_4, failing, [], []

    def __call__(self, run, job, folder, on_epoch):
        self.runs.append(run)
        self.jobs.append(job)
        on_epoch(run.epochs)
        if run.seed in self.failing:
            raise FloatingPointError("The loss is not finite")
        return self.table_4.Result(self.l2re(run), 0.001, 1.0)

    @staticmethod
    def l2re(run):
        return 0.1 - 0.05 * run.fraction + 1e-4 * run.seed - 0.002 * (run.method == "FARMS")


@pytest.fixture
def fake(table_4, monkeypatch):
    training = Fake(table_4)
    monkeypatch.setattr(table_4, "train", training)
    return training


def rows(out):
    return list(csv.DictReader((out / "runs.csv").read_text().splitlines()))


@pytest.mark.parametrize(
    ("size", "rates"),
    [("tiny", [2.5e-4] * 3 + [5e-4] * 2), ("small", [1e-4] * 2 + [2.5e-4] * 3)],
)
def test_settings_of_released_sizes_are_those_of_the_paper(table_4, fake, tmp_path, size, rates):
    flow = tmp_path / "flow.hdf5"
    simulate_to_file(flow, SimulationConfig(trajectories=2, resolution=8, frames=12), progress=False)
    assert table_4.main(sizes=[size], path=flow, out=tmp_path) == 0
    assert len(fake.runs) == len(set(fake.runs)) == 3 * 3 * 5
    assert [run.lr for run in fake.runs[::9]] == rates
    assert [run.fraction for run in fake.runs[::9]] == [0.05, 0.1, 0.25, 0.5, 1.0]
    (setting,) = {run.setting for run in fake.runs}
    assert setting == table_4.Setting(size, "flow.hdf5", size, 200, 32, 1, 1)
    assert {job.pretraining.checkpoint for job in fake.jobs} == {size}


def test_methods(table_4):
    assert table_4.callbacks("FT") == []
    (whole,), (farms,) = table_4.callbacks("TB_Sigmoid"), table_4.callbacks("FARMS")
    assert (whole.analysis, farms.analysis) == (WholeMatrix(), FARMS())
    assert {(one.s_low, one.s_high, one.tau) for one in (whole, farms)} == {(1.0, 1.0, 10.0)}


def test_runs_are_told_apart_and_not_repeated(table_4, fake, tmp_path):
    options = {"fractions": [0.5], "out": tmp_path}
    table_4.main(seeds=[1], **options)
    assert len(fake.runs) == 3
    table_4.main(seeds=[1, 2], **options)
    assert len(fake.runs) == 6
    for other in ({"lr": 1e-3}, {"epochs": 7}, {"pretrain_epochs": 2}, {"batch_size": 3}, {"resolution": 32}):
        table_4.main(seeds=[1, 2], **options, **other)
        assert len(fake.runs) == len(set(fake.runs))
    assert len(rows(tmp_path)) == 6 + 5 * 6


def test_a_failing_run_is_noted_and_left_out_of_the_differences(table_4, fake, tmp_path, capsys):
    fake.failing = (2,)
    assert table_4.main(fractions=[0.25, 1.0], seeds=[1, 2, 5], out=tmp_path) == 6
    assert "6 of 18 runs failed" in capsys.readouterr().out
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert (
        lines[2] == "| DPOT | data | FT | TB_Sigmoid | TB_Sigmoid + FARMS | TB_Sigmoid - FT | TB_Sigmoid + FARMS - FT |"
    )
    values = [100 * (0.1 - 0.05 * 0.25 + 1e-4 * seed) for seed in (1, 5)]
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    expected = [f"{mean:.3f} ± {deviation:.3f} (2)"] * 2 + [f"{mean - 0.2:.3f} ± {deviation:.3f} (2)"]
    expected += ["0.000 ± 0.000 (2)", "-0.200 ± 0.000 (2)"]
    assert lines[4] == f"| reduced | 25 % | {' | '.join(expected)} |"
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_command_line(table_4, fake, tmp_path):
    given = ["--sizes", "reduced", "--fractions", "0.5", "1", "--seeds", "4", "--methods", "FT", "FARMS"]
    arguments = table_4._parser().parse_args([*given, f"--out={tmp_path}", "--epochs=3"])
    assert table_4.main(**arguments.as_dict()) == 0
    assert [(run.fraction, run.method, run.seed) for run in fake.runs] == [
        (0.5, "FT", 4), (0.5, "FARMS", 4), (1.0, "FT", 4), (1.0, "FARMS", 4)
    ]  # fmt: skip


@pytest.mark.parametrize("argument", ["--epochs=0", "--lr=0", "--sizes=giant", "--fractions=1.5", "--methods=none"])
def test_arguments_out_of_range(table_4, argument, capsys):
    with pytest.raises(SystemExit, match="2"):
        table_4._parser().parse_args([argument])
    assert argument[2:].partition("=")[0] in capsys.readouterr().err


@pytest.fixture
def job(table_4, tmp_path, monkeypatch):
    """A job of a tiny network on two tiny simulated files."""
    monkeypatch.setitem(table_4.REDUCED, "embed_dim", 16)
    monkeypatch.setitem(table_4.REDUCED, "depth", 1)
    flow, other = tmp_path / "flow.hdf5", tmp_path / "other.hdf5"
    simulate_to_file(flow, SimulationConfig(trajectories=12, resolution=16, frames=13), progress=False)
    simulate_to_file(other, SimulationConfig(trajectories=4, resolution=16, frames=13, mach=1.0), progress=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return table_4._job(
        "reduced", flow, None, other, epochs=4, pretrain_epochs=1, batch_size=4, windows=1, stride=1, resolution=16,
        workers=0,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["FT", "FARMS"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(table_4, job, tmp_path, method):
    run, epochs = table_4.Run(job.setting, 0.5, 1e-3, method, 3), []
    straight = table_4.train(run, job, tmp_path / "straight", epochs.append)
    assert epochs == [0, 1, 2, 3, 4]

    def kill(done):
        if done == 3:
            raise SystemExit(9)  # after the epoch, before its checkpoint

    with pytest.raises(SystemExit):
        table_4.train(run, job, tmp_path / "again", kill)
    epochs.clear()
    resumed = table_4.train(run, job, tmp_path / "again", epochs.append)
    assert epochs == [2, 3, 4]
    assert resumed[:2] == straight[:2]


def test_all_methods_start_from_the_same_pretrained_weights(table_4, job, tmp_path):
    first = table_4.starting_network(job)
    (kept,) = (tmp_path / "cache").rglob("pretrained-*.pth")
    written = kept.stat().st_mtime_ns
    torch.manual_seed(1)
    second = table_4.starting_network(job)
    assert kept.stat().st_mtime_ns == written, "pre-trained once"
    torch.testing.assert_close(dict(first.named_parameters()), dict(second.named_parameters()), rtol=0, atol=0)


def test_pretraining_leaves_the_bar_of_the_runs_alone(table_4, job, tmp_path):
    options = {"methods": ["FT"], "fractions": [0.5], "seeds": [1], "epochs": 1, "pretrain_epochs": 1}
    paths = {"path": job.data["path"], "pretrain_path": tmp_path / "other.hdf5", "out": tmp_path / "out"}
    assert table_4.main(**options, **paths) == 0
    assert (tmp_path / "out" / "table.md").exists()


def test_fractions_are_of_the_training_trajectories(table_4, job):
    def items(fraction):
        data = table_4.data_module(job, table_4.Run(job.setting, fraction, 1e-3, "FT", 3))
        data.setup("fit")
        return data.train_items, data.subset_seed, data.seed

    assert [items(fraction) for fraction in (0.2, 0.5, 1.0)] == [(2, 3, 3), (5, 3, 3), (11, 3, 3)]
