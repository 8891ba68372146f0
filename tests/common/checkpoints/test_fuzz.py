"""Damaged and hostile files: one message that names the file, or the numbers that were saved; soon, and in little."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.common.checkpoints.foreign_mutants import foreign_mutants
from tests.common.checkpoints.mutants import FORMATS, OUTSIDE, mutants

ROOT = Path(__file__).parents[3]
SECONDS = 30
MEMORY = 2**30 + 300 * 2**20  # the default workspace, and what else a process may take
PLAINLY = 2000  # characters of a message


def read_all(folder, found):
    """What came of each file, read one by one in a process that may grow no further than its files make it."""
    (folder / "sound").mkdir()
    sound, _ = FORMATS["zip"](folder / "sound")
    paths = [str(mutant.path) for mutant in found]
    command = [sys.executable, "-m", "tests.common.checkpoints.reading_child", str(sound), *paths]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60 * SECONDS)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(found) + 1, f"{found[len(lines) - 1].name} ended the process: {done.stderr[-2000:]}"
    return lines[0]["peak"], lines[1:]


def faults(mutant, read, before):
    """What is not as it should be."""
    folder = str(mutant.path if mutant.path.is_dir() else mutant.path.parent)
    messages = [*filter(None, [read.get("refused")]), *read.get("unreadable", [])]
    own = (folder, sys.prefix, sys.base_prefix, str(ROOT / "lightning_farms"), "/proc", "/sys", "/dev/null")
    outside = [path for path in read["opened"] if path.startswith("/") and not path.startswith(own)]
    found = {
        "it crashed": "crash" in read,
        f"it took {read['seconds']:.0f} s": read["seconds"] > SECONDS,
        f"it took {(read['peak'] - before) >> 20} MiB": read["peak"] - before > MEMORY,
        "other numbers in silence": mutant.told and bool(read.get("other")),
        f"{outside} opened": bool(outside),
        "a message without the file": any(Path(folder).name not in message for message in messages),
        "a message of pages": any(len(message) > PLAINLY for message in messages),
        f"exit status {read.get('status')}": read.get("status", 1) not in (0, 1),
        "no message": read.get("status") == 1 and "error: " not in read["said"],
        "a traceback": "Traceback" in read.get("said", ""),
    }
    return [fault for fault, is_so in found.items() if is_so]


@pytest.mark.parametrize(
    ("count", "heavy"),
    [pytest.param(60, False, id="60"), pytest.param(300, True, id="300", marks=pytest.mark.slow)],
)
def test_damaged_and_hostile_files(tmp_path, count, heavy):
    found = list(mutants(tmp_path, count, seed=count, heavy=heavy))
    before, lines = read_all(tmp_path, found)
    wrong = {mutant.name: faults(mutant, read, before) for mutant, read in zip(found, lines, strict=True)}
    assert {name: what for name, what in wrong.items() if what} == {}
    refused = [read for read in lines if "refused" in read]
    assert len(refused) > count // 3  # or nothing would have been tried


@pytest.mark.parametrize(("count", "seed"), [(30, 1), pytest.param(400, 2, marks=pytest.mark.slow)])
def test_damaged_and_hostile_files_of_other_programs(tmp_path, count, seed):
    torch.save({"net.0.weight": torch.full((24, 16), OUTSIDE)}, tmp_path / "outside.bin")
    found = list(foreign_mutants(tmp_path, count, seed))
    before, lines = read_all(tmp_path, found)
    wrong = {mutant.name: faults(mutant, read, before) for mutant, read in zip(found, lines, strict=True)}
    assert {name: what for name, what in wrong.items() if what} == {}
    assert sum("refused" in read or bool(read.get("unreadable")) for read in lines) > count // 3
