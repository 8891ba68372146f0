"""The ablation runner of the examples: what it runs, its file, resuming, failures and tables."""

import csv
import statistics
from importlib import import_module
from pathlib import Path

import pytest
import torch
from experiments import CHECKPOINT
from torch import nn

from lightning_farms import FARMS, WholeMatrix
from lightning_farms.callbacks import Control

pytestmark = pytest.mark.filterwarnings("ignore:TempBalance has no logger")


@pytest.fixture(scope="module")
def ablation():
    return import_module("ablation")


class Fake:
    """Stands in for a training: an accuracy made of the settings; some seeds fail."""

    def __init__(self, ablation, failing=()):
        self.ablation, self.failing, self.runs = ablation, failing, []

    def __call__(self, run, folder, path, on_epoch):
        self.runs.append(run)
        on_epoch(run.setting.epochs)
        if run.seed in self.failing:
            raise FloatingPointError("The loss is not finite,\nsays the training")
        return self.ablation.Result(self.accuracy(run), 99.0, 1.0)

    @staticmethod
    def accuracy(run):
        treatment = run.treatment
        return 80 + (treatment.aspect_ratio or 0) + (treatment.s1 or 0) + 0.01 * run.seed


@pytest.fixture
def fake(ablation, monkeypatch):
    training = Fake(ablation)
    monkeypatch.setattr(ablation, "train", training)
    return training


def rows(out):
    return list(csv.DictReader((out / "runs.csv").read_text().splitlines()))


def test_the_studies_are_the_papers(ablation, fake, tmp_path):
    assert ablation.main(out=tmp_path, seeds=[43, 37, 13]) == 0
    runs = fake.runs
    # uniform, FARMS (Q = 1, averaged, first scaling), 4 other Q, pooled, 4 + 5 other scalings, 2 with layer selection
    assert len(runs) == len(set(runs)) == 3 * (1 + 1 + 4 + 1 + 4 + 5 + 2)
    treatments = {run.treatment for run in runs}
    assert {t.aspect_ratio for t in treatments if t.method == "FARMS"} == {0.5, 0.75, 1.0, 1.5, 2.0}
    assert {t.blocks for t in treatments if t.method == "FARMS"} == {"averaged", "pooled"}
    for method in ("TB", "FARMS"):
        assert {(t.s1, t.s2) for t in treatments if t.method == method} == {
            (0.1, 1.9), (0.2, 1.8), (0.3, 1.7), (0.4, 1.6), (0.5, 1.5)
        }  # fmt: skip
        assert sum(t.layer_selection for t in treatments if t.method == method) == 1
    assert {run.seed for run in runs} == {43, 37, 13}
    text = (tmp_path / "tables.md").read_text()
    assert all(f"(Table {number}" in text for number in (3, 5, 7, 13))


@pytest.mark.parametrize(
    ("network", "lr", "s1", "s2"), [("resnet18", 0.1, 0.1, 1.9), ("resnet34", 0.1, 0.2, 1.8), ("vgg16", 0.05, 0.2, 1.8)]
)
def test_settings_on_cifar_are_those_of_table_13(ablation, fake, tmp_path, network, lr, s1, s2):
    ablation.main(data="cifar100", network=network, study="blocks", out=tmp_path, seeds=[43])
    (setting,) = {run.setting for run in fake.runs}
    assert setting == ablation.Setting("cifar100", network, 64, 200, lr, 128, 50)
    assert {(run.treatment.s1, run.treatment.s2) for run in fake.runs} == {(None, None), (s1, s2)}


def test_callbacks_of_the_treatments(ablation):
    make = ablation.Treatment
    assert make().callback(12) is None
    farms = make("FARMS", 0.5, "pooled", 0.3, 1.7).callback(12)
    assert farms.analysis == FARMS(aspect_ratio=0.5, blocks="pooled")
    assert (farms.lr_min_ratio, farms.lr_max_ratio) == (0.3, 1.7)
    assert farms.control == Control()
    whole = make("TB", s1=0.3, s2=1.7, layer_selection=True).callback(12)
    assert whole.analysis == WholeMatrix()
    assert (whole.control.first_layer, whole.control.last_layer, whole.control.layers.min_size) == (False, False, 12)


def test_finished_runs_are_not_repeated(ablation, fake, tmp_path):
    ablation.main(study="blocks", out=tmp_path, seeds=[1])
    assert len(fake.runs) == 3
    ablation.main(study="blocks", out=tmp_path, seeds=[1, 2])
    assert len(fake.runs) == 6
    ablation.main(study="blocks", out=tmp_path, seeds=[1, 2], lr=0.05)
    assert len(fake.runs) == 12, "another setting"
    assert len(rows(tmp_path)) == 12


def test_a_row_cut_short_is_passed_over(ablation, fake, tmp_path):
    ablation.main(study="blocks", out=tmp_path, seeds=[1])
    path = tmp_path / "runs.csv"
    path.write_text(path.read_text()[:-40])
    ablation.main(study="blocks", out=tmp_path, seeds=[1])
    assert len(fake.runs) == 4
    table = ablation.RunTable(path, ablation.KEY, ablation.Result._fields)
    assert all(table.finished(run) for run in fake.runs)


def test_a_file_of_something_else_is_not_touched(ablation, tmp_path):
    (tmp_path / "runs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"runs\.csv to have the columns data, network, .*, but it has 'a,b'"):
        ablation.main(study="blocks", out=tmp_path)
    assert (tmp_path / "runs.csv").read_text() == "a,b\n1,2\n"


def test_a_failing_run_is_noted_and_the_others_go_on(ablation, fake, tmp_path, capsys):
    fake.failing = (2,)
    assert ablation.main(study="blocks", out=tmp_path, seeds=[1, 2, 3]) == 3
    assert [row["status"] for row in rows(tmp_path)] == ["finished"] * 3 + ["failed"] * 3 + ["finished"] * 3
    assert rows(tmp_path)[3]["error"] == "FloatingPointError: The loss is not finite, says the training"
    out = capsys.readouterr().out
    assert "3 of 9 runs failed" in out
    assert "| uniform rate | 80.02 ± 0.01 (2) |" in out, "the number of runs, where it is not that of the seeds"
    fake.failing = ()
    assert ablation.main(study="blocks", out=tmp_path, seeds=[1, 2, 3]) == 0
    assert len(rows(tmp_path)) == 12
    assert "(2)" not in (tmp_path / "tables.md").read_text()


def test_an_interrupt_ends_it(ablation, fake, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ablation.main(study="blocks", out=tmp_path)
    assert not (tmp_path / "runs.csv").exists()


def test_figures_of_the_tables(ablation, fake, tmp_path):
    ablation.main(study="scaling", out=tmp_path, seeds=[10, 20, 60])
    lines = (tmp_path / "tables.md").read_text().splitlines()
    assert lines[2] == "|  | (0.1, 1.9) | (0.2, 1.8) | (0.3, 1.7) | (0.4, 1.6) | (0.5, 1.5) | mean over ratios |"
    accuracies = [[80 + s1 + 0.01 * seed for seed in (10, 20, 60)] for s1 in (0.1, 0.2, 0.3, 0.4, 0.5)]
    accuracies.append([accuracy for column in accuracies for accuracy in column])
    cells = [f"{statistics.mean(column):.2f} ± {statistics.stdev(column):.2f}" for column in accuracies]
    assert lines[4] == f"| TB | {' | '.join(cells)} |"
    assert lines[5].startswith(f"| FARMS | {81.4:.2f} ± ")


def test_command_line(ablation, fake, tmp_path):
    arguments = ablation._parser().parse_args(["--study=ratio", "--seeds", "4", "5", f"--out={tmp_path}", "--epochs=7"])
    assert ablation.main(**arguments.as_dict()) == 0
    assert [run.seed for run in fake.runs] == [4] * 6 + [5] * 6
    assert {run.setting.epochs for run in fake.runs} == {7}
    assert ablation._parser().parse_args([]).seeds == [43, 37, 13]


@pytest.mark.parametrize("argument", ["--epochs=0", "--lr=0", "--width=-1", "--study=none"])
def test_arguments_out_of_range(ablation, argument, capsys):
    with pytest.raises(SystemExit, match="2"):
        ablation._parser().parse_args([argument])
    assert argument[2:].partition("=")[0] in capsys.readouterr().err


class Tiny(nn.Module):
    def __init__(self, num_classes, *, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=4)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width * 16, num_classes)

    def forward(self, images):
        return self.head(self.norm(self.conv(images)).relu().flatten(1))


@pytest.fixture
def run_of(ablation, monkeypatch):
    """A run of a tiny network on the digits."""
    monkeypatch.setitem(ablation.NETWORKS, "resnet18", Tiny)
    setting = ablation.Setting("digits", "resnet18", 16, 3, 0.05, 64, 12)
    return lambda **options: ablation.Run(setting, ablation.Treatment(**options), 1)


FARMS_OPTIONS = {"method": "FARMS", "aspect_ratio": 1.0, "blocks": "averaged", "s1": 0.5, "s2": 1.5}


@pytest.mark.parametrize("options", [{}, FARMS_OPTIONS], ids=["uniform", "FARMS"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(ablation, run_of, tmp_path, options):
    run, epochs = run_of(**options), []
    straight = ablation.train(run, tmp_path / "straight", None, epochs.append)
    assert epochs == [0, 1, 2, 3]
    assert not (tmp_path / "straight").exists(), "nothing is left of a finished run but its result"

    def kill(done):
        if done == 2:
            raise SystemExit(9)  # after the epoch, before its checkpoint

    with pytest.raises(SystemExit):
        ablation.train(run, tmp_path / "again", None, kill)
    epochs.clear()
    resumed = ablation.train(run, tmp_path / "again", None, epochs.append)
    assert epochs == [1, 2, 3]
    assert resumed[:2] == straight[:2]
    assert resumed.seconds > 0
    assert straight.accuracy > 50


def test_a_damaged_checkpoint_is_not_used(ablation, run_of, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"PK half a file")
    epochs = []
    ablation.train(run_of(), tmp_path / "run", None, epochs.append)
    assert epochs == [0, 1, 2, 3]


def test_data_of_the_settings(ablation):
    make = ablation.Setting
    assert ablation.images(make("digits", "resnet18", 8, 1, 0.1, 32, 12), None).size == 16
    assert ablation.images(make("digits", "vgg16", 8, 1, 0.1, 32, 12), None).size == 32
    cifar = ablation.images(make("cifar10", "vgg16", 8, 1, 0.1, 32, 12), Path("x"))
    assert (cifar.num_classes, cifar.path, cifar.batch_size) == (10, Path("x"), 32)
    assert ablation.images(make("cifar100", "vgg16", 8, 1, 0.1, 32, 12), None).num_classes == 100


def test_networks_take_a_width(ablation):
    for build in ablation.NETWORKS.values():
        assert build(10, width=2)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
