"""Every subcommand where it cannot write: one message, a sensible exit status, and the earlier file as it was."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from lightning_farms.cli import main
from lightning_farms.data import OFFICIAL_FILES, SimulationConfig, simulate_to_file
from lightning_farms.models import DPOT, save_weights
from tests.data.download.range_server import range_server
from tests.pruning.tiny_tasks import write_task
from tests.pruning.tiny_text import save_tiny, tiny_text

ROOT = Path(__file__).parents[2]
EARLIER = "the earlier file\n"
DPOT_SIZES = {"patch_size": 4, "embed_dim": 8, "depth": 1, "n_blocks": 2, "out_layer_dim": 4}
TRAINING = {
    "trainer": {
        "accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False, "enable_model_summary": False,
        "enable_progress_bar": False, "num_sanity_val_steps": 0,
    },
    "model": {"network": {"class_path": "DPOT", "init_args": DPOT_SIZES}},
    "data": {"in_timesteps": 3, "test_fraction": 0.25},
}  # fmt: skip


class Job(NamedTuple):
    """How a subcommand is run.

    Attributes:
        arguments: after its name; `{here}` is the folder of what it reads.
        files: what it writes, in the current folder.
        most: bytes that a file may have on a full disk.
        before: what it writes before these.
    """

    arguments: str
    files: tuple[str, ...] = ()
    most: int = 64
    before: tuple[str, ...] = ()


IN_PLACE = (
    "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.enable_version_counter=false "
    "--trainer.callbacks.dirpath=checkpoints"
)
TRAIN = "--config={here}/training.yaml --data.path={here}/flow.hdf5"
JOBS = {
    "analyze": [
        Job("{here}/net.pt --out a.json", ("a.json",)),
        Job("{here}/net.pt --out a.csv", ("a.csv",)),
        Job("{here}/net.pt --format table --out a.txt", ("a.txt",)),
        Job("{here}/net.pt --plots figures", ("figures/alpha_depth.png",)),
    ],
    "fit": [Job(TRAIN, ("config.yaml",)), Job(TRAIN, most=8000)],
    "validate": [Job(TRAIN, ("config.yaml",))],
    "test": [Job(TRAIN, ("config.yaml",))],
    "predict": [Job(TRAIN, ("config.yaml",)), Job(TRAIN, ("predictions.hdf5",), most=8000, before=("config.yaml",))],
    "download": [Job("{official} --url {url}")],
    "check": [Job("{here}/flow.hdf5")],
    "simulate": [Job("a.hdf5 --overwrite --trajectories 1 --resolution 16 --frames 3", ("a.hdf5",))],
    "convert": [
        Job("{here}/dpot.pth a.safetensors --overwrite", ("a.safetensors",)),
        Job("{here}/dpot.pth a.pth --overwrite", ("a.pth",)),
        Job("{here}/dpot.pth a.pth --overwrite", ("a.pth",), most=8000),  # a part of it fits
    ],
    "prune": [
        Job("{here}/lm --sparsity 0.5 --dry-run --report a.json", ("a.json",)),
        Job("{here}/lm --sparsity 0.5 --dry-run --report a.csv", ("a.csv",)),
        Job("{here}/lm --sparsity 0.5 --dry-run --figure a.png", ("a.png",)),
        Job("{here}/lm --sparsity 0.5 --dry-run --recipe a.yaml", ("a.yaml",)),
        Job("{here}/lm --sparsity 0.5 --method magnitude --out out"),
    ],
    "perplexity": [Job("{here}/lm --text {here}/text.txt --window 16 --json a.json", ("a.json",))],
    "evaluate": [Job("{here}/lm --tasks tiny_choice --include_path {here}/tasks --limit 4 --json a.json", ("a.json",))],
}
SLOW = {"evaluate"}  # lm-evaluation-harness is of the extra `slow`
SECONDS_EACH = SLOW | {"fit", "validate", "test", "predict", "prune", "perplexity"}


def cases(slow):
    """All of them, those of some subcommands marked as slow."""
    return [
        pytest.param(
            command,
            job,
            id=f"{command} {job.files[0] if job.files else ''}".strip(),
            marks=[pytest.mark.slow] if command in slow else [],
        )
        for command, jobs in JOBS.items()
        for job in jobs
    ]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What the subcommands read."""
    here = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    torch.save(torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 24)).state_dict(), here / "net.pt")
    save_weights(DPOT(img_size=16, in_timesteps=3, act="silu", modes=1, **DPOT_SIZES), here / "dpot.pth")
    simulate_to_file(here / "flow.hdf5", SimulationConfig(trajectories=4, resolution=16, frames=6), progress=False)
    (here / "training.yaml").write_text(yaml.safe_dump(TRAINING))
    (here / "text.txt").write_text(tiny_text(300))
    save_tiny(here / "lm", hidden_size=32, intermediate_size=48)
    write_task(here / "tasks")
    with range_server() as server:
        yield {"here": str(here), "url": server.url, "official": OFFICIAL_FILES[0].name}


@pytest.fixture(scope="module")
def child():
    """The process that runs them."""
    command = [sys.executable, "-m", "tests.cli.writing_child"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def ended(child, inputs, tmp_path):
    """Run a subcommand; its exit status, and what it said on stdout and stderr."""

    def run(command, job, *, most=0, stdout="open", fault="", at=""):
        arguments = [command, *job.arguments.format(**inputs).split()]
        line = {"arguments": arguments, "folder": str(tmp_path), "most": most, "stdout": stdout}
        line |= {"fault": fault, "at": at}
        child.stdin.write(json.dumps(line) + "\n")
        child.stdin.flush()
        found = json.loads(child.stdout.readline())
        assert "Traceback" not in found["err"]
        assert "Exception ignored" not in found["err"]
        return found["status"], found["out"], found["err"]

    return run


def messages(err):
    return re.findall(r"^lightning-farms: error: (.*)$", err, flags=re.MULTILINE)


def drafts(folder):
    return [path for path in folder.rglob("*.tmp") if path.is_file()]


def test_every_subcommand_is_tried(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^ {4}(\w+)", capsys.readouterr().out, flags=re.MULTILINE)
    assert set(listed) == set(JOBS)


@pytest.mark.parametrize(("command", "job"), cases(SLOW))
def test_a_full_disk(command, job, ended, tmp_path):
    if command in SLOW:
        ended(command, job)  # what the harness keeps of the data is elsewhere, and is there then
    for name in job.files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(EARLIER)
    status, _, err = ended(command, job, most=job.most)
    assert (status, len(messages(err))) == ((0, 0) if command == "check" else (1, 1)), err
    assert all((tmp_path / name).read_text() == EARLIER for name in job.files)
    assert not drafts(tmp_path)
    if job.files:
        assert any(name in messages(err)[0] for name in job.files)


@pytest.mark.parametrize(
    ("fault", "at"),
    [
        ("EDQUOT", "fsync"),
        ("EROFS", "open"),
        pytest.param("ENOSPC", "fsync", marks=pytest.mark.slow),
        pytest.param("EACCES", "open", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(("command", "job"), [case for case in cases(SECONDS_EACH) if case.values[1].files])
def test_what_the_system_refuses(command, job, fault, at, ended, tmp_path):
    """A quota, a file system that is read-only, a folder without the right to write."""
    for name in job.files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(EARLIER)
    status, _, err = ended(command, job, fault=fault, at=at)
    assert (status, len(messages(err))) == (1, 1), err
    assert all((tmp_path / name).read_text() == EARLIER for name in job.files)
    assert not drafts(tmp_path)
    assert any(name in messages(err)[0] for name in (*job.files, *job.before))
    assert os.strerror(getattr(errno, fault)) in messages(err)[0]


@pytest.mark.parametrize("most", [40000, *(pytest.param(most, marks=pytest.mark.slow) for most in (8000, 70000))])
def test_a_disk_that_is_full_when_a_checkpoint_is_written(most, ended, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "epoch=0-step=1.ckpt").write_text(EARLIER)
    status, _, err = ended("fit", Job(f"{TRAIN} {IN_PLACE}"), most=most)
    assert (status, len(messages(err))) == (1, 1), err
    assert "checkpoints/epoch=0-step=1.ckpt' to be a file that can be written" in messages(err)[0]
    assert "--ckpt_path" in messages(err)[0]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["epoch=0-step=1.ckpt"]
    assert (tmp_path / "checkpoints" / "epoch=0-step=1.ckpt").read_text() == EARLIER


@pytest.mark.parametrize(("command", "job"), [case for case in cases(SECONDS_EACH) if case.values[1].files])
def test_a_folder_of_that_name(command, job, ended, tmp_path):
    for name in job.files:
        (tmp_path / name).mkdir(parents=True)
    status, _, err = ended(command, job)
    assert (status, len(messages(err))) == (1, 1), err
    assert not drafts(tmp_path)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("download", "{official} --url {url} --dir taken/new"),
        ("prune", "{here}/lm --sparsity 0.5 --method magnitude --out taken/new"),
        ("simulate", "taken/a.hdf5 --trajectories 1 --resolution 16 --frames 3"),
    ],
)
def test_folders_that_cannot_be_made(command, arguments, ended, tmp_path):
    """As on a file system that is read-only, which root cannot be refused otherwise."""
    (tmp_path / "taken").write_text(EARLIER)
    status, _, err = ended(command, Job(arguments))
    assert (status, len(messages(err))) == (1, 1), err
    assert re.match(
        r"Expected (the folder of OUT|--dir) to be a folder, but 'taken.*' is .*a file\.$", messages(err)[0]
    )


@pytest.mark.parametrize("stdout", ["closed", "full"])
@pytest.mark.parametrize(("command", "job"), cases(SECONDS_EACH))
def test_stdout_that_takes_nothing(command, job, ended, stdout):
    if command == "download":
        job = Job("--list")
    status, _, err = ended(command, job, stdout=stdout)
    if stdout == "closed":
        assert (status in (0, 141), messages(err)) == (True, [])
    else:
        assert (status, len(messages(err))) in ((0, 0), (1, 1)), err
        assert all("stdout" in message for message in messages(err))
